"""Each rule raises its flag by the pattern that it is about, and by nothing less."""

from typing import Any

import numpy as np
import pytest

from taet.attacks.quick import MEASURED
from taet.evaluation import Column, ResultCard
from taet.evaluation.attack_sets import attacks_of, parse_attack
from taet.evaluation.contrasts import BrokenCounts, exceeds, misses_too_many
from taet.evaluation.flags import flagged
from taet.metrics import paired
from taet.settings import Evaluation

COUNT = 1200
EPS = 8 / 255


def column(name: str, accuracy: float, **change: Any) -> Column:
    """An attack that leaves the first images correct; ATTACK@OTHER had its examples made on another
    model."""
    name, _, other = name.partition("@")
    attack = parse_attack(name, Evaluation(eps=EPS))
    attack = attack.on(other, "0" * 64) if other else attack
    correct = np.arange(COUNT) < round(accuracy * COUNT)
    own = {name: getattr(attack, name) for name in ("name", "norm", "eps", "parameters")}
    own["bounded"] = attack.eps is not None
    predictions = np.where(correct, np.arange(COUNT) % 2, 1 - np.arange(COUNT) % 2)
    return Column(**{**own, "correct": correct, "predictions": predictions, **change})


def found(
    *columns: Column,
    labels: Any = None,
    model: dict[str, Any] | None = None,
    probe: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    class_names: str = "ab",
    notes: tuple[str, ...] = (),
) -> dict[str, str]:
    """What flags say about these columns, by name; each is there once and says one sentence."""
    labels = np.arange(COUNT) % 2 if labels is None else labels
    data = {
        "class_names": list(class_names),
        "name": "toy",
        "test_sha256": "0" * 64,
        "notes": notes,
    }
    about = {"name": "toy", "weights_sha256": "0" * 64, **(model or {})}
    names = {"method": "at", "title": "AT", "protocol": "taet", "seed": 0, "batch_size": 250}
    parts = {
        "model": about,
        "data": data,
        "threat": {"norm": "linf", "eps": EPS},
        "columns": columns,
    }
    raised = flagged(
        ResultCard(**names, **parts, labels=labels, probe=probe or {}, run=run or {})
    ).flags
    texts = {
        flag["flag"]: flag["text"]
        for flag in raised
        if flag["flag"] not in ("not-probed", "probe-small")
    }
    assert all(text.endswith(".") and "\n" not in text for text in texts.values())
    assert all(". " not in text.replace("et al. ", "") for text in texts.values())
    return texts


def raised(accuracies: dict[str, float]) -> set[str]:
    return set(found(*(column(name, share) for name, share in accuracies.items())))


@pytest.mark.parametrize(
    "accuracies",
    [
        # The largest gaps that the two papers' tables show for a method that does not mask its
        # gradients.
        {"clean": 0.8, "fgsm": 0.55, "pgd-20": 0.5, "pgd-100": 0.485, "autoattack": 0.456},
        {"pgd-l2-20": 0.4, "pgd-l2-100": 0.379, "autoattack-l2": 0.356},
        {
            "pgd-20": 0.5,
            "pgd-100": 0.49,
            "cw-linf-20": 0.475,
            "cw-linf-100": 0.465,
            "adaptive-pgd-20": 0.475,
        },
        {
            "clean": 0.8,
            "pgd-20": 0.5,
            "pgd-20:eps=4/255": 0.65,
            "pgd-20:eps=16/255": 0.2,
            "pgd-20:eps=1": 0.01,
        },
        {"deepfool": 0.01, "cw-l2": 0.0, "cw-l2:eps=1": 0.6},
        {"pgd-20": 0.5, "pgd-20@other": 0.75},
        {"pgd-20": 0.5, "pgd-20:restarts=5": 0.49, "square": 0.495},
    ],
)
def test_a_sound_evaluation_raises_nothing(accuracies: dict[str, float]) -> None:
    assert raised(accuracies) == set()


