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
from taet.attacks.arithmetic import training_arithmetic
from taet.attacks.ball import frozen
from taet.attacks.inputs import PROBABILITIES, distributions
from taet.data import DataFacts, Dataset, Split, load
from taet.data.extra import read_extra
from taet.data.loader import Batch, Loader
from taet.distributed import (
    broadcast_from_rank_zero,
    gather,
    rank,
    rank_zero_first,
    run_on_rank_zero,
    world_size,
)
from taet.errors import UserError
from taet.files import Json, file_sha256
from taet.machine import (
    LONG_LOOK_SECONDS,
    bf16_instructions,
    environment,
    idle_threads,
    resolve_device,
    seconds_of,
    using,
)
from taet.models import Adapter, Classifier
from taet.models.classifier import adapted, guard_layout, lay_out, part_for_images
from taet.models.foreign import check_logits
from taet.models.normalization import parse_normalization
from taet.models.sync_norm import synchronised
from taet.models.trust import is_own
from taet.models.tuning import select, trained
from taet.models.view import View, make_view
from taet.models.weight_files.location import OF_RUN, download_or_path, weights_file
from taet.network import check_image_gradient, check_training, computed_tensors, copy_of
from taet.progress import Progress, reporting_to
from taet.randomness import seeded
from taet.run.folder import SCHEMA, RunFolder
from taet.run.identity import code_of
from taet.run.record import RunRecord
from taet.settings import Run, override
from taet.settings.schema import from_json
from taet.training.checks import Resolved, complete, resolve
from taet.training.curve import TrainingCurve
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
        """Return the passes of an image through the network in a step.

        A backward pass to the weights counts as two.
        """
        steps = 1 if self.resolved.method.single_step else self.run.threat.steps
        return 3 + (0 if stage == "clean" else 2 * steps)

    @property
    def threads(self) -> int:
        return self.run.training.threads or torch.get_num_threads()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the images of every split, and of the extra images."""
        hashes = {name: split.sha256 for name, split in self.dataset.splits.items()}
        if self.extra is not None:
            hashes["extra"] = self.extra.sha256
        return hashes

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Set threads, precision and synchronisation; restore the caller's and seeds afterwards."""
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
    """Return the plan of a run, and its state before the first step.

    `model` and `dataset` replace those named by the run. With `begun` the weights will be restored,
    so the file of pretrained weights is not read again.

    Raises:
        UserError: the run cannot be trained.
    """
    device = resolve_device(run.training.device)
    if run.training.batch_size < world_size():
        got = f"got {run.training.batch_size} for {world_size()} processes"
        raise UserError(f"batch size: {got}; allowed: {world_size()} or more, an image for each")
    with reporting_to(progress if rank() == 0 else None):
        loaded = dataset if dataset is not None else rank_zero_first(lambda: load(run.data))
        resolved, extra = _resolved_with_extra(run, loaded)
    choices = _choices(run, device)
    values = {name: value for name, (value, _) in choices.items()}
    resolved = replace(resolved, run=override(resolved.run, values))
    run, method = resolved.run, resolved.method.to(device)
    loader = Loader(
        loaded.train,
        run.training,
        seed=run.seed,
        mirror=loaded.mirror,
        device=device,
        rank=rank(),
        world_size=world_size(),
        extra=extra,
        mixture=resolved.mixture,
    )
    network = build_model(resolved, loaded, model, device, begun=begun)
    curve = TrainingCurve(resolved, loaded.splits[resolved.split], device)
    plan = TrainingPlan(
        resolved,
        loaded,
        extra,
        loader,
        curve,
        device,
        choices,
        model_given=model is not None,
        arrays=dataset is not None,
    )
    _check_processes(plan)
    # processes may have different initial weights
    broadcast_from_rank_zero(network.state_dict().values())
    steps = run.training.epochs * len(loader)
    average = weight_average(network, run.training, steps, method.average_decay)
    optimizer = build_optimizer(network, run.training)
    return plan, State(network, method, optimizer, run, average, _view(run, network, loaded))


def _resolved_with_extra(run: Run, dataset: Dataset) -> tuple[Resolved, Split | None]:
    """Return the checked request of a run, and its extra images; None if it has none."""
    facts = DataFacts.of(dataset.splits, dataset.image_shape)
    resolved = resolve(run, facts)
    if resolved.mixture is None:
        return resolved, None
    extra = rank_zero_first(lambda: read_extra(resolved.run.data, dataset))
    return resolve(run, facts, extra_counts=extra.class_counts.tolist()), extra


