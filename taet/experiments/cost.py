"""What training costs, measured: the parts of the TAET paper's cost model, its memory, and every method beside AT."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from taet import methods, models, registry
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.attacks.progress import Progress
from taet.config import Threat, Training
from taet.data.loader import Batch
from taet.data.long_tail import long_tail_counts
from taet.errors import UserError
from taet.experiments.cost_model import CostModel, image_megabytes, xi
from taet.experiments.memory import held_bytes, peak_bytes
from taet.losses import cross_entropy
from taet.methods import Attack, Method, Task
from taet.methods.base import Adversarial
from taet.models import Classifier
from taet.models.view import make_view
from taet.training.environment import environment, resolve_device
from taet.training.optimizer import build_optimizer
from taet.training.step import training_step

CYCLE = 20  # steps after which the rarest event of a step, LAS-AT's strategy update, comes again (CVPR 2022, its code)
TOTAL, RATIO = 50_000, 10.0  # images and imbalance ratio of CIFAR-10-LT and CIFAR-100-LT before and after the cut
REPEATS = 5  # of what is short, a pass or a clean step, so that the clock's grain and one interruption say little
SAID = ("batch_size", "precision", "steps", "epochs", "clean_epochs", "rounds")  # of how it was measured
LR = 1e-3  # keeps the weights finite on labels that say nothing


@dataclass(frozen=True)
class Subject:
    """What is trained, as far as its cost depends on it: the images are random."""

    model: str = "resnet8"
    """A model's name, as `taet.models.build` takes it."""
    image_shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height, width."""
    class_counts: tuple[int, ...] = tuple(long_tail_counts(10, TOTAL // 10, RATIO))
    """Training images of every class; their sum is an epoch."""

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1:
            raise UserError(f"image shape: got {self.image_shape}; allowed: channels, height, width, each 1 or more")


@dataclass(frozen=True)
class Timing:
    """How it is trained and how often it is measured."""

    batch_size: int = Training.batch_size
    """Images per step."""
    precision: typing.Literal["bf16", "float32"] = Training.precision
    """Arithmetic of training under autocast."""
    steps: int = Threat.steps
    """PGD steps of the attack in training: kappa."""
    curve: tuple[int, ...] = (5, 10, 20, 30, 40)
    """Other numbers of PGD steps whose epoch is timed."""
    epochs: int = Training.epochs
    """Epochs of a run."""
    clean_epochs: int = 40
    """Those of them that TAET trains on clean images: T_ce."""
    rounds: int = 5
    """Times that everything is measured; ratios are taken within a round."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads. Not given: torch's choice."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "epochs", "rounds"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")
        _require(all(steps >= 1 for steps in self.curve), "curve", self.curve, "numbers of steps, each 1 or more")
        within = 0 <= self.clean_epochs <= self.epochs
        _require(within, "clean epochs", self.clean_epochs, f"0 to {self.epochs}, the epochs")

    @property
    def clean_share(self) -> float:
        """T_ce over the epochs."""
        return self.clean_epochs / self.epochs


def _require(condition: bool, name: str, got: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"{name.replace('_', ' ')}: got {got}; allowed: {allowed}")


@dataclass(frozen=True)
class Cost:
    """Mean cost of a method's training step over a whole run."""

    name: str
    settings: Mapping[str, Any]
    forwards: float
    """Forward passes of the classifier per image of a batch."""
    backwards: float
    """Backward passes, likewise."""
    passes_ratio: float
    """Both, over those of PGD adversarial training: kappa + 1 each."""
    seconds_ratio: float
    """Median over rounds of the seconds over those of PGD adversarial training in the same round."""
    spread: tuple[float, float]
    """Least and largest such ratio."""
    epoch_seconds: float
    """Median over rounds, of an epoch of training steps."""


def everything() -> list[tuple[str, dict[str, Any]]]:
    """Every method with its defaults, and with each other value of its knob `variant`."""
    pairs: list[tuple[str, dict[str, Any]]] = []
    for name in registry.entries("methods"):
        hints = typing.get_type_hints(methods.find(name).Config)
        default, *others = typing.get_args(hints.get("variant")) or (None,)
        pairs += [(name, {}), *((name, {"variant": other}) for other in others if default is not None)]
    return pairs


