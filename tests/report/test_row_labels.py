"""What the row of a card is called in a table."""

import pytest

from taet.card.card import ResultCard
from tests.report.made import MakeCard, row_names


def test_seeds_are_one_row_and_a_setting_off_the_protocol_names_it(trained: MakeCard) -> None:
    seeds = [trained("at", seed) for seed in range(3)]
    others = [
        trained("at", training__epochs=240),
        trained("at", outer__name="balanced-softmax"),
        trained("taet"),
    ]
    expected = ["at"] * 3 + ["at (epochs 240)", "at (balanced-softmax)", "taet"]
    assert row_names(*seeds, *others) == expected


def test_a_value_that_most_rows_have_is_not_named(trained: MakeCard) -> None:
    short = [trained(method, training__epochs=60) for method in ("at", "trades", "mart")]
    assert row_names(*short, trained("taet")) == ["at", "trades", "mart", "taet (epochs 100)"]


def test_without_a_majority_every_value_off_the_protocol_is_named(trained: MakeCard) -> None:
    cards = [trained("at", training__epochs=epochs) for epochs in (1, 60)]
    assert row_names(*cards) == ["at (epochs 1)", "at (epochs 60)"]


def test_two_balls_of_which_none_has_a_majority_are_named(trained: MakeCard) -> None:
    wider = trained("at").changed(threat={"norm": "linf", "eps": 0.1})
    named = ["at (linf 0.1)", "taet (linf 8/255)"]
    assert row_names(wider, trained("taet")) == named
    assert row_names(trained("taet"), wider) == named[::-1]


def test_a_setting_of_a_method_is_compared_with_its_default(trained: MakeCard) -> None:
    cards = [trained("trades", seed, **{"method.beta": 1.0}) for seed in (0, 1)]
    assert row_names(*cards) == ["trades (beta 1)"] * 2


def test_a_curve_that_decides_nothing_and_the_evaluation_name_no_row(trained: MakeCard) -> None:
    other = trained("at", 1, training__monitor_every=7, evaluation__batch_size=3)
    assert row_names(trained("at"), other) == ["at"] * 2


def test_another_network_is_named_by_its_name_alone(trained: MakeCard) -> None:
    wide = trained("at", about={"name": "wide", "weights_sha256": "f" * 64})
    assert row_names(trained("at"), wide, trained("taet")) == ["at", "at (wide)", "taet"]


def test_a_model_without_a_run_has_no_protocol_to_name(trained: MakeCard) -> None:
    alone = trained("at").changed(method="net", protocol="", run={})
    assert "protocol" not in " ".join(row_names(trained("at"), trained("taet"), alone))


@pytest.fixture
def best_epochs(trained: MakeCard) -> list[ResultCard]:
    """Three seeds of a protocol that takes the best epoch, which of seed 1 is the last."""
    epochs = enumerate((40, 80, 61))
    return [trained("at-bsl", n, protocol="reat", about={"epoch": epoch}) for n, epoch in epochs]


@pytest.fixture
def last_epochs(trained: MakeCard) -> list[ResultCard]:
    """Two seeds whose last epoch was taken."""
    last = {"protocol": "reat", "training__selection": "last", "about": {"epoch": 80}}
    return [trained("at-bsl", seed, **last) for seed in (0, 1)]


def test_a_best_epoch_that_is_the_last_stays_in_its_row(best_epochs: list[ResultCard]) -> None:
    assert row_names(*best_epochs) == ["at-bsl"] * 3


def test_a_best_epoch_that_is_the_last_joins_rows_of_last_epochs(
    last_epochs: list[ResultCard], trained: MakeCard
) -> None:
    third = trained("at-bsl", 2, protocol="reat", about={"epoch": 80})
    assert row_names(*last_epochs, third) == ["at-bsl"] * 3


def test_other_weights_of_a_seed_are_another_row(
    last_epochs: list[ResultCard], best_epochs: list[ResultCard]
) -> None:
    expected = ["at-bsl"] * 2 + ["at-bsl #2"]
    assert row_names(*last_epochs, best_epochs[1]) == expected


