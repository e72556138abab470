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
NUMBERED = 20
"""Up to this number of classes each bar has its number."""
NAMED = 60
"""Up to this number of classes each bar has its name; beyond, every tenth has its label."""
LONGEST = 24  # characters of a name
CHARACTER = 0.075  # inches of a character


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


def draw(dataset: Dataset, path: Path) -> None:
    """Draw the images of each class, a panel for every split, into a .png, .pdf or .svg file.

    Classes are in the order of their labels, head, body and tail by their training counts.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes, splits = dataset.num_classes, dataset.splits
    positions = np.arange(classes)
    groups = {name: dataset.groups[name] for name in COLOURS if len(dataset.groups[name])}
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in dataset.class_names]
    longest = max(map(len, names)) if classes <= NAMED else 0
    width = float(np.clip(1.5 + 0.3 * classes, 6, 14))
    level = longest * classes * CHARACTER < 0.8 * width  # else the names would overlap
    height = 1 + 2.2 * len(splits) + (0 if level else longest * CHARACTER)
    settings: Any = {"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, split) in zip(panels, splits.items(), strict=True):
            counts = split.class_counts
            for group, labels in groups.items():
                axes.bar(positions[labels], counts[labels], 0.8, color=COLOURS[group])
            if classes <= NUMBERED:
                for position, count in zip(positions, counts, strict=True):
                    axes.annotate(f"{count}", (position, count), (0, 2), textcoords="offset points", ha="center")
            axes.margins(x=0.01, y=0.12)
            axes.set_title(f"{name}: {len(split):,} images", loc="left", fontsize=9)
            axes.set_ylabel("images")
        if classes <= NAMED:
            panels[-1].set_xticks(positions, names, rotation=0 if level else 90)
        else:
            panels[-1].set_xticks(positions[::10])
            panels[-1].set_xlabel("label")
        handles = [Patch(color=COLOURS[group], label=f"{group} ({len(labels)})") for group, labels in groups.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"{dataset.name}: {classes} classes, imbalance ratio {dataset.imbalance_ratio:.4g}")
        figure.align_ylabels()
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=150, format=path.suffix[1:].lower())
    write_atomically(path, drawn.getvalue())
