"""What the report says in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taet import metrics
from taet.formatting import count, listed, percent
from taet.report.measured import AttackKey
from taet.report.read import ReportedData
from taet.report.series import Series
from taet.report.tables import MethodTable, ScoreCell


def summary(data: ReportedData, all_series: Sequence[Series], attacks: Sequence[AttackKey], many: bool) -> str:
    """What was trained and tested on what."""
    balls = list(dict.fromkeys(attack.threat for attack in attacks if attack.norm is not None))
    threat = f", attacked with {'; '.join(balls)}" if balls else ""
    training = ""
    if data.train_counts is not None:
        training = (
            f"{count(sum(data.train_counts))} training images "
            f"(largest class {count(max(data.train_counts))}, smallest {count(min(data.train_counts))}, "
            f"imbalance ratio {data.imbalance_ratio:.4g}), "
        )
    classes, present = len(data.class_names), sum(count > 0 for count in data.test_counts)
    tested = f" (balanced numbers are over {present} of {classes} classes)" if present < classes else ""
    return (
        f"{counted(all_series, many)} on {data.name}: {classes} classes, {training}"
        f"{count(sum(data.test_counts))} test images{tested}{threat}."
    )


def counted(all_series: Sequence[Series], many: bool) -> str:
    """How many runs of what: by name unless they are many, and how many seeds."""
    seeds = [len(series.runs) for series in all_series]
    runs = f"{sum(seeds)} runs" if sum(seeds) > 1 else "One run"
    each = f"{seeds[0]} seeds each" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)} seeds each"
    names = f"{len(seeds)} methods and settings" if many else ", ".join(series.label for series in all_series)
    return f"{runs} ({names})" if max(seeds) == 1 else f"{runs} ({names}; {each})"


def numbers(all_series: Sequence[Series]) -> str:
    """What the small numbers of the tables mean."""
    several = [len(series.cards) > 1 for series in all_series if series.cards]
    one = (
        "95 % intervals over the test images of one trained model; they say nothing about how much another seed would "
        "change"
    )
    many = "the standard error of the mean over n seeds, in brackets"
    if all(several) and several:
        return f"Each number is the mean over n runs that differ in their seed; small numbers are {many}."
    return f"Small numbers are {one}." if not any(several) else f"Small numbers are {many}, or, for one seed, {one}."


def result(headline: MethodTable, column: int) -> str:
    """Which row is best in a column of the headline, and whether that is more than chance."""
    cells = [(series.label, cells[column]) for series, cells in headline.rows]
    ranked: list[tuple[str, Any]] = [
        (label, cell) for label, cell in cells if not math.isnan(getattr(cell, "value", math.nan))
    ]
    if not ranked:
        return ""
    top = max(cell.value for _, cell in ranked)
    best = [label for label, cell in ranked if cell.value == top]
    tied = [label for label, cell in ranked if cell.tied and label not in best]
    reach = next(within(cell) for _, cell in ranked if cell.value == top)
    text = f"Under {headline.heads[column].name}, {listed(best)}"
    if len(ranked) == 1:
        return f"{text} keeps a balanced accuracy of {percent(top)} % ({reach})."
    text += f" {'share' if len(best) > 1 else 'has'} the highest balanced accuracy, {percent(top)} % ({reach})"
    if tied:
        others = listed(tied) if len(tied) <= 4 else f"{len(tied)} others"
        return f"{text}; compared image by image, its lead over {others} is undecided."
    return (
        f"{text}."
        if len(best) > 1
        else f"{text}; compared image by image, its lead over every other is more than chance."
    )


def within(cell: ScoreCell) -> str:
    """How sure a value is."""
    if cell.error is None:
        return f"95 % interval {percent(cell.low)} to {percent(cell.high)}"
    return f"standard error {percent(cell.error)}, n = {cell.count}"


def few(data: ReportedData) -> str:
    """Which classes have few test images, and what that means; nothing where none has."""
    named = [f"{data.class_names[c]} ({data.test_counts[c]})" for c in data.order if c in data.few]
    if not named:
        return ""
    which = (
        listed(named)
        if len(named) <= 12
        else f"{len(named)} of {len(data.class_names)} classes, {named[0]} to {named[-1]}"
    )
    points = 100 / metrics.FEW_PER_CLASS
    return f"{which}: one image more or less moves the accuracy of such a class by more than {points:g} points."


def curve_split(series: Series) -> str:
    """What the curves of training were measured on; nothing where there are none."""
    epochs = [epoch for run in series.runs for epoch in run.epochs]
    splits = list(dict.fromkeys(epoch.monitor.split for epoch in epochs if epoch.monitor is not None))
    if splits != ["test"]:
        return f"the {listed(splits)} split" if splits else ""
    if series.runs[0].config.get("training", {}).get("selection") == "best-test":
        return "the test set, which also chose the epoch that is delivered: a leak"
    return "the test set, drawn only, never used to choose anything"
