"""Tables of items at scale smoke, verdicts, the order of the work, and what is saved for the repository."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import taet
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.files import seal
from taet.reproduce import Store, claims, items, render, scales, site, verdicts
from taet.reproduce.cell_store import thinned
from taet.reproduce.claims import chosen
from taet.reproduce.costs import seconds_left
from taet.reproduce.leaderboard import BoardKind, Contender, Standings
from taet.reproduce.manifest import Item, PaperColumn, row_from
from taet.reproduce.session import Session, overview, state_of
from taet.reproduce.text_table import FORMS, TextTable, rendered
from taet.statistics import Difference, difference

Fill = Callable[[Item], Store]
QUICK = ["taet/figure1", "taet/figure2", "reat/figure3"]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.full) for name in items()]
)
def test_every_item_is_filled_and_rendered_at_smoke(smoke: Fill, name: str) -> None:
    item, scale = items()[name], scales()["smoke"]
    store = smoke(item)
    assert all(one.state == "done" for cells in store.of_item(scale, item).values() for one in cells)
    found = render.tables(store, scale, item)
    assert found[0].title.startswith(name)
    assert "scale smoke" in found[0].title
    assert "missing" not in str(found)
    for table in found:
        assert all(len(row) == len(table.heads) for row in table.rows)
    if item.shows in ("classes", "curves", "predictions", "distances"):
        assert len(found) == 2
        assert len({row[0] for row in found[1].rows}) == len(item.rows)
    for form in FORMS:
        assert name in rendered(found, form)


def test_classes_and_curves_over_steps_are_means_over_seeds(committed: Store) -> None:
    item, scale = items()["reat/figure4"], scales()["mini"]
    _, table = render.tables(committed, scale, item)
    (line,) = [row for row in table.rows if row[:2] == ("reat", "pgd-20 (n 3)")]
    (cells,) = [one.cards for one in render.filled(committed, scale, item) if one.label == "reat"]
    recalls = np.mean([card.summary("pgd-20").per_class for card in cells.values()], axis=0)
    assert line[2:] == tuple(f"{100 * recall:.1f}" for recall in recalls)
    assert table.notes == (render.MEANS,)
    assert ("robal", "pgd-20 (here: adaptive-pgd-20:factor=0.1)") in [row[:2] for row in table.rows]
    _, single = render.tables(committed, scale, items()["taet/figure1"])
    assert single.notes == ()
    _, epochs = render.tables(committed, scale, items()["reat/figure5"])
    assert epochs.notes == ("A row with several seeds shows the first one.",)


def test_a_class_is_found_by_its_name(committed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(one for one in render.filled(committed, scales()["mini"], items()["taet/table2"]) if one.cards)
    card = row.cards[0]
    monkeypatch.setattr(render, "class_number", lambda _: 0)
    value = render._value_of(PaperColumn("clean", "per-class", "truck"), card, "clean")
    assert value.value == card.summary("clean").per_class[9] != card.summary("clean").per_class[0]
    rows = [one for one in render.filled(committed, scales()["mini"], items()["taet/table2"]) if one.cards]
    found = render._paired(rows[1], rows[0], PaperColumn("clean", "per-class", "truck"))
    recalls = [one.cards[0].summary("clean").per_class[9] for one in rows[:2]]
    assert found is not None
    assert found.value == pytest.approx(recalls[1] - recalls[0])
    other = render._value_of(PaperColumn("clean", "per-class", "no class of these"), card, "clean")
    assert other.value == card.summary("clean").per_class[0]


def test_a_figure_with_a_run_that_lacks_an_attack_is_not_done(committed: Store) -> None:
    item = dataclasses.replace(items()["reat/figure9"], rows=items()["reat/figure4"].rows)
    item = dataclasses.replace(item, columns=(*item.columns, PaperColumn("pgd-7")))
    states = dict(render.tables(committed, scales()["mini"], item)[0].rows)
    assert states == {"robal": "0 of 1 runs have all attacks", "reat": "0 of 1 runs have all attacks"}


def test_the_seconds_of_an_epoch_do_not_depend_on_the_epochs_that_are_kept(committed: Store) -> None:
    """The curve is measured every ten epochs, and these are all kept; a clean epoch takes a fifth of the others."""
    (row,) = [one for one in render.filled(committed, scales()["mini"], items()["taet/figure8"]) if one.label == "taet"]
    line = row.cells[0].rows[0]
    every = [
        {
            **line,
            "epoch": epoch,
            "images_per_second": 2000 if epoch <= 40 else 400,
            "seconds": 4084 / (2000 if epoch <= 40 else 400) + (0 if epoch % 10 else 5),
            "monitor": None if epoch % 10 else row.cells[0].rows[2]["monitor"],
        }
        for epoch in range(1, 101)
    ]
    kept = thinned(every)
    assert len(kept) < 25
    for rows in (every, kept):
        one = dataclasses.replace(row, cells=(dataclasses.replace(row.cells[0], rows=(*rows,)),))
        assert one.epoch_seconds == pytest.approx(0.4 * 4084 / 2000 + 0.6 * 4084 / 400)


def test_a_run_without_what_an_item_shows_is_not_done(committed: Store, tmp_path: Path) -> None:
    for path in (committed.results[0] / "reproduce" / "mini").glob("at_cifar10-lt_ir50_seed0-44a790f3.json"):
        shutil.copy(path, tmp_path)  # without its epochs
    for store, name, note in (
        (Store(tmp_path / "out", [tmp_path]), "reat/table14", "No epochs are kept of PGD-AT, cifar10-lt, IR 50."),
        (
            Store(tmp_path / "out", [tmp_path]),
            "reat/figure1",
            "No epochs are kept of AT, long-tailed, cifar10-lt, IR 50.",
        ),
        (committed, "taet/figure3", "No embedding is kept of at and trades."),
    ):
        item, mini = items()[name], scales()["mini"]
        cells = [one for found in store.of_item(mini, item).values() for one in found]
        lacking = [one for one in cells if one.card is not None and not one.is_whole]
        assert {one.state for one in lacking} == {"started"}
        assert all((seconds_left(store, one) or 0) > 300 for one in lacking), "it is trained again"
        assert note in str(render.tables(store, mini, item)[0].notes)


def two_methods(smoke: Fill) -> tuple[Store, Item]:
    (item,) = chosen(["taet/table1"], ["at-bsl", "taet"])
    return smoke(item), item


def test_below_full_no_measured_number_is_compared_with_a_published_one(smoke: Fill) -> None:
    store, item = two_methods(smoke)
    numbers, differences = render.tables(store, scales()["smoke"], item)
    assert [row[:2] for row in numbers.rows] == [("AT-BSL", "paper"), ("", "smoke"), ("TAET", "paper"), ("", "smoke")]
    assert numbers.rows[0][2:4] == ("72.74", "34.13")
    assert "here − paper" not in str(numbers)
    assert any("not with the paper" in note for note in numbers.notes)
    assert any("AutoAttack above" in note or "published AutoAttack" in note for note in numbers.notes)
    assert differences.rows[0][:4] == ("TAET minus AT-BSL", "paper", "+1.9", "+5.5")
    cards = [store.cells(scales()["smoke"], row, ["clean"])[0].card for row in item.rows]
    assert cards[0] is not None
    assert cards[1] is not None
    assert differences.rows[1][2] == render.difference_text(cards[1].compare(cards[0], "clean"))


def test_at_full_the_gap_to_the_paper_is_shown(smoke: Fill) -> None:
    store, item = two_methods(smoke)
    pretended = dataclasses.replace(scales()["smoke"], name="full")
    row = next(line for line in render.tables(store, pretended, item)[0].rows if line[1] == "here − paper")
    card = store.cells(scales()["smoke"], item.rows[0], ["clean"])[0].card
    assert card is not None
    assert row[2] == render.points(card.summary("clean").balanced - 0.7274)


def test_plain_accuracy_of_a_long_tailed_test_set_is_derived_from_balanced_recalls(smoke: Fill) -> None:
    store, _ = two_methods(smoke)
    (item,) = chosen(["taet/table6"], ["taet"])
    (numbers, *_) = render.tables(store, scales()["smoke"], item)
    card = store.cells(scales()["smoke"], item.rows[0], ["clean"])[0].card
    assert card is not None
    counts = np.array(card.data["train_class_counts"])
    value = (card.summary("clean").per_class * counts).sum() / counts.sum()
    assert numbers.rows[1][2] == f"{100 * value:.1f}*"
    assert any(note.startswith("* derived") for note in numbers.notes)


def test_what_is_missing_is_shown_with_its_price(tmp_path: Path) -> None:
    store, item = Store(tmp_path, []), items()["taet/table4"]
    (numbers,) = render.tables(store, scales()["mini"], item)
    assert numbers.rows[1][1].startswith("missing, about ")
    cells = [one for found in store.of_item(scales()["mini"], item).values() for one in found]
    assert state_of(store, cells).startswith("8 missing, the rest about ")
    wide = [one for found in store.of_item(scales()["mini"], items()["reat/table5"]).values() for one in found]
    assert state_of(store, wide).endswith("2 without a price")


def test_runs_come_in_the_order_of_claims_per_hour(tmp_path: Path) -> None:
    wanted = chosen(["taet/table1", "taet/table9"])
    session = Session(Store(tmp_path, []), scales()["mini"], wanted, print)
    planned = session.planned()
    ordered = session.by_worth(planned)
    names = [cell.entry.method for cell in ordered]
    assert {*names[:2]} == {"at-bsl", "taet"}
    assert {cell.entry.settings.get("threat.steps") for cell in ordered[-3:]} == {20, 30, 40}, "C13 alone needs them"
    assert [cell.entry.method for cell in planned[:3]] == ["at-bsl", "robal", "trades"]
    assert len(names) == len({cell.name for cell in planned}) == 15


def test_runs_without_their_images_wait_while_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    cells = []
    for scale, name in (("smoke", "taet/table10"), ("mini", "taet/table10"), ("mini", "reat/table6")):
        session = Session(Store(tmp_path, []), scales()[scale], chosen([name]), said.append)
        cells += session.planned()
    assert session.with_data(cells) == cells[:3]
    assert [line[:9] for line in said] == ["not run: "] * 2
    assert all("run taet data prepare " in line for line in said)
    with pytest.raises(UserError, match="run taet data prepare"):
        session.with_data(cells[3:])


def test_saved_cards_and_thinned_epochs_fill_the_same_cells(smoke: Fill, tmp_path: Path) -> None:
    item, scale = items()["taet/figure2"], scales()["smoke"]
    store = smoke(item)
    session = Session(store, scale, [item], print)
    written = session.save(tmp_path / "results" / "smoke")
    assert len(written) == 2
    other = Store(tmp_path / "none", [tmp_path / "results"])
    assert render.tables(other, scale, item) == render.tables(store, scale, item)

    changed = json.loads(written[0].read_text())
    changed["model"]["weights_sha256"] = "0" * 64
    del changed["sha256"]
    (tmp_path / "results" / "other.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"are one run with other weights; remove one of them"):
        render.tables(Store(tmp_path / "none", [tmp_path / "results"]), scale, item)


@pytest.mark.parametrize(
    ("rule", "own", "epoch", "fills"),
    [
        ("best-validation", "best-validation", 1, ["best-validation"]),
        ("best-validation", "best-validation", 2, ["best-validation", "last"]),
        ("last", "best-validation", 2, ["last"]),
        ("best-validation", "last", 2, []),  # the curve of such a run may have had fewer points
    ],
)
def test_a_card_of_the_last_epoch_fills_the_cell_that_delivers_it(
    smoke: Fill, tmp_path: Path, rule: str, own: str, epoch: int, fills: list[str]
) -> None:
    (item,), scale = chosen(["reat/table1"], ["at-bsl"]), scales()["smoke"]
    (path,) = Session(smoke(item), scale, [item], print).save(tmp_path / "results")
    card = json.loads(path.read_text())
    assert card["run"]["config"]["training"]["selection"] == "best-validation"
    card["model"] |= {"selection": rule, "epoch": epoch}
    card["run"]["config"]["training"]["selection"] = own
    path.write_text(json.dumps(seal(card)))
    store = Store(tmp_path / "none", [tmp_path / "results"])
    settings = {**scale.settings, "REAT": {**scale.settings.get("REAT", {}), "training.selection": "last"}}
    asked = {"best-validation": scale, "last": dataclasses.replace(scale, settings=settings)}
    found = {name: store.cells(one, item.rows[0], ["clean"])[0] for name, one in asked.items()}
    assert [name for name, one in found.items() if one.state == "done"] == fills
    assert [one.card.model["selection"] for one in found.values() if one.card is not None] == fills
    assert len([*store.every_card()]) == bool(fills)


def test_the_selected_epoch_is_compared_with_the_last_of_the_same_training(smoke: Fill, tmp_path: Path) -> None:
    (item,), scale = chosen(["reat/table1"], ["at-bsl"]), scales()["smoke"]
    (path,) = Session(smoke(item), scale, [item], print).save(tmp_path / "results")
    card = json.loads(path.read_text())
    settings = {**scale.settings, "REAT": {**scale.settings.get("REAT", {}), "training.selection": "last"}}
    last = dataclasses.replace(scale, settings=settings)

    def selected(**run: str) -> ResultCard | None:
        own = {"selection": "last", "epoch": 2, "weights_sha256": "1" * 64}
        other = {**card, "model": {**card["model"], **own}, "run": {**card["run"], **run}}
        path.with_name("last.json").write_text(json.dumps(seal(other)))
        path.write_text(json.dumps(seal({**card, "model": {**card["model"], "epoch": 1}})))
        store = Store(tmp_path / "none", [tmp_path / "results"])
        (one,) = store.cells(last, item.rows[0], ["clean"])
        assert one.card is not None
        assert one.card.model["epoch"] == 2
        return store.selected(one)

    found = selected()
    assert found is not None
    assert found.model["epoch"] == 1
    assert selected(command="taet train elsewhere") is None


def test_finished_runs_of_other_seeds_are_in_tables_and_are_not_missed(smoke: Fill, tmp_path: Path) -> None:
    (item,) = chosen(["taet/table1"], ["at-bsl"])
    scale, (row,) = scales()["smoke"], item.rows
    Session(smoke(item), scale, [item], print).save(tmp_path / "results")
    store = Store(tmp_path / "out", [tmp_path / "results"])
    (other,) = store.of_item(dataclasses.replace(scale, seeds={"all": [3]}), item)[row][:1]
    assert (other.cell.seed, other.state) == (3, "missing")

    def seeds() -> list[int]:
        return [one.cell.seed for one in Store(tmp_path / "out", store.results).of_item(scale, item)[row]]

    assert seeds() == [0]
    assert other.cell.run is not None
    taet.train(other.cell.run, out=other.cell.folder)
    assert seeds() == [0]  # it was not attacked yet
    taet.evaluate(other.cell.folder, attacks=other.attacks)
    assert seeds() == [0, 3]
    store = Store(tmp_path / "out", store.results)
    assert "(n 2)" in render.tables(store, scale, item)[0].rows[1][2]  # a mean over both
    assert state_of(store, Session(store, scale, [item], print).cells) == "2 done"

    stray = tmp_path / "out" / "runs" / "stray"  # a run that no row needs, of a method that is not installed
    shutil.copytree(other.cell.folder, stray)
    record = json.loads((stray / "run.json").read_text())
    record["run"]["method"] = "not-installed"
    (stray / "run.json").write_text(json.dumps({name: value for name, value in record.items() if name != "sha256"}))
    assert seeds() == [0, 3]

    Session(store, scale, [item], print).save(tmp_path / "more")  # as a committed card
    assert [one.cell.seed for one in Store(tmp_path / "none", [tmp_path / "more"]).of_item(scale, item)[row]] == [0, 3]


def test_a_card_of_other_weights_in_a_run_folder_is_refused(smoke: Fill, tmp_path: Path) -> None:
    store, item = two_methods(smoke)
    cells = [store.cells(scales()["smoke"], row, ["clean"])[0].cell for row in item.rows]
    for cell in cells:
        shutil.copytree(cell.folder, tmp_path / "runs" / cell.name)
    shutil.copy(cells[0].folder / "evaluation.json", tmp_path / "runs" / cells[1].name / "evaluation.json")
    with pytest.raises(UserError, match="belongs to another run than"):
        render.tables(Store(tmp_path, []), scales()["smoke"], item)


@pytest.mark.parametrize(
    ("low", "high", "size", "most", "word"),
    [
        (0.01, 0.08, 5, False, "holds"),
        (0.01, 0.02, 5, False, "does not hold"),
        (0.01, 0.02, 0, False, "holds"),
        (-0.01, 0.02, 5, False, "does not hold"),
        (-0.01, 0.02, 0, False, "undecided"),
        (-0.02, 0.08, 5, False, "undecided"),
        (-0.08, -0.01, 5, False, "does not hold"),
        (-0.01, 0.03, 4, True, "holds"),
        (-0.01, 0.05, 4, True, "undecided"),
        (0.05, 0.09, 4, True, "does not hold"),
        (-0.09, -0.05, 4, True, "does not hold"),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, size: float, most: bool, word: str) -> None:
    assert verdicts.word_of(Difference((low + high) / 2, low, high, 0.01), size, most) == word


def test_a_claim_holds_if_all_its_parts_do() -> None:
    assert verdicts.combined(["holds", "holds"]) == "holds"
    assert verdicts.combined(["holds", "undecided"]) == "undecided"
    assert verdicts.combined(["holds", "not tested"]) == "not tested"
    assert verdicts.combined(["not tested", "does not hold"]) == "does not hold"
    assert verdicts.combined([]) == "not tested"


def test_the_parts_of_a_claim_share_its_error_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same difference, whose 95 % interval is below 0, refutes a claim of one part and none of 17."""
    labels = np.repeat([0, 1], 100)
    first, second = np.zeros(200, dtype=bool), np.zeros(200, dtype=bool)
    second[:14] = first[-4:] = True
    found = partial(difference, first, second, labels, 2)
    monkeypatch.setattr(verdicts, "paired_cards", lambda *_, comparisons, **__: found(comparisons=comparisons))
    words = [
        verdicts.verdict(claims.claims()[name], Store(tmp_path, []), scales()["mini"]).word for name in ("C2", "C4")
    ]
    assert words == ["does not hold", "undecided"]


