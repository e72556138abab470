"""Everything that a training needs, built and checked before anything is written."""

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from taet import models
from taet.attacks.ball import frozen
from taet.attacks.counted import training_arithmetic
from taet.attacks.inputs import PROBABILITIES, distributions
from taet.data import DataFacts, Dataset, Split, load
from taet.data.extra import read_extra
from taet.data.loader import Loader
from taet.distributed import copy_first, gather, in_turn, on_first, rank, world_size
from taet.errors import UserError
from taet.files import Json, file_sha256
from taet.models import Adapter, Classifier
from taet.models.classifier import guard_layout
from taet.models.sync_norm import synchronised
from taet.models.tuning import select, trained
from taet.models.view import View, make_view
from taet.models.weights import OF_RUN, local, weights_file
from taet.progress import Progress, reporting_to
from taet.settings import Run, from_json, override
from taet.training.curve import TrainingCurve
from taet.training.environment import bf16_instructions, environment, resolve_device
from taet.training.folder import SCHEMA, RunFolder
from taet.training.pace import LONG_LOOK_SECONDS, idle_threads, seconds_of, using
from taet.training.record import RunRecord, code_of
from taet.training.resolve import Resolved, complete, resolve
from taet.training.state import State, build_optimizer, weight_average
from taet.training.step import training_step


