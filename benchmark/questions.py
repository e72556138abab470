"""The five questions of the benchmark, and what the cards answer."""

import csv
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from intervals import Comparison, deviation_interval
from measured import BASE, Measured, comparisons, done
from plan import FOLDER, BenchmarkRun, protocol, tuning_runs
from run import card_of, divergence_path, tuning_score
from taet.formatting import markdown_table

PUBLISHED = FOLDER.parent / "papers" / "published.tsv"
FEWEST_REPLICATES = 3
"""Replicates without which no sentence speaks of a method."""
FEWEST_DEVIATION_RUNS = 3
"""Runs from which a standard deviation is given."""
FEWEST_RANKED_ROWS = 4
"""Rows without which no order is compared with another."""
QUESTIONS = (
    "Which method should a person start with at this budget, on made and on natural long tails, "
    "for the mean and for the tail, and how sure is that?",
    "Do the field's methods beat AT with a class prior in its loss, once all are tuned alike?",
    "TAET: does its clean stage pay; do HDL and RCEL; published weights beside tuned ones? REAT: "
    "does TAIL?",
    "How large is the luck of subset, class order and initialisation beside the differences that "
    "papers report?",
    "Does the order at the small budget predict the one at 1,100 passes, and ResNet-8's that of "
    "ResNet-18?",
)
NOT_ANSWERED = "**Not answered yet:** its runs are missing."
TERMS = (
    ("clean stage", "clean-stage-bcl", "harl-bcl"),
    ("HDL and RCEL", "taet-tuned", "clean-stage-bcl"),
    ("published weights", "taet-published-weights", "taet-tuned"),
    ("TAIL", "reat", BASE),
)
"""What question 3 asks for: a term, the row with it, and the row without it."""
TUNED_TERMS = (
    ("clean stage: clean stage + BCL, minus BCL alone", ("clean-stage-bcl", 0), ("harl-bcl", 0)),
    (
        "HDL and RCEL: TAET, tuned, minus clean stage + BCL",
        ("taet-tuned", 0),
        ("clean-stage-bcl", 0),
    ),
    ("HDL and RCEL: HARL, BCL's weight 1, minus BCL alone", ("harl", 1), ("harl-bcl", 0)),
    ("TAIL: REAT, minus AT-BSL", ("reat", 0), (BASE, 0)),
)
"""Rows and values of their knob (0 published, 1 other) that differ in one term alone."""


# ---- questions 1 and 2: beside AT-BSL


def which_method(sets: Sequence[Measured]) -> list[str]:
    """Return, by set, the row that is highest and what is significantly above and below AT-BSL."""
    sentences = list[str]()
    for found in sets:
        compared = comparisons(found)
        if not compared or any(one.replicates < 2 for one in compared.values()):
            continue
        highest = {group: highest_row(found, group) for group in ("balanced", "tail")}
        sentences.append(
            f"{found.data_set.title}: the highest mean is that of {highest['balanced']}, the "
            f"highest tail that of {highest['tail']}; {beside_base(compared)}"
        )
    return sentences


def highest_row(found: Measured, group: str) -> str:
    """Return the row whose accuracy of a group of classes is highest."""
    scores = {row: found.mean(row, found.attack, group) for row in found.compared_rows()}
    return protocol().rows[max(scores, key=lambda row: scores[row] or 0.0)].shown


def beside_base(compared: Mapping[str, Comparison]) -> str:
    """Return which rows are significantly above and below AT-BSL."""
    rows = protocol().rows
    better = [rows[row].shown for row, one in compared.items() if one.low > 0]
    worse = [rows[row].shown for row, one in compared.items() if one.high < 0]
    above, below = ", ".join(better) or "none", ", ".join(worse) or "none"
    return f"significantly above AT-BSL: {above}; below: {below}."


def class_priors(sets: Sequence[Measured]) -> list[str]:
    """Return, by set, which rows beat AT-BSL, which is AT with a class prior in its loss."""
    sentences = list[str]()
    for found in sets:
        compared = comparisons(found)
        if compared and all(one.replicates >= 2 for one in compared.values()):
            sentences.append(f"{found.data_set.title}: {beside_base(compared)}")
    return sentences


# ---- question 3: terms


def terms(sets: Sequence[Measured]) -> list[str]:
    """Return what each term is worth on each set; where no set has three replicates, what compares
    them meanwhile."""
    sentences = [sentence for found in sets for sentence in terms_of(found)]
    if not sentences and tuned_terms():
        return [
            "**Not answered yet**; [the tuning runs](#terms-at-the-same-learning-rate) compare the "
            "terms on one replicate."
        ]
    return sentences


def terms_of(found: Measured) -> list[str]:
    """Return what a term of a method is worth on a set: mean differences of the rows with and
    without it, which are exploratory and have no interval; nothing below three replicates."""
    if len(found.common_replicates()) < FEWEST_REPLICATES:
        return []
    parts = list[str]()
    for what, with_it, without_it in TERMS:
        own, other = found.score(with_it), found.score(without_it)
        if own is not None and other is not None:
            parts.append(f"{what} {100 * (own - other):+.1f}")
    text = ", ".join(parts)
    return [f"{found.data_set.title} (points, exploratory): {text}."] if parts else []