def test_cards_outside_the_scales_are_paired_by_their_seeds(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "results" / "digits-lt-methods"
    for seed in (1, 2):
        shutil.copy(folder / f"taet-seed{seed}.json", tmp_path)
    assert {seed: card.seed for seed, card in verdicts.committed([tmp_path], "taet-seed?.json").items()} == {
        1: 1,
        2: 2,
    }


def test_a_mistyped_card_outside_the_scales_is_one_line(committed: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"elsewhere: no card digits-lt-methods/taett-seed\?\.json in "):
        verdicts.committed(committed.results, "digits-lt-methods/taett-seed?.json")
    assert verdicts.committed([tmp_path], "digits-lt-methods/taett-seed?.json") == {}, "other results lack the folder"


def test_verdicts_at_smoke_are_those_of_the_paired_test(smoke: Fill, tmp_path: Path) -> None:
    store, _ = two_methods(smoke)
    found = verdicts.verdict(claims.claims()["C2"], store, scales()["smoke"])
    assert found.because.startswith("Measured: taet minus at-bsl, clean ")
    assert found.word in ("holds", "does not hold", "undecided")
    missing = verdicts.verdict(claims.claims()["C12"], Store(tmp_path, []), scales()["smoke"])
    assert missing.word == "not tested"
    assert missing.because.startswith("Missing at scale smoke: ")
    assert "taet (steps 5)" in missing.because


def test_theorem_1_fails_where_a_wrong_image_changes_its_class(smoke: Fill) -> None:
    """Of one class with two images: both wrong clean, one of them with another class under attack."""
    store, item = two_methods(smoke)
    card = store.cells(scales()["smoke"], item.rows[0], ["clean"])[0].card
    assert card is not None
    columns = {column.name: column for column in card.columns}
    clean, attacked = columns["clean"].predictions, columns["pgd-2"].predictions
    labels = card.labels
    gaps = []
    for label in range(card.num_classes):
        of = labels == label
        wrong, flips = (clean != labels)[of].mean(), (clean != attacked)[of].mean()
        gaps.append(wrong + flips - (attacked != labels)[of].mean())
    gap = verdicts.bound_gap(card)
    assert gap is not None
    assert gap >= np.mean(gaps) - 1e-12
    worst = min((column for column in card.columns if column.bounded), key=lambda one: card.summary(one.name).balanced)
    assert verdicts.bound_gap(dataclasses.replace(card, columns=(card.column("clean"), worst))) == verdicts.bound_gap(
        card, worst=True
    )
    twice = ((clean != labels) & (clean != attacked)).sum()
    assert (np.mean(gaps) > 1e-12) == bool(twice)


def test_the_findings_have_every_claim_and_every_erratum(root: Path) -> None:
    """That the page is the one of the cards is checked with the other pages."""
    text = (root / "docs" / "findings.md").read_text(encoding="utf-8")
    assert all(f"**{name}** " in text for name in claims.claims())
    assert all(note in text for item in items().values() for note in item.notes)
    assert re.search(r"committed cards exceed the bound under one of their attacks \(\d+ under the strongest\)", text)
    assert "**Selection on the test set** (REAT, public code). Not tested" in text
    assert "Interval of the rarest class: 5.6 points balanced, 11.4 long-tailed." in text
    assert "the seed moves AutoAttack: at-bsl 16.8 % (seed 0, epoch 80), 17.0 % (seed 1, epoch 80)" in text
    assert "curves select another epoch than the last. Selected minus last, AutoAttack: mean over all −" in text
    assert "reat (seed 1, epoch 40) −1.6 (−3.3 to +0.1)" in text
    assert "; reat 17.9 % (seed 0, epoch 80), 16.3 % (seed 1, epoch 80)" in text


def test_rows_of_the_leaderboard_that_cannot_be_told_apart_share_ranks(committed: Store) -> None:
    rows = [row_from({"method": name}, "REAT") for name in ("at-bsl", "at")]
    cards = [committed.cells(scales()["mini"], row, ["clean"])[0].card for row in rows]
    assert cards[0] is not None
    assert cards[1] is not None
    found = [Contender(row.method, {0: card}) for row, card in zip(rows, cards, strict=True) if card is not None]
    kind = BoardKind("mini", "reat", "cifar10-lt", 50.0, "resnet18")
    board = Standings(kind, (found[1], found[0]), found[1].card)
    assert cards[1].compare(cards[0], "autoattack").decided
    assert [(row[0], row[1]) for row in board.table().rows] == [("at", "1"), ("at-bsl", "2")]
    alike = Standings(kind, (Contender("at-bsl", {0: cards[0]}), Contender("at", {0: cards[0]})), cards[0])
    assert [row[1] for row in alike.table().rows] == ["1–2"] * 2


def test_a_column_names_the_attack_that_replaces_it(committed: Store) -> None:
    heads = [table.heads for table in render.tables(committed, scales()["mini"], items()["taet/table1"])]
    assert all("cw-l2 (here: cw-linf-100)" in head for head in heads)
    first, _ = render.tables(committed, scales()["mini"], items()["reat/table3"])
    assert "pgd-20" in first.heads, "of RoBal alone it is another attack"
    differs = render.what_differs(scales()["mini"], items()["reat/table3"], [])
    assert any("adaptive-pgd-20:factor=0.1 for pgd-20 (robal)" in line for line in differs)
    assert not any("adaptive" in line for line in render.what_differs(scales()["mini"], items()["taet/table1"], []))


def test_a_difference_says_its_seeds_where_a_row_has_others(committed: Store) -> None:
    _, table = render.tables(committed, scales()["mini"], items()["reat/table8"])
    cells = [cell for line in table.rows for cell in line if cell.endswith(", n 1")]
    assert cells, "AT on balanced images has one seed, AT-BSL three"
    assert table.notes[0].startswith("Paired on the same test images")
    assert len(render.tables(committed, scales()["mini"], items()["taet/table6"])) == 1, "no column, no table"


def test_a_figure_of_chosen_epochs_has_them_in_its_table(committed: Store) -> None:
    _, table = render.tables(committed, scales()["mini"], items()["reat/figure6"])
    assert table.heads[3:] == ("epoch 10", "epoch 30", "epoch 60")


@pytest.mark.full
def test_the_site_is_whole_and_needs_no_network(committed: Store) -> None:
    pages = site.site(committed, [scales()["mini"]])
    assert len(pages) == 44 + 4
    assert pages == site.site(committed, [scales()["mini"]])
    for name, text in pages.items():
        linked = re.findall(r'(?:href|src)="([^"]+)"', text)
        for page, _, part in (link.partition("#") for link in linked):
            assert not part or f'id="{part}"' in pages[page or name], (name, page, part)
            assert page in pages or not page, (name, page)
        assert "<script" not in text
    assert set(re.findall(r'href="([^"]+)"', pages["index.html"])) == {*pages}
    card = next(iter(committed.cells(scales()["mini"], row_from({"method": "reat"}, "REAT"), ["clean"]))).card
    assert card is not None
    assert card.model["weights_sha256"] in pages["runs.html"]
    assert card.run["command"].split()[0:3] == ["taet", "train", "reat"]
    assert pages["reat-table1.html"].count("runs.html#reat_cifar10-lt_ir50_seed") >= 3


def test_a_difference_from_the_paper_at_every_scale_is_said_once(committed: Store) -> None:
    both, item = [scales()["cpu"], scales()["mini"]], items()["taet/table1"]
    page = site._item(committed, both, item)
    lines = re.findall(r"<li>(.*?)</li>", page.partition("What differs")[2].partition("</ul>")[0])
    assert [html.unescape(line).partition(" ")[0] for line in lines] == ["TAET's", "In", "Another", "Scale", "Scale"]
    said = {scale.name: render.what_differs(scale, item, render.filled(committed, scale, item)) for scale in both}
    assert {html.unescape(line) for line in lines} == {*said["cpu"], *said["mini"]} - {*item.notes}


@pytest.mark.full
def test_the_overview_lists_every_item_at_every_scale(committed: Store) -> None:
    table = overview(committed)
    assert len(table.rows) == 44
    assert table.heads == ("", "full", "cpu", "mini", "smoke")
    assert len(table.notes) == 4


def test_forms_escape_what_they_must() -> None:
    table = TextTable("A & B", ("", "50 %"), (("a_b|c", "−1.0"),), ("x < y",))
    assert "A & B\n\n" in rendered([table], "terminal")
    assert r"a_b\|c" in rendered([table], "markdown")
    assert r"a\_b|c & $-$1.0 \\" in rendered([table], "latex")
    assert r"50 \%" in rendered([table], "latex")
    page = rendered([table], "html")
    assert "A &amp; B" in page
    assert "x &lt; y" in page
    assert page.startswith("<!doctype html>")


def test_cards_are_read_from_files_only(committed: Store) -> None:
    assert all(isinstance(card, ResultCard) for card, _ in zip(committed.every_card(), range(2), strict=False))
