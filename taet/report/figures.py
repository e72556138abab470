"""Figures of the report as inline SVG and PNG: small panels of one width, legible without colour.

Colours are those of Okabe and Ito (Color Universal Design, 2008), in an order whose first three also differ in
lightness; markers, line styles and hatches repeat what colour says.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from taet.report.read import Data, Epoch, Examples, Floats, Ints, Monitor, RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from taet.evaluation.result import ResultCard
    from taet.report.tables import Classes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
SVG_DASHES = ("", "6 3", "1.5 2", "7 3 1.5 3")
MARKERS = ("o", "s", "^", "D", "v")
MARKER_PATHS = (
    "M14 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M14.5 3.5h7v7h-7Z",
    "M18 2.5l4.5 8h-9Z",
    "M18 2l5 5l-5 5l-5-5Z",
    "M18 11.5l4.5-8h-9Z",
)
GREY, INK, GRID = "#6b6b6b", "#1a1a1a", "#dcdcdc"
WIDTH = 4.0
"""Inches of every panel: 384 CSS pixels, so that a phone shows it nearly at full size."""
NAMED_CLASSES = 30
"""Up to so many classes each row of a figure carries its class name; beyond, its rank."""
MANY = len(COLOURS)
"""Of more series than this, no figure shows all at once."""
EXAMPLES = 8
FEW_TEST_IMAGES = 50
"""Below so many test images one of them moves the accuracy of its class by more than two points."""


@dataclass(frozen=True)
class Series:
    """Runs that differ in nothing but the seed, as they are drawn: one label, colour, line and marker on the page."""

    runs: tuple[RunFolder, ...]
    label: str
    anchor: str
    index: int
    colour: str

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def data(self) -> Data:
        return self.runs[0].data

    @property
    def cards(self) -> list[ResultCard]:
        return [run.card for run in self.runs if run.card is not None]

    @property
    def seconds(self) -> float:
        """Seconds of training of one run, the mean over seeds."""
        return float(np.mean([run.seconds for run in self.runs if run.card is not None]))

    @property
    def machine(self) -> tuple[Any, ...]:
        """What seconds depend on besides the method."""
        return tuple(dict.fromkeys((run.record.get("device"), run.record.get("threads")) for run in self.runs))

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where the runs left the protocol, in words."""
        return tuple(dict.fromkeys(text for run in self.runs for text in run.deviations))

    @property
    def flags(self) -> dict[str, tuple[str, list[int]]]:
        """What the diagnostics found, by flag: its text, and the seeds that it was raised for."""
        found: dict[str, tuple[str, list[int]]] = {}
        for run in self.runs:
            for flag in run.card.flags if run.card is not None else ():
                found.setdefault(flag["flag"], (flag["text"], []))[1].append(run.seed)
        return found

    def over_seeds(self, value: Callable[[Epoch], Any]) -> list[tuple[Epoch, Any]]:
        """Return the mean of a value over the seeds, per epoch that has it, with an epoch of one of the runs."""
        found: dict[int, list[tuple[Epoch, Any]]] = {}
        for run in self.runs:
            for epoch in run.epochs:
                drawn = value(epoch)
                if drawn is not None:
                    found.setdefault(epoch.epoch, []).append((epoch, drawn))
        return [(found[e][0][0], np.mean([drawn for _, drawn in found[e]], axis=0)) for e in sorted(found)]

    @property
    def dashes(self) -> Any:
        return DASHES[self.index % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.index % len(MARKERS)]

    @property
    def svg_dashes(self) -> str:
        return SVG_DASHES[self.index % len(SVG_DASHES)]

    @property
    def marker_path(self) -> str:
        return MARKER_PATHS[self.index % len(MARKER_PATHS)]


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


