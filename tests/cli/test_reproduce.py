"""`taet reproduce`: what it prints, what it runs, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_a_dry_run_prints_the_table_beside_the_published_one_and_writes_nothing(taet, tmp_path: Path) -> None:
    said = taet("reproduce", "taet/table10", "--scale", "smoke", "--out", tmp_path / "out", "--dry-run")
    assert said.code == 0
    assert "74.25" in said.out
    assert "Runs at scale smoke: 3 missing" in said.out
    assert not any(tmp_path.iterdir())


def test_a_claim_is_an_item_with_a_verdict(taet, tmp_path: Path) -> None:
    said = taet("reproduce", "R17", "--out", tmp_path / "out", "--dry-run")
    assert said.code == 0
    assert "R17 · It is easier to lift clean accuracy than robustness · scale mini" in said.out
    assert "\nR17: It holds if the interval of every difference is above 0" in said.out
    assert "Measured: at-bsl minus at, clean minus the same under autoattack +" in said.out
    assert "Claims" not in taet("reproduce", "taet/table10", "--out", tmp_path / "out", "--dry-run").out


def test_a_claim_that_needs_no_run_has_its_verdict_at_once(taet, tmp_path: Path) -> None:
    said = taet("reproduce", "C22", "R15", "--out", tmp_path / "out")
    assert said.code == 0
    assert re.search(r"^C22 · .* does not hold$", said.out, re.MULTILINE)
    assert re.search(r"^R15 · .* not tested$", said.out, re.MULTILINE)
    assert "R15: Not written as a comparison of runs yet. Missing: " in said.out
    assert "Runs at scale" not in said.out
    assert not any(tmp_path.iterdir())


def test_tables_are_written_in_other_forms(taet, tmp_path: Path) -> None:
    call = ["reproduce", "taet/table10", "--out", tmp_path / "out", "--dry-run", "--to", tmp_path / "page.html"]
    assert taet(*call, "--form", "html").code == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_site_is_written_into_a_folder(taet, tmp_path: Path) -> None:
    results, folder = tmp_path / "results", tmp_path / "site"
    results.mkdir()
    said = taet("reproduce", "--render", folder, "--results", results, "--out", tmp_path / "out")
    assert said.code == 0
    assert said.out == f"open {folder / 'index.html'}\n"
    assert {"index.html", "leaderboard.html", "claims.html", "runs.html", "taet-table1.html"} <= {
        one.name for one in folder.iterdir()
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["taet/table1", "--render", "site"], "--render writes the pages of all items; got taet/table1 as well"),
        (["taet/tabel1"], "did you mean 'taet/table1'?"),
        (["taet/table1", "--scale", "tiny"], "did you mean 'mini'?"),
        (["taet/table1", "--methods", "reet"], "did you mean 'reat'?"),
        (["--save", "x"], "got --save without an item"),
        (["--seeds", "1"], "got --seeds without an item"),
        (["--methods", "taet"], "got --methods without an item"),
        (["taet/table1", "--merge"], "--merge: got no folder"),
        (["taet/table1", "--seeds", "-1"], "seeds: got (-1,); allowed: each 0"),
        (["taet/table1", "--dry-run", "--part", "1/2"], "run nothing: got --time-budget or --part as well"),
        (["taet/table1", "--results", "no-such-folder", "--dry-run"], "results: no folder no-such-folder"),
        (["taet/table1", "--part", "3"], "part: got '3'; allowed: K/N"),
    ],
)
def test_a_mistake_is_one_line(taet, words: list[str], said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = taet("reproduce", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_missing_data_set_is_named_with_the_command_that_brings_it(taet, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAET_DATA", raising=False)
    outcome = taet("reproduce", "taet/table10", "--out", "out")
    assert outcome.code == 2
    assert "taet data prepare cifar10-lt" in outcome.err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.full
def test_an_item_is_filled_by_processes_and_resumed(taet, tmp_path: Path) -> None:
    call = ["reproduce", "taet/figure1", "--scale", "smoke", "--out", tmp_path / "out"]
    first = taet(*call, "--time-budget", "1s")
    assert first.code == 0
    assert "the time budget is used up; continue: taet reproduce" in first.err
    second = taet(*call, "--save", tmp_path / "results")
    assert (second.code, len([*tmp_path.glob("results/*.json")])) == (0, 2)
    assert "Runs at scale smoke: 2 done" in second.out
    merged = taet(*call[:-1], tmp_path / "other", "--merge", tmp_path / "out")
    assert "Runs at scale smoke: 2 done" in merged.out


@pytest.mark.full
def test_a_card_is_checked_against_the_leaderboard(taet) -> None:
    card = Path(__file__).parents[2] / "results" / "cifar10-lt-methods" / "at.json"
    outcome = taet("leaderboard", "submit", card)
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert all(line.startswith("refused: ") for line in lines)
    assert any(line.startswith("refused: test images (SHA-256): got ") for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sumbit", "x"], "did you mean 'submit'?"),
        (["submit"], "got no card; allowed: submit and one or more result cards"),
        (["submit", "no-such.json"], "no-such.json"),
    ],
)
def test_a_wrong_card_is_one_line(taet, words: list[str], said: str) -> None:
    outcome = taet("leaderboard", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_picture_of_another_kind_is_refused_before_any_work(taet, tmp_path: Path) -> None:
    outcome = taet("embed", tmp_path, "--out", tmp_path / "x.gif")
    assert outcome.code == 2
    assert "a file that ends in .svg or .png" in outcome.err