# --- one method -------------------------------------------------------------------------------------------------------


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the images that pass through the network and through its copies, forwards and backwards."""
    body = model.body if isinstance(model, Classifier) else model.get_submodule("network")
    count = {"forwards": 0, "backwards": 0}

    def backward(gradient: Tensor) -> None:
        count["backwards"] += len(gradient)

    # A plain function, which a copy of the network shares.
    def forward(_: nn.Module, __: object, output: Tensor) -> None:
        count["forwards"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]

    handle = body.register_forward_hook(forward)
    try:
        yield count
    finally:
        handle.remove()


class _Bench:
    """One method with a network, optimiser and view to attack of its own, as a run has them."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], subject: Subject, timing: Timing, device: torch.device
    ) -> None:
        self.subject, self.timing, self.device = subject, timing, device
        milestones = tuple(round(share * timing.epochs) for share in Training.milestones)
        task = Task(
            subject.class_counts,
            subject.image_shape,
            epochs=timing.epochs,
            steps_per_epoch=CYCLE,
            milestones=milestones,
        )
        self.method: Method = methods.build(name, settings, task).to(device)
        shape, head = subject.image_shape, self.method.head()
        self.model = models.build(subject.model, len(subject.class_counts), shape, head=head).to(device)
        self.model.to(memory_format=torch.channels_last)
        if self.method.uses_features and not isinstance(self.model, Classifier):
            raise UserError(f"methods: {name} reads the features of a network, and {subject.model} gives none")
        self.optimizer = build_optimizer(self.model, Training(lr=LR))
        self.view = make_view(self.model, shape, torch.bfloat16 if timing.precision == "bf16" else None)
        stages = [self.method.stage_at(epoch) for epoch in range(timing.epochs)]
        self.stages = [(stages.index(stage), stages.count(stage) / timing.epochs) for stage in dict.fromkeys(stages)]
        # Where nothing of its own learns between steps, fewer tell as much.
        self.steps = CYCLE if self.method.optimizers else 2
        self.attacked = self.model if self.view is None else self.view.module
        self.draw = torch.Generator(device).manual_seed(0)
        self._enter(0)

    def _enter(self, epoch: int) -> None:
        self.method.enter(epoch)
        self.method.start_epoch(epoch, self.method.class_counts)

    def attack(self, steps: int | None = None) -> Attack:
        """The protocol's attack, of kappa steps or of `steps`."""
        return Attack(Threat(steps=self.timing.steps if steps is None else steps), Source(self.draw))

    def autocast(self) -> torch.autocast:
        """The precision of training."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.timing.precision == "bf16")

    def step(self, batch: Batch, number: int = 0, *, steps: int | None = None, plain: bool = False) -> None:
        """One training step as runs make it; `plain`: its attack on the model itself, where passes can be counted.

        It is never replayed from a CUDA graph: the parts of a step, which are timed one by one, are not either.
        """
        training_step(
            self.model,
            self.method,
            self.optimizer,
            batch,
            self.attack(steps),
            autocast=self.timing.precision == "bf16",
            number=number,
            view=None if plain else self.view,
        )

    def tensors(self) -> Iterator[Tensor]:
        """What is held between steps, gradients apart."""
        for module in (self.model, self.attacked, self.method):
            yield from module.parameters()
            yield from module.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def run(self, batch: Batch, plain: bool = False) -> Iterator[float]:
        """Run the steps of each stage; yield the share of the run that each has, when it is over."""
        for epoch, share in self.stages:
            self._enter(epoch)
            for number in range(self.steps):
                self.step(batch, number, plain=plain)
            yield share

    def passes(self) -> tuple[float, float]:
        """Forward and backward passes per image and step."""
        totals, size = [0.0, 0.0], 2
        batch = _batch(size, self.subject, self.device)
        with _counted(self.model) as count:
            for share in self.run(batch, plain=True):
                for place, name in enumerate(("forwards", "backwards")):
                    totals[place] += share * count[name] / (size * self.steps)
                    count[name] = 0
        return totals[0], totals[1]

    def seconds(self, batch: Batch) -> float:
        """Seconds per step, mean over a run."""
        total = 0.0
        mark = self._now()
        for share in self.run(batch):
            now = self._now()
            total, mark = total + share * (now - mark) / self.steps, now
        return total

    def timed(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one call of `work`."""
        begun = self._now()
        for _ in range(repeats):
            work()
        return (self._now() - begun) / repeats

    def _now(self) -> float:
        """Seconds on a clock, when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _batch(size: int, subject: Subject, device: torch.device) -> Batch:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(size, *subject.image_shape, generator=draw).to(device)
    y = torch.randint(len(subject.class_counts), (size,), generator=draw).to(device)
    return Batch(torch.arange(size, device=device), x.contiguous(memory_format=torch.channels_last), y)


# --- the parts of the cost model --------------------------------------------------------------------------------------


class _Round(NamedTuple):
    """Seconds of a batch."""

    forward: float
    """F: a forward pass in train mode, with the loss."""
    clean: float
    """F + B: a training step on clean images, with its update."""
    attack_forward: float
    """F': a forward pass as the attack makes it."""
    attack_step: float
    """F' + B_adv: a step of the attack, with sign and projection."""
    adversarial: float
    """A step of PGD adversarial training."""
    two_stage: float
    """A step of TAET, mean over both stages."""
    curve: Mapping[int, float]
    """A step of adversarial training, by steps of its attack."""


