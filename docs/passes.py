"""The figure of docs/speed.md, as SVG: robust accuracy against the passes of a training, from the committed cards."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

import taet
from taet.report.figures import COLOURS, MARKERS
from taet.settings import epoch_at

RESULTS = Path(__file__).parents[1] / "results"
CARDS = ("cifar10-lt-fast/*.json", "cifar10-lt-few-passes/[at]*.json", "reproduce/cpu/at-bsl*seed?*.json")
NAMES = {"taet": "TAET, alpha 1", "at-bsl": "AT-BSL", "n-fgsm": "N-FGSM"}
RATIO, EPS = 10, 8 / 255  # imbalance ratio of the figure, and radius in training
PASSES, PERCENT, HIGHEST = (10, 20, 50, 100, 200, 500, 1000), (20, 25, 30), 32
LEFT, RIGHT, TOP, BOTTOM, LINE = 48, 452, 150, 390, 19  # of the axes, and the height of a line of the legend


def passes(run: dict[str, Any]) -> int:
    """Return the forward and backward passes of an image: one a step of the attack, and one for the weights."""
    epochs, steps = run["training"]["epochs"], 1 if run["method"] == "n-fgsm" else run["threat"]["steps"]
    return epochs + steps * (epochs - epoch_at(run["settings"].get("clean_share", 0), epochs))


def name(run: dict[str, Any]) -> str:
    """Return what the points of a run belong to: a method, its schedule and its augmentation."""
    schedule = "fast" if run["training"]["decay"] == "one-cycle" else "protocol"
    return f"{NAMES[run['method']]}, {schedule}{', no augmentation' * (run['training']['augment'] == 'none')}"


def points() -> pd.DataFrame:
    """Return the means over seeds with 95 % intervals, in per cent, under AutoAttack or, without it, `quick`."""
    every = taet.results(*(RESULTS / one for one in CARDS)).by_test_set()
    results = next(one for one in every if one.cards[0].data["imbalance_ratio"] == RATIO)
    runs = {one.row: one.card.run["config"] for one in results.named}
    scores = results.scores("balanced").set_index("row").query("attack in ['autoattack', 'quick']")
    usual = [runs[row]["settings"].get("alpha", 1) == 1 and runs[row]["threat"]["eps"] == EPS for row in scores.index]
    scores = scores[usual]
    scores = scores.sort_values("attack").groupby(level="row").first()  # AutoAttack, where there is one
    shares = 100 * scores[["accuracy", "low", "high"]]
    about = {"name": [name(runs[row]) for row in shares.index], "passes": [passes(runs[row]) for row in shares.index]}
    return shares.assign(**about).sort_values(["passes", "name"])


def figure() -> str:
    """Return the drawing, with its legend above."""

    def x(value: float) -> float:
        share = math.log(value / PASSES[0]) / math.log(1.2 * PASSES[-1] / PASSES[0])
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (value - PERCENT[0]) / (HIGHEST - PERCENT[0]) * (BOTTOM - TOP), 1)

    words = [(x(tick), BOTTOM + 18, "middle", f"{tick}") for tick in PASSES]
    words += [(LEFT - 8, y(tick) + 4, "end", f"{tick} %") for tick in PERCENT]
    words += [((LEFT + RIGHT) / 2, BOTTOM + 38, "middle", "passes of an image in training")]
    grid = "".join(f"M{LEFT} {y(tick)}H{RIGHT}" for tick in PERCENT)
    parts = [f'<path d="{grid}" stroke="#88888844"/>']
    for place, (called, of) in enumerate(points().groupby("name", sort=False)):
        marker, at = MARKERS[place], LINE * (place + 0.5)
        aside = 1.5 * place - 4  # so that lines with equal passes stand side by side
        where = [(x(one.passes) + aside, one) for one in of.itertuples()]
        path = "M" + "L".join(f"{across} {y(one.accuracy)}" for across, one in where)
        bars = "".join(f"M{across} {y(one.low)}V{y(one.high)}" for across, one in where)
        marks = "".join(f"M{across} {y(one.accuracy)}{marker}" for across, one in where)
        colour = COLOURS[place].replace("currentColor", "black")
        parts.append(f'<g stroke="{colour}" fill="none"><path d="{path}"/><path d="{bars}" stroke-opacity=".4"/></g>')
        parts.append(f'<path d="{marks}M{LEFT + 6} {at}{marker}" fill="{colour}"/>')
        words.append((LEFT + 16, at + 4, "start", str(called)))
    parts += [f'<text x="{at}" y="{down}" text-anchor="{anchor}">{text}</text>' for at, down, anchor, text in words]
    style = 'style="background:white" font-family="sans-serif" font-size="12.5"'
    view = f'width="690" viewBox="0 0 460 {BOTTOM + 44}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {view} {style}>', *parts, "</svg>\n"])
