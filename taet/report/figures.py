"""Figures of the report as inline SVG: small panels of one width, legible without colour; and those of classes."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from taet import statistics
from taet.report import tables
from taet.report.measured import AttackKey, Measured
from taet.report.read import ReportedData
from taet.report.series import COLOURS, DASHES, MARKERS, Series
from taet.report.tables import ScoreCell
from taet.statistics import Floats, Ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GREY, INK, GRID = "#6b6b6b", "#1a1a1a", "#dcdcdc"
WIDTH = 4.0
"""Width of every panel in inches: 384 CSS pixels, nearly full size on a phone."""
CLEAN = "clean balanced accuracy"
NAMED_CLASSES = 30
"""Largest number of classes that are drawn large."""
NAMED_ROWS, SMALL = 100, 7
"""Largest number of classes for which every row has its name, and the font size; beyond it, only some rows do."""
WHISKERED_CLASSES = 100
"""Largest number of classes whose intervals are drawn; rows of more classes are too low for intervals."""

MIDDLE_MARKERS = "s^v<>"
Look = dict[str, Any]
"""Keyword arguments of a drawing function of matplotlib."""


@dataclass(frozen=True)
class Panel:
    """A drawing and its title; `svg` is markup, `title` is text."""

    title: str
    svg: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set the style of all figures within this block and restore matplotlib's settings afterwards."""
    import matplotlib

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "taet",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "hatch.linewidth": 0.7,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks is not missing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def make_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, npt.NDArray[Any]]:
    """Return an empty figure of a height in inches and its axes in one row or column, which share their scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex="col", sharey="row", squeeze=False).ravel()


def make_panel(figure: Figure, name: str, title: str, description: str) -> Panel:
    """Turn a figure into markup whose ids begin with `name`, without a date and without style rules for the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<defs>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', svg)
    svg = re.sub(r"href=\"#([^\"]+)\"", rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    head = f'<svg class="figure" role="img" aria-label="{escape(f"{title}: {description}")}"'
    return Panel(title, svg.replace("<svg", head, 1).rstrip())


def picture(figure: Figure, format: str) -> bytes:
    """Return a figure as a file, svg or png, without a date: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    figure.savefig(buffer, format=format, metadata=metadata, dpi=200)
    return buffer.getvalue()


def each(all_series: Sequence[Series], draw: Callable[[Series], Panel | None]) -> list[Panel]:
    """Return the panels of the series that have one."""
    return [panel for one in all_series if (panel := draw(one)) is not None]


def percent_axis(axis: Axis) -> None:
    """Label an axis in per cent, with a grid."""
    from matplotlib.ticker import PercentFormatter

    axis.grid(visible=True)
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def short(name: str, length: int = 16) -> str:
    """Shorten a name that is too long for a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def class_rows(data: ReportedData) -> tuple[Figure, Axes, Ints]:
    """Return an empty figure with one row per class, largest class on top, its axes, and the classes in that order."""
    order, count = data.order, len(data.order)
    large = count <= NAMED_CLASSES
    rows = range(count) if count <= NAMED_ROWS else sorted({int(row) for row in np.linspace(0, count - 1, 41)})
    figure, (axes,) = make_figure(max(0.9 + (0.3 if large else 0.17) * len(rows), 1.8 if large else 8.4))
    axes.set_ylim(count - 0.4, -0.6)
    counts = [""] * count if data.train_counts is None else [f" · {images}" for images in data.train_counts]
    names = [f"{short(data.class_names[c])}{counts[c]}" for c in order[rows]]
    axes.set_yticks(rows, names, fontsize=None if large else SMALL)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    start = 0
    for name, members in data.groups.items():
        if len(members) == 0:
            continue
        middle = start + (len(members) - 1) / 2
        start += len(members)
        axes.text(1.02, middle, name, transform=axes.get_yaxis_transform(), rotation=270, va="center", color=GREY)
        if start < count:
            axes.axhline(start - 0.5, color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    return figure, axes, order


def reach(cells: Sequence[ScoreCell]) -> Floats:
    """Return how far the intervals of N cells reach below and above their values, (2, N), for error bars."""
    return np.array([(cell.value - cell.low, cell.high - cell.value) for cell in cells]).T.clip(0)


def look_of(place: int) -> Look:
    """Return the colour, marker and line style at a place in a legend."""
    shown = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {name: values[place % len(values)] for name, values in shown.items()}


def _whiskers(axes: Axes, cells: Sequence[ScoreCell], rows: Floats, colour: str) -> None:
    """Draw the intervals of the classes, one per row, unless there are too many rows."""
    if len(cells) <= WHISKERED_CLASSES:
        values = np.array([cell.value for cell in cells])
        known, width = np.isfinite(values), 0.9 if len(cells) <= NAMED_CLASSES else 0.4
        look: Look = {"fmt": "none", "ecolor": colour, "elinewidth": width, "capsize": 0}
        axes.errorbar(values[known], rows[known], xerr=reach(cells)[:, known], **look)


def histogram(data: ReportedData, name: str) -> Panel:
    """Draw the training images of each class, largest first, with the number of test images at the end of each bar.

    If the training counts are not known, the bars show the test images.
    """
    figure, axes, order = class_rows(data)
    known = data.train_counts is not None
    counts = np.asarray(data.train_counts if known else data.test_counts)[order]
    shades = {"head": ("#4d4d4d", ""), "body": ("#a6a6a6", ""), "tail": ("#ffffff", "////")}
    if not known:
        axes.barh(range(len(order)), counts, 0.7, color=shades["body"][0], linewidth=0)
    for group, members in data.groups.items():
        rows = data.ranks[members]
        colour, hatch = shades[group]
        edge = 0.7 if len(order) <= NAMED_ROWS else 0  # else edges would fill the figure
        axes.barh(rows, counts[rows], 0.7, color=colour, hatch=hatch, edgecolor="#4d4d4d", linewidth=edge)
    if len(order) <= NAMED_CLASSES:
        for row, c in enumerate(order):
            label = f"{data.test_counts[c]} test{' *' if c in data.few else ''}"
            axes.annotate(
                label, (counts[row], row), (4, 0), textcoords="offset points", va="center", color=GREY, fontsize=8
            )
    axes.set_xlim(0, 1.25 * counts.max())
    axes.set_xlabel("training images" if known else "test images")
    if not known:
        return make_panel(figure, name, "Test images per class", "in the order of their labels")
    return make_panel(figure, name, "Training images per class", "head, body and tail from top to bottom")


def class_bars(runs: Sequence[Measured], clean: AttackKey | None, strongest: AttackKey | None) -> list[Panel]:
    """Draw accuracy of each class, clean and under the strongest attack, two bars per class: a figure per series."""
    panels = []
    for run in runs:
        if clean is None or clean not in run.summaries:
            continue
        attack, series = strongest if strongest in run.summaries else None, run.series
        figure, axes, order = class_rows(series.data)
        rows = np.arange(len(order), dtype=np.float64)
        bars = [(clean, -0.19, _light(series, len(order)), "clean")]
        if attack is not None:
            bars.append((attack, 0.19, {"color": series.colour, "linewidth": 0}, attack.name))
        for measured, shift, look, label in bars:
            cells = [tables.class_cell(run.summaries[measured], c) for c in order]
            axes.barh(rows + shift, np.nan_to_num([cell.value for cell in cells]), 0.36, label=label, **look)
            _whiskers(axes, cells, rows + shift, INK)
        _shares(figure, axes)
        description = f"clean accuracy and accuracy under {attack.name if attack else ''} of each class"
        panels.append(make_panel(figure, f"{series.anchor}-classes", series.label, description))
    return panels


def clean_against_robust(
    runs: Sequence[Measured], clean: AttackKey | None, attack: AttackKey | None, anchor: str
) -> Panel | None:
    """Draw balanced accuracy under an attack against clean accuracy of each series; None for fewer than two."""
    there = [run for run in runs if clean in run.summaries and attack in run.summaries]
    if clean is None or attack is None or len(there) < 2:
        return None
    cells = [[tables.balanced_cell(run.summaries[key]) for key in (clean, attack)] for run in there]
    points = [(run.series.label, x, y) for run, (x, y) in zip(there, cells, strict=True)]
    return crosses(points, attack.name, anchor)


def crosses(points: Sequence[tuple[str, ScoreCell, ScoreCell]], attack: str, anchor: str, clean: str = CLEAN) -> Panel:
    """Draw accuracy under an attack against clean accuracy, with both intervals as a cross for each label."""
    figure, (axes,) = make_figure(3.4)
    for place, (label, x, y) in enumerate(points):
        look = {**look_of(place), "linestyle": "none", "markersize": 5.0, "elinewidth": 0.8}
        axes.errorbar(x.value, y.value, xerr=reach([x]), yerr=reach([y]), label=short(label, 28), **look)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.set_xlabel(clean)
    axes.set_ylabel(f"under {attack}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    description = "accuracy under attack against clean accuracy, one cross of two intervals per row"
    return make_panel(figure, f"{anchor}-scatter", f"Clean accuracy and {attack}", description)


def class_errors(runs: Sequence[Measured], attack: AttackKey | None) -> list[Panel]:
    """Draw natural and boundary error of each class under an attack, stacked: a figure per series with clean images.

    The sum of the two is the robust error.
    """
    panels = []
    for run in runs:
        found, series = run.summaries.get(attack, ()) if attack else (), run.series
        natural, _ = statistics.mean_and_standard_error([summary.natural_error for summary in found])
        boundary, _ = statistics.mean_and_standard_error([summary.boundary_error for summary in found])
        if attack is None or np.isnan(natural).all():
            continue
        figure, axes, order = class_rows(series.data)
        rows, left = np.arange(len(order)), np.nan_to_num(natural[order])
        axes.barh(rows, left, 0.7, label="natural error", **_light(series, len(order)))
        filled: Look = {"left": left, "color": series.colour, "linewidth": 0}
        axes.barh(rows, np.nan_to_num(boundary[order]), 0.7, label="boundary error", **filled)
        _shares(figure, axes)
        description = f"natural error, and boundary error under {attack.name}, of each class"
        panels.append(make_panel(figure, f"{series.anchor}-errors", series.label, description))
    return panels


def _light(series: Series, classes: int) -> Look:
    """Return the lighter of two kinds of bars: hatched, or tinted if there are too many classes for hatching."""
    if classes > NAMED_CLASSES:
        return {"color": series.colour, "alpha": 0.3, "linewidth": 0}
    return {"color": "white", "edgecolor": series.colour, "hatch": "/////", "linewidth": 0.7}


def _shares(figure: Figure, axes: Axes) -> None:
    """Set the axis from 0 to 100 % and the legend of a figure of two kinds of bars."""
    axes.set_xlim(0, 1)
    percent_axis(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)


def class_dots(runs: Sequence[Measured], attacks: Sequence[AttackKey], anchor: str) -> list[Panel]:
    """Draw accuracy of each class, with all series in one figure for each attack, one marker per series."""
    panels = []
    for number, attack in enumerate(attacks):
        there = [run for run in runs if attack in run.summaries]
        if len(there) < 2:
            continue
        figure, axes, order = class_rows(there[0].series.data)
        size = 4.5 if len(order) <= NAMED_CLASSES else 2.0
        for run, shift in zip(there, np.linspace(-0.3, 0.3, len(there)), strict=True):
            rows, colour = np.arange(len(order)) + shift, run.series.colour
            cells = [tables.class_cell(run.summaries[attack], c) for c in order]
            _whiskers(axes, cells, rows, colour)
            look: Look = {"linestyle": "none", "marker": run.series.marker, "markersize": size, "color": colour}
            axes.plot([cell.value for cell in cells], rows, **look)
        axes.set_xlim(-0.02, 1.02)
        percent_axis(axes.xaxis)
        description = "accuracy of each class, one marker per method"
        panels.append(make_panel(figure, f"{anchor}-dots-{number}", attack.title, description))
    return panels


def predicted_classes(series: Series, epochs: Sequence[int] = ()) -> Panel | None:
    """Draw how often each class was predicted on training examples, at `epochs`; by default the first and the last."""
    points = series.over_seeds(lambda epoch: epoch.predicted)
    if not points:
        return None
    chosen = [point for point in points if point[0].epoch in epochs] or points[:: max(len(points) - 1, 1)]
    data = series.data
    figure, axes, order = class_rows(data)
    rows = np.arange(len(order))
    axes.barh(rows, np.asarray(data.train_counts)[order], 0.7, color="#d9d9d9", label="training images")
    size = 5.5 if len(order) <= NAMED_CLASSES else 2.5
    between = [("white", MIDDLE_MARKERS[row % len(MIDDLE_MARKERS)]) for row in range(len(chosen) - 2)]
    looks = [("white", "o"), *between, (series.colour, "D")][: len(chosen)]
    for (epoch, predicted), (fill, marker) in zip(chosen, looks, strict=True):
        look: Look = {"marker": marker, "markersize": size, "markeredgecolor": series.colour}
        label = f"epoch {epoch.epoch} ({epoch.stage})" if epoch.stage != "train" else f"epoch {epoch.epoch}"
        axes.plot(predicted[order], rows, linestyle="none", markerfacecolor=fill, label=label, **look)
    axes.set_xlim(left=0)
    axes.set_xlabel("training examples")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.2, fontsize=8)
    description = "predicted classes of the training examples"
    return make_panel(figure, f"{series.anchor}-predicted", series.label, description)


def confusions(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> list[tuple[str, list[Panel]]]:
    """Draw confusion matrices under each attack, summed over the seeds of a series; none for very many classes."""
    if any(len(run.series.data.class_names) > statistics.PAIRED_CLASSES for run in runs):
        return []
    return [
        (attack.title, [_confusion(run, attack, f"confusion-{i}") for run in runs if attack in run.summaries])
        for i, attack in enumerate(attacks)
    ]


def _confusion(run: Measured, attack: AttackKey, name: str) -> Panel:
    """Draw one matrix with rows (true classes) normalised to 1, classes from the largest to the smallest."""
    data = run.series.data
    order, count = data.order, len(data.order)
    counts = run.confusion(attack).astype(np.float64)[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axes,) = make_figure(3.8)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(True)
    if count <= NAMED_CLASSES:
        names = [short(data.class_names[c], 10) for c in order]
        small = 8 if count <= 12 else 5.5
        axes.set_xticks(range(count), names, rotation=90, fontsize=small)
        axes.set_yticks(range(count), names, fontsize=small)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.tick_params(length=0)
    if count <= 12:
        for row, column in np.argwhere(share >= 0.005):
            tone = "white" if share[row, column] > 0.55 else INK
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center_baseline", color=tone, fontsize=7.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return make_panel(
        figure, f"{run.series.anchor}-{name}", run.series.label, "confusion matrix, per cent of each true class"
    )
