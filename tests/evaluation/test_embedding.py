"""Features and logits in two dimensions: the same for the same seed, with numbers of the space itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taet.errors import UserError
from taet.evaluation import embedding
from taet.evaluation.embedding import Embedding, embed
from taet.settings import Run
from taet.training import train
from taet.training.checkpoint import weights_digest
from taet.training.finished import load_model


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "run"
    train(tiny("at", {"training.epochs": 1}), out=folder)
    return folder


@pytest.fixture(scope="module")
def made(run: Path) -> Embedding:
    return embed(run, "pgd-2", images=5)


@pytest.mark.full
def test_the_same_seed_gives_the_same_points(run: Path, made: Embedding) -> None:
    again = embed(run, "pgd-2", images=5)
    assert again == made


def test_it_holds_both_sides_of_the_first_images_of_each_class(made: Embedding) -> None:
    assert {*made.points} == {*made.numbers} == {"clean", "attacked"}
    assert np.bincount(made.labels).max() <= 5
    assert len(made.points["clean"]) == len(made.labels) == len(made.predictions["attacked"])
    labels, answers = np.array(made.labels), np.array(made.predictions["clean"])
    recalls = [np.mean(answers[labels == c] == c) for c in np.unique(labels)]
    assert made.numbers["clean"]["accuracy"] == pytest.approx(np.mean(recalls))


def test_classes_and_space_can_be_chosen(run: Path) -> None:
    found = embed(run, "fgsm", of="logits", classes=["3", "1"], images=4)
    assert {*found.labels} == {1, 3}
    assert found.of == "logits"


def test_weights_of_another_epoch_can_be_chosen(tiny: Callable[..., Run], tmp_path: Path) -> None:
    changes = {"training.selection": "best-validation", "data.validation": 0.2, "data.max_count": 40}
    folder = train(tiny("at", changes), out=tmp_path / "run").folder
    for name in ("model", "model-last"):
        found = embed(folder, "fgsm", images=4, weights=name)  # type: ignore[arg-type]
        assert found.weights_sha256 == weights_digest(load_model(folder, name)[1])
    with pytest.raises(UserError, match=r"holds no model-lats\.safetensors: it has model"):
        embed(folder, "fgsm", weights="model-lats")  # type: ignore[arg-type]


def test_it_is_read_as_it_was_written_and_checked(made: Embedding, tmp_path: Path) -> None:
    path = tmp_path / "embedding.json"
    path.write_text(json.dumps(made.to_json()))
    assert embedding.load(path) == made
    path.write_text(json.dumps({**made.to_json(), "added_by_a_later_version": 1}))
    assert embedding.load(path) == made
    assert all(round(value, 3) == value for point in made.points["clean"] for value in point)
    without = {name: value for name, value in made.to_json().items() if name != "separated"}
    path.write_text(json.dumps(without))
    assert embedding.load(path) == dataclasses.replace(made, separated={})
    other = {
        side: {**own, "linear_separability": own["linear_separability"] + 0.01} for side, own in made.numbers.items()
    }
    better = {side: {**own, "accuracy": 1.01} for side, own in made.numbers.items()}
    damages = ({"labels": made.labels[1:]}, {"labels": [99] * len(made.labels)}, {"numbers": {}})
    sides = ({"predictions": {}}, {"separated": {"clean": made.separated["clean"]}})
    for damage in (*damages, *sides, {"weights_sha256": "x"}, {"numbers": other}, {"numbers": better}):
        path.write_text(json.dumps(made.to_json() | damage))
        with pytest.raises(UserError, match=r"embedding\.json: .*allowed"):
            embedding.load(path)


def test_numbers_tell_separate_classes_from_mixed_ones() -> None:
    labels = np.repeat([0, 1], 20)
    apart = np.random.default_rng(0).normal(size=(40, 3)) + 20 * labels[:, None]
    found = embedding.numbers_of(apart, labels, labels, embedding.separate(apart, labels, 0))
    assert found["accuracy"] == found["linear_separability"] == 1
    assert found["silhouette"] > 0.8
    flat = np.ones((40, 3))
    mixed = embedding.numbers_of(flat, labels, np.zeros(40, dtype=np.int64), embedding.separate(flat, labels, 0))
    assert mixed == {"accuracy": 0.5, "silhouette": 0.0, "linear_separability": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "autoattack"}, "leaves an image that it cannot break"),
        ({"attack": "clean"}, "which makes no examples"),
        ({"classes": ["one"]}, "unknown class 'one'"),
        ({"classes": ["1"]}, "got one class; allowed: two or more"),
        ({"images": 1}, "got 1 test images of class"),
    ],
)
def test_what_cannot_be_drawn_is_refused(run: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        embed(run, **({"attack": "fgsm"} | changes))  # type: ignore[arg-type]