class _Parts:
    """Clean training, adversarial training and TAET, of which the parts of the cost model are measured."""

    def __init__(self, build: Callable[[str, Mapping[str, Any]], _Bench], timing: Timing, batch: Batch) -> None:
        self.clean, self.adversarial = build("standard", {}), build("at", {})
        self.two_stage = build("taet", {"clean_share": timing.clean_share})
        self.timing, self.batch = timing, batch

    def forward(self) -> None:
        """F."""
        bench, (_, x, y) = self.clean, self.batch
        bench.model.train()
        with bench.autocast():
            bench.method.loss(bench.model, x, y, Adversarial(x))

    def attack_forward(self) -> None:
        """F'."""
        bench, (_, x, y) = self.adversarial, self.batch
        with frozen(bench.attacked), bench.autocast():
            cross_entropy(bench.attacked(x.detach().requires_grad_()), y)

    def attack(self) -> None:
        """kappa (F' + B_adv)."""
        bench, (_, x, y) = self.adversarial, self.batch
        with frozen(bench.attacked), bench.autocast():
            bench.attack()(bench.attacked, x, y)

    def round(self) -> _Round:
        """Measure everything once; what is compared follows one upon the other."""
        clean, adversarial, batch = self.clean, self.adversarial, self.batch
        return _Round(
            clean.timed(self.forward, REPEATS),
            clean.timed(lambda: clean.step(batch), REPEATS),
            adversarial.timed(self.attack_forward, REPEATS),
            adversarial.timed(self.attack) / self.timing.steps,
            adversarial.seconds(batch),
            self.two_stage.seconds(batch),
            {n: adversarial.timed(functools.partial(adversarial.step, batch, steps=n)) for n in self.timing.curve},
        )

    def memory(self) -> dict[str, Any]:
        """Peak memory of a clean and of an adversarial step in 10^6 bytes, M_delta and xi."""
        held, clean = self._peak(self.clean)
        _, adversarial = self._peak(self.adversarial)
        return {
            "held_mb": round(held, 2),
            "clean_mb": round(clean, 2),
            "adversarial_mb": round(adversarial, 2),
            "extra_mb": round(adversarial - clean, 2),
            "xi_mb": round(xi(self.timing.clean_share, adversarial - clean), 2),
            "images_mb": round(image_megabytes(tuple(self.batch.x.shape)), 2),
        }

    def _peak(self, bench: _Bench) -> tuple[float, float]:
        """What weights, optimiser, view and batch hold between steps, and the peak, in 10^6 bytes."""
        bench.step(self.batch)  # so that the optimiser has its state
        bench.optimizer.zero_grad(set_to_none=True)
        held = [*bench.tensors(), *self.batch]

        def twice() -> None:  # the gradients of the first step are there while the second begins, as in a run
            bench.step(self.batch)
            bench.step(self.batch)

        return held_bytes(held) / 1e6, peak_bytes(twice, held, bench.device) / 1e6


def _method_costs(
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    build: Callable[[str, Mapping[str, Any]], _Bench],
    parts: _Parts,
    epoch_steps: int,
    progress: Callable[[str], None],
) -> Iterator[Cost]:
    """Passes and seconds of every method, each right before PGD adversarial training."""
    base, batch = parts.adversarial, parts.batch
    unit = sum(base.passes())
    for name, settings in wanted:
        progress(name)
        is_base = name == "at" and not settings
        bench = base if is_base else build(name, settings)
        forwards, backwards = bench.passes()
        bench.seconds(batch)  # once for the caches
        pairs = [(bench.seconds(batch), base.seconds(batch)) for _ in range(base.timing.rounds)]
        ratios = [1.0 if is_base else seconds / unit_seconds for seconds, unit_seconds in pairs]
        yield Cost(
            name,
            dict(settings),
            round(forwards, 2),
            round(backwards, 2),
            round((forwards + backwards) / unit, 3),
            round(statistics.median(ratios), 3),
            (round(min(ratios), 3), round(max(ratios), 3)),
            _short(epoch_steps * statistics.median(seconds for seconds, _ in pairs)),
        )


