"""What `taet train` prints before the first step: the data, the network, what was chosen, and how long it will take."""

from __future__ import annotations

from collections.abc import Mapping

from taet import models, statistics
from taet.evaluation.measurement import attack_seconds, span
from taet.experiments import own_images
from taet.formatting import duration, plural
from taet.training.choices import Chosen, choice_lines
from taet.training.expected import expected_seconds
from taet.training.folder import RunFolder
from taet.training.prepare import TrainingPlan, describe
from taet.training.state import State

COARSE_SELECTION = 0.02
"""Standard error above which a warning is printed: twice as much, 4 points, is more than most methods differ by."""


def introduction(plan: TrainingPlan, state: State, chosen: Mapping[str, Chosen]) -> str:
    """Return the data, the network, and what was chosen."""
    dataset, run = plan.dataset, plan.run
    counts, names = dataset.class_counts, dataset.class_names
    most, least = int(counts.argmax()), int(counts.argmin())
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    each = counts[most] == counts[least]
    spread = "of each" if each else f"'{names[most]}' to {counts[least]:,} '{names[least]}'"
    lines = [
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {counts[most]:,} {spread} to train on",
        *(f"  {note}" for note in dataset.notes),
    ]
    lines += [] if plan.extra is None else [f"  {text}" for text in describe(plan, state, "").deviations[-1:]]
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    _, height, width = dataset.image_shape
    stem = models.stem(run.model.name, dataset.image_shape, run.model.stem)
    lines += [
        f"{run.method}: {plural(run.training.epochs, 'epoch')} of {run.model.name}, {parameters:,} parameters, "
        f"{f'{stem} stem, ' if stem else ''}on {width}x{height} pixels, "
        f"{'mirrored at random' if plan.loader.mirror else 'never mirrored'}",
        *(f"  {note}" for note in getattr(state.model, "notes", ())),
        *(f"  {text}" for text in state.method.warnings(counts.tolist(), run.training.batch_size)),
        *(f"  {text}" for text in _coarse_selection(plan)),
    ]
    turned = {} if run.training.augment in ("none", "crop") else own_images.mirroring(run.data, dataset)
    if choices := {**chosen, **turned, **plan.choices}:
        lines += ["decided; each can be set by its option:", *(f"  {line}" for line in choice_lines(choices))]
    return "\n".join(lines)


def _coarse_selection(plan: TrainingPlan) -> list[str]:
    """Return a warning if the validation images of the curve may be too few to tell epochs apart."""
    if plan.run.training.selection != "best-validation":
        return []
    split = plan.curve.split
    counts, names = split.class_counts, plan.dataset.class_names
    error, least = statistics.largest_standard_error(counts), int(counts.argmin())
    if error <= COARSE_SELECTION:
        return []
    return [
        f"selection best-validation: on {len(split):,} validation images, {counts[least]:,} of '{names[least]}', a "
        f"balanced accuracy has a standard error of up to {100 * error:.1f} points, so chance may decide which epoch "
        "is best; --selection last delivers the last one"
    ]


def expected(plan: TrainingPlan, state: State, attacks: bool) -> str:
    """Return how long training and any following attacks take."""
    attacking = span(attack_seconds(plan.run, state.model, plan.dataset.test, plan.device))
    after = "the attacks and the probe after it" if attacks else "taet evaluate after it"
    return f"training will take {duration(expected_seconds(plan, state))}, {after} {attacking}"


def continued(plan: TrainingPlan, state: State, folder: RunFolder) -> str:
    """Return where a run continues, and how long the rest of its training takes."""
    epochs, done = plan.run.training.epochs, plan.work.done(state.epoch, state.step / len(plan.loader), 0)
    if state.epoch == epochs:
        return f"folder: {folder.path}, trained"
    left = duration(expected_seconds(plan, state) * (1 - done / plan.work.total))
    return f"folder: {folder.path}, epoch {state.epoch + 1} of {epochs}; the rest will take {left}"
