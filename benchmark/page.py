"""Write results/benchmark.md: what the cards under results/benchmark say, and what is missing.

python benchmark/page.py            prints the page
python benchmark/page.py --write    writes it, and its figure
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import figure
import questions
from intervals import Comparison
from measured import Measured, comparisons, done, measured, noise_of, ranks
from plan import (
    COLUMNS,
    DECIDING_ROWS,
    PLANNED_AUTOATTACK,
    RESULTS,
    anchor_runs,
    autoattack_runs,
    main_runs,
    protocol,
    tuning_runs,
    variance_runs,
)
from run import (
    best_others,
    card_of,
    chosen_settings,
    expected_seconds,
    is_over,
    spent_seconds,
    tuning_score,
    usual_seconds,
)
from taet import formatting
from taet.formatting import markdown_table

PAGE = RESULTS.parent / "benchmark.md"
FIGURE = RESULTS / "benchmark.svg"
TIER = "small"
REPLICATES = range(1, 4)
MORE_REPLICATES = range(1, 11)
"""Replicates of the rows that decide, on the two cuts of CIFAR-10."""
GROUPS = ("balanced", "tail", "head", "worst")
INTRODUCTION = (
    "[The protocol](../docs/benchmark.md) says how every row is trained, tuned and compared. "
    "Numbers are balanced accuracies in per cent, means over replicates; each replicate redraws "
    "the training images, which classes are rare (of made sets), initial weights and batches. "
    "Means are over the replicates that all rows of a table have. Tail, head and worst class are "
    "under `quick`, which is an upper bound of the robust accuracy; AutoAttack checks it on "
    "replicate 1 where it was run. Differences are paired within a replicate; their intervals hold "
    "together for the 17 comparisons of a set with 95 %. Clean, tail, head and worst class have no "
    "intervals: they are exploratory. *Deviation* is the standard deviation of a row's own "
    "residuals, in points, once the means of rows and replicates are removed."
)
TUNING = (
    "Four settings of each row on CIFAR-10-LT at ratio 50, replicate 11, chosen by balanced "
    "accuracy on 2,000 validation images under `quick` (`standard`: clean). Bold: the chosen one; "
    "a and b are the two values of the row's knob. Passes are those of an image in the whole "
    "training with a and with b, counted over real steps."
)
TERMS = (
    "What a term is worth at equal settings, in points of balanced accuracy under `quick` on the "
    "validation images of replicate 11. These are one trained model on each side, so they compare "
    "models, not methods."
)


@dataclass(frozen=True)
class Evidence:
    """Everything that the page is written from."""

    chosen: Mapping[str, int]
    sets: Sequence[Measured]
    components: Sequence[questions.Component]
    anchors: Mapping[str, Mapping[str, float]]
    """Balanced accuracy at 1,100 passes, by set and row."""
    large: Mapping[str, Mapping[str, float]]
    """Balanced accuracy of ResNet-18, by set and row."""


def evidence() -> Evidence:
    """Read all cards."""
    chosen = chosen_settings(TIER)
    sets = [measured(one, chosen, TIER, REPLICATES) for one in protocol().sets.values()]
    components = questions.components(variance_runs(TIER, chosen))
    anchors: dict[str, dict[str, float]] = {}
    for run in done(anchor_runs(TIER, chosen)):
        of_set = anchors.setdefault(run.data_set.name, {})
        of_set[run.row.name] = float(card_of(run).summary("quick").balanced)
    return Evidence(chosen, sets, components, anchors, resnet18())


def resnet18() -> dict[str, dict[str, float]]:
    """Return the mean balanced accuracy of ResNet-18, by set and row."""
    chosen = chosen_settings("resnet18")
    found = {}
    for data_set in protocol().sets.values():
        of_set = measured(data_set, chosen, "resnet18", REPLICATES)
        scores = {row: of_set.score(row) for row in of_set.correct}
        found[data_set.name] = {row: score for row, score in scores.items() if score is not None}
    return found


# ---- numbers as text


def percent(value: float | None) -> str:
    """Return an accuracy in per cent, or a deviation in points; a dash for None and nan."""
    return formatting.percent(math.nan if value is None else value)


def points(found: Comparison | None) -> str:
    """Return a difference in points with its interval."""
    if found is None or not found.replicates:
        return formatting.MISSING
    text = f"{100 * found.difference:+.1f}"
    if math.isnan(found.low):
        return f"{text} (one replicate: no interval)" if found.replicates == 1 else text
    return f"{text} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def knob_text(knob: Mapping[str, object]) -> str:
    """Return a value of a row's knob in words."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in knob.items())