def _choices(run: Run, device: torch.device) -> dict[str, tuple[object, str]]:
    """Return the settings that depend on the machine, by dotted name, each with the reason."""
    choices: dict[str, tuple[object, str]] = {}
    if run.training.precision == "auto":
        instructions = run_on_rank_zero(lambda: bf16_instructions(device))
        choices["training.precision"] = (
            ("bf16", f"instructions for it: {instructions}")
            if instructions
            else ("float32", "no instructions for bf16")
        )
    if run.training.threads is None and device.type == "cpu":
        threads, busy = run_on_rank_zero(lambda: idle_threads(LONG_LOOK_SECONDS))
        if busy:
            choices["training.threads"] = threads, busy
    return choices


def _check_processes(plan: TrainingPlan) -> None:
    """Raise a `UserError` if several processes share one GPU, or have other images."""
    if world_size() > 1 and plan.device.index is not None:
        raise UserError(
            f"device: got {plan.device} for {world_size()} processes; allowed: auto, cuda or cpu"
        )
    hashes_of_processes = gather(tuple(plan.hashes.values()))
    if len(set(hashes_of_processes)) > 1:
        raise UserError(
            "data: got other images in one process than in another; allowed: the same in all"
        )


def _view(run: Run, model: nn.Module, dataset: Dataset) -> View | None:
    """Return a cheaper equivalent of the network for attacks in eval mode, if there is one."""
    if run.threat.bn_mode == "train":
        return None
    dtype = torch.bfloat16 if run.training.precision == "bf16" else None
    return make_view(model, dataset.image_shape, dtype)


def normalize_images(model: Classifier, normalize: str, dataset: Dataset) -> None:
    """Set the normalisation inside `model`: by the training images, by a name, or MEANS/STDS."""
    if normalize == "data":
        model.normalize_by(*dataset.train.channel_statistics())
        return
    channels = dataset.image_shape[0]
    statistics = parse_normalization(normalize, channels)
    if statistics is None:
        return
    if len(statistics[0]) != channels:
        raise UserError(
            f"model normalize: got '{normalize}' of {len(statistics[0])} channels; allowed: of "
            f"{channels}, as the images have"
        )
    model.normalize_by(*statistics)


def build_model(
    resolved: Resolved,
    dataset: Dataset,
    given: nn.Module | None,
    device: torch.device,
    *,
    begun: bool,
) -> Classifier | Adapter:
    """Return the network on `device`: the run's own, or a copy of `given`.

    It has its pretrained weights unless the run has `begun`.
    """
    run, chosen = resolved.run, resolved.run.model
    weights = None if begun else chosen.weights
    if given is None:
        model = _own_model(resolved, dataset, weights)
    else:
        model = _given_model(given, resolved, dataset, device)
    complete(model, resolved, fresh=given is None and chosen.weights is None and not begun)
    if given is not None and weights is not None:
        raise UserError(
            f"model weights: got {weights} and a network from memory; allowed: one of them"
        )
    if chosen.tune != "all":  # with all, the network's author decides
        select(model, chosen.tune, keep_statistics=chosen.keep_statistics)
    if not begun:
        model.notes += _tuning_notes(model, run)
    model.to(device)
    if given is not None or ":" in chosen.name:
        zeros = torch.zeros(2, *dataset.image_shape, device=device)
        check_training(part_for_images(model), zeros, run.training.precision)
        if any(stage != "clean" for stage in resolved.method.task.stages):
            with frozen(model):
                check_image_gradient(model, zeros)
    if run.training.channels_last:
        model.notes += lay_out(model, dataset.image_shape)
        model.notes += guard_layout(model, resolved.method)
    return model


def _own_model(resolved: Resolved, dataset: Dataset, weights: str | None) -> Classifier | Adapter:
    """Return the network that the run names, normalised as its settings say."""
    run, chosen = resolved.run, resolved.run.model
    model = models.build(
        chosen.name,
        dataset.num_classes,
        dataset.image_shape,
        seed=run.seed,
        head=resolved.method.task.head,
        stem=chosen.stem,
        weights=weights,
    )
    # A custom callable handles the normalisation of images in [0, 1] itself.
    if isinstance(model, Classifier) and not is_own(chosen.name):
        normalize_images(model, chosen.normalize, dataset)
    return model


