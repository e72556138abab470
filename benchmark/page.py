"""Write results/benchmark.md: what the cards under results/benchmark say, and what is missing.

python benchmark/page.py            prints the page
python benchmark/page.py --write    writes it
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from intervals import (
    COLLAPSED_POINTS,
    Comparison,
    Noise,
    compare,
    deviation_interval,
    image_variance,
    residual_noise,
)
from plan import (
    FOLDER,
    PLANNED_AUTOATTACK,
    RESULTS,
    BenchmarkRun,
    DataSet,
    autoattack_runs,
    main_runs,
    protocol,
    tuning_runs,
    variance_runs,
)
from run import (
    best_others,
    card_of,
    card_path,
    chosen_settings,
    divergence_path,
    missing_attacks,
    tuning_score,
)
from taet.errors import UserError

PAGE = RESULTS.parent / "benchmark.md"
LESIONS = FOLDER / "ham10000-lesions.json"
"""The lesion of each test image of HAM10000, as a number: images of one lesion are not
independent."""
BASE = "at-bsl"
VARIANCE_RUNS = 30
PLANNED_COMPARISONS = 17
"""Of a set: every row but `standard` against at-bsl. It does not shrink with what is missing."""
TIER = "small"
FEWEST_REPLICATES = 3
"""Replicates without which no sentence speaks of a method."""
GROUPS = ("balanced", "tail", "head", "worst")
SCORE = ("quick", "balanced")
"""Attack and group of the numbers that are compared."""
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


def done(runs: Iterable[BenchmarkRun]) -> list[BenchmarkRun]:
    """Return the runs whose cards are there."""
    return [run for run in runs if not missing_attacks(run)]


def diverged(runs: Iterable[BenchmarkRun]) -> list[BenchmarkRun]:
    """Return the runs that have no card because they diverged."""
    return [run for run in runs if divergence_path(run).exists()]


@dataclass
class Measured:
    """What is measured on one set: numbers by row and replicate, and correct images."""

    data_set: DataSet
    scores: dict[tuple[str, str], dict[str, dict[int, float]]] = field(default_factory=dict)
    """By (attack, group): the accuracy of each row in each replicate."""
    correct: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """By row and replicate: whether each test image is classified correctly under quick."""
    labels: np.ndarray | None = None
    test_images: str = ""
    """SHA-256 of the test images, which all cards of a set share."""
    diverged: dict[str, list[int]] = field(default_factory=dict)
    """By row: the replicates without numbers, because the run diverged."""

    def add(self, run: BenchmarkRun) -> None:
        """Read the card of a run."""
        card = card_of(run)
        if self.test_images not in ("", card.data["test_sha256"]):
            raise UserError(f"{card_path(run)}: other test images than in the set's other cards")
        self.test_images = card.data["test_sha256"]
        for column in card.columns:
            summary = card.summary_of(column)
            values = {
                "balanced": summary.balanced,
                "tail": summary.groups.get("tail"),
                "head": summary.groups.get("head"),
                "worst": summary.worst_class[1],
            }
            for group, value in values.items():
                if value is not None:
                    of_rows = self.scores.setdefault((column.name, group), {})
                    of_rows.setdefault(run.row.name, {})[run.replicate] = float(value)
        quick = np.asarray(card.column("quick").correct)
        self.correct.setdefault(run.row.name, {})[run.replicate] = quick
        self.labels = np.asarray(card.labels)

    def common_replicates(self) -> set[int]:
        """Return the replicates that all rows have, but for rows that diverged in one."""
        rows = [own.keys() for row, own in self.correct.items() if row not in self.diverged]
        return set.intersection(*map(set, rows)) if rows else set()

    def mean(self, row: str, attack: str, group: str) -> float | None:
        """Return the mean over the replicates that all rows have, so that no row has the luck of
        another replicate; None without any."""
        found = self.scores.get((attack, group), {}).get(row, {})
        common = self.common_replicates()
        values = [value for replicate, value in found.items() if replicate in common]
        return sum(values) / len(values) if values else None

    def first_replicate(self, row: str, attack: str) -> float | None:
        """Return the balanced accuracy of replicate 1 under an attack; None where it is missing."""
        return self.scores.get((attack, "balanced"), {}).get(row, {}).get(1)

    def collapsed(self, row: str) -> bool:
        """Whether a row diverged, or is at chance on clean images, in a replicate."""
        if row in self.diverged:
            return True
        assert self.labels is not None
        chance = 1 / len(np.unique(self.labels))
        clean = self.scores.get(("clean", "balanced"), {}).get(row, {})
        return any(value < chance + COLLAPSED_POINTS for value in clean.values())


def measured(data_set: DataSet, replicates: range) -> Measured:
    """Return what is there of a set."""
    chosen = chosen_settings(TIER)
    found = Measured(data_set)
    planned = [*main_runs(TIER, chosen, protocol().rows, [data_set.name], replicates)]
    for run in done(planned):
        found.add(run)
    for run in diverged(planned):
        found.diverged.setdefault(run.row.name, []).append(run.replicate)
    return found


def noise_of(found: Measured, rows: list[str], replicates: range) -> tuple[Noise, np.ndarray]:
    """Return the pooled noise of a set under quick, and its table (M rows, R replicates)."""
    scores = found.scores.get(("quick", "balanced"), {})
    table = np.full((len(rows), len(replicates)), np.nan)
    for number, row in enumerate(rows):
        for place, replicate in enumerate(replicates):
            table[number, place] = scores.get(row, {}).get(replicate, np.nan)
    return residual_noise(table), table


def comparisons(found: Measured, replicates: range) -> dict[str, Comparison]:
    """Return every row of a set against at-bsl under quick, with intervals that hold together."""
    rows = [
        row
        for row in protocol().rows
        if row != "standard" and row in found.correct and not found.collapsed(row)
    ]
    if BASE not in rows:
        return {}
    noise, table = noise_of(found, rows, replicates)
    base = table[rows.index(BASE)]
    return {
        row: compare(values, base, noise, images_part(found, row), PLANNED_COMPARISONS)
        for row, values in zip(rows, table, strict=True)
        if row != BASE
    }


def images_part(found: Measured, row: str) -> float:
    """Return the part of the variance of a difference that comes from the choice of test images; 0
    on GTSRB, whose frames of one track are not known to be of one track."""
    if found.data_set.name == "gtsrb":
        return 0.0
    assert found.labels is not None
    own, base = found.correct[row], found.correct[BASE]
    both = sorted(own.keys() & base.keys())
    if not both:
        return 0.0
    gains = np.mean([own[r].astype(float) - base[r] for r in both], axis=0)
    clusters = None
    if found.data_set.name == "ham10000":
        clusters = np.asarray(json.loads(LESIONS.read_bytes()))
    return image_variance(gains, found.labels, clusters)


# ---- the page


def percent(value: float | None) -> str:
    """Return an accuracy in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(found: Comparison | None) -> str:
    """Return a difference in points with its interval."""
    if found is None or not found.replicates:
        return "–"
    text = f"{100 * found.difference:+.1f}"
    if np.isnan(found.low):
        return f"{text} (one replicate: no interval)" if found.replicates == 1 else text
    return f"{text} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def what_is_missing() -> str:
    """Return the first line of the page."""
    chosen = chosen_settings(TIER)
    tuning = [*tuning_runs(TIER)]
    tuned = len(done(tuning)) + len(diverged(tuning))
    rules = protocol()
    planned = len(rules.rows) * len(rules.sets) * 3
    main = [*main_runs(TIER, chosen, rules.rows, rules.sets, range(1, 4))]
    there = len(done(main)) + len(diverged(main))
    varied = len(done(variance_runs(TIER, chosen)))
    must = [*autoattack_runs(TIER, chosen, best_others(TIER, chosen))]
    attacked = len(done(must)) + len(diverged(must))
    counts = (
        f"{tuned} of {len(tuning)} tuning runs, {there} of {planned} runs of replicates 1 to 3, "
        f"{varied} of {VARIANCE_RUNS} variance components and {attacked} of {PLANNED_AUTOATTACK} "
        "evaluations by AutoAttack"
    )
    wanted = (len(tuning), planned, VARIANCE_RUNS, PLANNED_AUTOATTACK)
    if (tuned, there, varied, attacked) == wanted:
        return f"Every run that the protocol calls a must is here: {counts}."
    return f"**This benchmark is not finished.** Here are {counts}."


