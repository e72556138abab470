"""The leaderboard, and a card from elsewhere: where it stands, or why it is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.reproduce import Store, leaderboard, scales
from taet.reproduce.leaderboard import SUBMITTED, Standings, boards, placed
from taet.reproduce.manifest import items
from taet.reproduce.site import leaderboard_page
from taet.training.decisive_settings import run_hash


@pytest.fixture(scope="module")
def found(committed: Store) -> Sequence[Standings]:
    return boards(committed, [scales()["mini"]])


def handed_in(found: Sequence[Standings], **changes: Any) -> ResultCard:
    """The first card of the first board with other weights."""
    card = found[0].rows[0].card
    changed = {"model": {**card.model, "weights_sha256": "0" * 64}, "flags": (), "sealed": True} | changes
    return dataclasses.replace(card, **changed)


def with_config(card: ResultCard, config: dict[str, Any]) -> dict[str, Any]:
    """The run of a card with other settings, and their hash."""
    return {**card.run, "config": config, "hash": run_hash(config)}


def test_what_no_evaluation_can_have_given_is_refused(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    columns = {column.name: column for column in card.columns}
    every = np.ones(len(card.labels), dtype=bool)
    right = dataclasses.replace(columns["autoattack"], predictions=card.labels.copy(), correct=every, parts={})
    masks = tuple(right if column.name == "autoattack" else column for column in card.columns)
    few = card.labels.copy()
    few[[0, -1]] = few[[-1, 0]]
    moved = tuple(dataclasses.replace(one, correct=one.predictions == few, parts={}) for one in card.columns)
    other = {**card.run["config"], "method": "trades"}
    for changes, reason in (
        ({"columns": masks}, "autoattack: right on images that are wrong without an attack"),
        ({"labels": few, "columns": moved}, "test labels: got others than the board's"),
        ({"run": {**card.run, "config": other}}, "settings: their hash is not that of the card"),
        ({"run": with_config(card, other)}, f"settings: got method trades; the card has {card.method}"),
    ):
        _, reasons = placed(found, [dataclasses.replace(card, **changes)])  # type: ignore[arg-type]
        assert reasons[0] == reason
    config = card.run["config"]
    shorter = {**config, "training": {**config["training"], "lr": 0.02}}
    board, _ = placed(found, [dataclasses.replace(card, run=with_config(card, shorter))])
    assert board is not None
    assert f"{card.method} (lr 0.02) {SUBMITTED}" in [row.label for row in board.rows], "other settings are named"


def test_a_comparable_card_is_placed(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    board, reasons = placed(found, [card])
    assert reasons == []
    assert board is not None
    assert len(board.rows) == len(found[0].rows) + 1
    row = next(one for one in board.rows if one.label == f"{card.method} {SUBMITTED}")
    assert "–" in board.rank(row), "equal answers cannot be told apart"
    assert any(line[0] == f"{card.method} (submitted)" for line in board.table().rows)


def test_cost_is_the_time_of_the_training_relative_to_at(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    config = card.run["config"]
    for changes, cost in (
        ({}, "1.00"),
        ({"epochs": config["training"]["epochs"] // 2}, "0.50"),
        ({"awp": 0.005}, "–"),
        ({"precision": "float32"}, "–"),
    ):
        method = {"method": "at", "settings": {}, "training": {**config["training"], **changes}}
        run = with_config(card, {**config, **method})
        model = {**card.model, "epoch": run["config"]["training"]["epochs"]}
        board, reasons = placed(found, [dataclasses.replace(card, run=run, method="at", model=model)])
        assert board is not None, reasons
        table = board.table()
        line = next(row for row in table.rows if row[0].endswith(SUBMITTED))
        assert line[table.heads.index("cost")] == cost


def test_two_names_of_one_training_are_one_row_with_all_seeds(found: Sequence[Standings]) -> None:
    board = next(one for one in found if one.kind.imbalance == 50 and one.kind.data == "cifar10-lt")
    row = next(row for row in board.rows if row.label == "at-bsl (weighting brw)")
    assert row.cards[0].method == "at-bsl"
    assert {row.cards[seed].method for seed in (1, 2)} == {"cgr"}
    alike = [note for board in found for note in board.table().notes if "the same weights" in note]
    assert [note.partition(":")[0] for note in alike] == ["cgr (budget no, margin 0, weights no, monitor_every 2)"]
    assert (
        ": the same weights as at-bsl (weighting brw) with seed 0, so one row, with seed 1 and 2 of the former."
        in alike[0]
    )


def test_each_reason_to_refuse_is_a_line(found: Sequence[Standings]) -> None:
    card = found[0].rows[0].card
    config: dict[str, Any] = card.run["config"]
    pretrained = {**config, "model": {**config["model"], "weights": "clean.safetensors"}}
    extra = {"source": "EDM", "saw_removed_tail": "yes", "sha256": "0" * 64, "per_batch": 64, "batch_size": 128}
    extra |= {"classes": "prior", "class_counts": [1] * 10}
    board, reasons = placed(found, [card])
    assert board is None
    assert reasons[0] == "weights: these are on the board already"
    changes: dict[str, dict[str, Any]] = {
        "test images (SHA-256)": {"data": {**card.data, "test_sha256": "0" * 64}},
        "extra training images": {"data": {**card.data, "extra": extra}},
        "pretrained weights": {"run": with_config(card, pretrained)},
        "training counts": {"data": {**card.data, "train_class_counts": [1] * 10}},
        "network": {"model": {**card.model, "name": "resnet18", "weights_sha256": "0" * 64}},
        "protocol": {"protocol": "other"},
        "threat": {"threat": {"norm": "l2", "eps": 0.5}},
        "checksum": {"sealed": False},
        "flags": {"flags": ({"flag": "zero-gradients", "text": "zero"},)},
        "attack autoattack": {"columns": tuple(column for column in card.columns if column.name != "autoattack")},
    }
    for name, change in changes.items():
        board, reasons = placed(found, [handed_in(found, **change)])
        assert board is None, name
        assert [reason.partition(":")[0] for reason in reasons[:-1]] == [name]
        assert reasons[-1].startswith("the nearest board is cifar10-lt, imbalance ratio ")


@pytest.mark.parametrize(
    ("rule", "own", "epoch", "fits"),
    [
        ("last", "last", 80, True),
        ("last", "best-validation", 80, True),  # taet evaluate --weights model-last
        ("best-validation", "best-validation", 80, True),  # its best epoch is the last
        ("best-validation", "best-validation", 40, False),
        ("best-validation", "last", 80, False),  # taet evaluate --weights model-best
        ("best-test", "best-test", 80, False),
        (None, "last", 80, True),
    ],
)
def test_only_the_last_epoch_joins_a_board_of_last_epochs(
    found: Sequence[Standings], rule: str | None, own: str, epoch: int, fits: bool
) -> None:
    board = next(one for one in found if one.kind.protocol == "reat" and one.kind.data == "cifar10-lt")
    assert {row.card.model["selection"] for row in board.rows} == {"last"}
    card = board.rows[0].card
    training = {**card.run["config"]["training"], "selection": own, "epochs": 80}
    changes = {
        "model": {**card.model, "weights_sha256": "0" * 64, "selection": rule, "epoch": epoch},
        "run": with_config(card, {**card.run["config"], "training": training}),
        "flags": (),
        "sealed": True,
    }
    _, reasons = placed([board], [dataclasses.replace(card, **changes)])  # type: ignore[arg-type]
    assert [reason.partition(":")[0] for reason in reasons[:-1]] == ([] if fits else ["rule that chose the epoch"])


def test_what_leaves_the_protocol_is_a_note(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    board, _ = placed(found, [dataclasses.replace(card, run={**card.run, "deviations": ["balls differ by class"]})])
    assert board is not None
    assert f"{card.method} {SUBMITTED} leaves the protocol: balls differ by class." in board.table().notes


def test_committed_runs_that_no_item_needs_are_listed_if_they_fit(found: Sequence[Standings], committed: Store) -> None:
    board = next(one for one in found if one.kind.protocol == "reat" and one.kind.data == "cifar10-lt")
    labels = {row.label: [*row.cards] for row in board.rows}
    assert labels["faal"] == labels["n-fgsm"] == labels["at-bsl (weighting brw)"] == [0, 1, 2]
    assert labels["class-budget (base at-bsl, rule cfa)"] == [0]
    assert not any(label.startswith("standard") for label in labels)
    assert {card.model["name"] for row in board.rows for card in row.cards.values()} == {"resnet8"}
    weights = [card.model["weights_sha256"] for row in board.rows for card in row.cards.values()]
    assert len({*weights}) == len(weights), "no run is there twice"
    every = {path.parent.name for path, _ in committed.configs}
    assert len(every) > 5, "cards of other data and protocols are known, and in no row"
    assert [row.mean("autoattack") for row in board.rows] == sorted(
        (row.mean("autoattack") for row in board.rows), reverse=True
    )


def test_a_run_of_a_method_that_is_not_installed_is_named_by_it(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    other = dataclasses.replace(card, run={**card.run, "config": {**card.run["config"], "method": "my-idea"}})
    assert found[0].label(dataclasses.replace(other, method="my-idea")) == "my-idea"


def test_ranks_compare_the_seeds_that_two_rows_share(found: Sequence[Standings]) -> None:
    board = next(one for one in found if one.kind.protocol == "reat" and one.kind.data == "cifar10-lt")
    rows = {row.label: row for row in board.rows}
    three, one = rows["reat"], rows["robal"]
    assert ([*three.cards], [*one.cards]) == ([0, 1, 2], [0])
    pair = dataclasses.replace(board, rows=(three, one))
    assert three.cards[0].compare(one.cards[0], "autoattack").decided
    assert [pair.rank(three), pair.rank(one)] == ["1", "2"]


def test_several_seeds_of_a_method_are_one_row(found: Sequence[Standings]) -> None:
    first = handed_in(found)
    second = dataclasses.replace(
        handed_in(found, model={**first.model, "weights_sha256": "1" * 64}),
        run=with_config(first, {**first.run["config"], "seed": 1}),
        seed=1,
    )
    assert (first.seed, second.seed) == (0, 1)
    board, reasons = placed(found, [first, second])
    assert reasons == []
    assert board is not None
    assert [len(row.cards) for row in board.rows if row.label == f"{first.method} {SUBMITTED}"] == [2]
    _, reasons = placed(found, [first, first])
    assert reasons[0] == "cards: got the seeds 0 and 0; allowed: one card for each seed"
    config = {**second.run["config"], "training": {**second.run["config"]["training"], "lr": 0.5}}
    _, reasons = placed(found, [first, dataclasses.replace(second, run=with_config(second, config))])
    assert reasons[0] == "cards: got runs with other settings than their seed; allowed: the seeds of one method"


def test_one_training_is_not_several_seeds(found: Sequence[Standings]) -> None:
    first = handed_in(found)
    again = dataclasses.replace(first, run=with_config(first, {**first.run["config"], "seed": 1}), seed=1)
    assert placed(found, [first, again])[1][0] == "cards: got the same weights for several seeds"
    assert placed(found, [dataclasses.replace(first, seed=1)])[1][0] == "settings: got seed 0; the card has 1"


def test_a_machine_and_later_attacks_do_not_tell_seeds_apart(found: Sequence[Standings]) -> None:
    first = handed_in(found)
    config = {**first.run["config"], "seed": 1}
    config["data"] = {**config["data"], "root": "elsewhere"}
    config["evaluation"] = {**config["evaluation"], "attacks": ["clean"]}
    model = {**first.model, "weights_sha256": "1" * 64}
    second = dataclasses.replace(first, model=model, run=with_config(first, config), seed=1)
    assert placed(found, [first, second])[1] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"training": {}}, "settings: no training"),
        ({"settings": {"unheard": 1}}, "settings: unknown "),
    ],
)
def test_settings_that_are_none_are_refused(found: Sequence[Standings], change: Any, reason: str) -> None:
    card = handed_in(found)
    config = {**card.run["config"], **change}
    _, reasons = placed(found, [dataclasses.replace(card, run=with_config(card, config))])
    assert any(line.startswith(reason) for line in reasons), reasons


def test_a_card_without_a_probe_is_refused(found: Sequence[Standings]) -> None:
    assert placed(found, [handed_in(found, probe={})])[1][0].startswith("probe: the card has none")


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("model", "normalize", "none", "normalize none"),
        ("data", "seed", 7, "seed 7"),
        ("data", "mirror", "no", "mirror no"),
    ],
)
def test_a_label_has_every_setting_that_changes_weights(
    found: Sequence[Standings], part: str, name: str, value: object, words: str
) -> None:
    card = handed_in(found)
    config = {**card.run["config"], part: {**card.run["config"][part], name: value}}
    assert found[0].label(dataclasses.replace(card, run=with_config(card, config))) == f"{card.method} ({words})"


def test_rows_are_one_only_if_every_common_seed_has_the_same_weights(found: Sequence[Standings]) -> None:
    for board in found:
        labels = [row.label for row in board.rows]
        assert len({*labels}) == len(labels)
    board = next(one for one in found if one.kind.imbalance == 50 and one.kind.data == "cifar10-lt")
    rows = {row.label: row.cards for row in board.rows}
    brw, faal = rows["at-bsl (weighting brw)"], rows["faal"]
    shared = dataclasses.replace(faal[0], model=brw[0].model)
    assert leaderboard._is_same({0: brw[0]}, {0: shared, 1: faal[1]})
    assert not leaderboard._is_same({0: brw[0]}, {0: faal[0]})
    assert not leaderboard._is_same({0: brw[0], 1: rows["reat"][1]}, {0: shared, 1: faal[1]})


def test_an_attack_that_a_seed_lacks_has_no_mean(found: Sequence[Standings]) -> None:
    board = next(one for one in found if one.kind.imbalance == 50 and one.kind.data == "cifar10-lt")
    row = next(row for row in board.rows if row.label == "reat")
    cut = tuple(column for column in row.cards[1].columns if column.name != "pgd-20")
    cards = {**row.cards, 1: dataclasses.replace(row.cards[1], columns=cut)}
    assert row.mean("pgd-20") == pytest.approx(np.mean([one.summary("pgd-20").balanced for one in row.cards.values()]))
    line = dataclasses.replace(board, rows=(dataclasses.replace(row, cards=cards),)).table().rows[0]
    assert line[6:8] == ("–", "–")


def test_published_plain_accuracies_stand_in_no_board() -> None:
    assert leaderboard._published(items()["taet/table8"]) == {}
    assert len(leaderboard._published(items()["taet/table1"])) == 11


def test_a_flag_about_pgd_alone_is_named_and_not_refused(found: Sequence[Standings]) -> None:
    card = handed_in(found, flags=({"flag": "logit-scale", "text": "PGD on scaled logits."},))
    board, reasons = placed(found, [card])
    assert reasons == []
    assert board is not None
    (note,) = [note for note in board.table().notes if note.startswith("Flag logit-scale (docs/evaluation.md): ")]
    assert f"{card.method} {SUBMITTED}" in note


def test_an_autoattack_that_a_weaker_attack_beats_is_refused(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    clean, pgd, lead = (card.column(name) for name in ("clean", "pgd-20", "autoattack"))
    lifted = np.flatnonzero(pgd.correct & ~lead.correct)[:1]  # may be chance
    for extra, refused in ((lifted, False), (np.flatnonzero(clean.correct & ~lead.correct), True)):
        correct = lead.correct.copy()
        correct[extra] = True
        predictions = np.where(correct, card.labels, lead.predictions)
        forged = dataclasses.replace(lead, correct=correct, predictions=predictions, parts={})
        columns = tuple(forged if column is lead else column for column in card.columns)
        board, reasons = placed(found, [dataclasses.replace(card, columns=columns)])
        assert (board is None) == refused
        assert [reason.partition(" breaks")[0] for reason in reasons[:-1]] == (
            ["autoattack: fgsm, pgd-20 and cw-linf-100"] if refused else []
        )


def test_an_epoch_or_a_ratio_that_is_not_that_of_the_card_is_refused(found: Sequence[Standings]) -> None:
    card = handed_in(found)
    config: dict[str, Any] = card.run["config"]
    other = {**config, "data": {**config["data"], "imbalance_ratio": 1.0}}
    for changes, reason in (
        ({"model": {**card.model, "epoch": 3}}, "epoch: got 3 with the selection last; the training has 100 epochs"),
        ({"run": with_config(card, other)}, "imbalance ratio: got 1; the board has 10"),
    ):
        board, reasons = placed(found, [dataclasses.replace(card, **changes)])  # type: ignore[arg-type]
        assert board is None
        assert reasons[0] == reason


def test_flags_that_were_removed_from_a_card_are_raised_again(found: Sequence[Standings]) -> None:
    probe = handed_in(found).probe
    assert {"zero_gradients", "clean_correct"} <= probe.keys()
    card = handed_in(found, probe={**probe, "zero_gradients": probe["clean_correct"]}, flags=())
    board, reasons = placed(found, [card])
    assert board is None
    assert reasons[0].startswith("flags: zero-gradients: gradients may mislead")
    masked = next(row.card for board in found for row in board.rows if "logit-scale" in leaderboard._flags(row))
    without = leaderboard.Contender("without", {0: dataclasses.replace(masked, flags=())})
    assert "logit-scale" in leaderboard._flags(without)


def test_without_a_board_there_is_a_reason(found: Sequence[Standings]) -> None:
    assert placed([], [handed_in(found)]) == (None, ["there is no board yet"])


def test_its_page_can_be_filtered_without_a_script(found: Sequence[Standings]) -> None:
    other = dataclasses.replace(found[0], kind=found[0].kind._replace(data="cifar100-lt"))
    page = leaderboard_page([found[0], other])
    assert "<script" not in page
    assert "main:has(#by-data-1:checked) .board:not(.by-data-1){display:none}" in page
    assert page.count('class="board ') == 2
    assert "by-scale" not in page.split("</style>")[1].split("<div")[0], "one value needs no choice"


def test_a_damaged_file_among_the_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{bad")
    with pytest.raises(UserError, match=r"card\.json"):
        boards(Store(tmp_path / "none", [tmp_path]), [scales()["mini"]])


@pytest.mark.parametrize("run", [[], {"config": "x"}, {"config": {}}, {"config": {"protocol": "taet", "data": None}}])
def test_a_card_with_broken_settings_among_the_results_is_named(tmp_path: Path, run: Any) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"columns": [], "model": {}, "run": run}))
    if run:
        with pytest.raises(UserError, match=r"card\.json: got a card whose run has no settings"):
            boards(Store(tmp_path / "none", [tmp_path]), [scales()["mini"]])
    else:  # a card of foreign weights
        assert boards(Store(tmp_path / "none", [tmp_path]), [scales()["mini"]]) == []


def test_a_balanced_training_set_has_no_tail(found: Sequence[Standings]) -> None:
    """The classes of cifar10-balanced-small have 252 or 251 images."""
    for one in found:
        counts = {count for row in one.rows for count in row.card.data["train_class_counts"]}
        tails = {cells[leaderboard.HEADS.index("tail")] for cells in one.table().rows}
        assert ("–" in tails) == (max(counts) - min(counts) <= 1)
    assert any("balanced-small" in one.kind.title for one in found)


def test_uncertain_costs_are_named(root: Path) -> None:
    every = json.loads((root / "results/cost.json").read_text())["costs"]
    ends = {one["name"]: [end / one["seconds_ratio"] for end in one["spread"]] for one in every}
    (name,) = (name for name, (low, high) in ends.items() if low < 1 / 1.2 or high > 1.2)
    assert f"That of {name} is uncertain" in leaderboard.NOTES[-1]