def _given_model(
    given: nn.Module, resolved: Resolved, dataset: Dataset, device: torch.device
) -> Classifier | Adapter:
    """Return a copy of a network from memory; refuse one that returns probabilities.

    Where the run needs features, or trains a part of the network, its last linear layer is its
    head, as of a network that the run names; else it is used whole.
    """
    network = copy_of(given)
    with frozen(network.to(device)):
        zeros = torch.zeros(2, *dataset.image_shape, device=device)
        outputs = check_logits(network, zeros, dataset.num_classes)
        if bool(distributions(outputs).all()):
            raise UserError(f"model: got {PROBABILITIES}")
    if resolved.method.uses_features or resolved.run.model.tune != "all":
        with seeded(resolved.run.seed, "weights"):
            split = models.split_head(network.train(), dataset.num_classes, dataset.image_shape)
        return split.to(device)
    return adapted(network, dataset.num_classes)


def _tuning_notes(model: nn.Module, run: Run) -> tuple[str, ...]:
    """Return notes on the part that is trained, and a warning if it may not become robust."""
    tune, weights = run.model.tune, run.model.weights or ""
    if tune == "all":
        return ()
    count = sum(value.numel() for value in trained(model, tune).values())
    total = sum(value.numel() for value in trained(model, "all").values())
    part = f"trained: {tune}, {count:,} of {total:,} parameters"
    folder = RunFolder(download_or_path(weights.removeprefix(OF_RUN)))
    method = folder.record.run.method if folder.is_run else None
    if method not in (None, "standard"):
        return (part,)
    maybe = "" if method else ", as this one may be,"
    risk = (
        f"training a small part of a network that was trained without attacks{maybe} does not "
        "make it robust (arXiv:2312.05716); or --model.tune all"
    )
    return part, risk


def expected_seconds(plan: TrainingPlan, state: State) -> float:
    """Return the estimated seconds of the whole run.

    A few steps of every stage are timed on copies. The curve is assumed to take the time per pass
    of the fastest stage.
    """
    run, stages, loader = plan.run, state.method.task.stages, plan.loader
    with plan.surroundings(), contextlib.closing(loader.epoch(0)) as batches:
        batch = next(batches)
        seconds = {
            stage: _seconds_per_image(plan, state, stage, batch) for stage in dict.fromkeys(stages)
        }
    images = loader.bounds[-1][1]
    training = images * sum(seconds[stage] for stage in stages)
    per_pass = min(seconds[stage] / plan.passes(stage) for stage in seconds)
    passes_of_point = len(plan.curve.split) * (2.0 + 2 * run.training.monitor_steps)
    return training + len(plan.curve.epochs) * passes_of_point * per_pass


def _seconds_per_image(plan: TrainingPlan, state: State, stage: str, batch: Batch) -> float:
    """Return the seconds of a step of a stage for each of its images, timed on copies."""
    computed = computed_tensors(state.model) | computed_tensors(state.method)
    model, method = copy.deepcopy((state.model, state.method), computed)
    view = _view(plan.run, model, plan.dataset)
    epoch = state.method.task.stages.index(stage)
    trial = replace(state, model=model, method=method, view=view, epoch=epoch, step=0)
    trial.optimizer = build_optimizer(model, plan.run.training)
    trial.begin_epoch()
    # the first step of LAS-AT also trains its strategy, as only every 20th does
    trial.step = 1
    shard = plan.loader.shard(0)
    attack = trial.attack(shard, "expected", trial.epoch, 0)
    step = functools.partial(training_step, trial, batch, attack)
    return seconds_of(step, plan.device) / shard.total


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
        "trained_parameters": sum(
            value.numel() for value in trained(state.model, run.model.tune).values()
        ),
        "model_notes": state.model.notes,
        "pretrained_sha256": None if weights is None else file_sha256(weights_file(Path(weights))),
        "code": code_of(run),
        "threads": plan.threads,
        "choices": {name: f"{value}: {reason}" for name, (value, reason) in plan.choices.items()},
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
        "exposure": mixture.drawn_class_counts,
        "test_sha256": (plan.dataset.whole_test or plan.dataset.test).sha256,
    }, [f"{share}: {source.strip().rstrip('.')}"]
