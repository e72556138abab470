"""Descriptions of a data set: as JSON and as text."""

from __future__ import annotations

import textwrap

import numpy as np

from taet.data.dataset import Dataset
from taet.files import Json
from taet.statistics import class_groups, class_ranks


def describe(dataset: Dataset) -> Json:
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
        "ranks": class_ranks(dataset.class_counts).tolist(),
        "groups": class_groups(dataset.class_counts),
        "sha256": {name: split.sha256 for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
    }


def render(dataset: Dataset) -> str:
    """Return a text table with a row and a bar of the training images for each class, at most 80 columns wide."""
    counts, groups = [split.class_counts for split in dataset.splits.values()], class_groups(dataset.class_counts)
    rows = [["class", "group", *dataset.splits]]
    for label, name in enumerate(dataset.class_names):
        group = next(group for group in ("head", "body", "tail") if label in groups[group])
        rows.append([name if len(name) <= 20 else f"{name[:17]}...", f"{group} ", *(str(of[label]) for of in counts)])
    rows.append(["all", "", *(str(of.sum()) for of in counts)])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]
    bars = np.rint((78 - len(lines[0])) * counts[0] / counts[0].max()).astype(int).clip(min=1)
    table = [f"{line}  {'#' * bar}".rstrip() for line, bar in zip(lines, [0, *bars, 0], strict=True)]
    sums = [f"  {name:<10} {split.sha256}" for name, split in dataset.splits.items()]
    said = [line for note in dataset.notes for line in textwrap.wrap(f"- {note}", 80, subsequent_indent="  ")]
    return "\n".join([dataset.headline, *table, "SHA-256 of the image shape, images and labels:", *sums, *said])