@pytest.mark.parametrize(
    ("accuracies", "flag"),
    [
        ({"fgsm": 0.45, "pgd-20": 0.5}, "one-step-beats-many-step"),
        ({"pgd-100": 0.45, "pgd-20": 0.5}, "pgd-not-converged"),
        ({"pgd-20:restarts=5": 0.45, "pgd-20": 0.5}, "pgd-not-converged"),
        ({"square": 0.45, "pgd-20": 0.5, "cw-linf-20": 0.48}, "black-box-beats-gradients"),
        ({"pgd-l2-100": 0.35, "pgd-l2-20": 0.4}, "pgd-not-converged"),
        ({"clean": 0.8, "autoattack": 0.3, "pgd-20": 0.5}, "autoattack-far-below-pgd"),
        ({"clean": 0.8, "cw-linf-20": 0.3, "pgd-20": 0.5}, "margin-beats-cross-entropy"),
        ({"clean": 0.8, "adaptive-pgd-20": 0.3, "pgd-20": 0.5}, "adaptive-beats-plain"),
        ({"pgd-20@other": 0.48, "pgd-20": 0.5}, "transfer-beats-white-box"),
        ({"cw-l2": 0.011}, "unbounded-attack-not-converged"),
        ({"clean": 0.8, "pgd-20": 0.5, "pgd-20:eps=1": 0.02}, "does-not-reach-zero"),
        ({"clean": 0.8, "pgd-20": 0.2, "pgd-20:eps=16/255": 0.24}, "accuracy-rises-with-eps"),
    ],
)
def test_what_no_sound_evaluation_shows_is_named(accuracies: dict[str, float], flag: str) -> None:
    assert raised(accuracies) == {flag}


@pytest.mark.parametrize(
    "accuracies",
    [
        {"fgsm": 0.4985, "pgd-20": 0.5},  # two images
        {"fgsm": 0.4, "pgd-l2-20": 0.5},  # another ball
        # by chance or by luck, but no sign of a short attack
        {"pgd-20": 0.45, "pgd-20:restarts=5": 0.5},
        {"pgd-100:start=none": 0.4, "pgd-20": 0.5},  # another start, too
        {"cw-linf-100": 0.4, "pgd-20": 0.5},  # more steps, too
        {"cw-linf-20": 0.4, "pgd-20:objective=pm": 0.5},  # whose loss is no cross-entropy
        {"square": 0.3, "fgsm": 0.5},  # gradients that were followed too shortly are not to blame
        {"square": 0.3, "pgd-19:step=4/255": 0.5},
        {"clean": 0.3, "pgd-20": 0.5, "pgd-20:eps=16/255": 0.2},  # clean images are no attack
        {"pgd-20@other": 0.3, "pgd-100": 0.5},
        {"cw-l2@other": 0.5, "cw-l2": 0.0},  # need not break another model
    ],
)
def test_only_attacks_that_differ_in_one_respect_are_compared(accuracies: dict[str, float]) -> None:
    assert raised(accuracies) <= {"at-chance"}


def test_a_short_pgd_is_flagged_and_compared_with_nothing() -> None:
    assert found(
        column("fgsm", 0.4), column("pgd-10", 0.5), column("pgd-15", 0.3), column("square", 0.2)
    ) == {
        "pgd-too-short": "pgd-10 and pgd-15 cannot cross the ball: the steps add up to less than "
        "its width; use more steps or longer ones."
    }
    assert raised({"pgd-20:eps=1,step=1/255": 0.0}) == {"pgd-too-short"}
    assert raised({"pgd-20:eps=1,step=1/20": 0.0}) == set()  # as far as two images can be apart


def test_a_point_of_a_curve_is_not_taken_for_a_weak_attack() -> None:
    shares = {"pgd-1": 0.9, "pgd-2": 0.85, "pgd-5": 0.7, "pgd-10": 0.6}
    shares |= {"pgd-20:eps=2/255": 0.8, "pgd-20:eps=4/255": 0.7}
    every = attacks_of(
        Evaluation(attacks=("curve-steps", "curve-eps", "curve-logit-scale"), eps=EPS)
    )
    left = {one.name: shares.get(one.name, 0.5 if (one.eps or 0) <= EPS else 0.0) for one in every}
    points = [column(one.name, left[one.name], curve=one.curve) for one in every]
    assert found(column("clean", 0.9), *points) == {}
    short = [point.changed(parameters={**point.parameters, "step_size": 1e-3}) for point in points]
    assert set(found(*short)) == {"pgd-too-short"}


def test_without_an_allowance_it_is_mcnemars_test() -> None:
    """At the 5 % level, but for the few counts whose exact p-value lies between 4.8 and 5 %."""
    for only_upper in range(100):
        for only_lower in range(only_upper):
            p = paired.mcnemar(only_upper, only_lower)
            assert exceeds(only_upper, only_lower) == (p < 0.05) or 0.048 < p < 0.05
    assert not exceeds(20, 30)


