"""Curves: accuracy and losses over the training epochs, and accuracy against the strength of an attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from taet import statistics
from taet.evaluation.curves import WHOLE, curves
from taet.evaluation.summary import Summary
from taet.formatting import listed, percent, size
from taet.report import series
from taet.report.figures import INK, Look, Panel, make_figure, make_panel, percent_axis, short
from taet.report.measured import Measured
from taet.report.read import ReportedData
from taet.report.series import DASHES, Series, over_epochs
from taet.report.tables import ScoreCell, balanced_cell
from taet.statistics import Ints
from taet.training.record import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE = "#bdbdbd"
AXES = {
    "steps": ("number of steps", "Number of steps"),
    "eps": ("radius ε", "Radius of the ball"),
    "logit-scale": ("factor of the logits", "Scale of the logits"),
}
"""For each curve of an evaluation, the label of its axis and its title."""


def _switches(one: Series) -> list[tuple[int, str]]:
    """Return the first epoch and the name of every stage after the first that the runs have reached."""
    last = max((epoch.epoch for run in one.runs for epoch in run.epochs), default=0)
    record = one.runs[0].record
    stages = () if record is None else record.stages
    return [(change.from_epoch, change.stage) for change in stages[1:] if change.from_epoch <= last]


def _vertical(axes: Axes, position: float) -> None:
    axes.axvline(position, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))


def mark_epochs(axes: Axes, top: Axes, all_series: Sequence[Series], named: bool = False) -> None:
    """Label the axis of the epochs, and mark every change of stage, `named`: with its methods, at the edge of `top`."""
    from matplotlib.ticker import MaxNLocator

    last = max(run.epochs[-1].epoch for one in all_series for run in one.runs if run.epochs)
    marks: dict[tuple[int, str], dict[str, None]] = {}
    for one in all_series:
        for switch in _switches(one):
            marks.setdefault(switch, {})[one.method] = None
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    axes.set_xlabel("epoch")
    for (epoch, stage), methods in marks.items():
        position = epoch - 0.5
        _vertical(top, position)
        right = position < 0.55 * last
        names = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
        words = f"{names}: {stage} stage" if named else f"{stage} stage"
        top.annotate(
            words,
            (position, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3 if right else -3, 2),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom",
            fontsize=8,
            color=INK,
        )


Value = Callable[[CurvePoint], float]


def training_curves(all_series: Sequence[Series], data: ReportedData, anchor: str) -> list[Panel]:
    """Draw balanced accuracy over the epochs, clean and attacked, of all classes and of the tail.

    All series share four figures; if there are many, each has one figure, with the baseline in grey.
    """
    there = [one for one in all_series if any(epoch.monitor for run in one.runs for epoch in run.epochs)]
    points = [epoch.monitor for one in there for run in one.runs for epoch in run.epochs if epoch.monitor is not None]
    if not points:
        return []
    attack = listed(dict.fromkeys(point.attack for point in points))

    def accuracy(attacked: bool, members: Ints | slice, point: CurvePoint) -> float:
        counts = point.attacked if attacked else point.clean
        return statistics.balanced_accuracy(counts.correct[members], counts.total[members])

    def top(*values: Value) -> float:
        drawn = [value(point) for point in points for value in values]
        highest = max((value for value in drawn if not math.isnan(value)), default=1.0)
        return min(1.0, max(0.1, 1.1 * highest))

    sides, tail = {"clean": False, attack: True}, data.groups["tail"]
    whole = {name: partial(accuracy, attacked, slice(None)) for name, attacked in sides.items()}
    if len(all_series) > series.MANY:
        values = {**whole, f"tail, {attack}": partial(accuracy, True, tail)}
        base, reach = series.baseline(there), top(*values.values())
        return [_own_curves(one, None if one is base else base, values, reach) for one in there]
    of_tail = {f"tail classes, {name}": partial(accuracy, attacked, tail) for name, attacked in sides.items()}
    shown = [(words, value, top(*pair.values())) for pair in (whole, of_tail) for words, value in pair.items()]
    return [
        _accuracy_curves(there, f"Balanced accuracy, {words}", value, reach, f"{anchor}-curve-{number}")
        for number, (words, value, reach) in enumerate(shown)
    ]


def _curve(one: Series, value: Value) -> tuple[list[int], list[float]]:
    """Return the epochs at which the curve of a series was measured, and the mean of `value` over seeds at each."""
    return over_epochs(one.over_seeds(lambda epoch: None if epoch.monitor is None else value(epoch.monitor)))


def _accuracy_curves(all_series: Sequence[Series], title: str, value: Value, top: float, name: str) -> Panel:
    """Draw one value per epoch and series, where it was measured, and mark every change of stage."""
    figure, (axes,) = make_figure(2.7)
    for one in all_series:
        x, y = _curve(one, value)
        marker = {"marker": one.marker, "markersize": 4.0, "markevery": max(1, len(x) // 8)}
        axes.plot(x, y, color=one.colour, linestyle=one.dashes, linewidth=1.6, **marker)
    axes.set_ylim(0, top)
    percent_axis(axes.yaxis)
    mark_epochs(axes, axes, all_series, named=True)
    return make_panel(figure, name, title, "value per epoch, one line per method")


def _own_curves(one: Series, reference: Series | None, values: Mapping[str, Value], top: float) -> Panel:
    """Draw the curves of one series, each with its name, and those of a reference in grey behind them."""
    figure, (axes,) = make_figure(2.5)
    looks: Sequence[Look] = (
        {"linewidth": 1.2, "linestyle": DASHES[1]},
        {"linewidth": 2.0},
        {"linewidth": 1.2, "linestyle": DASHES[2]},
    )
    for (label, value), look in zip(values.items(), looks, strict=True):
        if reference is not None:
            axes.plot(*_curve(reference, value), color=PALE, **look)
        axes.plot(*_curve(one, value), color=one.colour, label=label, **look)
    axes.set_ylim(0, top)
    percent_axis(axes.yaxis)
    mark_epochs(axes, axes, [one])
    figure.legend(loc="outside lower center", ncols=len(values), handlelength=1.8, fontsize=8)
    return make_panel(figure, f"{one.anchor}-curve", one.label, f"value per epoch: {', '.join(values)}")


def loss_curves(one: Series) -> Panel | None:
    """Draw the total loss and its parts over the epochs, on one small axis each; None if no epoch is recorded."""
    parts = list(dict.fromkeys(part for run in one.runs for epoch in run.epochs for part in epoch.loss))
    if not parts:
        return None
    parts.sort(key=lambda part: part != "total")
    figure, grid = make_figure(0.75 + 0.95 * len(parts), rows=len(parts))
    for axes, part in zip(grid, parts, strict=True):
        points = one.over_seeds(lambda epoch: epoch.loss.get(part, float("nan")))  # noqa: B023  # called at once
        look = {"linewidth": 1.8 if part == "total" else 1.2, "marker": one.marker, "markersize": 3.0}
        axes.plot(*over_epochs(points), color=one.colour, markevery=max(1, len(points) // 12), **look)
        axes.grid(axis="y")
        axes.set_ylabel(short(part), rotation=0, ha="right", va="center")
        axes.margins(y=0.15)
        for epoch, _ in _switches(one):
            _vertical(axes, epoch - 0.5)
    figure.align_ylabels(list(grid))
    mark_epochs(grid[-1], grid[0], [one])
    return make_panel(figure, f"{one.anchor}-loss", one.label, f"loss per epoch: {', '.join(parts)}")


Line = Mapping[float, ScoreCell]
"""Accuracy by the varied setting, in ascending order."""


@dataclass(frozen=True)
class AttackCurves:
    """Accuracy against one setting of an attack: one figure of all series, or one each if there are many."""

    name: str
    title: str
    attack: str
    panels: tuple[Panel, ...]
    left: tuple[str, ...]
    """The series that are still correct on some images in the ball that contains every image, with their accuracy."""


def attack_curves(runs: Sequence[Measured], anchor: str) -> list[AttackCurves]:
    """Return every curve on the cards."""
    found = {name: [(run.series, *line) for run in runs if (line := line_of(run.series, name))] for name in AXES}
    return [_attack_curves(name, lines, anchor) for name, lines in found.items() if lines]


def _attack_curves(name: str, found: Sequence[tuple[Series, str, Line]], anchor: str) -> AttackCurves:
    lines = [(one, line) for one, _, line in found]
    axis, title = AXES[name]
    radii = sorted({card.threat["eps"] for one, _ in lines for card in one.cards}) if name == "eps" else []
    ends = [(one.label, line.get(WHOLE)) for one, line in lines] if name == "eps" else []
    left = tuple(f"{label} ({percent(cell.value)} %)" for label, cell in ends if cell is not None and cell.value > 0)
    if radii and all(size(x).endswith("/255") for _, line in lines for x in line if x):
        axis, radii = "radius ε in pixel values 0 to 255", [255 * radius for radius in radii]
        lines = [(one, {255 * x: cell for x, cell in line.items()}) for one, line in lines]
    if len(lines) > series.MANY:
        common = series.baseline([one for one, _ in lines])
        base = next((line for one, line in lines if one is common), None)
        panels = [_draw([(one, line)], axis, one.label, f"{one.anchor}-{name}", base, radii) for one, line in lines]
    else:
        panels = [_draw(lines, axis, title, f"{anchor}-{name}", None, radii)]
    return AttackCurves(name, title, listed(dict.fromkeys(attack for _, attack, _ in found)), tuple(panels), left)


def line_of(one: Series, name: str) -> tuple[str, Line] | None:
    """Return the varied attack and its balanced accuracy at each point, over the seeds that have the point."""
    points: dict[float, list[Summary]] = {}
    attack = ""
    for card in one.cards:
        for curve in curves(card):
            if curve.name == name:
                attack = curve.attack
                for x, column in curve.points:
                    points.setdefault(x, []).append(card.summary(column.name))
    return (attack, {x: balanced_cell(points[x]) for x in sorted(points)}) if points else None


def _draw(
    lines: Sequence[tuple[Series, Line]], axis: str, title: str, name: str, reference: Line | None, marks: list[float]
) -> Panel:
    """Draw accuracy on a logarithmic axis, which includes 0 if a curve begins at 0.

    Bands are 95 % intervals, of the mean if there are several seeds. `reference` is drawn in grey; each setting in
    `marks` gets a vertical line.
    """
    figure, (axes,) = make_figure(2.7)
    if reference is not None:
        axes.plot([*reference], [cell.value for cell in reference.values()], color=PALE, linewidth=1.6)
    for one, line in lines:
        low, value, high = zip(*((cell.low, cell.value, cell.high) for cell in line.values()), strict=True)
        axes.fill_between([*line], low, high, color=one.colour, alpha=0.12, linewidth=0)
        look: Look = {"linestyle": one.dashes, "marker": one.marker, "markersize": 4.0, "linewidth": 1.6}
        axes.plot([*line], value, color=one.colour, **look)
    for mark in marks:
        _vertical(axes, mark)
    points = sorted({x for _, line in lines for x in line})
    if points[0] > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=points[1], linscale=0.5)
        axes.set_xlim(-0.2 * points[1], 1.2 * points[-1])
    axes.set_xticks(points, [f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in points])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, min(1.0, 1.05 * max(cell.high for _, line in lines for cell in line.values())))
    percent_axis(axes.yaxis)
    axes.set_xlabel(axis)
    return make_panel(figure, name, title, f"balanced accuracy against {axis}")
