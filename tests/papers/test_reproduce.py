"""papers/reproduce.py: what it lists, prints and runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reproduce
import tables
from items import items, scale
from runs import Runs

ROOT = Path(reproduce.__file__).parents[1]


def call(*words: str | Path) -> int:
    return reproduce.main([*map(str, words)])


def test_without_items_it_says_what_is_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| taet/table1 +\| 0/11 \| 2/11 +\| 11/11 +\| Eleven methods", said)
    assert len(re.findall(r"^\| (?:taet|reat)/", said, re.M)) == 46
    assert re.search(r"^mini .*: 45 committed, 75 missing; the rest takes about [\d.]+ hours of one core", said, re.M)


def test_committed_runs_say_that_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("taet/table1", "--methods", "at-bsl", "taet", "--dry-run", "--out", tmp_path)
    assert call(*words) == 0
    said = capsys.readouterr().out
    assert said.count("committed results/reproduce/mini/") == 2
    assert re.search(r"\| at-bsl +\| paper \| 72.74 .*\n\| +\| mini +\| 47.8 \(44.9–50.7\)", said)
    assert re.search(r"\| taet − at-bsl \| paper \| \+1.9 .*\n\| +\| mini +\| −17.0 \(−20.1 to −14.0\)", said)
    assert "stopped after 100 steps" in said
    assert "trades" not in said
    assert call(*words, "--again", "--seeds", "0", "1") == 0
    assert len(re.findall(r"seed [01]  missing, about .* minutes", capsys.readouterr().out)) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("taet/tabel1",), "did you mean 'taet/table1'?"),
        (("taet", "--scale", "large"), "unknown scale 'large'"),
        (("taet/table1", "--time-budget", "soon"), "--time-budget: got 'soon'; allowed: such as 12h, 90m or 600s"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, "--again", "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_every_item_is_a_page() -> None:
    """Tables as wide as their heads, at the scale where most is there."""
    runs = Runs()
    for item in [items()[name] for name in ("taet/table2", "taet/table6", "taet/figure2", "taet/figure3")] + [
        items()[f"reat/figure{n}"] for n in (3, 4, 6)
    ]:
        text = tables.page(item, scale("mini"), runs)
        for part in re.findall(r"(?:^\|.*\n?)+", text, re.M):
            assert len({line.count("|") for line in part.splitlines()}) == 1
        assert "nan" not in text


def test_the_package_knows_nothing_of_the_papers() -> None:
    scripts = "|".join(path.stem for path in (ROOT / "papers").glob("*.py"))
    for path in (ROOT / "taet").rglob("*.py"):
        assert not re.search(rf"^\s*(?:from|import) (?:papers|{scripts})\b", path.read_text(), re.M), path


@pytest.mark.parametrize("folder", ["papers", "examples", "benchmarks", "docs", "results"])
def test_nothing_beside_a_script_stands_for_the_package(folder: str) -> None:
    """A script's own folder comes first on its path; a subfolder of this name would be imported as the package."""
    assert not [path for path in (ROOT / folder).iterdir() if path.stem == "taet"]


@pytest.mark.full
def test_a_smoke_item_runs_end_to_end_and_only_once(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "papers" / "reproduce.py"), "taet/figure2", "--scale", "smoke"]
    words += ["--out", str(tmp_path / "out"), "--save", str(tmp_path / "saved")]
    first = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert first.count("missing") == 2 + 1  # in the list, and where the comparison starts
    assert re.search(r"\| at-bsl \| smoke \| \d", first)
    assert "epoch 2" in first
    cards = sorted((tmp_path / "saved").glob("*.json"))
    assert [path.name.split("-")[0] for path in cards] == ["at", "taet"]
    head, *epochs = map(json.loads, cards[0].with_suffix(".metrics.jsonl").read_text().splitlines())
    assert head["weights_sha256"] == json.loads(cards[0].read_text())["model"]["weights_sha256"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    again = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert again.count("  run\n") == 2
    assert "train" not in again