def test_beside_best_epochs_last_ones_are_named(
    last_epochs: list[ResultCard], best_epochs: list[ResultCard]
) -> None:
    found = row_names(*last_epochs, *best_epochs[::2])
    assert found[:2] == ["at-bsl (selection last)"] * 2


def test_equal_weights_by_both_rules_stand_in_both_rows(best_epochs: list[ResultCard]) -> None:
    hashes = ("d" * 64, best_epochs[1].model["weights_sha256"], "e" * 64)
    ends = []
    for card, weights in zip(best_epochs, hashes, strict=True):
        about = {"selection": "last", "epoch": 80, "weights_sha256": weights}
        ends.append(card.changed(model={**card.model, **about}))
    expected = ["at-bsl"] * 3 + ["at-bsl (selection last)"] * 3
    assert row_names(*best_epochs, *ends) == expected


@pytest.fixture
def alike(trained: MakeCard) -> tuple[ResultCard, ResultCard]:
    """Two runs of other settings with equal weights and equal predictions."""
    first = trained("at-bsl")
    about = {"weights_sha256": first.model["weights_sha256"]}
    second = trained("at", outer__name="balanced-softmax", about=about)
    return first, second.changed(columns=first.columns)


def test_equal_weights_and_predictions_are_one_row_with_the_shorter_name(
    alike: tuple[ResultCard, ResultCard],
) -> None:
    assert row_names(*alike) == ["at-bsl"] * 2


def test_equal_weights_with_other_predictions_are_two_rows(
    alike: tuple[ResultCard, ResultCard], make_card: MakeCard
) -> None:
    first, second = alike
    other = second.changed(columns=make_card("at").columns)
    assert row_names(first, other) == ["at-bsl", "at (balanced-softmax)"]


def test_equal_weights_of_other_code_are_two_rows(alike: tuple[ResultCard, ResultCard]) -> None:
    first, second = alike
    other = second.changed(run={**second.run, "code": {"method": "a" * 64}})
    assert row_names(first, other)[1] == "at (balanced-softmax)"


def test_a_model_that_is_attacked_in_two_balls_is_one_row(trained: MakeCard) -> None:
    card = trained("at-bsl")
    smaller = card.changed(threat={"norm": "linf", "eps": 4 / 255})
    assert row_names(card, smaller) == ["at-bsl"] * 2


def test_a_run_that_was_trained_twice_with_other_weights_is_numbered(trained: MakeCard) -> None:
    again = trained("at", about={"weights_sha256": "e" * 64})
    assert row_names(trained("at"), again) == ["at", "at #2"]


@pytest.fixture
def given(make_card: MakeCard) -> ResultCard:
    """A model that was trained elsewhere."""
    return make_card("my-net").changed(seed=None, title="my-net")


def test_models_without_a_run_are_told_apart_by_their_weights(
    given: ResultCard, make_card: MakeCard
) -> None:
    other = make_card("my-net", 5).changed(seed=None, title="my-net")
    assert row_names(given, given, other) == ["my-net", "my-net", "my-net #2"]


def test_models_without_a_run_have_the_titles_of_their_files(
    given: ResultCard, make_card: MakeCard
) -> None:
    other = make_card("my-net", 5).changed(seed=None, title="my-net second")
    assert row_names(given, other) == ["my-net", "my-net second"]


def test_equal_weights_in_networks_with_other_outputs_are_two_rows(given: ResultCard) -> None:
    first, scaled = (
        given.changed(model={**given.model, "answers": [[logit]]}) for logit in (1.0, 2.0)
    )
    assert row_names(first, scaled) == ["my-net", "my-net #2"]


def test_a_network_whose_name_is_its_method_is_named_once(make_card: MakeCard) -> None:
    cards = [make_card(name, seed).changed(seed=None, title=name) for seed, name in enumerate("ab")]
    named = [card.changed(model={**card.model, "name": card.method}) for card in cards]
    assert row_names(*named) == ["a", "b"]


def with_code(card: ResultCard, digit: str) -> ResultCard:
    return card.changed(run={**card.run, "code": {"methods": digit * 64}})


def test_the_code_of_a_plug_in_tells_rows_apart(trained: MakeCard) -> None:
    cards = [with_code(trained("at", seed), digit) for seed, digit in enumerate("ab")]
    assert sorted(row_names(*cards)) == ["at", "at (other code)"]


