"""Results: every number follows from the masks of the cards, and rows are named and compared in one place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taet
from taet import methods, protocols, statistics
from taet.errors import UserError
from taet.evaluation.card import ResultCard, compare_runs
from taet.report.numbers import COLUMNS, GROUPS, over_seeds
from taet.report.rows import named
from taet.settings import override, to_json

MakeCard = Callable[..., ResultCard]
ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack-10", "autoattack")


@pytest.fixture
def trained(make_card: MakeCard) -> MakeCard:
    """Make the card of a run of a protocol with some settings changed."""

    def make(
        method: str = "at", seed: int = 0, /, protocol: str = "taet", about: Any = (), **changes: Any
    ) -> ResultCard:
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        own = {name.removeprefix("method."): changes.pop(name) for name in [*changes] if name.startswith("method.")}
        run = override(protocols.start(protocol, method), {**changes, "seed": seed})
        run = override(run, {"settings": override(methods.find(method).Config(), own)})
        card = make_card(method, seed, run={"config": json.loads(json.dumps(to_json(run)))}, protocol=protocol)
        weights = f"{abs(hash((method, seed, protocol, *changes.items(), *own.items()))):064x}"
        model = {**card.model, "selection": run.training.selection, "weights_sha256": weights[:64], **dict(about)}
        return card.changed(model=model)

    return make


def names(*cards: ResultCard) -> list[str]:
    return [row for row, _ in named(cards)]


def test_every_number_of_the_table_follows_from_the_masks(make_card: MakeCard) -> None:
    cards = [make_card("at", 0), make_card("at", 1), make_card("taet", 0)]
    table = taet.results(cards).table()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * len(ATTACKS) * (len(GROUPS) + 10)
    assert not table.duplicated(["row", "seed", "attack", "group"]).any()
    for line in table.itertuples():
        card = cards[int(line.card.split()[1]) - 1]
        mask, labels = card.column(line.attack).correct, card.labels
        recalls = np.array([mask[labels == c].mean() for c in range(10)])
        order = np.argsort([-count for count in card.data["train_class_counts"]], kind="stable")
        of = {"balanced": order, "head": order[:3], "body": order[3:6], "tail": order[6:]}
        if line.group in of:
            assert line.accuracy == pytest.approx(recalls[of[line.group]].mean(), abs=1e-12)
            assert line.n == np.isin(labels, of[line.group]).sum()
            right = [mask[labels == c].sum() for c in of[line.group]]
            total = [(labels == c).sum() for c in of[line.group]]
            assert (line.low, line.high) == pytest.approx(statistics.balanced_interval(right, total), abs=1e-12)
            assert line.correct is not line.correct or str(line.correct) == "<NA>"
        else:
            worst = int(recalls.argmin())
            keep = np.ones(len(labels), dtype=bool)
            if line.group != "plain":
                keep = labels == (worst if line.group == "worst" else card.class_names.index(line.group))
            assert (line.n, line.correct) == (keep.sum(), mask[keep].sum())
            assert line.accuracy == pytest.approx(mask[keep].mean(), abs=1e-12)
            assert (line.low, line.high) == pytest.approx(
                [float(end) for end in statistics.wilson_interval(mask[keep].sum(), keep.sum())], abs=1e-12
            )
        assert (line.method, line.seed, line.protocol) == (card.method, card.seed, "taet")
        assert (line.data, line.model, line.imbalance_ratio) == ("digits-lt", "small", pytest.approx(10))


def test_scores_are_means_over_seeds_with_students_interval(make_card: MakeCard) -> None:
    cards = [make_card("taet", seed) for seed in range(3)]
    scores = taet.results(cards, make_card("at")).scores("balanced").set_index(["row", "attack"])
    values = [card.summary("pgd-20").balanced for card in cards]
    found, error = scores.loc["taet", "pgd-20"], np.std(values, ddof=1) / math.sqrt(3)
    assert (found["accuracy"], found["error"], found["seeds"]) == (
        pytest.approx(np.mean(values)),
        pytest.approx(error),
        3,
    )
    assert found["high"] - found["accuracy"] == pytest.approx(4.302653 * error, rel=1e-6)
    alone = scores.loc["at", "clean"]
    assert (alone["low"], alone["high"]) == pytest.approx(make_card("at").summary("clean").balanced_interval)
    assert math.isnan(alone["error"])
    assert over_seeds(np.array([[0.0, 0, 0], [1.0, 0, 0]]))[1:3] == (0.0, 1.0)  # within the range of a share


def test_predictions_have_a_column_for_each_row_seed_and_attack(make_card: MakeCard) -> None:
    cards = [make_card("at", seed) for seed in (0, 1)]
    found = taet.results(cards)
    assert found.predictions.shape == (368, 2 * len(ATTACKS))
    assert (found.predictions["at", 1, "pgd-20"] == cards[1].column("pgd-20").predictions).all()
    right = found.predictions.eq(found.labels, axis=0)
    recalls = right.groupby(found.labels).mean().mean()
    assert recalls["at", 0, "fgsm"] == pytest.approx(cards[0].summary("fgsm").balanced)


def test_compare_is_the_paired_difference_of_the_cards(make_card: MakeCard) -> None:
    first, second = ([make_card(method, seed) for seed in range(3)] for method in ("taet", "at"))
    found = taet.results(first, second)
    line = found.compare("taet", "at").set_index("attack").loc["autoattack"]
    expected = compare_runs(first, second, "autoattack")
    assert (line["difference"], line["low"], line["high"], line["p"]) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.p)
    )
    assert (line["seeds"], line["decided"]) == (3, expected.decided)
    other = found.compare("at", "taet", "autoattack").iloc[0]
    assert (other["difference"], other["low"]) == pytest.approx((-expected.value, -expected.high))
    tail = found.compare("taet", "at", "clean", group="tail").iloc[0]
    recalls = [np.mean([card.summary("clean").per_class[6:].mean() for card in side]) for side in (first, second)]
    assert tail["difference"] == pytest.approx(recalls[0] - recalls[1])
    for wrong in (("ta", "at"), ("taet", "at", "pgd")):
        with pytest.raises(UserError, match="unknown"):
            found.compare(*wrong)
    with pytest.raises(UserError, match="unknown group 'tial'"):
        found.compare("taet", "at", group="tial")


def test_the_board_ranks_by_autoattack_and_ranks_are_ranges(make_card: MakeCard) -> None:
    probe = {"batch_size": 250, "images": 9, "clean_correct": 9, "distributions": 0, "zero_gradients": 0}
    cards = [make_card(method, seed, probe=probe) for method in ("at", "taet") for seed in range(3)]
    strong = [
        card.changed(method="strong", columns=tuple(_right(card, column) for column in card.columns))
        for card in cards[:3]
    ]
    without = make_card("at-bsl")
    board = taet.results(cards, strong, without).board()
    assert board["row"][0] == "strong"
    assert board["rank"].tolist() == ["1", "2–3", "2–3"]
    assert (np.diff(board["autoattack"]) <= 0).all()
    assert list(board.attrs["left out"].values()) == ["no probe of its gradients"]
    assert board["seeds"].tolist() == [3, 3, 3]


def _right(card: ResultCard, column: Any) -> Any:
    return column.changed(correct=np.ones_like(column.correct), predictions=card.labels, parts={})


def test_seeds_are_one_row_and_changed_settings_name_another(trained: MakeCard) -> None:
    cards = [trained("at", seed) for seed in range(3)]
    cards += [trained("at", training__epochs=240), trained("at", outer__name="balanced-softmax"), trained("taet")]
    assert names(*cards) == ["at"] * 3 + ["at (epochs 240)", "at (balanced-softmax)", "taet"]


def test_settings_that_most_rows_share_are_not_named(trained: MakeCard) -> None:
    short = [trained(method, training__epochs=60) for method in ("at", "trades", "mart")]
    assert names(*short, trained("taet")) == ["at", "trades", "mart", "taet (epochs 100)"]


def test_own_settings_are_named_against_the_protocol_also_alone(trained: MakeCard) -> None:
    assert names(trained("trades", **{"method.beta": 1.0})) == ["trades (beta 1)"]


def test_a_best_epoch_that_is_the_last_one_is_both(trained: MakeCard) -> None:
    """Three seeds of a protocol that takes the best epoch: one row, also where the best epoch was the last."""
    seeds = [
        trained("at-bsl", seed, protocol="reat", about={"epoch": epoch}) for seed, epoch in enumerate((40, 80, 61))
    ]
    assert names(*seeds) == ["at-bsl"] * 3
    lasts = [
        trained("at-bsl", seed, protocol="reat", training__selection="last", about={"epoch": 80}) for seed in (0, 1)
    ]
    assert names(*lasts, seeds[1]) == ["at-bsl"] * 2 + ["at-bsl #2"]  # other weights of seed 1
    assert names(*lasts, trained("at-bsl", 2, protocol="reat", about={"epoch": 80})) == ["at-bsl"] * 3
    assert names(*lasts, *seeds[::2])[:2] == ["at-bsl (selection last)"] * 2


def test_an_idle_curve_and_the_evaluation_name_nothing(trained: MakeCard) -> None:
    assert names(trained("at"), trained("at", 1, training__monitor_every=7, evaluation__batch_size=3)) == ["at"] * 2


def test_another_network_is_named_too(trained: MakeCard) -> None:
    cards = [trained("at"), trained("at", about={"name": "wide", "weights_sha256": "f" * 64}), trained("taet")]
    assert names(*cards) == ["at", "at (wide)", "taet"]


def test_equal_weights_are_one_row_and_other_weights_of_a_seed_another(trained: MakeCard, make_card: MakeCard) -> None:
    first = trained("at-bsl")
    alike = trained("at", outer__name="balanced-softmax", about={"weights_sha256": first.model["weights_sha256"]})
    assert names(first, alike) == ["at-bsl", "at (balanced-softmax)"]
    alike = alike.changed(columns=first.columns)  # the same predictions as well
    assert names(first, alike) == ["at-bsl"] * 2
    assert names(trained("at"), trained("at", about={"weights_sha256": "e" * 64})) == ["at", "at #2"]
    given = make_card("my-net").changed(seed=None)
    other = make_card("my-net", 5).changed(seed=None)
    assert names(given, given, other) == ["my-net", "my-net", "my-net #2"]


def test_attacks_of_one_name_show_the_settings_in_which_they_differ(make_card: MakeCard) -> None:
    card, other = make_card("at"), make_card("taet")
    column = other.column("pgd-20").changed(parameters={"steps": 20, "step_size": 2 / 255})
    rest = tuple(one for one in other.columns if one.name != "pgd-20")
    found = taet.results(card, other.changed(columns=(*rest, column)))
    assert [name for name in found.attacks if "pgd" in name] == ["pgd-20 (step_size 1/255)", "pgd-20 (step_size 2/255)"]
    assert found.compare("at", "taet", "pgd-20 (step_size 1/255)").empty


def test_several_test_sets_are_separate_tables(make_card: MakeCard) -> None:
    card = make_card("at")
    other = make_card("taet").changed(data={**card.data, "test_sha256": "cd" * 32})
    found = taet.results(card, other)
    assert len(found.by_test_set()) == 2
    assert set(found.table()["row"]) == {"at", "taet"}
    with pytest.raises(UserError, match=r"got 2 test sets: digits-lt \(1 cards\), digits-lt \(1 cards\); allowed: one"):
        found.compare("at", "taet")
    assert found.on(method="taet").rows == ("taet",)


def test_cards_come_from_patterns_folders_files_and_memory(
    runs: list[Path], make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs[0].parent
    assert taet.results(folder).rows == taet.results([str(run) for run in runs]).rows == ("at", "at-bsl", "taet")
    assert len(taet.results(f"{folder}/*", folder / "at" / "evaluation.json").cards) == 4
    (tmp_path / "deep" / "er").mkdir(parents=True)
    make_card("at").save(tmp_path / "deep" / "er" / "at.json")
    (tmp_path / "deep" / "cost.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = taet.results("deep")
    assert found.table()["card"].unique().tolist() == ["deep/er/at.json"]
    assert taet.results("**/*.json").table().equals(found.table())
    for wrong in ("nowhere", "*.txt", "deep/cost.json", []):
        with pytest.raises(UserError, match=r"no result card|not a result card"):
            taet.results(wrong)


def test_a_class_named_like_a_group_stays_apart(make_card: MakeCard) -> None:
    card = make_card("at")
    name = card.changed(data={**card.data, "class_names": ["tail", *card.class_names[1:]]})
    table = taet.results(name).table()
    assert {"tail", "class tail"} <= set(table["group"])
    assert not table.duplicated(["row", "attack", "group"]).any()
