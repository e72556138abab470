"""The figure of docs/speed.md, as SVG: robust accuracy against the passes of a training, from the
committed cards."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

import taet
from taet.report.drawing import MARKERS
from taet.report.figures import COLOURS
from taet.settings.schema import epoch_at

RESULTS = Path(__file__).parents[1] / "results"
CARDS = (
    "cifar10-lt-fast/*.json",
    "cifar10-lt-few-passes/[at]*.json",
    "reproduce/cpu/at-bsl*seed?*.json",
)
NAMES = {"taet": "clean stage + BCL", "at-bsl": "AT-BSL", "n-fgsm": "N-FGSM"}
RATIO, EPS = 10, 8 / 255  # imbalance ratio of the figure, and radius in training
PASSES, PERCENT, HIGHEST = (10, 20, 50, 100, 200, 500, 1000), (20, 25, 30), 32
# of the axes, and the height of a line of the legend
LEFT, RIGHT, TOP, BOTTOM, LINE = 48, 452, 150, 390, 19


def passes(run: dict[str, Any]) -> int:
    """Return the forward and backward passes of an image: one a step of the attack, and one for the
    weights."""
    epochs, steps = (
        run["training"]["epochs"],
        1 if run["method"] == "n-fgsm" else run["threat"]["steps"],
    )
    return epochs + steps * (epochs - epoch_at(run["settings"].get("clean_share", 0), epochs))


def name(run: dict[str, Any]) -> str:
    """Return what the points of a run belong to: a method, its schedule and its augmentation."""
    schedule = "fast" if run["training"]["decay"] == "one-cycle" else "protocol"
    return (
        f"{NAMES[run['method']]}, "
        f"{schedule}{', no augmentation' * (run['training']['augment'] == 'none')}"
    )


def points() -> pd.DataFrame:
    """Return the means over seeds with 95 % intervals, in per cent, under AutoAttack or, without
    it, `quick`; the column `attack` says which."""
    every = taet.results(*(RESULTS / one for one in CARDS)).by_test_set()
    results = next(one for one in every if one.cards[0].data["imbalance_ratio"] == RATIO)
    runs = {one.row: one.card.run["config"] for one in results.entries}
    scores = results.scores("balanced").set_index("row").query("attack in ['autoattack', 'quick']")
    usual = [
        runs[row]["settings"].get("alpha", 1) == 1 and runs[row]["threat"]["eps"] == EPS
        for row in scores.index
    ]
    scores = scores[usual]
    # AutoAttack, where there is one
    scores = scores.sort_values("attack").groupby(level="row").first()
    shares = 100 * scores[["accuracy", "low", "high"]]
    about = {
        "attack": scores["attack"],
        "name": [name(runs[row]) for row in shares.index],
        "passes": [passes(runs[row]) for row in shares.index],
    }
    return shares.assign(**about).sort_values(["passes", "name"])


def x_of(passes_of_image: float) -> float:
    """Return where a number of passes stands on the horizontal axis, which is logarithmic."""
    share = math.log(passes_of_image / PASSES[0]) / math.log(1.2 * PASSES[-1] / PASSES[0])
    return round(LEFT + share * (RIGHT - LEFT), 1)


def y_of(percent: float) -> float:
    """Return where an accuracy stands on the vertical axis; at its end where the axis is too
    short."""
    share = (min(max(percent, PERCENT[0]), HIGHEST) - PERCENT[0]) / (HIGHEST - PERCENT[0])
    return round(BOTTOM - share * (BOTTOM - TOP), 1)


def line_of(points_of_line: pd.DataFrame, place: int) -> str:
    """Return the drawing of one line: its points, joined, each with its interval.

    A filled mark is measured by AutoAttack, a hollow one by `quick`, which is an upper bound.
    """
    marker, legend_y = MARKERS[place], LINE * (place + 0.5)
    aside = 1.5 * place - 4  # so that lines with equal passes stand side by side
    colour = COLOURS[place].replace("currentColor", "black")
    corners, intervals = [], []
    marks = {"autoattack": f"M{LEFT + 6} {legend_y}{marker}", "quick": ""}
    for point in points_of_line.itertuples():
        x = x_of(point.passes) + aside
        corners.append(f"{x} {y_of(point.accuracy)}")
        intervals.append(f"M{x} {y_of(point.low)}V{y_of(point.high)}")
        marks[str(point.attack)] += f"M{x} {y_of(point.accuracy)}{marker}"
    return (
        f'<g stroke="{colour}" fill="none"><path d="M{"L".join(corners)}"/>'
        f'<path d="{"".join(intervals)}" stroke-opacity=".4"/>'
        f'<path d="{marks["autoattack"]}" fill="{colour}"/>'
        f'<path d="{marks["quick"]}" fill="white"/></g>'
    )


def text_at(x: float, y: float, anchor: str, text: str) -> str:
    """Return a text of the drawing."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def figure() -> str:
    """Return the drawing, with its legend above."""
    grid = "".join(f"M{LEFT} {y_of(tick)}H{RIGHT}" for tick in PERCENT)
    parts = [f'<path d="{grid}" stroke="#88888844"/>']
    texts = [text_at(x_of(tick), BOTTOM + 18, "middle", f"{tick}") for tick in PASSES]
    texts += [text_at(LEFT - 8, y_of(tick) + 4, "end", f"{tick} %") for tick in PERCENT]
    middle = (LEFT + RIGHT) / 2
    texts.append(text_at(middle, BOTTOM + 38, "middle", "passes of an image in training"))
    lines = points().groupby("name", sort=False)
    for place, (line_name, points_of_line) in enumerate(lines):
        parts.append(line_of(points_of_line, place))
        texts.append(text_at(LEFT + 16, LINE * (place + 0.5) + 4, "start", str(line_name)))
    hollow = "filled: AutoAttack; hollow: quick, an upper bound"
    texts.append(text_at(LEFT, LINE * (len(lines) + 0.5) + 4, "start", hollow))
    style = 'style="background:white" font-family="sans-serif" font-size="12.5"'
    view = f'width="690" viewBox="0 0 460 {BOTTOM + 44}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} {style}>'
    return "\n".join([head, *parts, *texts, "</svg>\n"])
