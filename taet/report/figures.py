"""Figures of the report as inline SVG, small panels of one width, legible without colour; here those of classes."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from taet.report.read import DataFacts, Floats, Ints
from taet.report.series import Series
from taet.report.tables import ClassAccuracies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, INK, GRID = "#6b6b6b", "#1a1a1a", "#dcdcdc"
WIDTH = 4.0
"""Inches of every panel: 384 CSS pixels, so that a phone shows it nearly at full size."""
NAMED_CLASSES = 30
"""Up to so many classes each row of a figure carries its class name; beyond, its rank."""
WHISKERED_CLASSES = 100
"""Up to so many classes intervals are drawn; beyond, they would cover the figure, whose rows are a few pixels high."""


@dataclass(frozen=True)
class Panel:
    """One drawing with the words above it; `svg` is markup, `title` is text."""

    title: str
    svg: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw within this block: the look of every figure, with matplotlib's own settings put back afterwards."""
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
        # The browser draws the text, with its own fonts: a glyph that matplotlib's lacks is not missing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def make_figure(height: float, rows: int = 1) -> tuple[Figure, npt.NDArray[Any]]:
    """Return an empty panel of a height in inches, and its axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def make_panel(figure: Figure, name: str, title: str, description: str) -> Panel:
    """Turn `figure` into markup whose ids begin with `name`, without a date and without rules for the whole page."""
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


def percent_axis(axis: Any) -> None:
    """Write the numbers of an axis in per cent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


# --- rows of classes -------------------------------------------------------------------------------------------------


def short(name: str, length: int = 16) -> str:
    """Cut a name where it is too long for a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def class_rows(data: DataFacts) -> tuple[Figure, Axes, Ints]:
    """Return an empty panel with a row per class, largest class on top, groups apart, and the classes in that order."""
    order, count = data.order, len(data.order)
    figure, (axes,) = make_figure(float(np.clip(0.9 + 0.3 * count, 1.8, 8.4)))
    axes.set_ylim(count - 0.4, -0.6)
    if count <= NAMED_CLASSES:
        axes.set_yticks(range(count), [f"{short(data.class_names[c])}{_counted(data, c)}" for c in order])
    else:
        rows = sorted({int(row) for row in np.linspace(0, count - 1, 11)})
        axes.set_yticks(rows, [f"rank {row + 1}{_counted(data, order[row])}" for row in rows])
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


def _counted(data: DataFacts, label: int) -> str:
    return "" if data.train_counts is None else f" · {data.train_counts[label]}"


def _whiskers(axes: Axes, values: Floats, interval: tuple[Floats, Floats], rows: Floats, colour: str) -> None:
    """Draw the intervals of values of classes, one a row, unless there are too many rows."""
    if len(values) > WHISKERED_CLASSES:
        return
    low, high = interval
    keep = np.isfinite(values)
    spans = np.stack([values - low, high - values])[:, keep].clip(0)
    width = 0.9 if len(values) <= NAMED_CLASSES else 0.4
    axes.errorbar(values[keep], rows[keep], xerr=spans, fmt="none", ecolor=colour, elinewidth=width, capsize=0)


def histogram(data: DataFacts, name: str) -> Panel:
    """Training images per class, largest first; the test images are named at the end of each bar.

    Where the training counts are not known the bars are the test images.
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
        axes.barh(rows, counts[rows], 0.7, color=colour, hatch=hatch, edgecolor="#4d4d4d", linewidth=0.7)
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


