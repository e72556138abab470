"""The leaderboard: who stands on it, and with which rank."""

import numpy as np
import pytest

import taet
from taet.card.card import ResultCard
from tests.report.made import ATTACKS, PROBE, MakeCard, redrawn, right


@pytest.fixture
def three(make_card: MakeCard) -> list[ResultCard]:
    """Three seeds of two methods, and of one that is always right."""
    cards = [make_card(method, seed, probe=PROBE) for method in ("at", "taet") for seed in range(3)]
    return [*cards, *(right(card.changed(method="strong"), 1, *ATTACKS) for card in cards[:3])]


def test_rows_stand_by_their_accuracy_under_autoattack(three: list[ResultCard]) -> None:
    leaderboard = taet.results(three).leaderboard()
    assert leaderboard["row"][0] == "strong"
    assert (np.diff(leaderboard["autoattack"]) <= 0).all()
    assert leaderboard["seeds"].tolist() == [3, 3, 3]


def test_rows_that_tests_do_not_tell_apart_share_a_range_of_ranks(three: list[ResultCard]) -> None:
    assert taet.results(three).leaderboard()["rank"].tolist() == ["1", "2–3", "2–3"]


def test_a_row_with_a_card_that_was_not_probed_is_left_out_with_the_reason(
    three: list[ResultCard], make_card: MakeCard
) -> None:
    some = [make_card("at-bsl"), make_card("at-bsl", 1, probe=PROBE)]
    leaderboard = taet.results(three, some).leaderboard()
    assert "at-bsl" not in leaderboard["row"].tolist()
    assert {*leaderboard.attrs["left out"].values()} == {"no probe of its gradients"}


def test_a_row_without_autoattack_is_left_out_with_the_reason(three: list[ResultCard]) -> None:
    short = three[0].changed(columns=three[0].columns[:-1])
    leaderboard = taet.results(short).leaderboard()
    assert leaderboard.empty
    assert leaderboard.attrs["left out"] == {"card 1": "no column autoattack"}


def test_each_radius_has_a_leaderboard_of_its_own(three: list[ResultCard]) -> None:
    card = three[0]
    columns = [column.changed(eps=0.01) if column.norm else column for column in card.columns]
    half = card.changed(columns=columns, threat={"norm": "linf", "eps": 0.01})
    leaderboard = taet.results(card, half).leaderboard()
    assert leaderboard["rank"].tolist() == ["1", "1"]
    assert leaderboard["pgd-20"].notna().all()


def test_the_old_name_of_the_leaderboard_still_works(three: list[ResultCard]) -> None:
    found = taet.results(three)
    assert found.board().equals(found.leaderboard())


@pytest.mark.full
def test_equally_good_rows_share_all_ranks(make_card: MakeCard) -> None:
    """Of eight such rows, tests of single pairs would part some in nearly half of the cases."""
    base, rng, parted = make_card("at", probe=PROBE), np.random.default_rng(0), 0
    for _ in range(8):
        drawn = (
            (base.changed(method=f"m{n}"), rng.random(len(base.labels)) < 0.4) for n in range(8)
        )
        leaderboard = taet.results(
            *(redrawn(*one, "clean", "autoattack") for one in drawn)
        ).leaderboard()
        parted += {*leaderboard["rank"]} != {"1–8"}
    assert parted <= 1