def tuned_terms(tier: str = "small") -> list[str]:
    """Return the table of what a term is worth between tuning runs that have the same learning rate
    and budget, and differ in this term; nothing without such runs."""
    scores = {
        (run.row.name, run.choice): None if divergence_path(run).exists() else tuning_score(run)
        for run in tuning_runs(tier)
    }
    knobs = 2  # values of a row's knob, each with both learning rates
    lines = list[list[str]]()
    for what, (with_it, its_knob), (without_it, other_knob) in TUNED_TERMS:
        cells = []
        for rate in range(len(protocol().learning_rates)):
            own = scores[with_it, knobs * rate + its_knob]
            other = scores[without_it, knobs * rate + other_knob]
            if own is None or other is None:
                cells.append("–")
            else:
                cells.append(f"{100 * (own - other):+.1f}")
        if set(cells) != {"–"}:
            lines.append([what, *cells])
    if not lines:
        return []
    rates = [f"lr {rate:g}" for rate in protocol().learning_rates]
    return markdown_table([["term", *rates], *lines]).splitlines()


# ---- question 4: luck


class Component(NamedTuple):
    """What is redrawn alone in runs of a row, and their balanced accuracies."""

    row: str
    what: str
    values: list[float]


def components(runs: Iterable[BenchmarkRun]) -> list[Component]:
    """Return the measured variance components."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in done(runs):
        what = run.name.removeprefix(f"{run.row.name}-").rpartition("-")[0]
        score = card_of(run).summary("quick").balanced
        found.setdefault((run.row.shown, what), []).append(float(score))
    return [Component(row, what, values) for (row, what), values in found.items()]


def variance_table(found: Sequence[Component]) -> list[str]:
    """Return the standard deviations of the variance components with their 95 % intervals."""
    if not found:
        return ["No variance component is measured yet."]
    rows = [["row", "redrawn alone", "runs", "standard deviation, points"]]
    for one in found:
        text = "–"
        if len(one.values) >= FEWEST_DEVIATION_RUNS:
            own, low, high = deviation_interval(np.array(one.values))
            text = f"{100 * own:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append([one.row, one.what, str(len(one.values)), text])
    return markdown_table(rows).splitlines()


@functools.cache
def published_scores() -> dict[tuple[str, str, str, str], float]:
    """Return the published balanced accuracies under AutoAttack of ResNet-18 on CIFAR-10-LT at
    ratio 50, in points, by (paper, table, method, setting)."""
    found = {}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            where = line["dataset"], line["imbalance_ratio"], line["model"], line["metric"]
            is_wanted = where == ("cifar10-lt", "50", "resnet18", "autoattack")
            if is_wanted and not line["class"] and line["average"].startswith("balanced"):
                key = line["paper"], line["table"], line["method"], line["setting"]
                found[key] = float(line["value"])
    return found


def published_differences() -> list[str]:
    """Return what the two papers report as differences to AT with balanced softmax, as a table."""
    scores, loss = published_scores(), "loss=balanced-softmax"
    taet = scores["TAET", "5", "taet", ""] - scores["TAET", "5", "at-bsl", ""]
    reat = scores["REAT", "1", "reat", loss] - scores["REAT", "1", "at", loss]
    rows = [["paper", "difference under AutoAttack", "points", "seeds"]]
    rows.append(["TAET, table 5", "TAET minus AT-BSL", f"{taet:+.1f}", "not stated"])
    rows.append(["REAT, table 1", "REAT minus AT, balanced softmax", f"{reat:+.1f}", "3"])
    return markdown_table(rows).splitlines()


def luck(found: Sequence[Component]) -> list[str]:
    """Return the smallest and the largest standard deviation of what is redrawn alone."""
    deviations = {
        f"{one.what} of {one.row}": float(np.std(one.values, ddof=1))
        for one in found
        if len(one.values) >= FEWEST_DEVIATION_RUNS
    }
    if not deviations:
        return []
    largest = max(deviations, key=lambda what: deviations[what])
    smallest = min(deviations, key=lambda what: deviations[what])
    return [
        f"The largest standard deviation is {100 * deviations[largest]:.1f} points ({largest}), "
        f"the smallest {100 * deviations[smallest]:.1f} ({smallest}); [the tables below](#variance-"
        "components) have all of them beside the differences that papers report."
    ]


# ---- question 5: orders


def order_agreement(
    small: Mapping[str, float], large: Mapping[str, float], what: str
) -> str | None:
    """Return Spearman's rank correlation of the rows that both have; None for fewer than four."""
    rows = sorted(small.keys() & large.keys())
    if len(rows) < FEWEST_RANKED_ROWS:
        return None
    found = spearmanr([small[row] for row in rows], [large[row] for row in rows])
    return f"{what}: Spearman's rank correlation {found.statistic:.2f} over {len(rows)} rows."


def orders(
    sets: Sequence[Measured],
    anchors: Mapping[str, Mapping[str, float]],
    large: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Return how well the order of the rows agrees with that at 1,100 passes and with ResNet-18's.

    `anchors` and `large` are balanced accuracies by set and row.
    """
    sentences = list[str | None]()
    for found in sets:
        name, title = found.data_set.name, found.data_set.title
        scores = {row: found.score(row) for row in found.compared_rows()}
        small = {row: score for row, score in scores.items() if score is not None}
        at_anchor, at_large = anchors.get(name, {}), large.get(name, {})
        sentences.append(order_agreement(small, at_anchor, f"{title}, against 1,100 passes"))
        sentences.append(order_agreement(small, at_large, f"{title}, against ResNet-18"))
    return [sentence for sentence in sentences if sentence is not None]
