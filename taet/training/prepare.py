"""Everything that a training needs, built and checked before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from taet import models
from taet.attacks.ball import frozen
from taet.data import DataFacts, Dataset, load
from taet.data.extra import Extra, read_extra
from taet.data.loader import Loader
from taet.distributed import copy_first, first, gather, in_turn, rank, world_size
from taet.errors import UserError
from taet.fields import plain
from taet.files import file_sha256
from taet.models import Adapter, Classifier, memory_layout
from taet.models.hub import weights_file
from taet.models.sync_norm import normalisations
from taet.models.view import make_view
from taet.progress import Progress, reporting_to
from taet.settings import Run, to_json
from taet.training.averaging import weight_average
from taet.training.checkpoint import SCHEMA
from taet.training.choices import Chosen
from taet.training.curve import TrainingCurve
from taet.training.environment import bf16_instructions, environment, resolve_device
from taet.training.estimate import RunWork, work_of
from taet.training.extra import describe_extra
from taet.training.graphs import Graphs
from taet.training.optimizer import build_optimizer
from taet.training.record import RunRecord
from taet.training.resolve import Resolved, check_needs, resolve
from taet.training.state import State


@dataclass(frozen=True)
class TrainingPlan:
    """What a training works with and does not change."""

    resolved: Resolved
    dataset: Dataset
    extra: Extra | None
    loader: Loader
    curve: TrainingCurve
    device: torch.device
    choices: dict[str, Chosen]
    """Settings that were chosen here."""
    model_given: bool
    arrays: bool
    """Whether the images were passed from memory."""

    @property
    def run(self) -> Run:
        return self.resolved.run

    @property
    def threads(self) -> int:
        return self.run.training.threads or torch.get_num_threads()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the images of every split, and of the extra images."""
        extra = {} if self.extra is None else {"extra": self.extra.split}
        return {name: split.sha256 for name, split in (*self.dataset.splits.items(), *extra.items())}

    @property
    def work(self) -> RunWork:
        """The passes of the run."""
        stages = self.resolved.method.task.stages
        return work_of(self.run, stages, self.loader.per_epoch, self.curve.epochs, len(self.curve.split))


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
    with reporting_to(progress if rank() == 0 else None):
        dataset = dataset if dataset is not None else in_turn(lambda: load(run.data))
        settle = functools.partial(resolve, run, DataFacts.of(dataset), processes=world_size(), arrays=arrays)
        resolved, extra = _with_extra(settle, dataset)
    precision = first(lambda: fastest_precision(device))
    choices = {"training.precision": precision} if run.training.precision == "auto" else {}
    resolved = resolved.at(precision.value if choices else run.training.precision)
    run, method, training = resolved.run, resolved.method.to(device), resolved.run.training
    loader = Loader(
        dataset.train,
        training,
        seed=run.seed,
        mirror=dataset.mirror,
        device=device,
        part=rank(),
        parts=world_size(),
        extra=extra,
        mixture=resolved.mixture,
    )
    network = build_model(resolved, dataset, model, device, begun=begun)
    if training.channels_last:
        network.notes += memory_layout.guard(network, method)
    curve = TrainingCurve(resolved, dataset.splits[resolved.split], device)
    plan = TrainingPlan(resolved, dataset, extra, loader, curve, device, choices, model is not None, arrays)
    _check_processes(plan, network)
    copy_first(network.state_dict().values())  # processes may have different initial weights
    dtype, steps = torch.bfloat16 if training.precision == "bf16" else None, training.epochs * len(loader)
    state = State(
        network,
        method,
        build_optimizer(network, training),
        run,
        weight_average(network, training, steps, method.average_decay, resolved.averages_epochs),
        None if run.threat.bn_mode == "train" else make_view(network, dataset.image_shape, dtype),
        Graphs() if training.capture and device.type == "cuda" and world_size() == 1 else None,
    )
    return plan, state


def _with_extra(settle: Callable[..., Resolved], dataset: Dataset) -> tuple[Resolved, Extra | None]:
    """Return the checked request, and the extra images that it asks for."""
    resolved = settle()
    if resolved.mixture is None:
        return resolved, None
    extra = in_turn(lambda: read_extra(resolved.run.data, dataset))
    return settle(extra_counts=extra.split.class_counts.tolist()), extra


