"""The manifest: every published number has one cell, every table and figure is an item, mistakes are one line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from taet.errors import UserError
from taet.reproduce import Store, claims, costs, items, scales, verdicts
from taet.reproduce.cell_store import cell_hash
from taet.reproduce.claims import chosen
from taet.reproduce.manifest import (
    FOLDER,
    Item,
    ItemsFile,
    PaperRow,
    Scale,
    published,
    read_toml,
    row_from,
    row_of,
)
from taet.training.record import run_from_json


def row(item: str, label: str) -> PaperRow:
    """The row of an item."""
    found = items()[item]
    return found.rows[found.labels.index(label)]


def test_every_published_number_belongs_to_one_cell_of_one_item() -> None:
    assert len(published()) == 919
    assert sum(len(item.published) for item in items().values()) == 919
    for line in published():
        assert row_of(line) in items()[f"{line['paper'].lower()}/table{line['table']}"].rows


def test_every_table_and_figure_of_both_papers_is_an_item() -> None:
    figures = {"taet": [1, 2, 3, 5, 6, 7, 8, 9], "reat": range(1, 12)}  # figure 4 of TAET is a diagram
    wanted = {f"{paper}/table{n}" for paper, last in (("taet", 11), ("reat", 14)) for n in range(1, last + 1)}
    assert {*items()} == wanted | {f"{paper}/figure{n}" for paper in figures for n in figures[paper]}


@pytest.mark.full
@pytest.mark.parametrize(
    "scale", ["mini", "smoke", *(pytest.param(name, marks=pytest.mark.full) for name in ("full", "cpu"))]
)
def test_every_cell_is_planned_without_images(tmp_path: Path, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "out", [])
    for item in items().values():
        for cells in store.of_item(scales()[scale], item).values():
            for one in cells:
                assert one.state == "missing", one.cell.reason
                assert costs.seconds_left(store, one) != 0
    assert not any(tmp_path.iterdir())


def test_rows_of_several_tables_are_one_run() -> None:
    reat = {row("reat/table1", "REAT, loss=balanced-softmax"), row("reat/table3", "REAT, IR 50")}
    assert len(reat) == 1
    assert row("reat/table1", "PGD-AT, loss=balanced-softmax").method == "at-bsl"
    assert row("reat/table8", "PGD-AT, loss=balanced-softmax, cifar10-lt, IR 50") == row(
        "reat/table1", "PGD-AT, loss=balanced-softmax"
    )
    assert row("taet/table9", "TAET, train_steps=5").settings == (("threat.steps", 5),)
    assert row("taet/table10", "TAET, train_step_size=1/255").settings == (("threat.step_size", 1 / 255),)


def test_a_setting_with_its_default_is_no_other_run(tmp_path: Path) -> None:
    store, scale = Store(tmp_path, []), scales()["mini"]
    rows = [row("taet/table9", "TAET, train_steps=10"), row("taet/table10", "TAET, train_step_size=2/255")]
    rows.append(row("taet/table4", "TAET, alpha=0.1 beta=0.1 gamma=0.1"))
    assert len({store.cells(scale, one, ["clean"])[0].key for one in rows}) == 1
    other = row("taet/table10", "TAET, train_step_size=1/255")
    assert store.cells(scale, other, ["clean"])[0].key != store.cells(scale, rows[0], ["clean"])[0].key


def test_the_hash_of_a_run_outlives_new_settings_and_other_machines() -> None:
    run = run_from_json({"method": "taet"})
    values = json.loads(json.dumps({"method": "taet", "settings": {"alpha": 0.1}, "data": {"name": "digits-lt"}}))
    assert cell_hash(run_from_json(values)) == cell_hash(run)
    values["training"] = {"threads": 7, "device": "cpu"}
    assert cell_hash(run_from_json(values)) == cell_hash(run)
    for name, value in (("method", "at"), ("seed", 1), ("settings", {"alpha": 0.2}), ("model", {"name": "resnet8"})):
        changed = {**values, "settings": {}, name: value}
        assert cell_hash(run_from_json(changed)) != cell_hash(run), name


def test_robal_on_cifar10_is_attacked_at_the_scale_that_the_paper_means() -> None:
    full, mini = scales()["full"], scales()["mini"]
    robal, other = row("reat/table3", "RoBal, IR 50"), row("reat/table4", "RoBal, IR 50")
    assert full.attack(robal, "pgd-20") == "adaptive-pgd-20:factor=0.1"
    assert full.attack(robal, "adaptive-pgd-20") == "pgd-20"
    assert full.attack(other, "pgd-20") == "pgd-20"
    assert mini.attack(robal, "pgd-20") == "adaptive-pgd-20:factor=0.1"
    assert mini.attack(robal, "pgd-100") is None
    assert mini.attack(row("taet/table1", "TAET"), "cw-l2") == "cw-linf-100"


def test_published_seeds_epoch_and_test_set_are_those_of_scale_full(tmp_path: Path) -> None:
    store = Store(tmp_path, [])
    reat = store.cells(scales()["full"], row("reat/table3", "REAT, IR 50"), ["clean"])
    assert [one.cell.seed for one in reat] == [0, 1, 2]
    run = reat[0].cell.run
    assert run is not None
    assert (run.training.selection, run.data.validation, run.training.epochs) == ("best-test", 0.0, 80)
    (taet,) = store.cells(scales()["full"], row("taet/table1", "TAET"), ["autoattack"])
    assert taet.cell.run is not None
    assert (taet.cell.run.data.test, taet.cell.run.training.epochs) == ("long-tailed", 100)
    assert taet.attacks == ("clean", "autoattack")


def test_committed_runs_of_the_scale_count_as_filled(committed: Store) -> None:
    found = committed.of_item(scales()["mini"], items()["reat/table7"])
    assert {one.shown_as: cells[0].state for one, cells in found.items()}["PGD-AT"] == "done"
    assert not [
        c for cells in committed.of_item(scales()["cpu"], items()["reat/table7"]).values() for c in cells if c.card
    ]


def test_the_costs_are_the_measured_ones(root: Path) -> None:
    small, large = (json.loads((root / "results" / name).read_text()) for name in ("cost.json", "cost-model.json"))
    measured = {" ".join([one["name"], *one["settings"].values()]): one["seconds_ratio"] for one in small["costs"]}
    assert costs.costs()["methods"] == measured
    for found, source in (("resnet8", small), ("resnet18", large)):
        (at,) = [one for one in source["costs"] if one["name"] == "at"]
        assert costs.costs()["networks"][found] == {
            "seconds": at["epoch_seconds"],
            "images": source["images"],
            "cores": source["threads"],
        }


@pytest.mark.parametrize(
    ("settings", "ratio"),
    [
        ({"method": "at"}, 1.0),
        ({"method": "at", "threat": {"steps": 21}}, 2.0),
        ({"method": "taet"}, 0.647),
        ({"method": "taet", "settings": {"clean_share": 1.0}}, 0.161),
        ({"method": "taet", "settings": {"clean_share": 0.4}, "threat": {"steps": 21}}, 2 * 0.647 - 0.4 * 0.161),
        ({"method": "standard", "threat": {"steps": 21}}, 0.161),
        ({"method": "he", "settings": {"variant": "alp"}}, 1.163),
        ({"method": "class-budget", "settings": {"base": "trades"}}, None),
        ({"method": "at", "training": {"awp": 0.005}}, None),
        ({"method": "mine"}, None),
    ],
)
def test_the_time_of_a_run_relative_to_at(settings: dict[str, Any], ratio: float | None) -> None:
    assert costs.time_ratio(settings) == (None if ratio is None else pytest.approx(ratio))


@pytest.mark.parametrize(
    ("names", "methods", "words"),
    [
        (["taet/tabel1"], [], r"unknown item 'taet/tabel1'; allowed: .*did you mean 'taet/table1'\?"),
        (["taet/figure4"], [], "unknown item"),
        (["taet/table1"], ["taett"], r"unknown method of these items 'taett'.*did you mean 'taet'\?"),
        (["taet/table5"], ["robal"], "unknown method of these items 'robal'; allowed: at-bsl, taet"),
    ],
)
def test_what_is_no_item_is_refused(names: list[str], methods: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen(names, methods)


def test_items_are_chosen_by_name_paper_and_method() -> None:
    assert [item.name for item in chosen(["reat/figure3", "taet/table1"])] == ["taet/table1", "reat/figure3"]
    assert len(chosen(["taet"])) == 19
    assert [one.shown_as for one in chosen(["taet/table1"], ["taet", "at-bsl"])[0].rows] == ["AT-BSL", "TAET"]
    for item in chosen(["taet", "reat"], ["taet", "reat"]):  # all but its rows stays
        whole = items()[item.name]
        assert dataclasses.replace(item, rows=whole.rows) == whole


@pytest.mark.parametrize(
    ("file", "shape", "old", "new", "words"),
    [
        ("items.toml", ItemsFile, "shows = ", "show = ", r"the field 'shows' is missing"),
        (
            "items.toml",
            ItemsFile,
            'shows = "curves"',
            'shows = "curve"',
            r"shows 'curve'; allowed: .*did you mean 'curves'",
        ),
        ("items.toml", ItemsFile, "[titles]", "[titels]", "the field 'titles' is missing"),
        ("items.toml", ItemsFile, 'title = "TAET and', 'colour = 1\ntitle = "TAET and', "unknown key of .*'colour'"),
        ("items.toml", ItemsFile, "[titles]", "[titles", "not TOML"),
        ("scales.toml", dict[str, Scale], "seeds = {all = [0]}", "seeds = {all = 0}", "got a number; allowed"),
        ("scales.toml", dict[str, Scale], "attacks = ", "atacks = ", r"'atacks'.*did you mean 'attacks'\?"),
    ],
)
def test_a_typing_error_in_a_manifest_is_one_line(
    tmp_path: Path, file: str, shape: object, old: str, new: str, words: str
) -> None:
    text = (FOLDER / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read_toml(tmp_path / file, shape)
    assert str(caught.value).startswith(str(tmp_path / file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "item", "first", "second", "column"),
    [
        ("C1", "taet/table1", "TAET", "AT-BSL", "autoattack"),
        ("C2", "taet/table1", "TAET", "AT-BSL", "clean"),
        ("C12", "taet/table9", "TAET, train_steps=10", "TAET, train_steps=5", "autoattack"),
        ("C14", "taet/table10", "TAET, train_step_size=3/255", "TAET, train_step_size=1/255", "autoattack"),
        ("R5", "reat/table1", "REAT, loss=balanced-softmax", "PGD-AT, loss=balanced-softmax", "autoattack"),
    ],
)
def test_claimed_sizes_are_published_differences(name: str, item: str, first: str, second: str, column: str) -> None:
    values = items()[item].published
    (found,) = [one for one in items()[item].columns if one.metric == column]
    size = values[row(item, first), found] - values[row(item, second), found]
    assert claims.claims()[name].sizes[column] == pytest.approx(size, abs=0.005)


@pytest.mark.full
def test_there_are_46_claims_with_runs_that_can_be_trained(tmp_path: Path) -> None:
    names = [*claims.claims()]
    assert names == [*(f"C{n}" for n in range(1, 27)), *(f"R{n}" for n in range(1, 21))]
    store = Store(tmp_path, [])
    for claim in claims.claims().values():
        for one in store.every_cell(scales()["mini"], [claim.item]) if claim.is_tested else []:
            assert one.key, f"{claim.name}: {one.cell.reason}"
        for pattern in (pattern for pair in claim.entry.get("elsewhere", []) for pattern in pair):
            assert verdicts.committed([Path(__file__).parents[2] / "results"], pattern), pattern


def test_a_mistake_in_the_claims_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / "claims.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    for old, new, words in (
        ("columns = {autoattack = 5.31}", "", "C1: got pairs without columns or most"),
        ("pairs = [[", "pears = [[", "unknown key of C1 'pears'"),
        ('open = "curves at scale full: overfitting depends on the size of the network"', "", "C16: got no test"),
        ('item = "taet/table1"', 'item = "taet/table99"', "C3: got the unknown item"),
        ('item = "taet/table1", columns', 'item = "taet/table99", columns', "C26: got the unknown item taet/table99"),
        ("most = 0.05}", "least = 0.05}", "'R4' steady: the field 'most' is missing"),
    ):
        assert old in text
        (tmp_path / "claims.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match=re.escape(words)):
            claims.claims.__wrapped__()


def test_a_claim_names_the_runs_that_its_test_needs(tmp_path: Path) -> None:
    (of_order, of_rows), pair = chosen(["C3", "R4"]), chosen(["R17", "R17"])
    assert (of_order.name, of_order.rows) == ("C3", items()["taet/table1"].rows)
    assert [column.metric for column in of_order.columns] == ["autoattack"]
    assert [(one.method, one.data) for one in of_rows.rows] == [("at-bsl", "cifar10-lt"), ("reat", "cifar10-lt")]
    assert [column.metric for column in pair[0].columns] == ["clean", "autoattack"]
    assert pair[0].labels == ("at", "at-bsl"), "differences are from the first row"
    assert len(pair) == 1
    (cut,) = chosen(["R8"], ["at-bsl"])
    assert len(claims.claims()["R8"].item.rows) > len(cut.rows) == 1
    store, scale = Store(tmp_path, []), scales()["mini"]
    for claim in claims.claims().values():
        deciding = len(claim.item.rows) - len(claim.beside) if claim.is_tested else 0
        assert len(claim.cells(store, scale)) == deciding, claim.name
    assert chosen(["R15", "R18", "C22"]) == []
    with pytest.raises(UserError, match="unknown item 'R55'; allowed: "):
        chosen(["R55"])


def test_rows_of_figures_take_what_they_do_not_say_from_the_paper() -> None:
    assert row_from({"method": "reat"}, "REAT") == row("reat/table3", "REAT, IR 50")
    assert row_from({"method": "at", "data": "cifar10"}, "REAT").imbalance is None


def table_of(claim: claims.Claim) -> Item | None:
    """The table with the numbers behind a claim about pairs, unless it is about groups of classes or two attacks."""
    named = re.search(r"tables? (\d+)", claim.entry["where"])
    if named is None or not claim.pairs or {"group", "less", "attacks"} & claim.entry.keys():
        return None
    return items()[f"{claim.paper.lower()}/table{named[1]}"]


@pytest.mark.parametrize("name", [name for name, one in claims.claims().items() if table_of(one)])
def test_the_published_numbers_of_a_pair_are_as_the_claim_says(name: str) -> None:
    claim = claims.claims()[name]
    table = table_of(claim)
    assert table is not None
    store = Store(Path("none"), [])
    keys = {store.cells(scales()["full"], row, [])[0].key: row for row in table.rows}
    said = {
        (pair, metric): [
            table.published[keys[store.cells(scales()["full"], row, [])[0].key], column]
            for row in pair
            for column in table.columns
            if column.metric == metric
        ]
        for pair in claim.pairs
        for metric in claim.sizes
    }
    for (_, metric), (first, second) in said.items():
        if "most" in claim.entry:
            assert abs(first - second) <= claim.sizes[metric], (name, metric)
        else:
            assert first > second, (name, metric)


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("C4", "taet/table1"),
        ("C8", "taet/figure7"),
        ("C11", "taet/table4"),
        ("C13", "taet/table9"),
        ("C17", "taet/table5"),
        ("C20", "taet/table3"),
        ("R9", "reat/table1"),
    ],
)
def test_a_claim_about_a_whole_table_is_tested_on_all_its_rows(name: str, item: str, tmp_path: Path) -> None:
    store = Store(tmp_path, [])
    ours, table = (
        {one.key for one in store.every_cell(scales()["full"], [wanted])}
        for wanted in (claims.claims()[name].item, items()[item])
    )
    assert ours == table
