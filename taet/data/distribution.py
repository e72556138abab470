"""A figure of the class counts of a data set."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from taet.data.dataset import Dataset
from taet.files import write_atomically

COLOURS = {"head": "#1f4e79", "body": "#7da7d9", "tail": "#d95f02"}
"""Dark blue, light blue and orange: distinguishable with any colour vision, and in greyscale."""
NUMBERED = 20
"""Up to this number of classes each bar has its number."""
NAMED = 60
"""Up to this number of classes each bar has its name; beyond, every tenth has its label."""
LONGEST = 24  # characters of a name
CHARACTER = 0.075  # inches of a character


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
    write_atomically(path, drawn.getvalue(), devices=True)
