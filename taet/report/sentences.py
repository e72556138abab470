"""Sentences of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from taet import statistics
from taet.evaluation.decision_card import COVERS, DecisionCard
from taet.formatting import count, listed, percent, points, size
from taet.report.measured import AttackKey
from taet.report.read import ReportedData
from taet.report.series import Series
from taet.report.tables import MethodTable, ScoreCell

LISTED = 20
"""Largest number of classes whose images in a decision are listed."""


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
    text = f"Under {headline.heads[column].text}, {listed(best)}"
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
    points = 100 / statistics.FEW_PER_CLASS
    return f"{which}: one image changes the accuracy of such a class by more than {points:g} points."


def curve_split(series: Series) -> str:
    """Say what the training curves were measured on; empty if there are none."""
    epochs = [epoch for run in series.runs for epoch in run.epochs]
    splits = list(dict.fromkeys(epoch.monitor.split for epoch in epochs if epoch.monitor is not None))
    if splits != ["test"]:
        return f"the {listed(splits)} split" if splits else ""
    if any(run.selection == "best-test" for run in series.runs):
        return "the test set, on which the delivered epoch was chosen: a leak"
    return "the test set, for drawing only: it did not choose the epoch"


def decided(one: DecisionCard) -> list[str]:
    """Return the sentences about a decision."""
    pairs = len(one.first["models"])
    of_pairs = [f"The mean over {pairs} pairs of models."] if pairs > 1 else []
    ended = f"{one.sentence[0].upper()}{one.sentence[1:]}."
    return [ended, _images(one), _rule(one), COVERS, _weights(one), *of_pairs]


def _images(one: DecisionCard) -> str:
    """Say how many images of each class were attacked."""
    met = len(one.rows) * np.bincount(one.classes, minlength=len(one.data["class_names"]))
    least, most = met[met > 0].min(), met.max()
    if least == most:
        return f"{count(most)} images of each class."
    if len(met) > LISTED:
        return f"{count(least)} to {count(most)} images of each class, in proportion to the test set."
    named = zip(one.data["class_names"], met, one.data["test_class_counts"], strict=True)
    return f"Images by class: {', '.join(f'{name}: {n} of {total}' for name, n, total in named if total)}."


def _rule(one: DecisionCard) -> str:
    """Say which accuracy decides, and with which error probability."""
    shared = f", shared by {one.comparisons} comparisons" if one.comparisons > 1 else ""
    within = "" if one.rule.within is None else f"; it also stops within {points(one.rule.within)[1:]} points"
    return (
        f"{one.threat['norm']} ball of {size(one.threat['eps'])}; error probability "
        f"{one.rule.alpha * one.comparisons:.3g}{shared}: {one.roles}{within}; order of the images "
        f"{one.rule.order_seed}."
    )


def _weights(one: DecisionCard) -> str:
    """Say which weights were compared."""
    sides = [
        (side["label"], [model["weights_sha256"][:12] for model in side["models"]]) for side in (one.first, one.second)
    ]
    return f"SHA-256 of the weights: {'; '.join(f'{label} {listed(models)}' for label, models in sides)}."
