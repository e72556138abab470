"""The figures of the report: one function each, from results to inline SVG; its docstring is the text above it.

Figures have one width, are legible without colour, and have the same bytes for the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from taet.evaluation.bundles import curves
from taet.report.results import Results, over_seeds
from taet.report.tables import in_ball, lead_attacks, order, under

GREY, INK = "#6b6b6b", "#1a1a1a"
WIDTH = 4.8  # inches: 460 CSS pixels
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito (Color Universal Design, 2008), ordered so that the first three differ in lightness."""
MARKERS = "osD^vP*"
STRENGTHS = ("#8c8c8c", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")  # grey: clean, orange: the strongest
GROUPS = {"head": "#8c8c8c", "body": "#0072B2", "tail": "#D55E00"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "taet", "text.parse_math": False, "font.family": "DejaVu Sans"}
STYLE |= {"font.size": 9.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.axisbelow": True, "grid.color": "#e2e2e2", **dict.fromkeys(("xtick.color", "ytick.color"), GREY)}
STYLE |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK)
MOST_ROWS = 20
CURVES = {"steps": "number of steps", "eps": "radius ε", "logit-scale": "factor of the logits"}


class Panel(NamedTuple):
    """A drawing: its title as text, and its markup."""

    title: str
    svg: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set the style of all figures within this block and restore matplotlib's settings afterwards."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks is not missing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def axes(height: float, shares: Literal["x", "y"]) -> tuple[Figure, Axes]:
    """Return an empty figure of a height in inches, and its axes, of which one shows shares in per cent."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ax = figure.subplots()
    ax.grid(axis=shares)
    (ax.xaxis if shares == "x" else ax.yaxis).set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))
    return figure, ax


def draw(figure: Figure, title: str, description: str) -> Panel:
    """Return a figure as markup, with a legend of what has a name; its ids are those of no other figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        columns = max(1, 66 // (5 + max(map(len, labels))))  # as many side by side as fit
        figure.legend(handles, labels, ncols=columns, fontsize=8.5, loc="outside upper left", handletextpad=0.3)
    figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # which savefig would execute twice
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "system-ui, sans-serif").rstrip()
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<defs>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    anchor = hashlib.sha256(f"{title} {svg}".encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{anchor}-", svg)
    head = f'<svg class="figure" role="img" aria-label="{escape(f"{title}: {description}")}"'
    return Panel(title, svg.replace("<svg", head, 1))


def _short(name: str, length: int = 30) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def overview(results: Results) -> Iterator[Panel]:
    """Balanced accuracy of each row under each attack, and of its head, body and tail classes under the strongest."""
    rows, attack = order(results)[:MOST_ROWS], results.strongest
    scores, parts = results.scores("balanced"), results.scores(*GROUPS).query("attack == @attack")
    *clean, lead = lead_attacks(results)
    attacks = [*clean, *(one for one in in_ball(results) if one not in (*clean, lead))]
    colours = dict(zip([*attacks[: len(STRENGTHS) - 1], lead], STRENGTHS, strict=False)) | {lead: STRENGTHS[-1]}
    of = f", the best {MOST_ROWS} of {len(results.rows)}" if len(results.rows) > MOST_ROWS else ""
    each = "each attack" if len(colours) > len(attacks) else f"{len(colours)} of {len(attacks) + 1} attacks"
    yield _forest(f"Balanced accuracy under {each}{of}", scores, rows, "attack", colours)
    if len(parts):
        yield _forest(f"Head, body and tail classes under {attack}{of}", parts, rows, "group", GROUPS)


def _forest(title: str, scores: pd.DataFrame, rows: Sequence[str], lines: str, colours: Mapping[str, str]) -> Panel:
    """Draw a marker and an interval of each row for each value of the column `lines`, in its colour."""
    figure, ax = axes(0.85 + (0.44 if len(rows) < 10 else 0.36) * len(rows), "x")
    for place, (label, colour) in enumerate(colours.items()):
        line = scores[scores[lines] == label].set_index("row").reindex(rows)
        y = np.arange(len(rows)) + 0.62 * ((place + 0.5) / len(colours) - 0.5)
        ax.hlines(y, line["low"], line["high"], color=colour, linewidth=1.5, alpha=0.5)
        ax.plot(line["accuracy"], y, MARKERS[place % len(MARKERS)], markersize=4.5, color=colour, label=label)
    for row in range(1, len(rows)):
        ax.axhline(row - 0.5, color="#ececec", linewidth=0.8, zorder=0)
    names = ["\n".join(textwrap.wrap(_short(row, 40), 23)) for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=9, linespacing=1.0)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.01, min(1.01, 1.02 * scores["high"].max())))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return draw(figure, title, f"with 95 % intervals, one row per method: {', '.join(colours)}")


def strength(results: Results) -> Iterator[Panel]:
    """Balanced accuracy against one setting of the attack, with 95 % intervals. A curve over steps that still falls at
    its end has not converged; one over the radius must reach 0; one over the scale of the logits should be flat."""
    for name, said in CURVES.items():
        found = []
        for one in results.named:
            for x, column in curves(one.card).get(name, {}).items():
                summary = one.card.summary_of(column)
                found.append((one.row, one.card.seed, x, summary.balanced, *summary.balanced_interval))
        if found:
            points = pd.DataFrame(found, columns=["row", "seed", "x", "accuracy", "low", "high"])
            yield _lines(said[0].upper() + said[1:], said, over_seeds(points, "row", "x"), order(results), wide=True)


def training(results: Results) -> Iterator[Panel]:
    """Balanced accuracy over the epochs of training, mean over the seeds, on the split in the title."""
    found: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
    points = [(one.row, epoch.epoch, epoch.monitor) for one in results.named for epoch in one.epochs if epoch.monitor]
    for row, epoch, point in points:
        for name, counts in (("clean", point.clean), (point.attack, point.attacked)):
            found[f"{under(name)}, {point.split} split"].append((row, epoch, counts.balanced_accuracy))
    for title, values in found.items():
        means = pd.DataFrame(values, columns=["row", "x", "accuracy"]).groupby(["row", "x"], as_index=False).mean()
        yield _lines(title, "epoch", means, order(results))


def _lines(title: str, label: str, points: pd.DataFrame, rows: Sequence[str], wide: bool = False) -> Panel:
    """Draw accuracy against x, on a wide scale if that is asked, for each row, with intervals where there are any."""
    figure, ax = axes(3.0, "y")
    lines = {row: points[points["row"] == row].set_index("x").sort_index() for row in rows if row in {*points["row"]}}
    for (row, line), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
        if "low" in line:
            ax.fill_between(line.index, line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
        every = max(1, len(line) // 8)
        ax.plot(line.index, line["accuracy"], f"{marker}-", color=colour, ms=4, markevery=every, label=_short(row))
    if wide:
        ticks = sorted({*points["x"]})
        ax.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick > 0))
        ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        ax.set_xticks([], minor=True)
    ax.set(xlabel=label, ylim=(0, None))
    of = f", the best {len(COLOURS)} of {len(lines)}" if len(lines) > len(COLOURS) else ""
    return draw(figure, f"{title}{of}", f"balanced accuracy against the {label}, one line for each row")
