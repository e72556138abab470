"""Pictures of embeddings: a row for each model, its images clean and attacked in one t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from taet import statistics
from taet.evaluation.embedding import Embedding
from taet.formatting import percent
from taet.report.figures import Panel, make_panel, short
from taet.report.series import MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 4.0
"""Area of a marker in square points."""


def draw(found: Sequence[Embedding], labels: Sequence[str], width: float = 7.0) -> Figure:
    """Draw a figure with a row for each embedding; colours range from dark for the largest class to the smallest."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    height = 0.5 + (width / 2 + 0.35) * len(found)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False)
    first = found[0]
    present = sorted({label for one in found for label in one.labels}, key=lambda label: (_rank(first, label), label))
    shades = dict(zip(present, colormaps["viridis"](np.linspace(0, 0.95, len(present))), strict=True))
    for row, one, label in zip(grid, found, labels, strict=True):
        row[1].sharex(row[0])
        row[1].sharey(row[0])
        for axes, side in zip(row, one.points, strict=True):
            points, classes = np.asarray(one.points[side]), np.asarray(one.labels)
            for place, c in enumerate(present):
                x, y = points[classes == c].T
                axes.scatter(x, y, SMALL, color=[shades[c]], marker=MARKERS[place % len(MARKERS)], linewidths=0)
            axes.set_title(f"{short(label, 22)}, {side}\n{numbers(one, side)}", fontsize=8, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
    for place, c in enumerate(present):
        grid[0][0].scatter(
            [], [], 16, color=[shades[c]], marker=MARKERS[place % len(MARKERS)], label=first.class_names[c]
        )
    if len(present) <= 20:
        figure.legend(loc="outside lower center", ncols=5, fontsize=7, handletextpad=0.2)
    return figure


def _rank(one: Embedding, label: int) -> int:
    return 0 if one.train_class_counts is None else int(statistics.class_ranks(one.train_class_counts)[label])


def numbers(one: Embedding, side: str) -> str:
    """Return the numbers beside a picture, in words."""
    own = one.numbers[side]
    separable = percent(own["linear_separability"])
    return f"silhouette {own['silhouette']:+.3f}".replace("-", "−") + f", linear {separable} %"


def panel(one: Embedding, label: str, name: str) -> Panel:
    """Return one embedding as a panel of a page."""
    figure = draw([one], [label], width=4.0)
    said = "; ".join(f"{side}: {numbers(one, side)}" for side in one.points)
    return make_panel(figure, name, f"{label}, t-SNE of {one.of}, {one.attack}", f"test images by class; {said}")
