"""The figures of the report: one function each, from results to a drawing, below the text of its docstring.

The template writes a drawing as SVG, with its legend beside it. Figures are legible without colour.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from taet.evaluation.bundles import curves, fixed
from taet.formatting import size
from taet.report.results import Results, over_seeds
from taet.report.tables import in_ball, lead_attacks, order, under

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor")
"""Colours of Okabe and Ito (Color Universal Design, 2008), ordered so that the first three differ in lightness."""
STRENGTHS = ("#8c8c8c", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")  # grey: clean, orange: the strongest
GROUPS = {"head": "#8c8c8c", "body": "#0072B2", "tail": "#D55E00"}
MARKERS = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",  # a circle, and around the same centre a square, a diamond, triangles, ...
    "m-2.7-2.7h5.4v5.4h-5.4z",
    "m0-3.8l3.8 3.8-3.8 3.8-3.8-3.8z",
    "m0-3.6l3.4 6h-6.8z",
    "m0 3.6l3.4-6h-6.8z",
    "m-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
    "m0-4l1.2 2.8 2.8 1.2-2.8 1.2-1.2 2.8-1.2-2.8-2.8-1.2 2.8-1.2z",
)
MOST_ROWS = 20
CURVES = {"steps": "number of steps", "eps": "radius ε", "logit-scale": "factor of the logits"}
Words = tuple[float, float, str, str]  # x, y, whether it anchors the "middle" or the "end" of the text, and the text


class Marks(NamedTuple):
    """The drawing of one name of the legend, as SVG paths: a marker at each point, intervals, a line and a band."""

    name: str
    colour: str
    marker: str
    points: str
    intervals: str = ""
    line: str = ""
    band: str = ""


@dataclass(frozen=True)
class Panel:
    """A drawing of 460 x `height` CSS pixels: the grid as an SVG path, the texts, and marks above them."""

    title: str
    description: str
    height: float
    grid: str
    words: Sequence[Words]
    marks: Sequence[Marks]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the map from values in `low` to `high` to pixels in `start` to `end`, rounded to tenths."""
    return lambda value: round(start + (end - start) * (value - low) / ((high - low) or 1), 1)