# ---- what is missing


def what_is_missing(chosen: Mapping[str, int]) -> str:
    """Return the first line of the page."""
    rules = protocol()
    as_if_tuned = {**dict.fromkeys(rules.rows, 0), **chosen}
    tuning = [*tuning_runs(TIER)]
    main = [*main_runs(TIER, as_if_tuned, rules.rows, rules.sets, REPLICATES)]
    varied = [*variance_runs(TIER, as_if_tuned)]
    missing_tuning, missing_main, missing_varied = (
        [run for run in runs if not is_over(run)] for runs in (tuning, main, varied)
    )
    attacked = sum(map(is_over, autoattack_runs(TIER, chosen, best_others(TIER, chosen))))
    counts = (
        f"{len(tuning) - len(missing_tuning)} of {len(tuning)} tuning runs, "
        f"{len(main) - len(missing_main)} of {len(main)} runs of replicates 1 to 3, "
        f"{len(varied) - len(missing_varied)} of {len(varied)} variance components and {attacked} "
        f"of {PLANNED_AUTOATTACK} evaluations by AutoAttack"
    )
    spent = f"They took {spent_seconds() / 3600:.1f} hours of one processor core"
    missing = [*missing_tuning, *missing_main, *missing_varied]
    missing_attacks = PLANNED_AUTOATTACK - attacked
    if not missing and not missing_attacks:
        return f"Every run that the protocol calls a must is here: {counts}. {spent}."
    usual = usual_seconds(TIER)
    left = sum(expected_seconds(run, COLUMNS, usual) for run in missing)
    left += missing_attacks * usual.autoattack
    return (
        f"**This benchmark is not finished.** Here are {counts}. {spent}; what is missing takes "
        f"about {left / 3600:.0f} more."
    )


# ---- tables


def set_table(found: Measured) -> list[str]:
    """Return the table of one set, rows in the order of balanced accuracy under attack, and the
    noise of a run below it."""
    compared = comparisons(found)
    deviations: dict[str, float] = {}
    noise_line = list[str]()
    if compared:
        noise, scores = noise_of(found)
        deviations = dict(zip(scores, noise.by_row, strict=True))
        if noise.degrees > 0:
            noise_line = [
                "",
                f"The noise of a single run is s = {100 * noise.deviation:.2f} points, with "
                f"{noise.degrees} degrees of freedom.",
            ]
    heads = ("clean", "PGD-20", found.attack, "tail", "head", "worst class", "AutoAttack")
    last = ("deviation", f"{found.attack} minus AT-BSL")
    lines = [["row", "replicates", *heads, *last]]
    rows = {*found.correct, *found.diverged}
    for row in sorted(rows, key=lambda row: -(found.score(row) or 0)):
        numbers = [
            found.mean(row, "clean", "balanced"),
            found.mean(row, "pgd-20", "balanced"),
            *(found.mean(row, found.attack, group) for group in GROUPS),
            found.first_replicate(row, "autoattack"),
        ]
        lines.append(
            [
                protocol().rows[row].shown,
                replicates_text(found, row),
                *map(percent, numbers),
                percent(deviations.get(row)),
                points(compared.get(row)),
            ]
        )
    return [*markdown_table(lines).splitlines(), *noise_line]


def replicates_text(found: Measured, row: str) -> str:
    """Return how many replicates of a row are measured, and how many diverged."""
    text = str(len(found.correct.get(row, {})))
    return f"{text}, {len(found.diverged[row])} diverged" if row in found.diverged else text


def deciding_table(found: Measured, chosen: Mapping[str, int]) -> list[str]:
    """Return the table of the rows with up to ten replicates; nothing while they have three."""
    more = measured(found.data_set, chosen, TIER, MORE_REPLICATES, DECIDING_ROWS)
    if not more.common_replicates() - {*REPLICATES}:
        return []
    return ["", "The rows that decide, with all their replicates:", "", *set_table(more)]


