"""Curves: accuracy and losses over the epochs of training, accuracy against the strength of an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taet.report.figures import INK, Panel, make_figure, make_panel, percent_axis, short
from taet.report.series import DASHES, Series
from taet.report.tables import ScoreCell
from taet.training.record import CurvePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# --- over training ---------------------------------------------------------------------------------------------------


def switches(series: Series) -> list[tuple[int, str]]:
    """Return (first epoch, stage) of every stage but the first that a run of the series has reached."""
    last = max((epoch.epoch for run in series.runs for epoch in run.epochs), default=0)
    record = series.runs[0].record
    stages = () if record is None else record.stages
    return [(change.from_epoch, change.stage) for change in stages[1:] if change.from_epoch <= last]


def _epoch_axis(axes: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=8))
    axes.set_xlabel("epoch")


def _mark_switches(axes: Axes, marks: Mapping[tuple[int, str], Sequence[str]], last: int) -> None:
    for (epoch, stage), methods in marks.items():
        position = epoch - 0.5
        axes.axvline(position, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        right = position < 0.55 * last
        names = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} methods"
        words = f"{names}: {stage} stage" if names else f"{stage} stage"
        axes.annotate(
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


def curve(series: Series, value: Value) -> tuple[list[int], list[float]]:
    """The epochs at which the curve of a series was measured, and there the mean of `value` over the seeds."""
    points = series.over_seeds(lambda epoch: None if epoch.monitor is None else value(epoch.monitor))
    return [epoch.epoch for epoch, _ in points], [float(mean) for _, mean in points]


def accuracy_curves(all_series: Sequence[Series], title: str, value: Value, top: float, name: str) -> Panel:
    """One value per epoch and series, drawn where it was measured, with every change of stage marked."""
    figure, (axes,) = make_figure(2.7)
    marks: dict[tuple[int, str], dict[str, None]] = {}
    last = max(run.epochs[-1].epoch for series in all_series for run in series.runs if run.epochs)
    for series in all_series:
        x, y = curve(series, value)
        marker = {"marker": series.marker, "markersize": 4.0, "markevery": max(1, len(x) // 8)}
        axes.plot(x, y, color=series.colour, linestyle=series.dashes, linewidth=1.6, **marker)
        for mark in switches(series):
            marks.setdefault(mark, {})[series.method] = None
    axes.set_ylim(0, top)
    axes.grid(axis="y")
    percent_axis(axes.yaxis)
    _epoch_axis(axes, last)
    _mark_switches(axes, {mark: list(methods) for mark, methods in marks.items()}, last)
    return make_panel(figure, name, title, "value per epoch, one line per method")


def own_curves(series: Series, reference: Series | None, values: Mapping[str, Value], top: float, name: str) -> Panel:
    """The curves of one series, each with its name, before those of a reference in grey."""
    figure, (axes,) = make_figure(2.5)
    looks: Sequence[dict[str, Any]] = (
        {"linewidth": 1.2, "linestyle": DASHES[1]},
        {"linewidth": 2.0},
        {"linewidth": 1.2, "linestyle": DASHES[2]},
    )
    for (label, value), look in zip(values.items(), looks, strict=True):
        if reference is not None:
            axes.plot(*curve(reference, value), color="#bdbdbd", **look)
        axes.plot(*curve(series, value), color=series.colour, label=label, **look)
    axes.set_ylim(0, top)
    axes.grid(axis="y")
    percent_axis(axes.yaxis)
    last = max(run.epochs[-1].epoch for run in series.runs if run.epochs)
    _epoch_axis(axes, last)
    _mark_switches(axes, {mark: [] for mark in switches(series)}, last)
    figure.legend(loc="outside lower center", ncols=len(values), handlelength=1.8, fontsize=8)
    return make_panel(figure, name, series.label, f"value per epoch: {', '.join(values)}")


def loss_curves(series: Series, name: str) -> Panel | None:
    """The total loss and its parts over the epochs, one small axis each."""
    parts = list(dict.fromkeys(part for run in series.runs for epoch in run.epochs for part in epoch.loss))
    if not parts:
        return None
    parts.sort(key=lambda part: part != "total")
    figure, grid = make_figure(0.75 + 0.95 * len(parts), rows=len(parts))
    last = max(run.epochs[-1].epoch for run in series.runs if run.epochs)
    for axes, part in zip(grid, parts, strict=True):
        points = series.over_seeds(lambda epoch: epoch.loss.get(part, float("nan")))  # noqa: B023  # called at once
        look = {"linewidth": 1.8 if part == "total" else 1.2, "marker": series.marker, "markersize": 3.0}
        x, y = [epoch.epoch for epoch, _ in points], [mean for _, mean in points]
        axes.plot(x, y, color=series.colour, markevery=max(1, len(x) // 12), **look)
        axes.grid(axis="y")
        axes.set_ylabel(short(part), rotation=0, ha="right", va="center")
        axes.margins(y=0.15)
        for epoch, _ in switches(series):
            axes.axvline(epoch - 0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    figure.align_ylabels(list(grid))
    _epoch_axis(grid[-1], last)
    _mark_switches(grid[0], {mark: [] for mark in switches(series)}, last)
    return make_panel(figure, name, series.label, f"loss per epoch: {', '.join(parts)}")


# --- against the strength of an attack -------------------------------------------------------------------------------

Line = Mapping[float, ScoreCell]
"""Accuracy by the setting that is varied, in ascending order."""
PALE = "#bdbdbd"


def attack_curves(
    lines: Sequence[tuple[Series, Line]],
    axis: str,
    title: str,
    name: str,
    *,
    reference: Line | None = None,
    marks: Sequence[float] = (),
) -> Panel:
    """Accuracy against one setting of an attack, on a logarithmic axis that begins at 0 where a curve does.

    Bands are 95 % intervals, or two standard errors of the mean over seeds; `reference` is drawn in grey, `marks` are
    settings with a vertical line.
    """
    figure, (axes,) = make_figure(2.7)
    if reference is not None:
        axes.plot([*reference], [cell.value for cell in reference.values()], color=PALE, linewidth=1.6)
    for series, line in lines:
        x, cells = [*line], [*line.values()]
        values = [cell.value for cell in cells]
        axes.fill_between(
            x, [cell.low for cell in cells], [cell.high for cell in cells], color=series.colour, alpha=0.12, linewidth=0
        )
        look = {"linestyle": series.dashes, "marker": series.marker, "markersize": 4.0, "linewidth": 1.6}
        axes.plot(x, values, color=series.colour, **look)
    for mark in marks:
        axes.axvline(mark, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    points = sorted({x for _, line in lines for x in line})
    if points[0] > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=points[1], linscale=0.5)
        axes.set_xlim(-0.2 * points[1], 1.2 * points[-1])
    axes.set_xticks(points, [f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in points])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, min(1.0, 1.05 * max(cell.high for _, line in lines for cell in line.values())))
    axes.grid(axis="y")
    percent_axis(axes.yaxis)
    axes.set_xlabel(axis)
    return make_panel(figure, name, title, f"balanced accuracy against {axis}")
