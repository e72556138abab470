"""Whether the network that is attacked is compiled: where that repays its seconds, and works."""

import contextlib
import time
import warnings
from dataclasses import replace
from typing import NamedTuple

from taet.attacks.ball import frozen
from taet.distributed import any_rank, run_on_rank_zero
from taet.errors import exception_text, shortened
from taet.formatting import duration
from taet.models.view import View
from taet.training.prepare import TrainingPlan, expected_seconds
from taet.training.state import State

# ResNet-18, PGD-10, batches of 128, on one H200 (performance/results/gpu-smoke-h200.json): 4,132
# images a second plain and 5,674 compiled; compiling and four measurements take 31 s
SAVED_SHARE = 1 - 4132 / 5674
COMPILE_SECONDS = 30.0
# a CUDA graph is warmed up by a first call, recorded by a second, and replayed by a third
TRIALS = 3


class Compilation(NamedTuple):
    """Whether the attacked network is compiled, and why."""

    compiled: bool
    reason: str


def choose_compilation(asked: bool | None, device_type: str, plain_seconds: float) -> Compilation:
    """Return whether to compile: as `asked`, else on a GPU, for a run whose seconds repay it.

    A CPU gains nothing by it: ResNet-8, batches of 64, two attack steps, bf16, one thread of an
    AMD EPYC with AVX-512: 0.89 to 1.03 times as fast, in three rounds.
    """
    if asked is not None:
        return Compilation(asked, "asked for")
    if device_type != "cuda":
        return Compilation(False, "no gain on a CPU")
    saved = SAVED_SHARE * plain_seconds
    reason = f"takes {duration(COMPILE_SECONDS)}, saves {duration(saved)}"
    return Compilation(saved > COMPILE_SECONDS, reason)


def with_compiled_view(plan: TrainingPlan, state: State) -> TrainingPlan:
    """Compile the attacked network of `state` if the run asks for it, or if a GPU repays it.

    Return the plan with this choice and its reason. A network that does not compile stays as it
    is. On a CPU, which compiles only where it is asked to, there is no choice.
    """
    asked, device_type = plan.run.training.compile, plan.device.type
    if asked is False or (asked is None and device_type == "cpu"):
        return plan
    if state.view is None or not _attacked_epochs(state):
        choice = Compilation(False, "no attack on a view of the model in eval mode")
    else:
        # all processes time the steps, the first one decides
        seconds = expected_seconds(plan, state) if asked is None else 0.0
        choice = run_on_rank_zero(lambda: choose_compilation(asked, device_type, seconds))
        if choice.compiled:
            choice = _tried(plan, state, state.view, choice.reason)
    return replace(plan, choices={**plan.choices, "training.compile": (*choice,)})


def _attacked_epochs(state: State) -> list[int]:
    """Return the epochs of the run, from 0, whose stage has an attack."""
    return [epoch for epoch, stage in enumerate(state.method.task.stages) if stage != "clean"]


def _tried(plan: TrainingPlan, state: State, view: View, reason: str) -> Compilation:
    """Compile the view for `reason`; if that fails in any process, all stay plain."""
    begun = time.monotonic()
    failure = _failure(plan, state, view)
    failed_somewhere = any_rank(bool(failure))
    if any(failed_somewhere):
        view.stop_compiling()
        return Compilation(False, f"compiling failed: {failure or 'in another process'}")
    return Compilation(True, f"{reason}; compiled in {time.monotonic() - begun:.0f} s")


def _failure(plan: TrainingPlan, state: State, view: View) -> str:
    """Compile the view and attack it in the first batch as in training; return the error, "" if
    there is none."""
    method, loader = state.method, plan.loader
    try:
        view.compile(max(own.stop - own.start for own in loader.slices))
        with (
            warnings.catch_warnings(action="ignore"),  # of the compiler, about itself
            plan.surroundings(),
            contextlib.closing(loader.epoch(0)) as batches,
        ):
            _, x, y = next(batches)
            for epoch in _attacked_epochs(state)[:1] * TRIALS:
                method.enter(epoch)
                attack = state.attack(loader.shard(0), "compile")
                with frozen(view.module), state.autocast():
                    method.perturb(view.module, x, y, attack)
    except Exception as error:  # a compiler may refuse a network for any reason
        return shortened(exception_text(error))
    finally:
        method.enter(state.epoch)
    return ""
