"""The table of rules of class budgets by base method: which runs it compares, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet import methods, report
from taet.evaluation.card import ResultCard, compare_runs
from taet.report import measured, read, rules, series
from taet.report.rules import RuleTable
from taet.settings import Run, override, to_json

MakeCard = Callable[..., ResultCard]
Row = tuple[str, dict[str, Any], Sequence[int]]
"""Method, its settings and the seeds."""
PLAIN: Row = ("at", {}, (0, 1, 2))
SUITE = "autoattack"


def ruled(base: str, rule: str = "counts", seeds: Sequence[int] = (0, 1, 2), **more: Any) -> Row:
    return ("class-budget", {"base": base, "rule": rule, **more}, seeds)


def card_of(make: MakeCard, row: Row, seed: int, **settings: Any) -> ResultCard:
    method, own, _ = row
    run = Run(method=method, seed=seed, settings=methods.find(method).Config(**own))
    stored = json.loads(json.dumps(to_json(override(run, settings))))
    card = make(method, seed, run={"config": stored})
    # The seed of the draw is that of the rule as well, so that rules differ.
    other = make("-".join([method, *map(str, own.values())]), seed)
    return card.changed(columns=other.columns)


def table_of(cards: Iterable[ResultCard]) -> RuleTable | None:
    found = [
        read.ReportedRun(Path(str(at)), None, (), card, None, read.data_of_card(card)) for at, card in enumerate(cards)
    ]
    runs = measured.ranked(measured.measured(series.grouped(found, [None] * len(found))))
    strongest = measured.strongest(runs)
    assert strongest is not None
    return rules.rule_table(runs, strongest)


def table(make: MakeCard, *rows: Row) -> RuleTable | None:
    return table_of(card_of(make, row, seed) for row in rows for seed in row[2])


def test_rules_are_rows_and_bases_are_columns_over_the_seeds_that_a_column_shares(make_card: MakeCard) -> None:
    counts, cfa, dafa = ruled("at", seeds=(2, 0)), ruled("at-bsl", "cfa"), ruled("at", "dafa")
    plain = ("at-bsl", {}, (0, 1, 2))
    found = table(make_card, counts, PLAIN, cfa, dafa, plain)
    assert found is not None
    assert [(one.label, count) for one, count in found.heads] == [("at", 2), ("at-bsl", 3)]
    assert [(rule, [cell is None for cell in cells]) for rule, cells in found.rows] == [
        ("none", [False, False]),
        ("counts", [False, True]),
        ("dafa", [False, True]),
        ("cfa", [True, False]),
    ]
    for rule, at, row, base, seeds in (("counts", 0, counts, PLAIN, (0, 2)), ("cfa", 1, cfa, plain, (0, 1, 2))):
        cards, alone = ([card_of(make_card, one, seed) for seed in seeds] for one in (row, base))
        cell, none = dict(found.rows)[rule][at], dict(found.rows)["none"][at]
        assert cell is not None
        assert none is not None
        assert none.gain is None
        for score, of in ((cell.score, cards), (none.score, alone)):
            values = [card.summary(SUITE).balanced for card in of]
            assert (score.value, score.count) == (pytest.approx(np.mean(values)), len(seeds))
            assert score.error == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(seeds)))
        assert cell.gain is not None
        expected = compare_runs(cards, alone, SUITE)
        assert (cell.gain.value, cell.gain.low, cell.gain.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )


def test_without_a_rule_or_without_its_base_there_is_no_table(make_card: MakeCard) -> None:
    assert table(make_card, PLAIN, ("at-bsl", {}, (0,))) is None
    assert table(make_card, ruled("at"), ruled("at", "dafa")) is None
    assert table(make_card, ruled("at-bsl"), PLAIN) is None
    assert table(make_card, ruled("at"), ("trades", {}, (0, 1))) is None
    # Of two bases of which one was not trained alone, the other is shown.
    found = table(make_card, PLAIN, ruled("at"), ruled("at-bsl", "dafa"))
    assert found is not None
    assert ([one.label for one, _ in found.heads], [rule for rule, _ in found.rows]) == (["at"], ["none", "counts"])
    # A model from elsewhere, and a method that is not installed.
    other = card_of(make_card, PLAIN, 0)
    strange = {"config": {**other.run["config"], "method": "not-installed"}}
    assert table_of([other.changed(run={}), other.changed(run=strange)]) is None
    away = card_of(make_card, ruled("at"), 0)
    own = {**away.run["config"]["settings"], "base": "not-installed"}
    assert table_of([other, away.changed(run={"config": {**away.run["config"], "settings": own}})]) is None


def test_a_column_without_a_common_seed_has_only_dashes(make_card: MakeCard) -> None:
    found = table(make_card, ("at", {}, (0,)), ruled("at", seeds=(1,)))
    assert found is not None
    assert (found.heads[0][1], found.rows) == (0, (("none", (None,)), ("counts", (None,))))


def test_other_options_of_a_base_and_other_settings_are_other_columns(make_card: MakeCard) -> None:
    rows = [("trades", {}, (0,)), ("trades", {"beta": 3.0}, (0,)), ruled("trades", seeds=(0,), knobs=("beta=3",))]
    found = table(make_card, *rows)
    assert found is not None
    assert [one.label for one, _ in found.heads] == ["trades (beta 3)"]
    assert table(make_card, ("trades", {}, (0,)), rows[-1]) is None
    short = card_of(make_card, ruled("at"), 0, **{"training.epochs": 7})
    assert table_of([card_of(make_card, PLAIN, 0), short]) is None


def test_a_rule_with_other_constants_is_a_row_of_its_own(make_card: MakeCard) -> None:
    found = table(make_card, PLAIN, ruled("at"), ruled("at", a=0.1), ruled("at", "dafa"))
    assert found is not None
    assert [rule for rule, _ in found.rows] == ["none", "counts (a 0.3)", "counts (a 0.1)", "dafa"]


def test_the_page_has_the_table_and_a_link_to_it_only_if_there_is_one(make_card: MakeCard, tmp_path: Path) -> None:
    for row in (PLAIN, ruled("at"), ruled("at", "dafa", (0, 1))):
        for seed in row[2]:
            card_of(make_card, row, seed).save(tmp_path / f"{row[1].get('rule', 'none')}-{seed}.json")
    ruled_page = report.write(sorted(tmp_path.glob("*.json")), tmp_path / "page.html").read_text()
    plain_page = report.write(sorted(tmp_path.glob("none-*.json")), tmp_path / "plain.html").read_text()
    for text in ('<a href="#data-1-rules">Rules</a>', '<section id="data-1-rules">', '<th scope="row">dafa</th>'):
        assert (text in ruled_page, text in plain_page) == (True, False)
