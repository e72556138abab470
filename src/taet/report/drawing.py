"""Drawings as SVG paths: a forest plot and a line plot. The template writes them into the page.

Figures are legible without colour. All lengths are CSS pixels of a drawing that is `WIDTH` wide.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import pandas as pd

from taet.metrics.accuracies import Floats

WIDTH = 460
RIGHT = 440  # end of the plot; half of the text of the last tick needs the rest
MARKERS = (
    # a circle, and around the same centre a square, a diamond, triangles, ...
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "m-2.7-2.7h5.4v5.4h-5.4z",
    "m0-3.8l3.8 3.8-3.8 3.8-3.8-3.8z",
    "m0-3.6l3.4 6h-6.8z",
    "m0 3.6l3.4-6h-6.8z",
    "m-1.2-3.6h2.4v2.4h2.4v2.4h-2.4v2.4h-2.4v-2.4h-2.4v-2.4h2.4z",
    "m0-4l1.2 2.8 2.8 1.2-2.8 1.2-1.2 2.8-1.2-2.8-2.8-1.2 2.8-1.2z",
)
MOST_TICKS = 6
AXIS_ROOM = 1.02  # an axis ends a little above the largest number
LINE_HEIGHT = 13  # of text
BASELINE = 4  # from the middle of a line of text to where its letters stand
GAP = 8  # between the plot and the texts at its left

# of a forest plot
NAMES_WIDTH, NAMES_LETTERS = 150, 23
MARKED_SHARE = 0.62  # part of a row's height over which its markers are spread
TICKS_BELOW = 24  # height of the ticks' texts

# of a line plot
PLOT_LEFT, PLOT_HEIGHT, PLOT_INSET = 48, 240, 8
LABEL_BELOW = 46  # height of the texts of ticks and axis
MOST_MARKERS = 8  # on a line

# of a heat map
MAP_LEFT = 110  # room of the names of lines
MAP_LETTERS, LETTER_WIDTH = 15, 7  # of a name
MOST_NUMBERED = 10  # classes whose tiles have room for a number

Anchor: TypeAlias = Literal["start", "middle", "end"]


class Label(NamedTuple):
    """A text of a drawing, and which end of it stands at x."""

    x: float
    y: float
    anchor: Anchor
    text: str
    turned: bool = False
    """Whether it is written upwards."""


class Marks(NamedTuple):
    """The drawing of one name of the legend, as SVG paths: a marker at each point, intervals, a
    line and a band."""

    name: str
    colour: str
    marker: str
    points: str
    intervals: str = ""
    line: str = ""
    band: str = ""


class Tile(NamedTuple):
    """A square of a heat map, the opacity of its colour, and the text in it."""

    x: float
    y: float
    size: float
    opacity: float
    text: str


@dataclass(frozen=True)
class Panel:
    """A drawing of `WIDTH` x `height`: the grid as an SVG path, the texts, and marks or tiles."""

    title: str
    description: str
    height: float
    grid: str
    labels: Sequence[Label]
    marks: Sequence[Marks] = ()
    tiles: Sequence[Tile] = ()


class Interval(NamedTuple):
    """Where a forest plot draws a number: its middle and ends, and its height."""

    x: float
    low: float
    high: float
    y: float


def linear_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the map from values in `low` to `high` to pixels in `start` to `end`, rounded to
    tenths."""
    span = (high - low) or 1
    return lambda value: round(start + (end - start) * (value - low) / span, 1)


def ticks(low: float, high: float, least: float) -> list[float]:
    """Return up to seven ticks from `low` to `high`: multiples of the first 1, 2 or 5 times 10^k
    from `least` on."""
    steps = (factor * 10.0**power for power in range(-3, 9) for factor in (1, 2, 5))
    step = next(step for step in steps if step >= least and (high - low) / step <= MOST_TICKS)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def percent_ticks(highest: float, least: float) -> list[float]:
    """Return ticks from 0 to a share, in per cent; `least` is the smallest step."""
    return ticks(0, 100 * highest, least)


def axis_end(values: pd.Series) -> float:
    """Return where an axis of shares that begins at 0 may end."""
    return min(1.0, AXIS_ROOM * values.max())


def path_through(points: Iterable[tuple[float, float]]) -> str:
    """Return the SVG path of straight lines through points."""
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def forest_plot(
    title: str,
    scores: pd.DataFrame,
    rows: Sequence[str],
    series: str,
    colours: Mapping[str, str],
    end: float,
    row_height: float,
    what: str = "method",
) -> Panel:
    """Draw, for each value of the column `series`, a marker and an interval in each row, in the
    colour of the value.

    `scores` has the columns row, accuracy, low and high; the axis goes from 0 to `end`; `what` a
    row is stands in the description. Rows whose names need more lines are higher than `row_height`.
    """
    names = {row: textwrap.wrap(row, NAMES_LETTERS) for row in rows}
    most_lines = max(len(lines) for lines in names.values())
    height = max(row_height, GAP + LINE_HEIGHT * most_lines)
    tops = {row: height * number for number, row in enumerate(rows)}
    bottom = height * len(rows)
    x = linear_scale(0, end, NAMES_WIDTH, RIGHT)

    marks = []
    drawn = scores[scores["row"].isin(tops)]
    for number, ((value, colour), marker) in enumerate(zip(colours.items(), MARKERS, strict=False)):
        share = 0.5 + MARKED_SHARE * ((number + 0.5) / len(colours) - 0.5)
        intervals = [
            Interval(
                x(score.accuracy),
                x(score.low),
                x(score.high),
                y=round(tops[score.row] + height * share, 1),
            )
            for score in drawn[drawn[series] == value].itertuples()
        ]
        marks.append(_interval_marks(value, colour, marker, intervals))

    labels, grid = [], ""
    for tick in percent_ticks(end, least=1):
        x_tick = x(tick / 100)
        labels.append(Label(x_tick, bottom + 18, "middle", f"{tick:g} %"))
        grid += f"M{x_tick} 0V{bottom}"
    for row, top in tops.items():
        labels += _row_name(names[row], top + height / 2)
        grid += f"M0 {top}H{RIGHT}"
    grid += f"M0 {bottom}H{RIGHT}"
    description = f"with 95 % intervals, one row per {what}: {', '.join(colours)}"
    return Panel(title, description, bottom + TICKS_BELOW, grid, labels, marks)


