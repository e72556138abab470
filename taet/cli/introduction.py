"""What `taet train` prints before the first step: the data, the network, what was chosen, and how long it will take."""

from __future__ import annotations

from collections.abc import Mapping

from taet import models, statistics
from taet.evaluation.evaluate import attack_seconds
from taet.experiments import own_images
from taet.formatting import duration, plural
from taet.training.folder import RunFolder
from taet.training.prepare import Chosen, TrainingPlan, choice_lines, describe, expected_seconds
from taet.training.state import State

COARSE_SELECTION = 0.02
"""Standard error above which a warning is printed: twice as much, 4 points, is more than most methods differ by."""


def introduction(plan: TrainingPlan, state: State, chosen: Mapping[str, Chosen], attacked: bool = False) -> str:
    """Return the data, the network, what was chosen, and how long it takes."""
    dataset, run = plan.dataset, plan.run
    counts, names = dataset.class_counts, dataset.class_names
    most, least = int(counts.argmax()), int(counts.argmin())
    spread = f"'{names[most]}' to {counts[least]:,} '{names[least]}'" if counts[most] > counts[least] else "of each"
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    stem = models.stem(run.model.name, dataset.image_shape, run.model.stem)
    _, height, width = dataset.image_shape
    notes = [
        *([] if plan.extra is None else describe(plan, state, "").deviations[-1:]),
        *getattr(state.model, "notes", ()),
        *state.method.warnings(counts.tolist(), run.training.batch_size),
        *_coarse_selection(plan),
    ]
    turned = {} if run.training.augment in ("none", "crop") else own_images.mirroring(run.data, dataset)
    choices = choice_lines({**chosen, **turned, **plan.choices})
    attacking = duration(attack_seconds(run, state.model, dataset.test, plan.device))
    lines = [
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {counts[most]:,} {spread} to train on",
        *(f"  {note}" for note in dataset.notes),
        f"{run.method}: {plural(run.training.epochs, 'epoch')} of {run.model.name}, "
        f"{sum(parameter.numel() for parameter in state.model.parameters()):,} parameters, "
        f"{f'{stem} stem, ' if stem else ''}on {width}x{height} pixels, "
        f"{'mirrored at random' if plan.loader.mirror else 'never mirrored'}",
        *(f"  {note}" for note in notes),
        *(["decided; each can be set by its option:", *(f"  {line}" for line in choices)] if choices else []),
        f"training will take {duration(expected_seconds(plan, state))}, "
        f"{'the attacks and the probe' if attacked else 'taet evaluate'} after it {attacking}",
    ]
    return "\n".join(lines)


def _coarse_selection(plan: TrainingPlan) -> list[str]:
    """Return a warning if the validation images of the curve may be too few to tell epochs apart."""
    counts, names = plan.curve.split.class_counts, plan.dataset.class_names
    error, least = statistics.largest_standard_error(counts), int(counts.argmin())
    if plan.run.training.selection != "best-validation" or error <= COARSE_SELECTION:
        return []
    return [
        f"selection best-validation: on {len(plan.curve.split):,} validation images, {counts[least]:,} of "
        f"'{names[least]}', a balanced accuracy has a standard error of up to {100 * error:.1f} points, so chance may "
        "decide which epoch is best; --selection last delivers the last one"
    ]


def continued(plan: TrainingPlan, state: State, folder: RunFolder) -> str:
    """Return where a run continues, and how long the rest of its training takes."""
    epochs = plan.run.training.epochs
    if state.epoch == epochs:
        return f"folder: {folder.path}, trained"
    left = duration(expected_seconds(plan, state) * (1 - state.number / plan.steps))
    return f"folder: {folder.path}, epoch {state.epoch + 1} of {epochs}; the rest will take {left}"
