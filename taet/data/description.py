"""Descriptions of a data set: as JSON, as text, and as a figure of its class counts."""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from taet.data.dataset import Dataset
from taet.files import write_atomically
from taet.formatting import aligned

MOST_ROWS = 40
"""Most classes in the table of a data set, so that it fits on a screen."""
COLOURS = {"head": "#1f4e79", "body": "#7da7d9", "tail": "#d95f02"}
"""Dark blue, light blue and orange: distinguishable with any colour vision, and in greyscale."""
NAMED = 60
"""Up to this number of classes each bar has its name."""
LONGEST = 24  # characters of a name


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
    every, counts = dataset.num_classes, {name: split.class_counts for name, split in dataset.splits.items()}
    shown, some = list(range(every)), every > MOST_ROWS
    if some:
        shown = np.argsort(dataset.ranks)[np.linspace(0, every - 1, MOST_ROWS).round().astype(int)].tolist()
    group_of = {label: group for group in COLOURS for label in dataset.groups[group].tolist()}
    rows = aligned(
        [
            ["class", "group", *counts],
            *(
                [_short(dataset.class_names[i], 20), f"{group_of[i]} ", *(str(each[i]) for each in counts.values())]
                for i in shown
            ),
            ["all", "", *(str(each.sum()) for each in counts.values())],
        ]
    )
    room, train = 80 - len(rows[0]) - 2, counts["train"]
    bars = ["", *("#" * max(1, round(room * train[label] / train.max())) for label in shown), ""]
    lines = [
        dataset.headline,
        *(f"{row}  {bar}".rstrip() for row, bar in zip(rows, bars, strict=True)),
        *([f"{MOST_ROWS} of {every} classes, by training images in even steps; --json has all"] if some else []),
        "SHA-256 of the image shape, images and labels:",
        *(f"  {name:<10} {split.sha256}" for name, split in dataset.splits.items()),
        *(line for note in dataset.notes for line in textwrap.wrap(f"- {note}", 80, subsequent_indent="  ")),
    ]
    return "\n".join(lines)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def draw(dataset: Dataset, path: Path) -> None:
    """Draw the images of each class, a panel for every split, into a .png, .pdf or .svg file.

    Classes are in the order of their labels, head, body and tail by their training counts.
    """
    import matplotlib
    from matplotlib.figure import Figure

    classes, splits = dataset.num_classes, dataset.splits
    settings: Any = {"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        size = float(np.clip(1.5 + 0.3 * classes, 6, 14)), 2 + 2.2 * len(splits)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, split) in zip(panels, splits.items(), strict=True):
            for group, colour in COLOURS.items():
                labels = dataset.groups[group]
                axes.bar(labels, split.class_counts[labels], 0.8, color=colour, label=f"{group} ({len(labels)})")
            axes.set_title(f"{name}: {len(split):,} images", loc="left", fontsize=9)
            axes.set_ylabel("images")
        if classes <= NAMED:
            names = [_short(name, LONGEST) for name in dataset.class_names]
            panels[-1].set_xticks(range(classes), names, rotation=90)
        panels[0].legend(ncols=3, frameon=False)
        figure.suptitle(f"{dataset.name}: {classes} classes, imbalance ratio {dataset.imbalance_ratio:.4g}")
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=150, format=path.suffix[1:].lower())
    write_atomically(path, drawn.getvalue())
