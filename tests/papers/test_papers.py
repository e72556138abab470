"""The grids of both papers hold every published number once, and only runs that can be trained."""

import argparse
import contextlib
import csv
import io
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import reproduce
import taet
from items import SCALES, SECONDS, items, scale
from runs import Runs, name_of

PAPERS = Path(reproduce.__file__).parent
LINES = 919
TABLES = {"taet": 11, "reat": 14}
FIGURES = {"taet": {1, 2, 3, 5, 6, 7, 8, 9}, "reat": {*range(1, 12)}}
SCALE_KEYS = {
    "says",
    "seeds",
    "models",
    "attacks",
    "settings",
    "taet",
    "reat",
    "on",
    "with",
    "data",
}


def call(*words: str | Path) -> int:
    return reproduce.main([*map(str, words)])


# Items


@pytest.mark.parametrize("paper", TABLES)
def test_every_table_and_figure_of_a_paper_is_an_item(paper: str) -> None:
    found = {name.partition("/")[2] for name in items() if name.startswith(paper)}
    tables = {f"table{number}" for number in range(1, TABLES[paper] + 1)}
    figures = {f"figure{number}" for number in FIGURES[paper]}
    assert found == tables | figures | {"claims"}


def test_every_published_number_is_in_one_item() -> None:
    with (PAPERS / "published.tsv").open(encoding="utf-8", newline="") as file:
        published = Counter(float(line["value"]) for line in csv.DictReader(file, delimiter="\t"))
    in_items = Counter(value for item in items().values() for value in item.published.values())
    assert published.total() == LINES
    assert in_items == published


def test_a_published_number_is_in_the_row_of_its_setting() -> None:
    ten_steps = 1
    assert items()["taet/table9"].published[ten_steps, "autoattack", ""] == 31.17


def test_rows_of_an_item_have_labels_that_differ() -> None:
    for item in items().values():
        assert len({*item.labels}) == len(item.labels), item.name


def test_a_label_names_what_differs_from_other_rows() -> None:
    assert items()["reat/table8"].labels[0] == "at, cifar10-balanced-small, IR 10"


def test_a_row_of_a_table_takes_the_attacks_of_its_published_columns() -> None:
    tables = [item for item in items().values() if "table" in item.name]
    for item in tables:
        for place, row in enumerate(item.rows):
            metrics = {metric for number, metric, _ in item.published if number == place}
            attacks = {row.columns.get(metric, metric) for metric in metrics - {SECONDS}}
            assert {"clean", *row.attacks} == {"clean", *attacks}, item.name


# Scales


Cells = list[reproduce.Cell]


@pytest.fixture(scope="module", params=SCALES)
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """Every run that both papers need at a scale, where no run was made yet."""
    none = tmp_path_factory.mktemp("none")
    options = argparse.Namespace(methods=[], seeds=[], again=False)
    every = [*items().values()]
    return reproduce.cells(every, scale(request.param), Runs(none, none), options)


@pytest.mark.full
@pytest.mark.sample(2)
def test_every_row_is_a_run_that_can_be_planned(cells: Cells, tmp_path: Path) -> None:
    first_seed = [cell for cell in cells if cell.seed == 0]
    for name, grid in reproduce.specifications(first_seed):
        planned = taet.compare(grid, tmp_path / name, dry_run=True)
        assert {*planned.counts} == {"missing"}, (name, planned)
        wanted = {method["name"] for method in grid["methods"]}
        assert {outcome.cell.name.split("_")[0] for outcome in planned.outcomes} == wanted


@pytest.mark.sample(2)
def test_a_run_that_several_items_need_is_one_cell(cells: Cells) -> None:
    assert len({(cell.name, cell.seed) for cell in cells}) == len(cells)


@pytest.mark.parametrize("size", SCALES)
def test_a_scale_has_known_keys_only(size: str) -> None:
    values = tomllib.loads((PAPERS / "scales" / f"{size}.toml").read_text())
    assert values.keys() <= SCALE_KEYS


def test_a_scale_replaces_the_network_and_leaves_attacks_out() -> None:
    robal = next(row for row in items()["reat/table3"].rows if row.method == "robal")
    run = scale("mini").run(robal)
    assert run.model == "resnet8"
    assert run.attacks == (
        "clean",
        "adaptive-pgd-20:factor=0.1",
        "cw-linf-100",
        "autoattack",
        "pgd-20",
    )
    assert scale("mini").attack(robal, "pgd-100") == ""


def test_a_published_column_may_have_another_name_here() -> None:
    robal = next(row for row in items()["reat/table3"].rows if row.method == "robal")
    assert scale("mini").attack(robal, "pgd-20") == "adaptive-pgd-20:factor=0.1"


def test_the_full_scale_has_the_published_number_of_seeds() -> None:
    assert scale("full").seeds("taet") == [0]
    assert scale("full").seeds("reat") == [0, 1, 2]


def test_rows_that_differ_in_a_setting_are_two_runs() -> None:
    first, *_, last = items()["taet/table10"].rows
    assert name_of(scale("mini").run(first)) != name_of(scale("mini").run(last))


def test_a_scale_says_what_it_puts_in_the_place_of_published_attacks() -> None:
    assert "cw-linf-100 for cw-l2" in scale("mini").differences(items()["taet/table1"])


# Calls


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a call prints of two methods of TAET's table 1, from committed cards."""
    out = tmp_path_factory.mktemp("out")
    words = ["taet/table1", "--methods", "at-bsl", "taet", "--dry-run", "--out", str(out)]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert call(*words) == 0
    return shown.getvalue()


def test_committed_runs_say_that_they_are(printed: str) -> None:
    seeds_of_at_bsl, seeds_of_taet = 3, 1
    count = printed.count("committed results/reproduce/mini/")
    assert count == seeds_of_at_bsl + seeds_of_taet


def test_published_and_measured_numbers_stand_in_one_column(printed: str) -> None:
    rows = r"\| at-bsl +\| paper \| 72.74 .*\n\| +\| mini +\| 48.1 \(45.1–51.1, n 3\) "
    assert re.search(rows, printed)


def test_differences_between_rows_stand_below_the_published_ones(printed: str) -> None:
    rows = r"\| taet − at-bsl \| paper \| \+1.9 .*\n\| +\| mini +\| −17.0 \(−20.1 to −14.0\)"
    assert re.search(rows, printed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("taet/tabel1", "did you mean 'taet/table1'?"),
        ("taet/table1 --methods taett", "did you mean 'taet'?"),
        (
            "taet/table1 --time-budget soon",
            "time budget: got 'soon'; allowed: hours, minutes and seconds",
        ),
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
