"""Figures of the classes over the epochs: accuracy, predicted classes, and how far adversarial examples move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from taet import statistics
from taet.report.curves import mark_epochs
from taet.report.figures import GREY, Look, Panel, class_rows, make_figure, make_panel, percent_axis, short
from taet.report.read import ReportedData
from taet.report.series import Series, over_epochs
from taet.statistics import Floats, Ints
from taet.training.record import Counts, Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_CLASSES = 10
"""Largest number of classes with a line each; if there are more, head, body and tail have one."""
SHADES = ("#0072B2", "#009E73", "#D55E00")
STROKES = ("-", "--", "-.")


class ClassLine(NamedTuple):
    """A class or a group of classes, with its line style."""

    label: str
    members: Ints
    look: Look

    def mean(self, values: Floats) -> float:
        """Return the mean of the known values (C,) of its classes; nan if none is known."""
        known = values[self.members][~np.isnan(values[self.members])]
        return float(known.mean()) if known.size else float("nan")

    def share(self, counts: Floats | Ints) -> float:
        """Return the share of its classes in all counts (C,)."""
        return float(counts[self.members].sum() / max(counts.sum(), 1))


def _classes(data: ReportedData) -> list[ClassLine]:
    """Return a line for each class, from the largest to the smallest; if there are many, for each group."""
    from matplotlib import colormaps

    if len(data.order) > SHOWN_CLASSES:
        return _groups(data)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(data.order)))
    looks: list[Look] = [{"color": shade, "linestyle": STROKES[row % 3]} for row, shade in enumerate(shades)]
    names = [short(data.class_names[c], 10) for c in data.order]
    return [ClassLine(name, np.array([c]), look) for name, c, look in zip(names, data.order, looks, strict=True)]


def _groups(data: ReportedData) -> list[ClassLine]:
    styles = zip(data.groups.items(), SHADES, STROKES, strict=False)
    return [
        ClassLine(name, own, {"color": shade, "linestyle": stroke}) for (name, own), shade, stroke in styles if len(own)
    ]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    places: Look = {"loc": "outside lower center", "ncols": min(len(labels), 5), "fontsize": 7, "handlelength": 1.6}
    figure.legend(handles, labels, **places)


def class_curves(one: Series) -> Panel | None:
    """Draw accuracy of each class over the epochs: on training examples, and on held-out images, clean and attacked.

    Training accuracy that rises while held-out accuracy falls is overfitting. None if no epoch is recorded.
    """
    found: list[tuple[str, Callable[[Epoch], Counts | None]]] = [("examples trained on", lambda e: e.trained)]
    for attack in dict.fromkeys(e.monitor.attack for run in one.runs for e in run.epochs if e.monitor is not None):
        found.append(("clean", lambda e: e.monitor.clean if e.monitor else None))
        found.append((attack, lambda e: e.monitor.attacked if e.monitor else None))
    shown = [(name, points) for name, counts in found if (points := one.over_seeds(partial(_recalls, counts)))]
    lines = _classes(one.data)
    if not shown or not lines:
        return None
    figure, grid = make_figure(0.9 + 1.6 * len(shown), rows=len(shown))
    for axes, (name, points) in zip(grid, shown, strict=True):
        for line in lines:
            axes.plot(*over_epochs(points, line.mean), label=line.label, linewidth=1.2, **line.look)
        axes.set_ylim(-0.02, 1.02)
        percent_axis(axes.yaxis)
        axes.set_ylabel(name)
    mark_epochs(grid[-1], grid[0], [one])
    _legend(figure, grid[0])
    words = ", ".join(name for name, _ in shown)
    return make_panel(figure, f"{one.anchor}-class-curves", one.label, f"accuracy of each class per epoch: {words}")


def _recalls(counts: Callable[[Epoch], Counts | None], epoch: Epoch) -> Floats | None:
    known = counts(epoch)
    return None if known is None else statistics.per_class_accuracy(known.correct, known.total)


def predicted_shares(one: Series) -> Panel | None:
    """Draw the shares of head, body and tail in the predictions on training examples over epochs, and in the labels."""
    points = one.over_seeds(lambda epoch: epoch.predicted)
    if not points or one.data.train_counts is None:
        return None
    labels = np.asarray(one.data.train_counts)
    figure, (axes,) = make_figure(2.7)
    for line in _groups(one.data):
        axes.plot(*over_epochs(points, line.share), label=f"{line.label}, predicted", **line.look)
        look = {**line.look, "linestyle": (0, (1, 3)), "linewidth": 1.0}
        axes.axhline(line.share(labels), label=f"{line.label}, labels", **look)
    axes.set_ylim(0, 1)
    percent_axis(axes.yaxis)
    mark_epochs(axes, axes, [one])
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, handlelength=1.8)
    return make_panel(figure, f"{one.anchor}-shares", one.label, "share of training examples predicted as each group")


def distances(one: Series) -> Panel | None:
    """Draw the L2 distance between the examples of consecutive epochs, as means over head, body and tail classes.

    Bands are the quartiles, if the run recorded them.
    """
    points = one.over_seeds(lambda epoch: epoch.distance)
    if not points or not one.data.groups:
        return None
    figure, (axes,) = make_figure(2.7)
    quartiles = one.over_seeds(lambda epoch: epoch.quartiles)
    for line in _groups(one.data):
        axes.plot(*over_epochs(points, line.mean), label=line.label, **line.look)
        low, high = ([line.mean(q[:, side]) for _, q in quartiles] for side in (0, 2))
        band: Look = {"color": line.look["color"], "alpha": 0.12, "linewidth": 0}
        axes.fill_between([epoch.epoch for epoch, _ in quartiles], low, high, **band)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set_ylabel("L2 distance")
    mark_epochs(axes, axes, [one])
    _legend(figure, axes)
    return make_panel(figure, f"{one.anchor}-distances", one.label, "distance between examples of consecutive epochs")


def class_distances(all_series: Sequence[Series], anchor: str) -> Panel | None:
    """Draw the same distance for each class in the last epoch that has one: mean, and quartiles if recorded."""
    there = [(one, points[-1]) for one in all_series if (points := one.over_seeds(lambda epoch: epoch.distance))]
    if not there:
        return None
    figure, axes, order = class_rows(there[0][0].data)
    for (one, (_, mean)), shift in zip(there, np.linspace(-0.3, 0.3, len(there) + 2)[1:-1], strict=True):
        rows = np.arange(len(order)) + shift
        quartiles = one.over_seeds(lambda epoch: epoch.quartiles)
        if quartiles:
            low, _, high = quartiles[-1][1][order].T
            axes.hlines(rows, low, high, color=one.colour, linewidth=1.0)
        look: Look = {"marker": one.marker, "markersize": 4.0, "color": one.colour, "label": one.label}
        axes.plot(mean[order], rows, linestyle="none", **look)
    axes.set_xlabel("L2 distance, last recorded epoch", color=GREY)
    axes.set_xlim(left=0)
    _legend(figure, axes)
    return make_panel(figure, f"{anchor}-class-distances", "Each class", "distance to the example of the epoch before")