def ranks_section(sets: Sequence[Measured]) -> list[str]:
    """Return the mean rank of every row; nothing while a set lacks a row."""
    found = ranks(sets)
    if not found:
        return []
    lines = [["row", "mean rank", "highest", "lowest"]]
    for row, rank in sorted(found.items(), key=lambda item: item[1].mean):
        numbers = rank.mean, rank.highest, rank.lowest
        lines.append([protocol().rows[row].shown, *(f"{number:.1f}" for number in numbers)])
    return [
        "",
        "## Ranks",
        "",
        "Rank 1 is the highest balanced accuracy under attack on a set. The two ratios of CIFAR-10 "
        "count half each in the mean. Ranks describe; they have no intervals.",
        "",
        *markdown_table(lines).splitlines(),
    ]


def tuning_table() -> list[str]:
    """Return the table of the four settings of every row."""
    heads = [f"lr {rate:g}, {knob}" for rate in protocol().learning_rates for knob in ("a", "b")]
    lines = [["row", "a", "b", "passes", *heads]]
    scores: dict[str, list[float | None]] = {}
    for run in tuning_runs(TIER):
        scores.setdefault(run.row.name, []).append(tuning_score(run))
    for name, found in scores.items():
        row, known = protocol().rows[name], [score for score in found if score is not None]
        passes = " / ".join(f"{number:g}" for number in row.passes) or "–"
        cells = []
        for score in found:
            text = "diverged" if score == 0.0 else percent(score)
            is_best = len(known) == len(found) and score == max(known)
            cells.append(f"**{text}**" if is_best else text)
        lines.append([row.shown, knob_text(row.published), knob_text(row.other), passes, *cells])
    return markdown_table(lines).splitlines()


# ---- the page


def answers(found: Evidence) -> list[str]:
    """Return the answer to each question, as far as the cards give one."""
    sentences = (
        questions.which_method(found.sets),
        questions.class_priors(found.sets),
        questions.terms(found.sets),
        questions.luck(found.components),
        questions.orders(found.sets, found.anchors, found.large),
    )
    return [" ".join(answer) or questions.NOT_ANSWERED for answer in sentences]


def set_section(found: Measured, chosen: Mapping[str, int]) -> list[str]:
    """Return what is measured on a set."""
    lines = ["", f"## {found.data_set.title}", ""]
    if not found.correct:
        return [*lines, "No run is there yet."]
    lines += set_table(found)
    if found.data_set.name == "gtsrb":
        lines += [
            "",
            "Intervals cover replicates only: the test part names no tracks, whose frames are not "
            "independent.",
        ]
    return lines + deciding_table(found, chosen)


def page(found: Evidence) -> str:
    """Return results/benchmark.md."""
    lines = [
        "<!-- written by benchmark/page.py from the cards under results/benchmark -->",
        "# The long-tail robustness benchmark",
        "",
        what_is_missing(found.chosen),
        "",
        INTRODUCTION,
        "",
        "## The five questions",
        "",
    ]
    asked = zip(questions.QUESTIONS, answers(found), strict=True)
    lines += [f"{number}. *{question}* {text}" for number, (question, text) in enumerate(asked, 1)]
    if any(one.correct for one in found.sets):
        lines += ["", "![Mean and tail of every row on every set](benchmark/benchmark.svg)"]
    for one in found.sets:
        lines += set_section(one, found.chosen)
    lines += ranks_section(found.sets)
    lines += ["", "## Variance components", "", *questions.variance_table(found.components), ""]
    lines += ["What the two papers report on CIFAR-10-LT at ratio 50 with ResNet-18:", ""]
    lines += [*questions.published_differences(), ""]
    lines += ["## Tuning", "", TUNING, "", *tuning_table(), ""]
    if pairs := questions.tuned_terms():
        lines += ["## Terms at the same learning rate", "", TERMS, "", *pairs, ""]
    return "\n".join(lines)


def main() -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write results/benchmark.md")
    options = parser.parse_args()
    found = evidence()
    text = page(found)
    if not options.write:
        print(text)
        return 0
    PAGE.write_text(text, encoding="utf-8")
    if any(one.correct for one in found.sets):
        figure.draw(found.sets, FIGURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
