"""The page of all claims with their verdicts: a pure function of cards and manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taet import statistics
from taet.formatting import points, sentence
from taet.reproduce.cell_store import Store, by_seed, load_card
from taet.reproduce.claims import WORDS, Word, claims
from taet.reproduce.differences import difference_text, paired_cards
from taet.reproduce.leaderboard import LEAD
from taet.reproduce.manifest import Scale, errata, items, row_words
from taet.reproduce.verdicts import Verdict, best_verdicts, elsewhere, shown_beside

WIDTHS_OF = "cifar10-lt-ir10/at-bsl.json"
TAET_TEST = (1000, 774, 599, 464, 359, 278, 215, 166, 129, 100)
"""Test images of each class in TAET's long-tailed CIFAR-10, imbalance ratio 10: 4,084."""


def findings(store: Store, scales: Sequence[Scale]) -> str:
    """The page of all claims with their verdicts, as Markdown: a pure function of cards and manifest."""
    found = best_verdicts(store, scales)
    counts = ", ".join(f"{word} {[v.word for v in found.values()].count(word)}" for word in WORDS)
    parts = [
        HEAD.format(counts=counts, claims=len(found)),
        *(_section(word, [name for name in found if found[name].word == word], found, store, scales) for word in WORDS),
        _protocols(store, scales),
        "## Errata and open points of the papers\n",
        *(f"- {paper}: {note}" for paper, notes in errata().items() for note in notes),
        *(f"- **{name}**: {note}" for name, item in items().items() for note in item.notes),
    ]
    return "\n".join(parts) + "\n"


def _seeds(store: Store, scale: Scale) -> str:
    """Balanced accuracy under AutoAttack of each run that was trained with several seeds."""
    found = {}
    for row in dict.fromkeys(row for claim in claims().values() for pair in claim.pairs for row in pair):
        cells = store.cells(scale, row, [LEAD])
        cards = by_seed(one for one in cells if one.state == "done")
        if len(cards) > 1:
            values = (
                f"{100 * card.summary(LEAD).balanced:.1f} % (seed {seed}, epoch {card.model.get('epoch', '?')})"
                for seed, card in cards.items()
            )
            found[cells[0].any_seed] = f"{row_words(row)} {', '.join(values)}"
    return "; ".join(sorted(found.values()))