def tuning_table() -> list[str]:
    """Return the table of the four settings of every row."""
    heads = [f"lr {rate:g}, {knob}" for rate in protocol().learning_rates for knob in ("a", "b")]
    lines = [
        f"| row | a | b | {' | '.join(heads)} |",
        f"|---|---|---|{'---|' * len(heads)}",
    ]
    scores: dict[str, list[float | None]] = {}
    for run in tuning_runs(TIER):
        scores.setdefault(run.row.name, []).append(tuning_score(run))
    for name, found in scores.items():
        row, known = protocol().rows[name], [score for score in found if score is not None]
        cells = []
        for score in found:
            text = "diverged" if score == 0.0 else percent(score)
            is_best = len(known) == len(found) and score == max(known)
            cells.append(f"**{text}**" if is_best else text)
        knobs = [knob_text(row.published), knob_text(row.other)]
        lines.append(f"| {row.shown} | {' | '.join([*knobs, *cells])} |")
    return lines


def tuned_terms() -> list[str]:
    """Return the table of what a term is worth between tuning runs that have the same learning rate
    and budget, and differ in this term; nothing without such runs."""
    scores = {
        (run.row.name, run.choice): None if divergence_path(run).exists() else tuning_score(run)
        for run in tuning_runs(TIER)
    }
    knobs = 2  # values of a row's knob, each with both learning rates
    lines = list[str]()
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
            lines.append(f"| {what} | {' | '.join(cells)} |")
    if not lines:
        return []
    rates = " | ".join(f"lr {rate:g}" for rate in protocol().learning_rates)
    return [f"| term | {rates} |", "|---|--:|--:|", *lines]


