"""Sentences of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from taet import metrics
from taet.formatting import count, listed, percent
from taet.report.measured import AttackKey
from taet.report.read import ReportedData
from taet.report.series import Series
from taet.report.tables import MethodTable, ScoreCell


def summary(data: ReportedData, all_series: Sequence[Series], attacks: Sequence[AttackKey], many: bool) -> str:
    """Say which models were trained, on which images, and how they were attacked."""
    balls = list(dict.fromkeys(attack.threat for attack in attacks if attack.norm is not None))
    threat = f", attacked with {'; '.join(balls)}" if balls else ""
    training = ""
    if data.train_counts is not None:
        training = (
            f"{count(sum(data.train_counts))} training images "
            f"(largest class {count(max(data.train_counts))}, smallest {count(min(data.train_counts))}, "
            f"imbalance ratio {data.imbalance_ratio:.4g}), "
        )
    classes, present = len(data.class_names), sum(images > 0 for images in data.test_counts)
    tested = f" (balanced numbers are over {present} of {classes} classes)" if present < classes else ""
    return (
        f"{counted(all_series, many)} on {data.name}: {classes} classes, {training}"
        f"{count(sum(data.test_counts))} test images{tested}{threat}.{precisions(all_series)}"
    )


def precisions(all_series: Sequence[Series]) -> str:
    """Say which runs were trained in which precision, if it differs."""
    found: dict[str, dict[str, None]] = {}
    for one in all_series:
        for run in one.runs:
            if precision := run.settings.get("training.precision"):
                found.setdefault(precision, {})[one.label] = None
    each = "; ".join(f"{listed(labels)} in {precision}" for precision, labels in sorted(found.items()))
    return f" The arithmetic of training differs, which may change results: {each}." if len(found) > 1 else ""


def counted(all_series: Sequence[Series], many: bool) -> str:
    """Say how many runs of which methods, by name unless they are many, with how many seeds."""
    seeds = [len(series.runs) for series in all_series]
    runs = f"{sum(seeds)} runs" if sum(seeds) > 1 else "One run"
    each = f"{seeds[0]} seeds each" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)} seeds each"
    names = f"{len(seeds)} methods and settings" if many else ", ".join(series.label for series in all_series)
    return f"{runs} ({names})" if max(seeds) == 1 else f"{runs} ({names}; {each})"


def numbers(all_series: Sequence[Series]) -> str:
    """Say what the small numbers of the tables mean."""
    several = [len(series.cards) > 1 for series in all_series if series.cards]
    one = (
        "95 % intervals over the test images of one trained model; they do not cover how much another seed would change"
    )
    many = "the standard error of the mean over n seeds, in brackets"
    if all(several) and several:
        return f"Each number is the mean over n runs that differ in their seed; small numbers are {many}."
    return f"Small numbers are {one}." if not any(several) else f"Small numbers are {many}, or, for one seed, {one}."


def result(headline: MethodTable, column: int) -> str:
    """Say which row is best in a column of the headline table, and whether its lead exceeds chance."""
    cells = [(series.label, cells[column]) for series, cells in headline.rows]
    ranked = [(label, cell) for label, cell in cells if isinstance(cell, ScoreCell) and not math.isnan(cell.value)]
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
        return f"{text}; compared image by image, the difference from {others} is undecided."
    return f"{text}." if len(best) > 1 else f"{text}; compared image by image, its lead is more than chance."


def within(cell: ScoreCell) -> str:
    """Return the uncertainty of a value in words."""
    if cell.error is None:
        return f"95 % interval {percent(cell.low)} to {percent(cell.high)}"
    return f"standard error {percent(cell.error)}, n = {cell.count}"


def few(data: ReportedData) -> str:
    """Say which classes have few test images, and what that means; empty if there are none."""
    named = [f"{data.class_names[c]} ({data.test_counts[c]})" for c in data.order if c in data.few]
    if not named:
        return ""
    some = f"{len(named)} of {len(data.class_names)} classes, {named[0]} to {named[-1]}"
    which = listed(named) if len(named) <= 12 else some
    return (
        f"{which}: one image changes the accuracy of such a class by more than {100 / metrics.FEW_PER_CLASS:g} points."
    )


def curve_split(series: Series) -> str:
    """Say what the training curves were measured on; empty if there are none."""
    epochs = [epoch for run in series.runs for epoch in run.epochs]
    splits = list(dict.fromkeys(epoch.monitor.split for epoch in epochs if epoch.monitor is not None))
    if splits != ["test"]:
        return f"the {listed(splits)} split" if splits else ""
    if any(run.selection == "best-test" for run in series.runs):
        return "the test set, on which the delivered epoch was chosen: a leak"
    return "the test set, for drawing only: it did not choose the epoch"