def _protocols(store: Store, scales: Sequence[Scale]) -> str:
    """Return how the papers' test protocols change a number, on the recalls of one committed model and over seeds."""
    lines = ["## How the papers test\n"]
    for path in (path for folder in store.results for path in folder.glob(WIDTHS_OF)):
        recalls = load_card(path).summary(LEAD).per_class
        counts = {"balanced": np.full(len(recalls), sum(TAET_TEST) // len(recalls)), "long-tailed": np.array(TAET_TEST)}
        wide = []
        for name, total in counts.items():
            low, high = statistics.balanced_interval(np.round(recalls * total), total)
            wide.append(f"{name} {100 * (high - low):.1f} points ({total.min()} to {total.max()} images of a class)")
        rarest = [
            statistics.wilson_interval(np.round(recalls[-1:] * total[-1]), total[-1:]) for total in counts.values()
        ]
        tail = [f"{100 * float(high[0] - low[0]):.1f}" for low, high in rarest]
        said = f"Interval of balanced accuracy under AutoAttack, with the recalls of results/{WIDTHS_OF}"
        lines.append(f"- **Long-tailed against balanced test set** (TAET, 5). {said}: {'; '.join(wide)}.")
        lines.append(f"  - Interval of the rarest class: {tail[0]} points balanced, {tail[1]} long-tailed.")
    spreads = {scale.name: _seeds(store, scale) for scale in scales}
    said = "- **One seed** (TAET). At scale {} the seed moves AutoAttack: {}."
    lines += [said.format(name, spread) for name, spread in spreads.items() if spread]
    lines += [line for scale in scales for line in _selected(store, scale)]
    why = "not tested: it takes the runs of REAT with `--selection best-test` beside those of the last epoch"
    lines.append(f"- **Selection on the test set** (REAT, public code). {sentence(why)}")
    lines.append(
        "  - Such a run is marked as a leak here, and its card joins only a leaderboard of cards that were chosen so.\n"
    )
    return "\n".join(lines)


def _selected(store: Store, scale: Scale) -> list[str]:
    """Return what it changes under AutoAttack that the curve on validation images selects an epoch."""
    every = ((row, one) for item in items().values() for row in item.rows for one in store.cells(scale, row, [LEAD]))
    changes, others = list[float](), list[tuple[float, str]]()
    for row, one in {one.key: (row, one) for row, one in every}.values():  # items share runs
        chosen, last = store.selected(one), one.card
        if not chosen or not last or (changed := paired_cards({0: chosen}, {0: last}, [LEAD, LEAD])) is None:
            continue
        changes.append(changed.value)
        if chosen.model["epoch"] != last.model["epoch"]:
            name = f"{row_words(row)} (seed {one.cell.seed}, epoch {chosen.model['epoch']})"
            others.append((changed.value, f"{name} {difference_text(changed)}"))
    if not others:
        return []
    said = f"At scale {scale.name} {len(others)} of {len(changes)} curves select another epoch than the last"
    less = f"Selected minus last, AutoAttack: mean over all {points(float(np.mean(changes)))} points"
    listed = "; ".join(text for _, text in sorted(others))
    again = "Runs that were trained a second time for their last epoch are left out."
    return [f"- **Selection on few validation images**. {said}. {less}; {listed}. {again}"]


def _section(
    word: Word, names: Sequence[str], found: Mapping[str, Verdict], store: Store, scales: Sequence[Scale]
) -> str:
    lines = [f"## {word.capitalize()}\n"]
    for name in names:
        claim, one = claims()[name], found[name]
        scale = f", scale {one.scale}" if one.scale and one.word != "not tested" else ""
        where = f"({claim.paper}, {claim.entry['where']}{scale})"
        lines.append(f"- **{name}** {claim.entry['says']} {where}. {sentence(one.because)}".rstrip())
        lines += [f"  - Rule: {claim.rule}."] if claim.is_tested and claim.test != "pairs" else []
        lines += [f"  - Beside the test, {line}." for line in shown_beside(claim, store, scales)]
        lines += [f"  - Outside the scales, {line}." for line in elsewhere(claim, store.results)]
    return "\n".join([*lines, ""])


HEAD = """# Findings

What the two papers claim, and what our runs say of it. Verdicts on {claims} claims: {counts}.

**These are verdicts at small scale.** The runs behind them have the published epochs, attack and optimiser, but
ResNet-8 in place of ResNet-18, and at scale `mini` at most 1,000 training images in a class. Most compare one seed.
ResNet-18 at published size has not been run: a claim that does not hold here may hold there. Claims that a proof, the
public code or a measurement of cost settles do not depend on this.

This page is computed from the committed cards and from `taet/reproduce/claims.toml` (`python docs/render.py --write`).
No number is written by hand, except in the reasons of claims that a proof or a measurement of cost settles.

A verdict is that of the largest [scale](reproduce.md#scales) with runs. Differences are in points of balanced
accuracy, paired on the same test images, with 95 % intervals. A claim **holds** if the interval is above 0 and
reaches half the claimed size. It **does not hold** if the whole interval is below half the claimed size, or below 0
if the claim has no size. Otherwise it is **undecided**. A claim with k differences holds if all do, and does not if
one does not; their intervals cover together with 95 %, so each is one of 1 - 5 %/k. With one seed an interval covers
the test images only: it says which of two models is better, not which method. Other tests state their rule. *Outside
the scales* are committed runs with other settings, which give no verdict; their differences are taken one by one.
"""
