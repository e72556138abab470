"""What `taet train` prints before the first step: the data, the network, what was chosen, and how long it will take."""

from __future__ import annotations

from collections.abc import Mapping

from taet.evaluation.evaluate import attack_seconds
from taet.experiments import own_images
from taet.formatting import duration, plural
from taet.training.prepare import TrainingPlan, expected_seconds
from taet.training.state import State


def introduction(plan: TrainingPlan, state: State, chosen: Mapping[str, own_images.Chosen]) -> str:
    """Return the data, the network, what was chosen, and how long it takes."""
    dataset, run, counts = plan.dataset, plan.run, plan.dataset.class_counts
    most, least = (f"{counts[at]:,} '{dataset.class_names[at]}'" for at in (int(counts.argmax()), int(counts.argmin())))
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    weights = sum(parameter.numel() for parameter in state.model.parameters())
    mirroring = {} if run.training.augment in ("none", "crop") else own_images.mirroring(run.data, dataset)
    choices = own_images.choice_lines({**chosen, **mirroring, **plan.choices})
    model_notes = getattr(state.model, "notes", ())
    return "\n".join(
        [
            f"{dataset.name}: {images} images of {dataset.num_classes} classes, {most} to {least} to train on",
            *(f"  {note}" for note in dataset.notes),
            f"{run.method}: {plural(run.training.epochs, 'epoch')} of {run.model.name}, {weights:,} parameters",
            *(f"  {note}" for note in (*model_notes, *state.method.warnings(counts.tolist(), run.training.batch_size))),
            *(["decided; each can be set by its option:", *(f"  {line}" for line in choices)] if choices else []),
            f"training will take {duration(expected_seconds(plan, state))}, the attacks after it "
            f"{duration(attack_seconds(run, state.model, dataset.test, plan.device))}",
        ]
    )
