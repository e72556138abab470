"""Grids of both papers: they hold every published number once, and every row is a run that can be trained."""

from __future__ import annotations

import argparse
import csv
import tomllib
from pathlib import Path
from typing import Any

import items
import pytest
import reproduce
from items import SCALES, SECONDS, chosen, scale
from runs import Runs, name_of

import taet
from taet.errors import UserError

PAPERS = Path(items.__file__).parent
LINE = {"method": "at", "setting": "", "dataset": "digits-lt", "model": "resnet8", "imbalance_ratio": "10"}


def test_every_table_and_figure_has_an_entry() -> None:
    names = [name.split("/") for name in items.items()]
    for paper, tables, figures in (("taet", 11, {1, 2, 3, 5, 6, 7, 8, 9}), ("reat", 14, {*range(1, 12)})):
        of = {name for which, name in names if which == paper}
        assert of == {f"table{n}" for n in range(1, tables + 1)} | {f"figure{n}" for n in figures} | {"claims"}


def test_every_published_number_is_in_one_place() -> None:
    with (PAPERS / "published.tsv").open(encoding="utf-8", newline="") as file:
        lines = [*csv.DictReader(file, delimiter="\t")]
    found = [value for item in items.items().values() for value in item.published.values()]
    assert len(lines) == len(found) == 919
    assert sorted(found) == sorted(float(line["value"]) for line in lines)
    table = items.items()["taet/table9"].published
    assert table[1, "autoattack", ""] == 31.17  # ten steps
    assert items.items()["reat/table8"].labels[0] == "at, cifar10-balanced-small, IR 10"


@pytest.mark.parametrize("name", [name for name in items.items() if "table" in name])
def test_the_attacks_of_a_table_are_its_columns(name: str) -> None:
    item = items.items()[name]
    for place, row in enumerate(item.rows):
        published = {metric for number, metric, _ in item.published if number == place} - {SECONDS}
        assert {"clean", *row.attacks} == {"clean", *(row.columns.get(metric, metric) for metric in published)}


def test_rows_of_an_item_are_told_apart() -> None:
    for item in items.items().values():
        assert len({*item.labels}) == len(item.labels), item.name


@pytest.mark.parametrize("size", SCALES)
def test_every_row_is_a_run(size: str, tmp_path: Path) -> None:
    options = argparse.Namespace(methods=[], seeds=[], again=False)
    every = reproduce.cells([*items.items().values()], scale(size), Runs(tmp_path, tmp_path), options)
    assert len({(cell.name, cell.seed) for cell in every}) == len(every)
    for name, grid in reproduce.specifications([cell for cell in every if cell.seed == 0]):
        planned = taet.compare(grid, tmp_path / name, dry_run=True)
        assert {*planned.counts} == {"missing"}, (name, planned)
        wanted = {method["name"] for method in grid["methods"]}
        assert {outcome.cell.name.split("_")[0] for outcome in planned.outcomes} == wanted


def test_a_scale_replaces_what_it_names() -> None:
    robal = next(row for row in items.items()["reat/table3"].rows if row.method == "robal")
    run = scale("mini").run(robal)
    assert run.model == "resnet8"
    assert run.attacks == ("clean", "adaptive-pgd-20:factor=0.1", "cw-linf-100", "autoattack", "pgd-20")
    assert scale("mini").attack(robal, "pgd-20") == "adaptive-pgd-20:factor=0.1"
    assert scale("mini").attack(robal, "pgd-100") == ""
    assert (scale("full").seeds("taet"), scale("full").seeds("reat")) == ([0], [0, 1, 2])
    first, last = items.items()["taet/table10"].rows[0], items.items()["taet/table10"].rows[-1]
    assert name_of(scale("mini").run(first)) != name_of(scale("mini").run(last))
    assert "cw-linf-100 for cw-l2" in scale("mini").differences(items.items()["taet/table1"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: chosen(["taet/tabel1"]), "did you mean 'taet/table1'?"),
        (lambda: chosen(["taet/table1"], ["taett"]), "did you mean 'taet'?"),
        (lambda: scale("minni"), "did you mean 'mini'?"),
        (lambda: items._item("taet/x", {"titel": "x"}), "unknown key of taet/x 'titel'"),
        (lambda: items._place("taet/x", [], {}, LINE), "taet/x has no row"),
    ],
)
def test_a_mistake_is_one_line(call: Any, said: str) -> None:
    with pytest.raises((UserError, KeyError), match=said.replace("?", r"\?")):
        call()


def test_scales_have_only_keys_that_are_read() -> None:
    for name in SCALES:
        values = tomllib.loads((PAPERS / "scales" / f"{name}.toml").read_text())
        assert values.keys() <= {"says", "seeds", "models", "attacks", "settings", "taet", "reat", "on", "with", "data"}
        for part in ("taet", "reat"):
            assert values.get(part, {}).keys() <= {"says", "seeds", "attacks", "settings"}