def _figure(height: float, rows: int = 1) -> tuple[Figure, npt.NDArray[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def _panel(figure: Figure, name: str, title: str, description: str) -> Panel:
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


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


# --- rows of classes -------------------------------------------------------------------------------------------------


def _short(name: str, length: int = 16) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def class_rows(data: Data) -> tuple[Figure, Axes, Ints]:
    """Return an empty panel with a row per class, largest class on top, groups apart, and the classes in that order."""
    order, count = data.order, len(data.order)
    figure, (axes,) = _figure(float(np.clip(0.9 + 0.3 * count, 1.8, 8.4)))
    axes.set_ylim(count - 0.4, -0.6)
    if count <= NAMED_CLASSES:
        names = [f"{_short(data.class_names[c])} · {data.train_counts[c]}" for c in order]
        axes.set_yticks(range(count), names)
    else:
        rows = sorted({int(row) for row in np.linspace(0, count - 1, 11)})
        axes.set_yticks(rows, [f"rank {row + 1} · {data.train_counts[order[row]]}" for row in rows])
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


def _whiskers(axes: Axes, values: Floats, interval: tuple[Floats, Floats], rows: Floats, colour: str) -> None:
    low, high = interval
    keep = np.isfinite(values)
    spans = np.stack([values - low, high - values])[:, keep].clip(0)
    width = 0.9 if len(values) <= NAMED_CLASSES else 0.4
    axes.errorbar(values[keep], rows[keep], xerr=spans, fmt="none", ecolor=colour, elinewidth=width, capsize=0)


def histogram(data: Data, name: str) -> Panel:
    """Training images per class, largest first; the test images are named at the end of each bar."""
    figure, axes, order = class_rows(data)
    counts = np.asarray(data.train_counts)[order]
    shades = {"head": ("#4d4d4d", ""), "body": ("#a6a6a6", ""), "tail": ("#ffffff", "////")}
    for group, members in data.groups.items():
        rows = data.ranks[members]
        colour, hatch = shades[group]
        axes.barh(rows, counts[rows], 0.7, color=colour, hatch=hatch, edgecolor="#4d4d4d", linewidth=0.7)
    if len(order) <= NAMED_CLASSES:
        for row, c in enumerate(order):
            few = " *" if data.test_counts[c] < FEW_TEST_IMAGES else ""
            label = f"{data.test_counts[c]} test{few}"
            axes.annotate(
                label, (counts[row], row), (4, 0), textcoords="offset points", va="center", color=GREY, fontsize=8
            )
    axes.set_xlim(0, 1.25 * counts.max())
    axes.set_xlabel("training images")
    return _panel(figure, name, "Training images per class", "head, body and tail from top to bottom")


def class_bars(series: Series, clean: Classes, attacked: Classes | None, attack: str, name: str) -> Panel:
    """Clean and robust accuracy of each class: two bars per row, with intervals."""
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
    _percent_axis(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.6)
    return _panel(figure, name, series.label, f"clean accuracy and accuracy under {attack} of each class")


def class_dots(rows_of: Sequence[tuple[Series, Classes]], title: str, name: str) -> Panel:
    """Accuracy of each class under one attack, one marker per series, with intervals."""
    figure, axes, order = class_rows(rows_of[0][0].data)
    shifts = np.linspace(-0.3, 0.3, len(rows_of)) if len(rows_of) > 1 else np.zeros(1)
    size = 4.5 if len(order) <= NAMED_CLASSES else 2.0
    for (series, classes), shift in zip(rows_of, shifts, strict=True):
        rows = np.arange(len(order)) + shift
        values = classes.values[order]
        _whiskers(axes, values, (classes.low[order], classes.high[order]), rows, series.colour)
        axes.plot(values, rows, linestyle="none", marker=series.marker, markersize=size, color=series.colour)
    axes.set_xlim(-0.02, 1.02)
    _percent_axis(axes.xaxis)
    return _panel(figure, name, title, "accuracy of each class, one marker per method")


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
    return _panel(figure, name, series.label, "predicted classes of the training examples, first and last epoch")


def confusion(series: Series, matrix: Ints, name: str) -> Panel:
    """Confusion matrix with rows (true classes) normalised to 1, classes from the largest to the smallest."""
    data = series.data
    order, count = data.order, len(data.order)
    counts = np.asarray(matrix, dtype=np.float64)[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axes,) = _figure(3.8)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(True)
    if count <= NAMED_CLASSES:
        names = [_short(data.class_names[c], 10) for c in order]
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
    return _panel(figure, name, series.label, "confusion matrix, per cent of each true class")


# --- curves over training --------------------------------------------------------------------------------------------


def switches(series: Series) -> list[tuple[int, str]]:
    """Return (first epoch, stage) of every stage but the first that a run of the series has reached."""
    last = max((epoch.epoch for run in series.runs for epoch in run.epochs), default=0)
    stages = series.runs[0].record.get("stages") or []
    return [(int(s["from_epoch"]), str(s["stage"])) for s in stages[1:] if int(s["from_epoch"]) <= last]


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


Value = Callable[[Monitor], float]


def curve(series: Series, value: Value) -> tuple[list[int], list[float]]:
    """The epochs at which the curve of a series was measured, and there the mean of `value` over the seeds."""
    points = series.over_seeds(lambda epoch: None if epoch.monitor is None else value(epoch.monitor))
    return [epoch.epoch for epoch, _ in points], [float(mean) for _, mean in points]


def accuracy_curves(all_series: Sequence[Series], title: str, value: Value, top: float, name: str) -> Panel:
    """One value per epoch and series, drawn where it was measured, with every change of stage marked."""
    figure, (axes,) = _figure(2.7)
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
    _percent_axis(axes.yaxis)
    _epoch_axis(axes, last)
    _mark_switches(axes, {mark: list(methods) for mark, methods in marks.items()}, last)
    return _panel(figure, name, title, "value per epoch, one line per method")


def own_curves(series: Series, reference: Series | None, values: Mapping[str, Value], top: float, name: str) -> Panel:
    """The curves of one series, each with its name, before those of a reference in grey."""
    figure, (axes,) = _figure(2.5)
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
    _percent_axis(axes.yaxis)
    last = max(run.epochs[-1].epoch for run in series.runs if run.epochs)
    _epoch_axis(axes, last)
    _mark_switches(axes, {mark: [] for mark in switches(series)}, last)
    figure.legend(loc="outside lower center", ncols=len(values), handlelength=1.8, fontsize=8)
    return _panel(figure, name, series.label, f"value per epoch: {', '.join(values)}")


def loss_curves(series: Series, name: str) -> Panel | None:
    """The total loss and its parts over the epochs, one small axis each."""
    parts = list(dict.fromkeys(part for run in series.runs for epoch in run.epochs for part in epoch.loss))
    if not parts:
        return None
    parts.sort(key=lambda part: part != "total")
    figure, grid = _figure(0.75 + 0.95 * len(parts), rows=len(parts))
    last = max(run.epochs[-1].epoch for run in series.runs if run.epochs)
    for axes, part in zip(grid, parts, strict=True):
        points = series.over_seeds(lambda epoch: epoch.loss.get(part, float("nan")))  # noqa: B023  # called at once
        look = {"linewidth": 1.8 if part == "total" else 1.2, "marker": series.marker, "markersize": 3.0}
        x, y = [epoch.epoch for epoch, _ in points], [mean for _, mean in points]
        axes.plot(x, y, color=series.colour, markevery=max(1, len(x) // 12), **look)
        axes.grid(axis="y")
        axes.set_ylabel(_short(part), rotation=0, ha="right", va="center")
        axes.margins(y=0.15)
        for epoch, _ in switches(series):
            axes.axvline(epoch - 0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    figure.align_ylabels(list(grid))
    _epoch_axis(grid[-1], last)
    _mark_switches(grid[0], {mark: [] for mark in switches(series)}, last)
    return _panel(figure, name, series.label, f"loss per epoch: {', '.join(parts)}")


# --- images ----------------------------------------------------------------------------------------------------------


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, 1 or 3) as a data URI at its own size; the page enlarges it pixel by pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Example:
    """A clean image, its adversarial one and their difference, as data URIs, and the three classes that matter."""

    clean: str
    adversarial: str
    perturbation: str
    label: int
    clean_prediction: int
    adversarial_prediction: int


def magnification(examples: Examples) -> int:
    """Largest whole factor at which no perturbation leaves the range of greys around the middle."""
    largest = float(np.abs(examples.adversarial - examples.images / 255).max(initial=0))
    return max(1, int(0.5 / largest + 1e-3)) if largest > 0 else 1


def example_images(examples: Examples, ranks: Ints) -> list[Example]:
    """Return at most `EXAMPLES` examples spread evenly from the head to the tail."""
    order = np.argsort(ranks[examples.labels], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int))]
    factor = magnification(examples)
    return [
        Example(
            clean=png(examples.images[i]),
            adversarial=png(_grey_levels(examples.adversarial[i])),
            perturbation=png(_grey_levels(0.5 + factor * (examples.adversarial[i] - examples.images[i] / 255))),
            label=int(examples.labels[i]),
            clean_prediction=int(examples.clean_predictions[i]),
            adversarial_prediction=int(examples.adversarial_predictions[i]),
        )
        for i in chosen
    ]


def _grey_levels(image: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    return levels