@dataclass(frozen=True)
class TrainingPlan:
    """What a training works with and does not change."""

    resolved: Resolved
    dataset: Dataset
    extra: Split | None
    loader: Loader
    curve: TrainingCurve
    device: torch.device
    choices: dict[str, tuple[object, str]]
    """Settings that were chosen here, by dotted name, each with the reason."""
    model_given: bool
    arrays: bool

    @property
    def run(self) -> Run:
        return self.resolved.run

    def passes(self, stage: str) -> int:
        """Return the passes of an image through the network in a step; a backward pass to the weights counts as two."""
        steps = 1 if self.resolved.method.single_step else self.run.threat.steps
        return 3 + (0 if stage == "clean" else 2 * steps)

    @property
    def threads(self) -> int:
        return self.run.training.threads or torch.get_num_threads()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the images of every split, and of the extra images."""
        extra = {} if self.extra is None else {"extra": self.extra}
        return {name: split.sha256 for name, split in (*self.dataset.splits.items(), *extra.items())}

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Set threads, precision and synchronisation for the run; restore the caller's state and seeds afterwards."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        every_gpu = range(torch.cuda.device_count())  # manual_seed reaches every device
        seeds, arithmetic = torch.random.fork_rng(every_gpu), training_arithmetic(self.device.type)
        with using(self.threads), seeds, synchronised(), arithmetic:
            yield


def prepare(
    run: Run,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    begun: bool = False,
) -> tuple[TrainingPlan, State]:
    """Return the plan of a run and its state before the first step; a run that cannot be trained raises a UserError.

    `model` and `dataset` replace those named by the run. With `begun` the weights will be restored, so the file of
    pretrained weights is not read again.
    """
    arrays, device = dataset is not None, resolve_device(run.training.device)
    if run.training.batch_size < world_size():
        got = f"got {run.training.batch_size} for {world_size()} processes"
        raise UserError(f"batch size: {got}; allowed: {world_size()} or more, an image for each")
    with reporting_to(progress if rank() == 0 else None):
        loaded = dataset if dataset is not None else in_turn(lambda: load(run.data))
        resolve_run = functools.partial(resolve, run, DataFacts.of(loaded.splits, loaded.image_shape))
        resolved, extra = resolve_run(), None
        if resolved.mixture is not None:
            extra = in_turn(lambda: read_extra(resolved.run.data, loaded))
            resolved = resolve_run(extra_counts=extra.class_counts.tolist())
    choices = dict[str, tuple[object, str]]()
    if run.training.precision == "auto":
        fast = on_first(lambda: bf16_instructions(device))
        precision = ("bf16", f"instructions for it: {fast}") if fast else ("float32", "no instructions for bf16")
        choices["training.precision"] = precision
    if run.training.threads is None and device.type == "cpu":
        threads, busy = on_first(lambda: idle_threads(LONG_LOOK_SECONDS))
        choices |= {"training.threads": (threads, busy)} if busy else {}
    if run.training.compile and (device.type != "cuda" or run.threat.bn_mode == "train"):
        choices["training.compile"] = (False, "only on a GPU, and for attacks in eval mode")
    resolved = replace(resolved, run=override(resolved.run, {name: value for name, (value, _) in choices.items()}))
    run, method, training = resolved.run, resolved.method.to(device), resolved.run.training
    loader = Loader(
        loaded.train,
        training,
        seed=run.seed,
        mirror=loaded.mirror,
        device=device,
        part=rank(),
        parts=world_size(),
        extra=extra,
        mixture=resolved.mixture,
    )
    network = build_model(resolved, loaded, model, device, begun=begun)
    curve = TrainingCurve(resolved, loaded.splits[resolved.split], device)
    plan = TrainingPlan(resolved, loaded, extra, loader, curve, device, choices, model is not None, arrays)
    if world_size() > 1 and device.index is not None:
        raise UserError(f"device: got {device} for {world_size()} processes; allowed: auto, cuda or cpu")
    if len(set(gather(tuple(plan.hashes.values())))) > 1:
        raise UserError("data: got other images in one process than in another; allowed: the same in all")
    copy_first(network.state_dict().values())  # processes may have different initial weights
    average = weight_average(network, training, training.epochs * len(loader), method.average_decay)
    return plan, State(network, method, build_optimizer(network, training), run, average, _view(run, network, loaded))


def _view(run: Run, model: nn.Module, dataset: Dataset) -> View | None:
    dtype = torch.bfloat16 if run.training.precision == "bf16" else None
    view = None if run.threat.bn_mode == "train" else make_view(model, dataset.image_shape, dtype)
    if view is not None and run.training.compile:
        view.compile()
    return view


def build_model(
    resolved: Resolved, dataset: Dataset, given: nn.Module | None, device: torch.device, *, begun: bool
) -> Classifier | Adapter:
    """Return the network on `device`, with pretrained weights unless `begun`: the run's own, or a copy of `given`."""
    run, chosen, shape = resolved.run, resolved.run.model, (dataset.num_classes, dataset.image_shape)
    if given is None:
        head, weights = resolved.method.task.head, None if begun else chosen.weights
        model = models.build(chosen.name, *shape, seed=run.seed, head=head, stem=chosen.stem, weights=weights)
        # A custom callable handles the normalisation of images in [0, 1] itself.
        if isinstance(model, Classifier) and chosen.normalize == "data" and not models.is_own(chosen.name):
            model.normalize_by(*dataset.train.channel_statistics())
    else:
        given = copy.deepcopy(given)  # the caller's network stays as it is, for the next run
        with frozen(given.to(device)):
            zeros = torch.zeros(2, *dataset.image_shape, device=device)
            if bool(distributions(models.check_logits(given, zeros, dataset.num_classes)).all()):
                raise UserError(f"model: got {PROBABILITIES}")
        model = models.adapted(given, dataset.num_classes)
    complete(model, resolved, fresh=given is None and chosen.weights is None and not begun)
    if given is not None and chosen.weights is not None and not begun:
        raise UserError(f"model weights: got {chosen.weights} and a network from memory; allowed: one of them")
    if chosen.tune != "all":  # with all, the network's author decides
        select(model, chosen.tune, keep_statistics=chosen.keep_statistics)
    model.notes += () if begun else _tuning_notes(model, run)
    model.to(device)
    if run.training.channels_last:
        model.to(memory_format=torch.channels_last)
        model.notes += guard_layout(model, resolved.method)
    return model


