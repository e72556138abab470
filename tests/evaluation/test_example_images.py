"""The file of example images belongs to one card, and its arrays are what the report can draw."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.examples import read_examples

Evaluated = Callable[..., ResultCard]
ARRAYS = {
    "images": np.zeros((3, 4, 4, 3), np.uint8),
    "adversarial": np.zeros((3, 4, 4, 3), np.float32),
    "labels": np.arange(3),
    "clean_predictions": np.arange(3),
    "adversarial_predictions": np.arange(3),
    "attack": np.array("pgd-3"),
    "eps": np.array(0.1),
}


@pytest.fixture(scope="module")
def card() -> ResultCard:
    results = Path(__file__).parents[2] / "results"
    return ResultCard.load(results / "digits-lt-precision" / "at-bsl-bf16-seed0.json")


def write(path: Path, **changes: Any) -> Path:
    arrays = {name: value for name, value in {**ARRAYS, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_a_card_without_a_checksum_takes_images_of_its_shape(card: ResultCard, tmp_path: Path) -> None:
    assert not card.sealed
    found = read_examples(write(tmp_path / "examples.npz"), card)
    assert found is not None
    assert (found.attack, found.eps, found.images.shape) == ("pgd-3", 0.1, (3, 4, 4, 3))
    assert read_examples(tmp_path / "none.npz", card) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((3, 1), int)}, r"labels: got int64 \(3, 1\); allowed: integers \(3,\)"),
        ({"labels": np.array(1)}, r"labels: got int64 \(\); allowed: integers \(0,\)"),
        ({"labels": np.full(3, 10)}, "labels: got 10 to 10; allowed: 0 to 9"),
        ({"labels": np.arange(2)}, r"clean_predictions: got int64 \(3,\); allowed: integers \(2,\)"),
        ({"clean_predictions": np.zeros(3)}, "clean_predictions: got float64"),
        ({"images": np.zeros((3, 4, 4, 3))}, r"images: got float64 .*; allowed: uint8 \(3, height, width, 1 or 3\)"),
        ({"images": np.zeros((3, 5, 4, 3), np.uint8)}, r"adversarial: got float32 \(3, 4, 4, 3\)"),
        ({"images": np.zeros((3, 4, 4, 2), np.uint8)}, r"images: got uint8 \(3, 4, 4, 2\)"),
        ({"adversarial": np.full((3, 4, 4, 3), np.nan, np.float32)}, "adversarial: got values outside 0 to 1"),
        ({"adversarial": np.full((3, 4, 4, 3), 2, np.float32)}, "adversarial: got values outside 0 to 1"),
        ({"eps": np.array([0.1, 0.2])}, "attack and eps: got <U5 and float64; allowed: a text and a number"),
        ({"eps": np.array(np.nan)}, "attack and eps"),
        ({"eps": np.array(None, dtype=object)}, "not readable as example images: .*pickle"),
        ({"attack": np.array(5)}, "attack and eps"),
        ({"attack": None}, "not readable as example images: .*attack"),
    ],
)
def test_arrays_that_the_report_cannot_draw_are_refused(
    card: ResultCard, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"examples.npz: {message}"):
        read_examples(write(tmp_path / "examples.npz", **changes), card)


@pytest.mark.full
def test_a_file_that_unpacks_to_gigabytes_is_refused_unread(card: ResultCard, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "examples.npz", images=np.zeros((30, 4000, 4000, 1), np.uint8))
    assert (tmp_path / "examples.npz").stat().st_size < 2**20
    with pytest.raises(UserError, match="its arrays take more than 268,435,456 bytes"):
        read_examples(tmp_path / "examples.npz", card)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_only_an_ordinary_file_is_read(card: ResultCard, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "examples.npz"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match="allowed: an ordinary file"):
        read_examples(path, card)


def test_images_of_another_card_are_not_shown(card: ResultCard, tmp_path: Path) -> None:
    path = write(tmp_path / "examples.npz")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    mine = card.changed(sealed=True, examples_sha256=sha256)
    assert read_examples(path, mine) is not None
    with pytest.raises(UserError, match="was changed: it is not the file that the result card names"):
        read_examples(path, mine.changed(examples_sha256="0" * 64))
    assert read_examples(path, mine.changed(examples_sha256=None)) is None


def test_an_evaluation_names_the_images_that_it_saved_and_keeps_those_of_a_stronger_attack(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    path = tmp_path / "artifacts" / "examples.npz"
    for attacks, kept in ((("pgd-3",), "pgd-3"), (("fgsm",), "pgd-3"), (("pgd-5",), "pgd-5")):
        evaluated(*attacks, out=tmp_path)
        card = ResultCard.load(tmp_path)
        assert card.examples_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        found = read_examples(path, card)
        assert found is not None
        assert found.attack == kept
    path.write_bytes(b"damaged")
    evaluated("pgd-3", out=tmp_path)
    card = ResultCard.load(tmp_path)
    found = read_examples(path, card)
    assert found is not None
    assert found.attack == "pgd-3"