def _ticks(low: float, high: float, least: float) -> list[float]:
    """Return up to seven ticks from `low` to `high`: multiples of the first 1, 2 or 5 times 10^k from `least` on."""
    steps = (factor * 10.0**power for power in range(-3, 9) for factor in (1, 2, 5))
    step = next(step for step in steps if step >= least and (high - low) / step <= 6)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _through(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def overview(results: Results) -> Iterator[Panel]:
    """Balanced accuracy of each row under each attack, and of its head, body and tail classes under the strongest."""
    rows, attack = order(results)[:MOST_ROWS], results.strongest
    scores, parts = results.scores("balanced"), results.scores(*GROUPS).query("attack == @attack")
    *clean, lead = lead_attacks(results)
    own = [name for name, column in results.columns.items() if column.ordinary]
    attacks = [*clean, *(one for one in in_ball(results) if one in own and one not in (*clean, lead))]
    colours = dict(zip([*attacks[: len(STRENGTHS) - 1], lead], STRENGTHS, strict=False)) | {lead: STRENGTHS[-1]}
    of = f", the best {MOST_ROWS} of {len(results.rows)}" if len(results.rows) > MOST_ROWS else ""
    drawn, measured = (len({*names} - {"clean"}) for names in (colours, own))
    attacks_text = "each attack" if drawn == measured else f"{drawn} of {measured} attacks"
    yield _forest(f"Balanced accuracy under {attacks_text}{of}", scores, rows, "attack", colours)
    if len(parts):
        yield _forest(f"Head, body and tail classes under {attack}{of}", parts, rows, "group", GROUPS)


def _forest(title: str, scores: pd.DataFrame, rows: Sequence[str], lines: str, colours: Mapping[str, str]) -> Panel:
    """Draw, for each value of the column `lines`, a marker and an interval in each row, in the colour of the value."""
    names, left, right = {row: textwrap.wrap(row, 23) for row in rows}, 150, 450
    each = max(42 if len(rows) < 10 else 35, 8 + 13 * max(map(len, names.values())))
    bottom, top = each * len(rows), min(1.0, 1.02 * scores["high"].max())
    x, places, marks = _scale(0, top, left, right), {row: each * place for place, row in enumerate(rows)}, []
    for place, ((label, colour), marker) in enumerate(zip(colours.items(), MARKERS, strict=False)):
        below, line = each * (0.5 + 0.62 * ((place + 0.5) / len(colours) - 0.5)), scores[scores[lines] == label]
        found = [
            (x(accuracy), x(low), x(high), round(places[row] + below, 1))
            for row, accuracy, low, high in line[["row", "accuracy", "low", "high"]].itertuples(index=False)
            if row in places
        ]
        points = "".join(f"M{at} {y}{marker}" for at, _, _, y in found)
        marks.append(Marks(label, colour, marker, points, "".join(f"M{low} {y}H{high}" for _, low, high, y in found)))
    ticks = [(x(tick / 100), f"{tick:g} %") for tick in _ticks(0, 100 * top, 1)]
    words: list[Words] = [(at, bottom + 18, "middle", text) for at, text in ticks]
    for row, start in places.items():
        first = start + each / 2 + 4 - 6.5 * (len(names[row]) - 1)
        words += [(left - 8, first + 13 * line, "end", part) for line, part in enumerate(names[row])]
    grid = "".join(f"M{at} 0V{bottom}" for at, _ in ticks)
    grid += "".join(f"M0 {y}H{right}" for y in (*places.values(), bottom))
    description = f"with 95 % intervals, one row per method: {', '.join(colours)}"
    return Panel(title, description, bottom + 24, grid, words, marks)


def strength(results: Results) -> Iterator[Panel]:
    """Balanced accuracy against one setting of the attack, with 95 % intervals. A curve over steps that still falls at
    its end has not converged; one over the radius must reach 0; one over the scale of the logits should be flat. Seeds
    that were attacked with other settings than the first of their row are left out."""
    for name, label in CURVES.items():
        lines, first = [], dict[str, object]()
        for one in results.named:
            if curve := curves(one.card)[name]:
                settings = fixed([*curve.values()][-1], name)
                of_row = curve.items() if first.setdefault(one.row, settings) == settings else ()
                summaries = ((x, one.card.summary_of(column)) for x, column in of_row)
                lines += [(one.row, one.card.seed, x, of.balanced, *of.balanced_interval) for x, of in summaries]
        if lines:
            points = pd.DataFrame(lines, columns=["row", "seed", "x", "accuracy", "low", "high"])
            points = over_seeds(of_all_seeds(points), "row", "x")
            places = {x: place for place, x in enumerate(sorted({*points["x"]}))}
            points["x"] = points["x"].map(places)
            ticks = {float(place): size(x, 3) if name == "eps" else f"{x:g}" for x, place in places.items()}
            yield _lines(label[0].upper() + label[1:], f"{label} (not to scale)", points, order(results), ticks)


def training(results: Results) -> Iterator[Panel]:
    """Balanced accuracy over the epochs of training, mean over the seeds, on the split in the title."""
    found: dict[str, list[tuple[str, int | None, int, float]]] = defaultdict(list)
    for one in results.named:
        for epoch, point in ((epoch.epoch, epoch.monitor) for epoch in one.epochs if epoch.monitor):
            for name, counts in (("clean", point.clean), (point.attack, point.attacked)):
                line = (one.row, one.card.seed, epoch, counts.balanced_accuracy)
                found[f"{under(name)}, {point.split} split"].append(line)
    for title, values in found.items():
        points = of_all_seeds(pd.DataFrame(values, columns=["row", "seed", "x", "accuracy"]))
        means = points.groupby(["row", "x"], as_index=False)["accuracy"].mean()
        ticks = {tick: f"{tick:g}" for tick in _ticks(means["x"].min(), means["x"].max(), 1)}
        yield _lines(title, "epoch", means, order(results), ticks)


def of_all_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that every seed of their row has; a mean over some of the seeds would jump."""
    seeds, of_row = points["seed"].fillna(-1), points["row"]
    number = seeds.groupby([of_row, points["x"]]).transform("nunique")
    return points[number == seeds.groupby(of_row).transform("nunique")]


def _lines(title: str, label: str, points: pd.DataFrame, rows: Sequence[str], ticks: Mapping[float, str]) -> Panel:
    """Draw accuracy against x for each row, with the 95 % intervals as bands where there are any."""
    left, right, bottom, top = 48, 450, 240, 1.02 * max(0.01, points["high" if "high" in points else "accuracy"].max())
    x, y = _scale(points["x"].min(), points["x"].max(), left + 8, right - 8), _scale(0, top, bottom, 0)
    lines = {row: points[points["row"] == row].sort_values("x") for row in rows if row in {*points["row"]}}
    marks = []
    for (row, line), colour, marker in zip(lines.items(), COLOURS, MARKERS, strict=False):
        places = [*zip(map(x, line["x"]), map(y, line["accuracy"]), strict=True)]
        shown = "".join(f"M{at} {height}{marker}" for at, height in places[:: max(1, len(places) // 8)])
        band = ""
        if "low" in line:
            ends = [[*zip(map(x, line["x"]), map(y, line[end]), strict=True)] for end in ("high", "low")]
            band = _through([*ends[0], *reversed(ends[1])]) + "z"
        marks.append(Marks(row, colour, marker, shown, line=_through(places), band=band))
    levels = [(y(tick / 100), f"{tick:g} %") for tick in _ticks(0, 100 * top, 0.001)]
    words: list[Words] = [(left - 8, at + 4, "end", text) for at, text in levels]
    words += [(x(tick), bottom + 18, "middle", text) for tick, text in ticks.items()]
    words += [((left + right) / 2, bottom + 38, "middle", label)]
    of = f", the best {len(COLOURS)} of {len(lines)}" if len(lines) > len(COLOURS) else ""
    text = f"balanced accuracy against the {label}, one line for each row"
    return Panel(f"{title}{of}", text, bottom + 46, "".join(f"M{left} {at}H{right}" for at, _ in levels), words, marks)