@pytest.mark.parametrize(
    ("clean", "pgd", "quick"),
    [
        (0.85, 0.618, 0.552),  # AT-BSL, 43 road signs
        (0.54, 0.292, 0.236),  # AT-BSL, CIFAR-10-LT at imbalance ratio 50, 30 epochs
        (0.825, 0.375, 0.2),
    ],
)
def test_many_classes_and_little_training_are_no_masked_gradients(
    clean: float, pgd: float, quick: float
) -> None:
    assert raised({"clean": clean, "pgd-20": pgd, "quick": quick}) == {"quick-is-a-bound"}


def test_pgd_may_miss_a_share_of_the_images_that_a_stronger_attack_breaks() -> None:
    """Of 480 images that AutoAttack breaks, 30 % are 144; 166 > 145 + 1.96 sqrt(109.6)."""
    clean, suite = {"clean": 960 / COUNT}, {"autoattack": 480 / COUNT}
    assert raised(clean | suite | {"pgd-20": (480 + 165) / COUNT}) == set()
    assert raised(clean | suite | {"pgd-20": (480 + 166) / COUNT}) == {"autoattack-far-below-pgd"}


def test_the_test_of_a_missed_share_is_mcnemars_test_for_a_share_of_zero() -> None:
    for missed in range(0, 100, 7):
        for reverse in range(0, 100, 7):
            counts = BrokenCounts(missed, reverse, broken=100)
            assert misses_too_many(counts, share=0) == exceeds(missed, reverse)


def test_square_must_not_break_more_than_the_official_threshold_and_chance() -> None:
    def suite(broken: int) -> Column:
        before = np.arange(COUNT) < 552 + broken
        return column("autoattack", 0.46, parts={"fab-t": before, "square": np.arange(COUNT) < 552})

    assert found(suite(9)) == {}  # 2.4 + 1 + 1.96 sqrt(9) = 9.3
    text = found(suite(10))["black-box-beats-gradients"]
    assert "another 0.8 points after the gradient-based parts of autoattack" in text


# -- quick, which is a bound


def test_a_bound_says_how_far_it_was_from_the_truth() -> None:
    sound = found(column("clean", 0.8), column("quick", 0.5), column("pgd-20", 0.5))
    assert sound["quick-is-a-bound"].startswith(f"quick: {MEASURED}")


def test_a_bound_beside_masked_gradients_must_not_be_used() -> None:
    masked = {"clean": 0.8, "quick": 0.5, "pgd-20": 0.5, "autoattack": 0.2}
    misled = found(*(column(name, share) for name, share in masked.items()))
    assert misled.keys() == {"autoattack-far-below-pgd", "quick-misled"}
    assert "raises autoattack-far-below-pgd" in misled["quick-misled"]


def test_a_bound_far_below_pgd_stays_a_bound() -> None:
    below = {"clean": 0.8, "quick": 0.3, "pgd-20": 0.5}
    assert raised(below) == {"autoattack-far-below-pgd", "quick-is-a-bound"}


def test_no_bound_is_named_where_there_is_none() -> None:
    flags = raised({"clean": 0.8, "pgd-20": 0.5, "autoattack": 0.3})
    assert not {"quick-is-a-bound", "quick-misled"} & flags


# -- what limits a card


def test_one_answer_to_everything_is_at_chance() -> None:
    labels = (np.arange(COUNT) < 49).astype(np.int64)
    predictions = np.zeros(COUNT, dtype=np.int64)
    few = column("clean", 0, correct=predictions == labels, predictions=predictions)
    expected = {"few-images-per-class", "at-chance", "small-test-set"}
    assert found(few, labels=labels).keys() == expected


@pytest.mark.parametrize(("accuracy", "flags"), [(0.5, {"at-chance"}), (0.55, set())])
def test_chance_of_two_classes_is_a_half(accuracy: float, flags: set[str]) -> None:
    assert raised({"clean": accuracy}) == flags


def test_weights_that_were_selected_on_the_test_images_are_named() -> None:
    assert found(model={"leak": True}).keys() == {"selected-on-test-set"}


