"""The network of a run, and the record that describes a new run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from taet import models
from taet.attacks.ball import frozen
from taet.data import Dataset
from taet.data.extra import Extra
from taet.distributed import gather, world_size
from taet.errors import UserError
from taet.fields import plain
from taet.files import file_sha256
from taet.methods import Method
from taet.models import Adapter, Classifier
from taet.models.hub import weights_file
from taet.models.sync_norm import normalisations
from taet.models.view import View, make_view
from taet.settings import Model, Run, from_json, to_json
from taet.training.checkpoint import SCHEMA
from taet.training.environment import environment
from taet.training.extra import describe_extra
from taet.training.record import DataRecord, RunRecord, SelectionRecord, SplitRecord, StageRecord
from taet.training.resolve import Resolved, check_needs


def build_model(
    resolved: Resolved, dataset: Dataset, given: nn.Module | None, device: torch.device, weights: str | None
) -> Classifier | Adapter:
    """Return the network on `device`: the run's own, with a file of `weights`, or the `given` one."""
    run, chosen, shape = resolved.run, resolved.run.model, (dataset.num_classes, dataset.image_shape)
    if given is None:
        head = resolved.method.task.head
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


def attack_view(model: nn.Module, run: Run, image_shape: tuple[int, int, int]) -> View | None:
    """Return a cheaper copy of `model` in eval mode for the attack of a step; None if the attack uses train mode."""
    if run.threat.bn_mode == "train":
        return None
    return make_view(model, image_shape, torch.bfloat16 if run.training.precision == "bf16" else None)


def check_processes(
    run: Run, device: torch.device, smallest_batch: int, model: nn.Module, method: Method, images: Iterable[str]
) -> None:
    """Refuse settings or images that several processes cannot share; `images` holds the SHA-256 of all splits."""
    processes = world_size()
    if processes == 1:
        return
    if device.index is not None:
        raise UserError(f"device: got {device} for {processes} processes; allowed: auto, cuda or cpu")
    # Batch normalisation of one process needs two images; synchronised, it accepts any number.
    if not run.training.sync_bn and normalisations(model, method) and smallest_batch < 2 * processes:
        got = f"got batches of {smallest_batch} images for {processes} processes"
        raise UserError(f"sync bn: {got}; allowed without it: {2 * processes} or more, two images for each")
    if len(set(gather(tuple(images)))) > 1:
        raise UserError("data: got other images in one process than in another; allowed: the same in all")


def check_pretrained(chosen: Model, recorded: str | None, folder: Path) -> None:
    """Refuse to restart from a file of pretrained weights whose SHA-256 is not the `recorded` one."""
    if chosen.weights is None:
        return
    path = weights_file(Path(chosen.weights))
    found = file_sha256(path) if path.is_file() else ""
    if found != recorded:
        got = f"SHA-256 {found[:12]}" if found else "no file"
        raise UserError(f"weights {path}: got {got}; {folder} was started with SHA-256 {str(recorded)[:12]}")


def describe(
    resolved: Resolved,
    dataset: Dataset,
    extra: Extra | None,
    model: Classifier | Adapter,
    threads: int,
    device: torch.device,
    command: str,
    *,
    model_given: bool,
    arrays: bool,
) -> RunRecord:
    """Return the record of a new run; `command` is the call that started it."""
    run, method, weights = resolved.run, resolved.method, resolved.run.model.weights
    added = None if extra is None else describe_extra(extra, resolved)
    tuned = [f"tuned: {run.training.tuned} trials"] if run.training.tuned else []
    stages = method.task.stages
    changes = [e for e, stage in enumerate(stages) if e == 0 or stages[e - 1] != stage]
    leak = resolved.split == "test" and run.training.selection == "best-test"
    return RunRecord(
        schema=SCHEMA,
        run=plain(to_json(run)),
        method_title=method.title,
        reference=method.reference,
        deviations=(*method.deviations, *tuned, *([] if added is None else [added.sentence])),
        stages=tuple(StageRecord(stage=stages[e], from_epoch=e + 1) for e in changes),
        selection=SelectionRecord(rule=run.training.selection, split=resolved.split, leak=leak),
        data=DataRecord(
            name=dataset.name,
            class_names=dataset.class_names,
            num_classes=dataset.num_classes,
            image_shape=dataset.image_shape,
            resized=dataset.resized,
            imbalance_ratio=dataset.imbalance_ratio,
            notes=dataset.notes,
            arrays=arrays,
            splits={name: from_json(SplitRecord, split.manifest()) for name, split in dataset.splits.items()},
            extra=added,
        ),
        model_given=model_given,
        head=method.task.head,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_notes=model.notes,
        pretrained_sha256=None if weights is None else file_sha256(weights_file(Path(weights))),
        threads=threads,
        processes=world_size(),
        **environment(device),
        command=command,
    )
