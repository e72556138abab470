"""Comparisons until decided: which rows are compared, and what is trained for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from taet.errors import UserError
from taet.evaluation import DecisionCard
from taet.experiments import Until, parse, until_decided
from taet.experiments.cells import Cell, cells

GRID = {
    "methods": ["at", "harl", {"name": "soft", "method": "trades"}],
    "data": ["digits-lt"],
    "imbalance": [10, 50],
    "seeds": [0, 1],
    "settings": {"model.name": "resnet8", "threat.eps": "8/255", "outer.name": "balanced-softmax"},
}


@pytest.fixture
def planned(tmp_path: Path) -> list[Cell]:
    return [dataclasses.replace(cell, attacked=False) for cell in cells(parse(GRID), tmp_path)]


def test_every_row_meets_the_baseline_on_the_same_data_with_equal_seeds(planned: list[Cell], tmp_path: Path) -> None:
    pairs = until_decided.pairs_of(planned, tmp_path)
    assert [pair.name for pair in pairs] == [
        "soft against at on digits-lt, imbalance ratio 10",
        "soft against at on digits-lt, imbalance ratio 50",
    ]  # harl takes no other outer loss, so it has no cells
    assert [[cell.seed for cell in side] for side in (pairs[0].first, pairs[0].second)] == [[0, 1], [0, 1]]
    assert pairs[0].folder == tmp_path / "decisions" / "soft_against_at_digits-lt_ir10"
    (swapped, _) = until_decided.pairs_of(planned, tmp_path, "soft")
    assert (swapped.row, swapped.baseline) == ("at", "soft")
    with pytest.raises(UserError, match="unknown baseline 'sotf'; allowed: at, soft; did you mean 'soft'"):
        until_decided.pairs_of(planned, tmp_path, "sotf")
    with pytest.raises(UserError, match="got 1 rows; allowed: two or more"):
        until_decided.pairs_of([cell for cell in planned if cell.row == "at"], tmp_path)


def test_its_cells_are_trained_and_not_attacked_as_a_whole(planned: list[Cell]) -> None:
    for cell in planned:
        assert [words[0] for words in cell.commands(1)] == ([] if cell.run is None else ["train"])
        assert all("--no-evaluate" in words for words in cell.commands(1)), "own images would be attacked by default"


def test_what_is_not_trained_or_out_of_time_is_said(planned: list[Cell], tmp_path: Path) -> None:
    said: list[str] = []
    until_decided.decide_pairs(planned, tmp_path, Until(), float("inf"), said.append)
    assert said[0].endswith("imbalance ratio 10: not decided: a run is not finished")
    late = [dataclasses.replace(cell, attacked=False) for cell in planned]
    assert all(one.decision is None for one in until_decided.decide_pairs(late, tmp_path, Until(), 0.0, said.append))


def test_a_damaged_decision_does_not_stop_the_other_pairs(
    planned: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(until_decided.RowPair, "is_ready", True)
    damaged, other = until_decided.pairs_of(planned, tmp_path)
    damaged.folder.mkdir(parents=True)
    (damaged.folder / "decision.json").write_text("{")

    def decide(*_: object, out: Path, **__: object) -> None:
        """Reads the decision that is there, as `taet.decide` does."""
        if out.exists():
            DecisionCard.load(out)
        raise UserError(f"asked for {out.name}")

    monkeypatch.setattr(until_decided, "decide", decide)
    said: list[str] = []
    until_decided.decide_pairs(planned, tmp_path, Until(), float("inf"), said.append)
    assert len(said) == 2
    assert "not decided: " in said[0]
    assert "decision.json: truncated or not JSON" in said[0]
    assert said[1].endswith(f"not decided: asked for {other.folder.name}")
