"""Each flag is raised by the pattern that it is about, and by nothing less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taet.evaluation import Column, ResultCard
from taet.evaluation.diagnostics import flags

COUNT = 1200


def column(name: str, accuracy: float, **change: Any) -> Column:
    """An attack that leaves the first share of the images correct."""
    correct = np.arange(COUNT) < round(accuracy * COUNT)
    steps = int(name[4:]) if name.startswith("pgd") else 1
    values = {
        "name": name,
        "norm": "linf",
        "eps": 8 / 255,
        "bounded": True,
        "parameters": {"steps": steps, "step_size": 1 / 255},
        "correct": correct,
        "predictions": np.where(correct, np.arange(COUNT) % 2, 1 - np.arange(COUNT) % 2),
    }
    return Column(**{**values, **change})


def raised(
    *columns: Column, labels: Any = None, model: dict[str, Any] | None = None, probe: dict[str, Any] | None = None
) -> list[str]:
    labels = np.arange(COUNT) % 2 if labels is None else labels
    card = ResultCard(
        "at",
        "AT",
        "taet",
        {},
        0,
        model or {},
        {"class_names": ["a", "b"], "name": "toy"},
        250,
        labels,
        columns,
        probe=probe or {},
    )
    found = flags(card)
    assert all(flag["text"].endswith(".") and "\n" not in flag["text"] for flag in found)
    return [flag["flag"] for flag in found]


def test_a_sound_evaluation_raises_nothing() -> None:
    assert (
        raised(column("fgsm", 0.55), column("pgd-20", 0.5), column("pgd-100", 0.49), column("autoattack", 0.46)) == []
    )


def test_one_step_must_not_beat_many_steps_by_more_than_chance() -> None:
    assert raised(column("fgsm", 0.45), column("pgd-20", 0.5)) == ["one-step-beats-many-step"]
    assert raised(column("fgsm", 0.4985), column("pgd-20", 0.5)) == []


def test_short_pgd_is_flagged_and_not_compared_with_one_step() -> None:
    assert raised(column("fgsm", 0.4), column("pgd-10", 0.5)) == ["pgd-too-short"]


def test_more_steps_must_not_matter_much() -> None:
    assert raised(column("pgd-100", 0.47), column("pgd-20", 0.5)) == ["pgd-not-converged"]
    assert raised(column("pgd-100", 0.485), column("pgd-20", 0.5)) == []


def test_autoattack_must_not_be_far_below_the_strongest_pgd() -> None:
    assert raised(column("pgd-20", 0.5), column("autoattack", 0.44)) == ["autoattack-far-below-pgd"]
    assert raised(column("pgd-20", 0.5), column("pgd-100", 0.49), column("autoattack", 0.445)) == []


def test_square_must_not_break_more_than_the_official_threshold() -> None:
    def suite(before: float) -> Column:
        masks = {name: np.arange(COUNT) < round(share * COUNT) for name, share in (("fab-t", before), ("square", 0.46))}
        return column("autoattack", 0.46, parts=masks)

    assert raised(suite(0.4625)) == ["black-box-beats-gradients"]
    assert raised(suite(0.4617)) == []


def test_a_variant_of_the_suite_says_so() -> None:
    assert raised(column("autoattack", 0.4, parameters={"note": "3 classes"})) == ["autoattack-variant"]


def test_few_images_and_a_leak_are_named() -> None:
    labels = (np.arange(COUNT) < 49).astype(np.int64)
    predictions = np.zeros(COUNT, dtype=np.int64)
    few = column("clean", 0, correct=predictions == labels, predictions=predictions)
    assert raised(few, labels=labels) == ["few-images-per-class"]
    assert raised(model={"leak": True}) == ["selected-on-test-set"]
    assert raised(labels=np.arange(400) % 2) == ["small-test-set"]


def test_what_a_test_set_resolves_is_said_with_its_assumption() -> None:
    card = ResultCard("at", "AT", "taet", {}, 0, {}, {"class_names": ["a", "b"]}, 250, np.arange(400) % 2, ())
    (flag,) = flags(card)
    assert "above about 5 points, if they disagree on 25 % of the images" in flag["text"]  # 1.96 sqrt(0.25 / 400)


SOUND = {
    "images": 250,
    "seed": 0,
    "repeat_difference": 9e-5,
    "distributions": 249,
    "clean_correct": 200,
    "zero_gradients": 0,
    "pgd_correct": 100,
    "scaled_pgd_correct": 90,
    "only_pgd_correct": 11,
    "only_scaled_pgd_correct": 1,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"repeat_difference": 1.1e-4}, ["randomised"]),
        ({"distributions": 250}, ["softmax-outputs"]),
        ({"zero_gradients": 1}, ["zero-gradients"]),
        ({"only_pgd_correct": 12}, ["logit-scale"]),
        ({"only_pgd_correct": 40, "only_scaled_pgd_correct": 29}, []),  # as likely by chance
    ],
)
def test_the_probe_raises_flags_at_its_thresholds(change: dict[str, Any], expected: list[str]) -> None:
    assert raised(probe={**SOUND, **change}) == expected