def test_the_code_of_different_methods_is_not_compared(trained: MakeCard) -> None:
    first, other = with_code(trained("at"), "a"), with_code(trained("at", 1), "b")
    other = other.changed(method="forgets")
    assert row_names(first, trained("trades"), other) == ["at", "trades", "forgets"]


def began_from(card: ResultCard, digit: str) -> ResultCard:
    return card.changed(run={**card.run, "pretrained_sha256": digit * 64})


def test_two_files_of_one_name_are_told_apart_by_their_hash(trained: MakeCard) -> None:
    cards = [began_from(trained("at", seed), digit) for seed, digit in enumerate("ab")]
    assert "weights SHA-256 bbbbbbbb" in "".join(row_names(*cards))


def test_a_card_of_an_older_version_without_the_hash_of_its_file_is_in_the_same_row(
    trained: MakeCard,
) -> None:
    assert row_names(trained("at", 0), began_from(trained("at", 1), "a")) == ["at", "at"]


def test_of_an_unknown_method_every_value_is_named_for_want_of_a_default(
    trained: MakeCard,
) -> None:
    cards = [trained("harl", method__alpha=alpha).changed(method="forgets") for alpha in (0.1, 1.0)]
    assert row_names(*cards) == ["forgets (alpha 0.1)", "forgets (alpha 1)"]


def test_an_augmentation_off_the_protocol_is_named(trained: MakeCard) -> None:
    found = row_names(trained(), trained(training__augment="none"))
    assert sorted(found) == ["at", "at (augment none)"]


def test_an_outer_loss_is_named_though_most_rows_have_it(trained: MakeCard) -> None:
    cards = [
        trained("at", training__epochs=epochs, outer__name="balanced-softmax")
        for epochs in (60, 100)
    ]
    expected = ["at (balanced-softmax, epochs 60)", "at (balanced-softmax)"]
    assert row_names(*cards, trained("at-bsl"))[:2] == expected


def test_a_loss_that_the_method_replaces_is_not_named(trained: MakeCard) -> None:
    assert row_names(trained("at-bsl", outer__name="cross-entropy")) == ["at-bsl"]


def test_a_share_of_extra_images_that_are_not_there_is_not_named(trained: MakeCard) -> None:
    extra = [
        trained("at", data__extra=folder, data__extra_fraction=0.5)
        for folder in ("copies", "held-back")
    ]
    assert row_names(trained("at"), *extra)[0] == "at"


def test_a_setting_that_has_left_is_not_named_where_it_decides_nothing(trained: MakeCard) -> None:
    cards = [trained("at", seed) for seed in (0, 1)]
    config = cards[1].run["config"]
    old = {**config, "training": {**config["training"], "monitor_images": 20}}
    assert row_names(cards[0], cards[1].changed(run={**cards[1].run, "config": old})) == ["at"] * 2


def test_a_curve_that_chooses_the_epoch_names_its_settings(trained: MakeCard) -> None:
    changes = (
        {},
        {"evaluation__batch_size": 3},
        {"evaluation__eps": 4 / 255},
        {"evaluation__eps": 8 / 255},  # that of the threat, which is the default
    )
    found = row_names(
        *(trained("at", seed, protocol="reat", **change) for seed, change in enumerate(changes))
    )
    assert found == ["at", "at (evaluation batch_size 3)", "at (evaluation eps 4/255)", "at"]


def test_a_row_has_the_name_that_its_user_gave(trained: MakeCard) -> None:
    old = trained("at", 0, training__epochs=240).changed(name="old classifier")
    assert row_names(old, trained("at", 1), trained("taet")) == ["old classifier", "at", "taet"]
    again = trained("at", 2, training__epochs=240).changed(name="old classifier")
    assert row_names(old, again) == ["old classifier"] * 2
    other = trained("at", 0, training__epochs=10).changed(name="old classifier")
    assert row_names(old, other) == ["old classifier", "old classifier #2"]


def test_of_two_cards_of_one_model_the_name_that_a_user_gave_counts(trained: MakeCard) -> None:
    card = trained("at")
    named = card.changed(name="the classifier of the old clinic")
    assert row_names(card, named) == ["the classifier of the old clinic"] * 2