def fastest_precision(device: torch.device) -> Chosen:
    """Return bf16 if the device has instructions for it, else float32."""
    found = bf16_instructions(device)
    return Chosen("bf16", f"instructions for it: {found}") if found else Chosen("float32", "no instructions for bf16")


def build_model(
    resolved: Resolved, dataset: Dataset, given: nn.Module | None, device: torch.device, *, begun: bool
) -> Classifier | Adapter:
    """Return the network on `device`: the run's own, or the `given` one; its pretrained weights unless `begun`."""
    run, chosen, shape = resolved.run, resolved.run.model, (dataset.num_classes, dataset.image_shape)
    if given is None:
        head, weights = resolved.method.task.head, None if begun else chosen.weights
        model = models.build(chosen.name, *shape, seed=run.seed, head=head, stem=chosen.stem, weights=weights)
        # A custom callable handles the normalisation of images in [0, 1] itself.
        if isinstance(model, Classifier) and chosen.normalize == "data" and not models.is_own(chosen.name):
            model.normalize_by(*dataset.train.channel_statistics())
    else:
        with frozen(given.to(device)):
            models.check_logits(given, torch.zeros(2, *dataset.image_shape, device=device), dataset.num_classes)
        model = models.adapted(given, dataset.num_classes)
    check_needs(model, resolved)
    model.to(device)
    return model.to(memory_format=torch.channels_last) if run.training.channels_last else model


def _check_processes(plan: TrainingPlan, model: nn.Module) -> None:
    """Refuse settings or images that several processes cannot share."""
    processes, device = world_size(), plan.device
    if processes == 1:
        return
    if device.index is not None:
        raise UserError(f"device: got {device} for {processes} processes; allowed: auto, cuda or cpu")
    # Batch normalisation of one process needs two images; synchronised, it accepts any number.
    smallest = min(end - begin for begin, end in plan.loader.bounds)
    normalised = normalisations(model, plan.resolved.method)
    if not plan.run.training.sync_bn and normalised and smallest < 2 * processes:
        got = f"got batches of {smallest} images for {processes} processes"
        raise UserError(f"sync bn: {got}; allowed without it: {2 * processes} or more, two images for each")
    if len(set(gather(tuple(plan.hashes.values())))) > 1:
        raise UserError("data: got other images in one process than in another; allowed: the same in all")


def describe(plan: TrainingPlan, state: State, command: str) -> RunRecord:
    """Return the content of run.json; `command` is the call that started the run."""
    run, method, dataset, weights = plan.run, state.method, plan.dataset, plan.run.model.weights
    added = None if plan.extra is None else describe_extra(plan.extra, plan.resolved)
    tuned = [f"tuned: {run.training.tuned} trials"] if run.training.tuned else []
    stages = method.task.stages
    changes = [e for e, stage in enumerate(stages) if e == 0 or stages[e - 1] != stage]
    leak = plan.resolved.split == "test" and run.training.selection == "best-test"
    values = {
        "schema": SCHEMA,
        "run": to_json(run),
        "method_title": method.title,
        "reference": method.reference,
        "deviations": (*method.deviations, *tuned, *([] if added is None else [added.sentence])),
        "stages": [{"stage": stages[epoch], "from_epoch": epoch + 1} for epoch in changes],
        "selection": {"rule": run.training.selection, "split": plan.resolved.split, "leak": leak},
        "data": {
            "name": dataset.name,
            "class_names": dataset.class_names,
            "num_classes": dataset.num_classes,
            "image_shape": dataset.image_shape,
            "resized": dataset.resized,
            "imbalance_ratio": dataset.imbalance_ratio,
            "notes": dataset.notes,
            "arrays": plan.arrays,
            "splits": dataset.manifest(),
            "extra": added,
        },
        "model_given": plan.model_given,
        "head": method.task.head,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "model_notes": state.model.notes,
        "pretrained_sha256": None if weights is None else file_sha256(weights_file(Path(weights))),
        "threads": plan.threads,
        "processes": world_size(),
        **environment(plan.device),
        "command": command,
    }
    return RunRecord.model_validate(plain(values))