def _tuning_notes(model: nn.Module, run: Run) -> tuple[str, ...]:
    """Return notes on the part that is trained, and a warning if that cannot make a clean network robust."""
    tune, weights = run.model.tune, run.model.weights or ""
    if tune == "all":
        return ()
    count, total = (sum(value.numel() for value in trained(model, part).values()) for part in (tune, "all"))
    folder = RunFolder(local(weights.removeprefix(OF_RUN)))
    method = folder.is_run and folder.record.run.method
    maybe = "" if method else ", as this one may be,"
    why = f"training a small part of a network that was trained without attacks{maybe} does not make it robust"
    risk = f"{why} (arXiv:2312.05716); or --model.tune all"
    return (f"trained: {tune}, {count:,} of {total:,} parameters", *((risk,) if method in (False, "standard") else ()))


def expected_seconds(plan: TrainingPlan, state: State) -> float:
    """Return the estimated duration of the whole run, from a few steps of every stage, timed on copies.

    The curve is assumed to take the time per pass of the fastest stage.
    """
    run, stages, per_image = plan.run, state.method.task.stages, dict[str, float]()
    with plan.surroundings(), contextlib.closing(plan.loader.epoch(0)) as batches:
        batch, place = next(batches), plan.loader.place(0)
        for stage in dict.fromkeys(stages):
            model, method = copy.deepcopy((state.model, state.method))
            view = _view(override(run, {"training.compile": False}), model, plan.dataset)  # compiling takes a minute
            trial = replace(state, model=model, method=method, view=view, epoch=stages.index(stage), step=0)
            trial.optimizer = build_optimizer(model, run.training)
            trial.begin_epoch()
            trial.step = 1  # the first step of LAS-AT also trains its strategy, as only every 20th does
            step = functools.partial(training_step, trial, batch, trial.attack(place, "expected", trial.epoch, 0))
            per_image[stage] = seconds_of(step, plan.device) / place[1]
    per_pass = min(seconds / plan.passes(stage) for stage, seconds in per_image.items())
    watched = len(plan.curve.epochs) * len(plan.curve.split) * (2.0 + 2 * run.training.monitor_steps)
    return plan.loader.bounds[-1][1] * sum(per_image[stage] for stage in stages) + watched * per_pass


def describe(plan: TrainingPlan, state: State, command: str) -> RunRecord:
    """Return the content of run.json; `command` is the call that started the run."""
    run, method, dataset, weights = plan.run, state.method, plan.dataset, plan.run.model.weights
    tuned = [f"tuned: {run.training.tuned} trials"] if run.training.tuned else []
    extra, mixed = _describe_extra(plan)
    values = {
        "schema": SCHEMA,
        "run": run.model_dump(),
        "method_title": method.title,
        "reference": method.reference,
        "deviations": (*method.deviations, *tuned, *mixed),
        "selection": {"rule": run.training.selection, "split": plan.resolved.split},
        "data": {
            **dataset.about(),
            "class_names": dataset.class_names,
            "image_shape": dataset.image_shape,
            "resized": dataset.resized,
            "arrays": plan.arrays,
            "splits": dataset.manifest(),
            "fingerprints": dataset.train.fingerprints.tobytes().hex(),
            "extra": extra,
        },
        "model_given": plan.model_given,
        "head": method.task.head,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "trained_parameters": sum(value.numel() for value in trained(state.model, run.model.tune).values()),
        "model_notes": state.model.notes,
        "pretrained_sha256": None if weights is None else file_sha256(weights_file(Path(weights))),
        "code": code_of(run),
        "threads": plan.threads,
        "processes": world_size(),
        **environment(plan.device),
        "command": command,
    }
    return from_json(RunRecord, values)


def _describe_extra(plan: TrainingPlan) -> tuple[Json | None, list[str]]:
    mixture, source = plan.resolved.mixture, plan.run.data.extra_source or ""
    if plan.extra is None or mixture is None:
        return None, []
    share = f"extra images, {mixture.extra} of {mixture.batch} in every batch"
    return {
        "source": source,
        "sha256": plan.extra.sha256,
        "class_counts": plan.extra.class_counts.tolist(),
        "per_batch": mixture.extra,
        "batch_size": mixture.batch,
        "draw": mixture.draw,
        "exposure": mixture.exposure,
        "test_sha256": (plan.dataset.whole_test or plan.dataset.test).sha256,
    }, [f"{share}: {source.strip().rstrip('.')}"]