def _interval_marks(name: str, colour: str, marker: str, intervals: Sequence[Interval]) -> Marks:
    """Return the marks of a forest plot in one colour."""
    points = "".join(f"M{at.x} {at.y}{marker}" for at in intervals)
    bars = "".join(f"M{at.low} {at.y}H{at.high}" for at in intervals)
    return Marks(name, colour, marker, points, bars)


def _row_name(lines: Sequence[str], middle: float) -> list[Label]:
    first = middle + BASELINE - LINE_HEIGHT / 2 * (len(lines) - 1)
    return [
        Label(NAMES_WIDTH - GAP, first + LINE_HEIGHT * number, "end", text)
        for number, text in enumerate(lines)
    ]


def line_plot(
    title: str,
    axis: str,
    points: pd.DataFrame,
    x_ticks: Mapping[float, str],
    lines: Mapping[str, str],
) -> Panel:
    """Draw accuracy against x for each row, with the 95 % intervals as bands where there are any.

    `points` has the columns row, x, accuracy and, with intervals, low and high; `axis` names x;
    `lines` are the rows, each with its colour.
    """
    has_intervals = "high" in points
    highest = points["high" if has_intervals else "accuracy"].max()
    end = AXIS_ROOM * max(0.01, highest)
    x = linear_scale(
        points["x"].min(), points["x"].max(), PLOT_LEFT + PLOT_INSET, RIGHT - PLOT_INSET
    )
    y = linear_scale(0, end, PLOT_HEIGHT, 0)
    marks = []
    for (row, colour), marker in zip(lines.items(), MARKERS, strict=False):
        of_row = points[points["row"] == row].sort_values("x")
        pixels = {
            name: of_row[name].map(y) for name in ("accuracy", "low", "high") if name in of_row
        }
        marks.append(_curve(row, colour, marker, of_row["x"].map(x), pixels))
    labels, grid = [], ""
    for tick in percent_ticks(end, least=0.001):
        at_tick = y(tick / 100)
        labels.append(Label(PLOT_LEFT - GAP, at_tick + BASELINE, "end", f"{tick:g} %"))
        grid += f"M{PLOT_LEFT} {at_tick}H{RIGHT}"
    for value, text in x_ticks.items():
        labels.append(Label(x(value), PLOT_HEIGHT + 18, "middle", text))
    labels.append(Label((PLOT_LEFT + RIGHT) / 2, PLOT_HEIGHT + 38, "middle", axis))
    description = f"balanced accuracy against the {axis}, one line for each row"
    return Panel(title, description, PLOT_HEIGHT + LABEL_BELOW, grid, labels, marks)


def _curve(
    name: str, colour: str, marker: str, x: Iterable[float], y: Mapping[str, Iterable[float]]
) -> Marks:
    """Return a line through `y["accuracy"]` with its markers and, between `y["low"]` and
    `y["high"]` if there are any, a band."""
    middle = list(zip(x, y["accuracy"], strict=True))
    marked = middle[:: max(1, len(middle) // MOST_MARKERS)]
    markers = "".join(f"M{left} {top}{marker}" for left, top in marked)
    band = ""
    if "high" in y:
        upper = list(zip(x, y["high"], strict=True))
        lower = list(zip(x, y["low"], strict=True))
        band = path_through([*upper, *reversed(lower)]) + "z"
    return Marks(name, colour, marker, markers, line=path_through(middle), band=band)


def heat_map(title: str, shares: Floats, names: Sequence[str]) -> Panel:
    """Draw a matrix (C, C) of shares as tiles: the darker, the larger; with numbers in per cent
    where there is room."""
    size = round((RIGHT - MAP_LEFT) / len(names), 2)
    bottom = size * len(names)
    texts = [
        textwrap.shorten(name, MAP_LETTERS, placeholder="…") or name[:MAP_LETTERS] for name in names
    ]
    tiles, labels = [], []
    for line, text in enumerate(texts):
        middle = (line + 0.5) * size
        labels.append(Label(MAP_LEFT - GAP, round(middle + BASELINE, 1), "end", text))
        labels.append(
            Label(round(MAP_LEFT + middle + BASELINE, 1), bottom + GAP, "end", text, turned=True)
        )
        for column, share in enumerate(shares[line]):
            number = f"{100 * share:.0f}" if len(names) <= MOST_NUMBERED and share >= 0.005 else ""
            x, y = round(MAP_LEFT + column * size, 2), round(line * size, 2)
            tiles.append(Tile(x, y, size, round(float(share), 3), number))
    frame = f"M{MAP_LEFT} 0H{MAP_LEFT + bottom}V{bottom}H{MAP_LEFT}z"
    description = "each line a true class, each column the class that it is taken for"
    height = bottom + GAP + LETTER_WIDTH * max(map(len, texts))
    return Panel(title, description, height, frame, labels, tiles=tiles)