def test_test_images_that_were_trained_on_are_named() -> None:
    note = "identical images: 2 of 9 test images are also in train, e.g. 'a.png'"
    text = found(notes=(note,))["test-images-in-training"]
    assert text.startswith("2 of 9 test images are also in train, so these numbers are")


SMALL_TEST_SETS = [
    # 1.96 sqrt(0.25 / 400)
    (
        np.arange(400) % 2,
        "above about 5 points, if they disagree on 25 % of the images",
    ),
    (
        (np.arange(COUNT) < 50).astype(np.int64),
        "is significant (95 %) only above about 7 points",
    ),
    (np.arange(8) % 2, "With 8 test images, no difference"),
]


@pytest.mark.parametrize(("labels", "text"), SMALL_TEST_SETS, ids=["400", "50 of a class", "8"])
def test_a_small_test_set_says_which_difference_it_can_show(labels: np.ndarray, text: str) -> None:
    assert text in found(labels=labels)["small-test-set"]


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (2, "it lacks APGD-T, which needs four classes"),
        (3, "it has APGD-DLR in place of APGD-T, which needs four classes"),
        (7, "it attacks all 6 other classes, and the standard suite attacks 9"),
    ],
)
def test_a_suite_that_is_not_the_standard_one_says_what_differs(
    classes: int, difference: str
) -> None:
    labels = np.arange(COUNT) % classes
    suite = parse_attack("autoattack", Evaluation()).plan(classes)
    varied = column("autoattack", 1.0, parameters=suite.facts(), predictions=labels)
    text = found(varied, labels=labels, class_names="abcdefg"[:classes])["autoattack-variant"]
    assert text.startswith(f"With {classes} classes, AutoAttack is not the standard suite: ")
    assert difference in text


# -- the probe

SOUND = {"images": 250, "seed": 0, "distributions": 249, "clean_correct": 200, "zero_gradients": 0}
SOUND |= {
    "pgd_correct": 100,
    "scaled_pgd_correct": 90,
    "only_pgd_correct": 11,
    "only_scaled_pgd_correct": 1,
}
# others are of later cards
SOUND |= dict.fromkeys(("repeat_difference", "later_difference", "batch_difference"), 9e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, set()),
        ({"gradient_difference": 1.1e-4}, {"gradient-path-differs"}),
        ({"gradient_difference": 1.0, "repeat_difference": 1.1e-4}, {"randomised"}),
        ({"replaced": 1, "straight_pgd_correct": 80, "smooth_pgd_correct": 80}, set()),
        (
            {"replaced": 1, "straight_pgd_correct": 79, "smooth_pgd_correct": 0},
            {"straight-through-beats-gradients"},
        ),
        (
            {"replaced": 1, "straight_pgd_correct": 90, "smooth_pgd_correct": 79},
            {"soft-beats-hard"},
        ),
        (
            {
                "replaced": 1,
                "straight_pgd_correct": 79,
                "only_straight_pgd_correct": 20,
                "smooth_pgd_correct": 90,
            },
            set(),
        ),
        ({"replaced": 0, "straight_pgd_correct": 0}, set()),
        ({"later_difference": 1.1e-4}, {"changes-between-calls"}),
        ({"batch_difference": 1.1e-4}, {"batch-dependent"}),
        ({"nonfinite_gradients": 1}, {"nonfinite-gradients"}),
        ({"distributions": 250}, {"softmax-outputs"}),
        ({"zero_gradients": 1}, {"zero-gradients"}),
        # 38 <= 0.25 * 110 + 1 + 1.96 sqrt(27.4), and 39 > 28.5 + 1.96 sqrt(27.9)
        ({"pgd_correct": 128, "only_pgd_correct": 39}, set()),
        ({"pgd_correct": 129, "only_pgd_correct": 40}, {"logit-scale"}),
        # as likely by chance
        ({"pgd_correct": 101, "only_pgd_correct": 40, "only_scaled_pgd_correct": 29}, set()),
    ],
)
def test_the_probe_raises_flags_at_its_thresholds(
    change: dict[str, Any], expected: set[str]
) -> None:
    assert set(found(probe={**SOUND, **change})) == expected


@pytest.mark.parametrize(
    ("names", "absent"), [("abc", "c has"), ("abcdefg", "c, d, e and 2 more have")]
)
def test_a_class_without_test_images_is_named(names: str, absent: str) -> None:
    assert found(class_names=names)["class-without-test-images"].startswith(absent)