def class_bars(
    series: Series, clean: ClassAccuracies, attacked: ClassAccuracies | None, attack: str, name: str
) -> Panel:
    """Clean and robust accuracy of each class: two bars per row, with intervals where there is room."""
    figure, axes, order = class_rows(series.data)
    rows = np.arange(len(order), dtype=np.float64)
    outlined: dict[str, Any] = {"color": "white", "edgecolor": series.colour, "hatch": "/////", "linewidth": 0.7}
    tinted: dict[str, Any] = {"color": series.colour, "alpha": 0.3, "linewidth": 0}
    filled: dict[str, Any] = {"color": series.colour, "linewidth": 0}
    bars = [(clean, -0.19, outlined if len(order) <= NAMED_CLASSES else tinted, "clean")]
    if attacked is not None:
        bars.append((attacked, 0.19, filled, attack))
    for classes, shift, look, label in bars:
        values = classes.values[order]
        axes.barh(rows + shift, np.nan_to_num(values), 0.36, label=label, **look)
        _whiskers(axes, values, (classes.low[order], classes.high[order]), rows + shift, INK)
    axes.set_xlim(0, 1)
    percent_axis(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
    return make_panel(figure, name, series.label, f"clean accuracy and accuracy under {attack} of each class")


def class_errors(series: Series, natural: Floats, boundary: Floats, attack: str, name: str) -> Panel:
    """Natural and boundary error of each class, (C,) each, one bar on the other: their sum is the robust error."""
    figure, axes, order = class_rows(series.data)
    rows, left = np.arange(len(order)), np.nan_to_num(natural[order])
    hatch = "/////" if len(order) <= NAMED_CLASSES else ""
    axes.barh(
        rows, left, 0.7, color="white", edgecolor=series.colour, hatch=hatch, linewidth=0.7, label="natural error"
    )
    axes.barh(
        rows, np.nan_to_num(boundary[order]), 0.7, left=left, color=series.colour, linewidth=0, label="boundary error"
    )
    axes.set_xlim(0, 1)
    percent_axis(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
    return make_panel(figure, name, series.label, f"natural error, and boundary error under {attack}, of each class")


def class_dots(rows_of: Sequence[tuple[Series, ClassAccuracies]], title: str, name: str) -> Panel:
    """Accuracy of each class under one attack, one marker per series, with intervals where there is room."""
    figure, axes, order = class_rows(rows_of[0][0].data)
    shifts = np.linspace(-0.3, 0.3, len(rows_of)) if len(rows_of) > 1 else np.zeros(1)
    size = 4.5 if len(order) <= NAMED_CLASSES else 2.0
    for (series, classes), shift in zip(rows_of, shifts, strict=True):
        rows = np.arange(len(order)) + shift
        values = classes.values[order]
        _whiskers(axes, values, (classes.low[order], classes.high[order]), rows, series.colour)
        axes.plot(values, rows, linestyle="none", marker=series.marker, markersize=size, color=series.colour)
    axes.set_xlim(-0.02, 1.02)
    percent_axis(axes.xaxis)
    return make_panel(figure, name, title, "accuracy of each class, one marker per method")


def predicted_classes(series: Series, name: str) -> Panel | None:
    """How often each class was predicted on the training examples, in the first and in the last epoch."""
    points = series.over_seeds(lambda epoch: epoch.predicted)
    if not points:
        return None
    data = series.data
    figure, axes, order = class_rows(data)
    rows = np.arange(len(order))
    axes.barh(rows, np.asarray(data.train_counts)[order], 0.7, color="#d9d9d9", label="training images")
    ends = [(*points[0], "white", "o")] + ([(*points[-1], series.colour, "D")] if len(points) > 1 else [])
    size = 5.5 if len(order) <= NAMED_CLASSES else 2.5
    for epoch, predicted, fill, marker in ends:
        look: dict[str, Any] = {"marker": marker, "markersize": size, "markeredgecolor": series.colour}
        label = f"epoch {epoch.epoch} ({epoch.stage})" if epoch.stage != "train" else f"epoch {epoch.epoch}"
        axes.plot(predicted[order], rows, linestyle="none", markerfacecolor=fill, label=label, **look)
    axes.set_xlim(left=0)
    axes.set_xlabel("training examples")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.2, fontsize=8)
    return make_panel(figure, name, series.label, "predicted classes of the training examples, first and last epoch")


def confusion(series: Series, matrix: Ints, name: str) -> Panel:
    """Confusion matrix with rows (true classes) normalised to 1, classes from the largest to the smallest."""
    data = series.data
    order, count = data.order, len(data.order)
    counts = np.asarray(matrix, dtype=np.float64)[np.ix_(order, order)]
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
    return make_panel(figure, name, series.label, "confusion matrix, per cent of each true class")
