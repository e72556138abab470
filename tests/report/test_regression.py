"""When a new model is worse than the old one, and when that cannot be said."""

import numpy as np
import pytest

import taet
from taet.card.card import ResultCard
from taet.errors import UserError
from taet.formatting import points
from taet.report.regression import fail_if_worse
from tests.report.made import MakeCard, redrawn, right


@pytest.fixture
def old(make_card: MakeCard) -> ResultCard:
    return make_card("taet")


@pytest.fixture
def broken(old: ResultCard) -> ResultCard:
    """The old model, but with every image successfully attacked by PGD-20."""
    return right(old, 0, "pgd-20")


def without_some(card: ResultCard, attack: str, lost: int) -> ResultCard:
    """The card with `lost` images of all classes less correct under an attack."""
    correct = card.column(attack).correct.copy()
    every = correct.sum() // lost
    correct[np.flatnonzero(correct)[::every][:lost]] = False
    return redrawn(card, correct, attack)


def test_a_model_that_loses_all_images_under_an_attack_is_worse(
    old: ResultCard, broken: ResultCard
) -> None:
    worse, lines = fail_if_worse(broken, old)
    assert worse
    lost = f"−{100 * old.summary('pgd-20').balanced:.1f}"
    (line,) = [line for line in lines if " pgd-20:" in line]
    assert line.startswith(f"worse under pgd-20: {lost} points")
    assert line.endswith(", significant")


def test_an_equal_model_and_a_better_one_are_not_worse(old: ResultCard, broken: ResultCard) -> None:
    assert fail_if_worse(old, old)[0] is False
    assert fail_if_worse(old, broken)[0] is False


def test_an_attack_without_a_difference_is_said_not_to_be_significant(
    old: ResultCard, broken: ResultCard
) -> None:
    _, lines = fail_if_worse(broken, old)
    assert lines[0].startswith("not known to be worse under clean: 0.0 points")
    assert lines[0].endswith(", not significant")


def test_the_interval_is_that_of_the_report(old: ResultCard, broken: ResultCard) -> None:
    other = broken.changed(method="new", model={**old.model, "weights_sha256": "e" * 64})
    paired = taet.results(other, old).difference("new", "taet", "pgd-20")
    _, lines = fail_if_worse(broken, old)
    (line,) = [line for line in lines if " pgd-20:" in line]
    assert f"({points(paired.low)} to {points(paired.high)}), {paired.verdict}" in line


def test_a_loss_that_is_significant_only_alone_says_so_and_passes(old: ResultCard) -> None:
    """It is significant at 5 %, and not at the 5 %/5 of each of five attacks."""
    new = without_some(old, "pgd-20", lost=18)
    worse, lines = fail_if_worse(new, old)
    (line,) = [line for line in lines if " pgd-20:" in line]
    assert not worse
    assert line.endswith(", significant alone, not among 5 comparisons (5 %/5 each)")


@pytest.mark.parametrize("new_has_it", [True, False])
def test_test_images_that_only_one_model_was_trained_on_are_refused(
    old: ResultCard, new_has_it: bool
) -> None:
    trained_on = {
        "flag": "test-images-in-training",
        "text": "31 of 53 test images are also in train",
    }
    seen = old.changed(flags=(*old.flags, trained_on))
    with pytest.raises(
        UserError, match=r"of some of the models, 31 of .*; allowed: test images that none was"
    ):
        fail_if_worse(*((seen, old) if new_has_it else (old, seen)))
    assert fail_if_worse(seen, seen)[0] is False


def test_two_methods_on_one_side_are_refused(old: ResultCard, make_card: MakeCard) -> None:
    with pytest.raises(
        UserError, match="got the cards of taet and at; allowed: one method, or its seeds"
    ):
        fail_if_worse([old, make_card("at", seed=1)], old)


def test_seeds_of_which_some_are_common_are_refused(make_card: MakeCard) -> None:
    with pytest.raises(
        UserError, match="got the seeds 0 and 1 and 1 and 2; allowed: the same on both sides, or no"
    ):
        fail_if_worse(
            [make_card("at", seed) for seed in (0, 1)], [make_card("at", seed) for seed in (1, 2)]
        )


def test_two_cards_of_a_seed_are_refused(old: ResultCard, broken: ResultCard) -> None:
    with pytest.raises(UserError, match="got several cards of one seed; allowed: one"):
        fail_if_worse(old, [old, broken])


def test_an_attack_that_the_new_card_lacks_is_named(old: ResultCard) -> None:
    with pytest.raises(UserError, match="the new card lacks autoattack; first eval"):
        fail_if_worse(old.changed(columns=old.columns[:-1]), old)


def test_other_test_images_are_refused(old: ResultCard) -> None:
    with pytest.raises(UserError, match="allowed: the same images"):
        fail_if_worse(old.changed(data={**old.data, "test_sha256": "cd" * 32}), old)
