"""Verdicts on orders, on gains and on predicted classes, against slow computations from the same committed cards."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from taet.evaluation import ResultCard
from taet.reproduce import Store, items, scales
from taet.reproduce import verdicts as module
from taet.reproduce.claims import Claim, claims
from taet.reproduce.render import filled, paired_cards
from taet.reproduce.verdicts import verdict, verdicts

MINI = scales()["mini"]


def cards_of(store: Store, item: str) -> list[ResultCard]:
    found = (next(iter(one.cards.values()), None) for one in filled(store, MINI, items()[item]))
    return [card for card in found if card is not None]


def wide(gain: np.ndarray, labels: np.ndarray, weights: list[float], level: float) -> tuple[float, float]:
    """The normal interval of a weighted mean of the gains of each class."""
    mean = sum(weight * gain[labels == label].mean() for label, weight in enumerate(weights))
    variance = sum(
        weight**2 * np.var(gain[labels == label], ddof=1) / (labels == label).sum()
        for label, weight in enumerate(weights)
    )
    low, high = stats.norm.interval(level, mean, variance**0.5)
    return float(low), float(high)


def test_pairs_of_rows_with_opposite_orders_are_counted(committed: Store) -> None:
    cards = cards_of(committed, "reat/table1")
    pairs = [*itertools.combinations(cards, 2)]
    level = 1 - 0.05 / (2 * 2 * len(pairs))  # two averages in two columns
    counts = {}
    for attack in ("clean", "autoattack"):
        counts[attack] = 0
        for one, other in pairs:
            gain = one.column(attack).correct.astype(float) - other.column(attack).correct
            total = sum(one.data["train_class_counts"])
            shares = [count / total for count in one.data["train_class_counts"]]
            plain, balanced = (wide(gain, one.labels, weights, level) for weights in (shares, [0.1] * 10))
            counts[attack] += (plain[1] < 0 < balanced[0]) or (balanced[1] < 0 < plain[0])
    found = verdict(claims()["C26"], committed, MINI)
    said = ", ".join(f"{attack} {count} of {len(pairs)}" for attack, count in counts.items())
    assert found.because == f"Pairs of rows with opposite orders: {said}, 1 seed"
    assert found.word == "holds"
    assert counts["clean"] > 0


def test_an_order_that_no_pair_of_rows_reverses_is_undecided(
    committed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claims()["C26"]
    monkeypatch.setattr(module, "_are_reversed", lambda *_: False)
    assert verdict(claim, committed, MINI).word == "undecided"
    assert verdict(claim, Store(tmp_path, []), MINI).because == "Missing: 5 rows of reat/table1"


def test_the_gain_in_clean_accuracy_less_that_under_attack(committed: Store) -> None:
    bsl, at = (committed.cells(MINI, row, ["autoattack"])[0].card for row in claims()["R17"].pairs[0])
    assert bsl is not None
    assert at is not None
    gains = [bsl.summary(name).balanced - at.summary(name).balanced for name in ("clean", "autoattack")]
    found = verdict(claims()["R17"], committed, MINI)
    assert f"At-bsl minus at, clean less autoattack {100 * (gains[0] - gains[1]):+.1f} (" in found.because.capitalize()
    assert paired_cards({0: bsl}, {0: at}, ["clean", "clean"], less="pgd-7") is None


def test_predicted_classes_that_move_little_are_steady(committed: Store, tmp_path: Path) -> None:
    claim = claims()["R4"]
    found = verdict(claim, committed, MINI)
    said = [int(number) for number in re.findall(r"(\d+) %", found.because)]
    naive = []
    for row in claim.item.rows:
        for one in committed.cells(MINI, row, []):
            rows = [np.array(each["predicted"]) / sum(each["predicted"]) for each in one.rows]
            steps = [sum(abs(a - b)) / 2 for a, b in itertools.pairwise(rows)]
            naive += [sum(steps) / len(steps)] if steps else []
    assert said == [round(100 * one) for one in naive]
    assert found.word == "does not hold"
    loose = Claim("R4", {**claim.entry, "steady": {**claim.entry["steady"], "most": max(naive)}})
    assert verdict(loose, committed, MINI).word == "holds"
    assert verdict(claim, Store(tmp_path, []), MINI).because == "Missing at scale mini: at-bsl, reat"


def test_verdicts_are_printed_for_the_claims_among_the_names(committed: Store) -> None:
    table = verdicts(["taet/table1", "R17", "R4", "R17"], committed, MINI)
    assert table is not None
    assert [word for _, word in table.rows] == ["holds", "does not hold"]
    assert verdicts(["taet/table1"], committed, MINI) is None


@pytest.mark.parametrize("name", ["C26", "R4", "R17"])
def test_a_test_that_takes_runs_says_its_rule_and_its_item(name: str) -> None:
    claim = claims()[name]
    assert claim.is_tested
    assert claim.item.rows
    assert dataclasses.is_dataclass(claim.item)
    assert claim.rule