def knob_text(knob: Mapping[str, object]) -> str:
    """Return a value of a row's knob in words."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in knob.items())


def set_table(found: Measured, replicates: range) -> list[str]:
    """Return the table of one set, rows in the order of balanced accuracy under quick."""
    compared = comparisons(found, replicates)
    heads = ("replicates", "clean", "PGD-20", "quick", "tail", "head", "worst class", "AutoAttack")
    lines = [
        f"| row | {' | '.join(heads)} | quick minus AT-BSL |",
        f"|---|{'--:|' * len(heads)}---|",
    ]
    rows = {*found.correct, *found.diverged}
    for row in sorted(rows, key=lambda row: -(found.mean(row, "quick", "balanced") or 0)):
        numbers = [
            replicates_text(found, row),
            percent(found.mean(row, "clean", "balanced")),
            percent(found.mean(row, "pgd-20", "balanced")),
            *(percent(found.mean(row, "quick", group)) for group in GROUPS),
            percent(found.first_replicate(row, "autoattack")),
        ]
        shown = protocol().rows[row].shown
        lines.append(f"| {shown} | {' | '.join(numbers)} | {points(compared.get(row))} |")
    return lines


def replicates_text(found: Measured, row: str) -> str:
    """Return how many replicates of a row are measured, and how many diverged."""
    text = str(len(found.correct.get(row, {})))
    return f"{text}, {len(found.diverged[row])} diverged" if row in found.diverged else text


def variance_table() -> list[str]:
    """Return the standard deviations of the variance components, where three runs or more are
    there."""
    by_kind: dict[tuple[str, str], list[float]] = {}
    for run in done(variance_runs(TIER, chosen_settings(TIER))):
        assert run.redrawn is not None
        card = card_of(run)
        key = run.row.shown, run.name.removeprefix(f"{run.row.name}-").rpartition("-")[0]
        by_kind.setdefault(key, []).append(card.summary("quick").balanced)
    if not by_kind:
        return ["No variance component is measured yet."]
    lines = ["| row | redrawn alone | runs | standard deviation, points |", "|---|---|--:|---|"]
    for (row, what), values in by_kind.items():
        if len(values) < 3:
            lines.append(f"| {row} | {what} | {len(values)} | – |")
            continue
        own, low, high = deviation_interval(np.array(values))
        text = f"{100 * own:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        lines.append(f"| {row} | {what} | {len(values)} | {text} |")
    return lines


def page() -> str:
    """Return results/benchmark.md."""
    replicates = range(1, 4)
    sets = [measured(data_set, replicates) for data_set in protocol().sets.values()]
    lines = [
        "<!-- written by benchmark/page.py from the cards under results/benchmark -->",
        "# The long-tail robustness benchmark",
        "",
        what_is_missing(),
        "",
        "[The protocol](../docs/benchmark.md) says how every row is trained, tuned and compared. "
        "Numbers are balanced accuracies in per cent, means over replicates; each replicate "
        "redraws the training images, which classes are rare (of made sets), initial weights and "
        "batches. Means are over the replicates that all rows of a table have. Tail, head and "
        "worst class are under `quick`, which is an upper bound of the robust accuracy; AutoAttack "
        "checks it on replicate 1 where it was run. Differences are paired within a replicate; "
        "their intervals hold together for the 17 comparisons of a set with 95 %. Clean, tail, "
        "head and worst class have no intervals: they are exploratory.",
        "",
        "## The five questions",
        "",
    ]
    for number, question in enumerate(QUESTIONS, 1):
        lines += [f"{number}. *{question}* {answer(number, sets, replicates)}"]
    for found in sets:
        lines += ["", f"## {found.data_set.title}", ""]
        if found.correct:
            lines += set_table(found, replicates)
            if found.data_set.name == "gtsrb":
                note = "Intervals cover replicates only: the test part names no tracks, whose "
                lines += ["", f"{note}frames are not independent."]
        else:
            lines += ["No run is there yet."]
    lines += ["", "## Variance components", "", *variance_table(), ""]
    lines += ["## Tuning", ""]
    lines += [
        "Four settings of each row on CIFAR-10-LT at ratio 50, replicate 11, chosen by balanced "
        "accuracy on 2,000 validation images under `quick` (`standard`: clean). Bold: the chosen "
        "one; a and b are the two values of the row's knob.",
        "",
        *tuning_table(),
        "",
    ]
    if pairs := tuned_terms():
        lines += [
            "## Terms at the same learning rate",
            "",
            "What a term is worth at equal settings, in points of balanced accuracy under `quick` "
            "on the validation images of replicate 11. These are one trained model on each side, "
            "so they compare models, not methods.",
            "",
            *pairs,
            "",
        ]
    return "\n".join(lines)


def answer(number: int, sets: list[Measured], replicates: range) -> str:
    """Return the answer to a question as far as the cards give one."""
    sentences = list[str]()
    if number in (1, 2):
        for found in sets:
            sentences += beside_base(found, replicates)
    elif number == 3:
        for found in sets:
            sentences += terms(found)
        if not sentences and tuned_terms():
            sentences.append(
                "**Not answered yet**; [the tuning runs](#terms-at-the-same-learning-"
                "rate) compare the terms on one replicate."
            )
    elif number == 4 and done(variance_runs(TIER, chosen_settings(TIER))):
        sentences.append("See the variance components below.")
    return " ".join(sentences) or "**Not answered yet:** its runs are missing."


def beside_base(found: Measured, replicates: range) -> list[str]:
    """Return which rows of a set are significantly above and below at-bsl; nothing while a row has
    a single replicate."""
    compared = comparisons(found, replicates)
    if not compared or any(one.replicates < 2 for one in compared.values()):
        return []
    rows = protocol().rows
    better = [rows[row].shown for row, one in compared.items() if one.low > 0]
    worse = [rows[row].shown for row, one in compared.items() if one.high < 0]
    above, below = ", ".join(better) or "none", ", ".join(worse) or "none"
    return [f"{found.data_set.title}: significantly above AT-BSL: {above}; below: {below}."]


def terms(found: Measured) -> list[str]:
    """Return what a term of a method is worth on a set: mean differences of the rows with and
    without it, which are exploratory and have no interval; nothing below three replicates."""
    if len(found.common_replicates()) < FEWEST_REPLICATES:
        return []
    parts = list[str]()
    for what, with_it, without_it in TERMS:
        own, other = found.mean(with_it, *SCORE), found.mean(without_it, *SCORE)
        if own is not None and other is not None:
            parts.append(f"{what} {100 * (own - other):+.1f}")
    text = ", ".join(parts)
    return [f"{found.data_set.title} (points, exploratory): {text}."] if parts else []


def main() -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write results/benchmark.md")
    options = parser.parse_args()
    text = page()
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