def _model_costs(parts: _Parts, rounds: Sequence[_Round], epoch_steps: int) -> dict[str, Any]:
    """What the rounds say: parts in seconds of a batch, and ratios within rounds."""
    timing = parts.timing
    share, found = timing.clean_share, [CostModel(one.attack_step / one.clean, timing.steps) for one in rounds]
    measured = [one.two_stage / one.adversarial for one in rounds]
    table = sorted({*range(0, timing.epochs + 1, max(timing.epochs // 10, 1)), timing.clean_epochs})
    return {
        "model": {
            "forward": _spread(one.forward for one in rounds),
            "backward": _spread(one.clean - one.forward for one in rounds),
            "attack_forward": _spread(one.attack_forward for one in rounds),
            "attack_backward": _spread(one.attack_step - one.attack_forward for one in rounds),
            "gamma": _spread(model.gamma for model in found),
            "rho": _spread(model.rho for model in found),
            "eta": _spread(model.eta(share) for model in found),
            "printed_eta": _spread(model.printed_eta(share) for model in found),
        },
        "measured_eta": _spread(measured),
        "predicted_over_measured": _spread(model.eta(share) / eta for model, eta in zip(found, measured, strict=True)),
        "by_clean_epochs": [
            {"clean_epochs": epochs, "eta": _spread(model.eta(epochs / timing.epochs) for model in found)}
            for epochs in table
        ],
        "curve": [
            {
                "steps": steps,
                "epoch_seconds": _spread(epoch_steps * one.curve[steps] for one in rounds),
                "ratio": _spread(one.curve[steps] / one.adversarial for one in rounds),
                "predicted_over_measured": _spread(
                    (one.clean + steps * one.attack_step) / one.curve[steps] for one in rounds
                ),
            }
            for steps in timing.curve
        ],
        "memory": parts.memory(),
    }


def _short(value: float) -> float:
    """Four figures: no clock is that exact."""
    return float(f"{value:.4g}")


def _spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, least and largest."""
    found = sorted(values)
    return {"median": _short(statistics.median(found)), "spread": [_short(found[0]), _short(found[-1])]}


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    subject: Subject | None = None,
    timing: Timing | None = None,
    wanted: Sequence[tuple[str, Mapping[str, Any]]] = (),
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the cost model, memory and, given as (name, knobs), methods: training steps as runs make them.

    Images are random and lie on the device, so an epoch is its training steps, without data loading and evaluation.
    Passes are counted on the plain model, of which a view stands in for the attack otherwise. Seconds are taken
    `rounds` times in this process, those of a ratio one after the other, after one round for the caches, and on a GPU
    without CUDA graphs; a measured number is {"median", "spread": [least, largest]} over rounds.

    Returns:
        {"network", "image_shape", "classes", "images", "batch_size", "precision", "steps", "epochs", "clean_epochs",
        "rounds", "threads": how; "model": F, B, F' and B_adv in seconds of a batch, gamma, rho, eta of `CostModel`;
        "measured_eta": TAET beside adversarial training; "predicted_over_measured": of the two eta;
        "by_clean_epochs": eta for other T_ce; "curve": epochs by steps of the attack; "memory", in 10^6 bytes;
        "costs": of every method; "environment", "load"}.

    Raises:
        UserError: an unknown model, method or device; images that the model cannot take.
    """
    subject, timing = subject or Subject(), timing or Timing()
    device = resolve_device(timing.device)
    done, total = 0, timing.rounds + 1 + len(wanted)

    def report(text: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, text)
        done += 1

    def build(name: str, settings: Mapping[str, Any]) -> _Bench:
        return _Bench(name, settings, subject, timing, device)

    with _threads(timing.threads):
        images = sum(subject.class_counts)
        epoch_steps = math.ceil(images / timing.batch_size)
        parts, rounds = _Parts(build, timing, _batch(timing.batch_size, subject, device)), []
        for number in range(timing.rounds + 1):
            report(f"round {number} of {timing.rounds}" if number else "first round, for the caches")
            rounds.append(parts.round())
        found = {
            "network": subject.model,
            "image_shape": list(subject.image_shape),
            "classes": len(subject.class_counts),
            "images": images,
            **{name: getattr(timing, name) for name in SAID},
            "threads": torch.get_num_threads(),
            **_model_costs(parts, rounds[1:], epoch_steps),
            "costs": [dataclasses.asdict(cost) for cost in _method_costs(wanted, build, parts, epoch_steps, report)],
            "environment": environment(device),
            "load": os.getloadavg(),
        }
    report("done")
    return found
