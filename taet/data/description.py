"""Descriptions of a data set, as JSON and as text."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from taet.data.dataset import Dataset
from taet.formatting import aligned

MOST_ROWS = 40
"""Most classes in the table of a data set, so that it fits on a screen."""


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return class counts of each split, imbalance ratio, groups, ranks, checksums, notes and more, as plain JSON."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mirror": dataset.mirror,
        "resized": dataset.resized,
        "imbalance_ratio": dataset.imbalance_ratio,
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "class_counts": {name: split.class_counts.tolist() for name, split in dataset.splits.items()},
        "ranks": dataset.ranks.tolist(),
        "groups": {name: labels.tolist() for name, labels in dataset.groups.items()},
        "sha256": {name: split.sha256 for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
    }


def render(dataset: Dataset) -> str:
    """Return a text table, at most 80 columns wide, with a row and a bar of the training images for each class.

    With more than MOST_ROWS classes, a selection evenly spaced by rank is shown.
    """
    about = describe(dataset)
    every = dataset.num_classes
    shown, some = list(range(every)), every > MOST_ROWS
    if some:
        shown = np.argsort(dataset.ranks)[np.linspace(0, every - 1, MOST_ROWS).round().astype(int)].tolist()
    group_of = {label: group for group in ("head", "body", "tail") for label in about["groups"][group]}
    names = [name if len(name) <= 20 else f"{name[:17]}..." for name in dataset.class_names]
    counts = about["class_counts"]
    rows = aligned(
        [
            ["class", "group", *counts],
            *([names[i], f"{group_of[i]} ", *(str(each[i]) for each in counts.values())] for i in shown),
            ["all", "", *(str(sum(each)) for each in counts.values())],
        ]
    )
    room, train = 80 - len(rows[0]) - 2, counts["train"]
    bars = ["", *("#" * max(1, round(room * train[label] / max(train))) for label in shown), ""]
    lines = [
        dataset.headline,
        *(f"{row}  {bar}".rstrip() for row, bar in zip(rows, bars, strict=True)),
        *([f"{MOST_ROWS} of {every} classes, by training images in even steps; --json has all"] if some else []),
        "SHA-256 of the image shape, images and labels:",
        *(f"  {name:<10} {digest}" for name, digest in about["sha256"].items()),
        *(line for note in dataset.notes for line in textwrap.wrap(f"- {note}", 80, subsequent_indent="  ")),
    ]
    return "\n".join(lines)
