"""Grids of both papers hold every published number once and only runs that can be trained; verdicts are by rule."""

import argparse
import csv
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

import findings
import reproduce
import rules
import taet
from items import SCALES, SECONDS, items, scale
from runs import Runs, name_of
from taet.statistics import Difference

PAPERS = Path(reproduce.__file__).parent
ROOT = PAPERS.parent


@pytest.fixture(scope="module")
def committed() -> Runs:
    return Runs()


def call(*words: str | Path) -> int:
    return reproduce.main([*map(str, words)])


# Items and scales


def test_every_published_number_is_in_one_place() -> None:
    for paper, count, figures in (("taet", 11, {1, 2, 3, 5, 6, 7, 8, 9}), ("reat", 14, {*range(1, 12)})):
        of = {name.partition("/")[2] for name in items() if name.startswith(paper)}
        assert of == {f"table{n}" for n in range(1, count + 1)} | {f"figure{n}" for n in figures} | {"claims"}
    with (PAPERS / "published.tsv").open(encoding="utf-8", newline="") as file:
        lines = [*csv.DictReader(file, delimiter="\t")]
    found = [value for item in items().values() for value in item.published.values()]
    assert len(lines) == len(found) == 919
    assert sorted(found) == sorted(float(line["value"]) for line in lines)
    assert items()["taet/table9"].published[1, "autoattack", ""] == 31.17  # ten steps
    assert items()["reat/table8"].labels[0] == "at, cifar10-balanced-small, IR 10"
    for item in items().values():
        assert len({*item.labels}) == len(item.labels), item.name
        for place, row in enumerate(item.rows if "table" in item.name else ()):
            published = {metric for number, metric, _ in item.published if number == place} - {SECONDS}
            assert {"clean", *row.attacks} == {"clean", *(row.columns.get(metric, metric) for metric in published)}


@pytest.mark.parametrize("size", SCALES)
def test_every_row_is_a_run(size: str, tmp_path: Path) -> None:
    options = argparse.Namespace(methods=[], seeds=[], again=False)
    every = reproduce.cells([*items().values()], scale(size), Runs(tmp_path, tmp_path), options)
    assert len({(cell.name, cell.seed) for cell in every}) == len(every)
    for name, grid in reproduce.specifications([cell for cell in every if cell.seed == 0]):
        planned = taet.compare(grid, tmp_path / name, dry_run=True)
        assert {*planned.counts} == {"missing"}, (name, planned)
        wanted = {method["name"] for method in grid["methods"]}
        assert {outcome.cell.name.split("_")[0] for outcome in planned.outcomes} == wanted
    values = tomllib.loads((PAPERS / "scales" / f"{size}.toml").read_text())
    assert values.keys() <= {"says", "seeds", "models", "attacks", "settings", "taet", "reat", "on", "with", "data"}


def test_a_scale_replaces_what_it_names() -> None:
    robal = next(row for row in items()["reat/table3"].rows if row.method == "robal")
    run = scale("mini").run(robal)
    assert run.model == "resnet8"
    assert run.attacks == ("clean", "adaptive-pgd-20:factor=0.1", "cw-linf-100", "autoattack", "pgd-20")
    assert scale("mini").attack(robal, "pgd-20") == "adaptive-pgd-20:factor=0.1"
    assert scale("mini").attack(robal, "pgd-100") == ""
    assert (scale("full").seeds("taet"), scale("full").seeds("reat")) == ([0], [0, 1, 2])
    first, *_, last = items()["taet/table10"].rows
    assert name_of(scale("mini").run(first)) != name_of(scale("mini").run(last))
    assert "cw-linf-100 for cw-l2" in scale("mini").differences(items()["taet/table1"])


# Calls


def test_committed_runs_say_that_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("taet/table1", "--methods", "at-bsl", "taet", "--dry-run", "--out", tmp_path)
    assert call(*words) == 0
    said = capsys.readouterr().out
    assert said.count("committed results/reproduce/mini/") == 3 + 1  # every card that is in a number
    assert re.search(r"\| at-bsl +\| paper \| 72.74 .*\n\| +\| mini +\| 48.1 \(45.1–51.1, n 3\) ", said)
    assert re.search(r"\| taet − at-bsl \| paper \| \+1.9 .*\n\| +\| mini +\| −17.0 \(−20.1 to −14.0\)", said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("taet/tabel1", "did you mean 'taet/table1'?"),
        ("taet/table1 --methods taett", "did you mean 'taet'?"),
        ("taet/table1 --time-budget soon", "time budget: got 'soon'; allowed: hours, minutes and seconds"),
        ("taet/table1 --seeds -1", "seeds: got (-1,); allowed: whole numbers, each 0 or more"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words.split(), "--again", "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.full
def test_a_smoke_item_runs_end_to_end_and_only_once(tmp_path: Path) -> None:
    words = [sys.executable, str(PAPERS / "reproduce.py"), "taet/figure2", "--scale", "smoke"]
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


# Verdicts; the oracle holds every word and interval


@pytest.mark.full
def test_the_page_is_in_step_with_the_cards(committed: Runs) -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert findings.page(committed) == page, "run: python papers/findings.py --write"
    assert findings.verdicts(committed)["C1"][1].evidence[0].rpartition("(")[2][:-1] in (ROOT / "README.md").read_text()
    for line, page in zip(findings.tuned(committed), ("README.md", "docs/notes-on-papers.md"), strict=False):
        assert line.rpartition("(")[2].partition(",")[0] in (ROOT / page).read_text()
    assert [*findings.verdicts(committed)] == [f"C{n}" for n in range(1, 27)] + [f"R{n}" for n in range(1, 21)]


@pytest.mark.parametrize(
    ("low", "high", "size", "rule", "word"),
    [
        (1, 3, 4, rules.above, "holds"),
        (-1, 3, 4, rules.above, "undecided"),
        (1, 1.9, 4, rules.above, "does not hold"),
        (-3, 4, 4, rules.within, "holds"),
        (-3, 4.1, 4, rules.within, "undecided"),
        (4.1, 5, 4, rules.within, "does not hold"),
    ],
)
def test_a_difference_is_decided_by_its_interval(
    low: float, high: float, size: float, rule: Callable[[Difference, float], str], word: str
) -> None:
    assert rule(Difference((low + high) / 200, low / 100, high / 100, p=1.0), size) == word


def test_one_part_that_fails_is_enough(tmp_path: Path) -> None:
    assert rules.together(["holds", "holds"]) == "holds"
    assert rules.together(["holds", "undecided", "does not hold"]) == "does not hold"
    assert rules.together(["holds", "not tested", "undecided"]) == "not tested"
    for name, test in findings.claims().items():
        if name != "R18":  # of all cards
            assert test(rules.Study(Runs(tmp_path, tmp_path), scale("mini"))).word == "not tested", name


def test_correlations_are_those_of_all_possible_orders() -> None:
    published, below = [3.0, 1.0, 4.0, 1.0, 5.0], [0b10, 0, 0b1, 0, 0]  # row 0 above row 1, row 2 above row 0
    orders = (of for of in itertools.permutations(range(5)) if of[0] > of[1] and of[2] > of[0])
    found = [stats.spearmanr(published, places).statistic for places in orders]
    assert rules.correlations(published, below) == pytest.approx((min(found), max(found)))
