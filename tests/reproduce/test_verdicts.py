"""Verdicts on orders, on gains and on predicted classes, against slow computations from the same committed cards."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from taet.evaluation import ResultCard
from taet.reproduce import Store, items, scales, verdicts
from taet.reproduce.cell_store import by_seed, thinned
from taet.reproduce.claims import Claim, claims
from taet.reproduce.differences import paired_cards
from taet.reproduce.possible_orders import correlations
from taet.reproduce.render import Filled, filled
from taet.reproduce.verdicts import verdict

MINI = scales()["mini"]
TABLE = "reat/table1"


def of_table(columns: list[str]) -> Claim:
    """Claim C26 about a table that has enough runs, once the least number of rows is lowered."""
    return Claim("C26", {**claims()["C26"].entry, "reversed": {"item": TABLE, "columns": columns}})


def wide(gain: np.ndarray, labels: np.ndarray, weights: list[float], level: float) -> tuple[float, float]:
    """The normal interval of a weighted mean of the gains of each class."""
    own = [gain[labels == label] for label in range(len(weights))]
    mean = sum(weight * each.mean() for weight, each in zip(weights, own, strict=True))
    variance = sum(weight**2 * np.var(each, ddof=1) / len(each) for weight, each in zip(weights, own, strict=True))
    low, high = stats.norm.interval(level, mean, variance**0.5)
    return float(low), float(high)


def test_pairs_of_rows_with_opposite_orders_are_counted(committed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "FEWEST_ROWS", 3)
    rows = [one.cards for one in filled(committed, MINI, items()[TABLE]) if one.cards]
    pairs = [*itertools.combinations(rows, 2)]
    level = 1 - 0.05 / (2 * 2 * len(pairs))  # two averages in two columns
    counts = {}
    for attack in ("clean", "autoattack"):
        counts[attack] = 0
        for one, other in pairs:
            seeds = one.keys() & other.keys()
            gains = [one[n].column(attack).correct * 1.0 - other[n].column(attack).correct for n in seeds]
            card = one[0]
            shares = [count / sum(card.data["train_class_counts"]) for count in card.data["train_class_counts"]]
            plain, even = (wide(np.mean(gains, 0), card.labels, weights, level) for weights in (shares, [0.1] * 10))
            counts[attack] += (plain[1] < 0 < even[0]) or (even[1] < 0 < plain[0])
    found = verdict(of_table(["clean", "autoattack"]), committed, MINI)
    said = ", ".join(f"{attack} {count} of {len(pairs)}" for attack, count in counts.items())
    assert found.because == f"Pairs of rows of {TABLE} with opposite orders: {said}"
    assert found.word == "holds"
    assert counts["clean"] > 0


def changed(one: Filled, **changes: object) -> Filled:
    """A row whose first card, alone, has other values."""
    first = next(cell for cell in one.cells if cell.card is not None)
    assert first.card is not None
    return dataclasses.replace(
        one, cells=(dataclasses.replace(first, card=dataclasses.replace(first.card, **changes)),)
    )


def test_rows_that_cannot_be_compared_are_not_counted(committed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "FEWEST_ROWS", 3)
    rows = [one for one in filled(committed, MINI, items()[TABLE]) if one.cards][:3]
    monkeypatch.setattr(verdicts, "filled", lambda *_: rows)
    assert re.search(r"clean \d of 3$", verdict(of_table(["clean"]), committed, MINI).because)
    card = rows[2].cards[0]
    clean = [column for column in card.columns if column.name == "clean"]
    for changes in ({"data": {**card.data, "test_sha256": "0" * 64}}, {"columns": clean}):
        rows[2] = changed(rows[2], **changes)
        assert re.search("autoattack 0 of 1$", verdict(of_table(["autoattack"]), committed, MINI).because)
    alone = [cell for cell in rows[0].cells if cell.card is not None][:1]
    other = dataclasses.replace(alone[0], cell=dataclasses.replace(alone[0].cell, seed=7))
    rows[:] = [rows[0], dataclasses.replace(rows[1], cells=(other,)), rows[2]]
    assert verdict(of_table(["autoattack"]), committed, MINI).word == "not tested"


def test_an_order_that_no_pair_of_rows_reverses_is_undecided(
    committed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        verdict(claims()["C26"], Store(tmp_path, []), MINI).because
        == "It takes 8 rows of taet/table1 with runs; there are 0"
    )
    monkeypatch.setattr(verdicts, "FEWEST_ROWS", 3)
    monkeypatch.setattr(verdicts, "_is_reversed", lambda *_: False)
    assert verdict(of_table(["clean"]), committed, MINI).word == "undecided"


def sides(store: Store, name: str) -> list[Mapping[int, ResultCard]]:
    return [by_seed(store.cells(MINI, row, ["autoattack"])) for row in claims()[name].pairs[0]]


def test_the_gain_in_clean_accuracy_less_that_under_attack(committed: Store) -> None:
    bsl, at = sides(committed, "R17")
    gains = [
        np.mean([bsl[n].summary(name).balanced - at[n].summary(name).balanced for n in bsl.keys() & at.keys()])
        for name in ("clean", "autoattack")
    ]
    found = verdict(claims()["R17"], committed, MINI)
    gain = 100 * (gains[0] - gains[1])
    assert found.because.startswith(f"Measured: at-bsl minus at, clean minus the same under autoattack {gain:+.1f} (")
    clean = ["clean", "clean"]
    assert paired_cards(bsl, at, clean, less="pgd-7") is None
    wider = [dataclasses.replace(one, eps=0.1) if one.name == "pgd-20" else one for one in at[0].columns]
    other = {0: dataclasses.replace(at[0], columns=tuple(wider))}
    assert paired_cards(bsl, at, clean, less="pgd-20") is not None
    assert paired_cards(bsl, other, clean, less="pgd-20") is None, "other settings of the attack"


def test_a_difference_is_of_the_seeds_that_were_attacked_so(committed: Store) -> None:
    bsl, reat = [by_seed(committed.cells(MINI, row, ["clean"])) for row in claims()["R5"].pairs[0]]
    all_seeds = paired_cards(bsl, reat, ["pgd-20", "pgd-20"])
    assert all_seeds is not None
    assert all_seeds.runs == 3
    columns = tuple(column for column in bsl[0].columns if column.name != "pgd-20")
    lacking = {**bsl, 0: dataclasses.replace(bsl[0], columns=columns)}
    without = {seed: card for seed, card in bsl.items() if seed != 0}
    for less in (None, "pgd-20"):
        attacks = ["pgd-20" if less is None else "clean"] * 2
        assert paired_cards(lacking, reat, attacks, less=less) == paired_cards(without, reat, attacks, less=less)
    assert paired_cards({0: lacking[0]}, reat, ["pgd-20", "pgd-20"]) is None


def test_what_a_difference_lacks_is_named(committed: Store, tmp_path: Path) -> None:
    lacking = verdict(claims()["C25"], committed, MINI)
    assert lacking.because == "Missing at scale mini: autoattack-10 of taet"
    assert verdict(claims()["R20"], Store(tmp_path, []), MINI).because == "Missing at scale mini: reat, at-bsl"


def test_predicted_classes_that_move_much_are_not_steady(committed: Store, tmp_path: Path) -> None:
    claim = claims()["R4"]
    found = verdict(claim, committed, MINI)
    assert found.word == "does not hold"
    said = [int(number) for number in re.findall(r"(\d+) % \(seed", found.because)]
    naive = []
    for row in claim.item.rows:
        for one in committed.cells(MINI, row, []):
            assert thinned(one.rows) == [*one.rows], "committed epochs are those that the rule takes"
            rows = [np.array(each["predicted"]) / sum(each["predicted"]) for each in one.rows]
            steps = [sum(abs(a - b)) / 2 for a, b in itertools.pairwise(rows)]
            naive += [sum(steps) / len(steps)] if steps else []
    assert said == [round(100 * one) for one in naive]
    loose = Claim("R4", {**claim.entry, "steady": {**claim.entry["steady"], "most": max(naive)}})
    assert verdict(loose, committed, MINI).word == "undecided", "equal shares do not prove equal predictions"
    missing = verdict(claim, Store(tmp_path, []), MINI).because
    assert missing.endswith("missing at scale mini: 5 recorded epochs of at-bsl and reat")


@pytest.mark.parametrize(("chances", "word"), [(2.0, "does not hold"), (2.7, "undecided"), (5.0, "holds")])
def test_a_training_fails_if_its_clean_accuracy_is_near_chance(committed: Store, chances: float, word: str) -> None:
    """AT at imbalance ratio 50 has 27.4 % (25.5 to 29.3) of ten classes."""
    claim = Claim("R11", {**claims()["R11"].entry, "fails": {"rows": [{"method": "at"}], "chances": chances}})
    found = verdict(claim, committed, MINI)
    assert found.word == word
    assert found.because.startswith("Clean balanced accuracy: at 27.4 % (seed 0)")
    both = [{"method": "at"}, {"method": "standard"}]
    lacking = Claim("R11", {**claim.entry, "fails": {"rows": both, "chances": chances}})
    assert verdict(lacking, committed, MINI).because.endswith("; missing at scale mini: standard")
    assert verdict(lacking, committed, MINI).word == ("does not hold" if word == "does not hold" else "not tested")


def test_separability_is_compared_image_by_image(committed: Store, tmp_path: Path) -> None:
    claim = claims()["R19"]
    gains: dict[str, list[float]] = {"clean": [], "attacked": []}
    for one, other in zip(*(committed.cells(MINI, row, []) for row in claim.rows), strict=True):
        first, second = (committed.embedding(cell, "features") for cell in (one, other))
        if first is None or second is None:
            continue
        assert first.labels == second.labels
        for side, found in gains.items():
            right, wrong = (np.array(side_of.separated[side]) == first.labels for side_of in (first, second))
            found.append(100 * (right.mean() - wrong.mean()))  # classes of equal size
    assert len(gains["clean"]) >= 2
    found = verdict(claim, committed, MINI)
    clean = f"{np.mean(gains['clean']):+.1f}".replace("-0.0", "0.0")
    assert found.because.startswith(f"Measured: reat minus at-bsl, clean {clean} (")
    assert f"; attacked {np.mean(gains['attacked']):+.1f} (" in found.because
    assert found.word == "undecided"
    for path in (committed.results[0] / "reproduce" / "mini").glob("*_ir50_seed1-*"):
        values = json.loads(path.read_text()) if path.suffix == ".json" else None
        if values is not None:
            values.pop("separated", None)
            (tmp_path / path.name).write_text(json.dumps(values))
    old = verdict(claim, Store(tmp_path / "none", [tmp_path]), MINI)
    assert old.because == "Missing at scale mini: embeddings of both rows, of one seed"


def test_verdicts_are_printed_for_the_claims_among_the_names(committed: Store) -> None:
    (table,) = verdicts.verdicts(["taet/table1", "R17", "R4", "R17"], committed, MINI)
    assert [word for _, word in table.rows] == ["holds", "does not hold"]
    assert verdicts.verdicts(["taet/table1"], committed, MINI) == []


def test_a_run_beside_a_claim_is_shown_and_decides_nothing(committed: Store) -> None:
    claim = claims()["R5"]
    (line,) = verdicts.shown_beside(claim, committed, [MINI])
    assert line.startswith("reat (form paper), seed 0, scale mini: clean 13.0 % (")
    assert ", autoattack 2.1 % (" in line
    (row,) = claim.beside
    assert row in claim.item.rows, "taet reproduce R5 runs it"
    own = {one.key for one in committed.cells(MINI, row, ["clean"])}
    assert own.isdisjoint(one.key for one in claim.cells(committed, MINI)), "its run settles nothing"
    assert "form paper" not in verdict(claim, committed, MINI).because
    assert [*verdicts.shown_beside(claims()["C1"], committed, [MINI])] == []


def test_an_order_of_few_rows_is_not_judged(committed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sum(bool(one.cards) for one in filled(committed, MINI, items()["taet/table1"]))
    assert verdict(claims()["C3"], committed, MINI).word == "undecided"
    monkeypatch.setattr(verdicts, "FEWEST_ROWS", rows + 1)
    found = verdict(claims()["C3"], committed, MINI)
    assert found.word == "not tested"
    assert found.because.startswith(
        f"It takes {rows + 1} rows of taet/table1 with runs; over {rows} rows the correlation is −"
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_correlations_of_possible_orders_are_those_of_all_permutations(seed: int) -> None:
    random = np.random.default_rng(seed)
    published = random.integers(0, 5, 6).astype(float)  # some are equal
    published[:2] = 0, 4
    upper = {(i, j) for i, j in itertools.combinations(range(6), 2) if random.random() < 0.3}
    below = [sum(1 << j for j in range(6) if (i, j) in upper) for i in range(6)]
    slow = [
        stats.spearmanr(published, ranks).statistic
        for ranks in itertools.permutations(range(6))
        if all(ranks[i] > ranks[j] for i, j in upper)
    ]
    assert correlations(published, below) == pytest.approx((min(slow), max(slow)))


def test_correlations_of_rows_without_and_with_a_decided_order() -> None:
    published = [3.0, 2.0, 1.0]
    assert correlations(published, [0, 0, 0]) == pytest.approx((-1, 1))  # level rows may have any order
    assert correlations(published, [0b110, 0b100, 0]) == pytest.approx((1, 1))
    assert correlations(published, [0, 0b001, 0b011]) == pytest.approx((-1, -1))
    assert correlations(published, [0b010, 0b100, 0b001]) is None


def test_an_order_is_judged_by_the_orders_that_are_possible(committed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of the eleven rows are level, so the published order of these eight stays possible."""
    (column,) = claims()["C3"].item.columns
    item = items()["taet/table1"]
    rows = [one for one in filled(committed, MINI, item) if one.cards]
    low, high = verdicts._correlation_interval(item, rows, column) or (2.0, 2.0)
    assert (low, high) == pytest.approx((-0.909, 0.545), abs=0.001)
    for limit, word in ((high + 0.01, "does not hold"), ((low + high) / 2, "undecided"), (low - 0.01, "holds")):
        monkeypatch.setattr(verdicts, "SIGNIFICANT_ORDER", limit)
        assert verdict(claims()["C3"], committed, MINI).word == word
    monkeypatch.setattr(verdicts, "paired_cards", lambda *_, **__: None)
    found = verdict(claims()["C3"], committed, MINI)
    assert found.word == "undecided"
    assert found.because.endswith("over 11 methods, which cannot be compared in pairs")


def test_at_bsl_is_most_robust_at_its_last_epoch_at_scale_cpu(committed: Store) -> None:
    """The reason why C15 is not tested."""
    (row,) = [one for one in filled(committed, scales()["cpu"], items()["taet/figure1"]) if one.label == "at-bsl"]
    points = {one.epoch: one.monitor.attacked for one in row.epochs if one.monitor is not None}
    assert max(points, key=lambda epoch: (points[epoch].correct / points[epoch].total).mean()) == 100
