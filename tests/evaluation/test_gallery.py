"""The images that an evaluation keeps: chosen by a rule, made by the attack that was counted, small
and sealed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taet.attacks.batch_store import BatchStore
from taet.attacks.counting_model import CountingModel
from taet.card.images import MOST_BYTES, CardImages, sheet_of
from taet.errors import UserError
from taet.evaluation import ResultCard, parse_attack
from taet.evaluation.runner import Runner
from taet.settings import Evaluation
from tests.evaluation.conftest import EPS, Evaluated, Task

COUNTS = (40, 20, 10, 5)  # training images: class 0 is the head, 1 the body, 2 and 3 the tail
GROUPS = ([0], [1], [2, 3])


def images_of(card: ResultCard) -> CardImages:
    assert card.images is not None
    return card.images


def first_of_each_group(card: ResultCard, attack: str) -> list[int]:
    """The rows that the rule chooses, group by group, in the order of the test images."""
    assert card.clean is not None
    survives = card.column(attack).correct
    chosen = []
    for classes in GROUPS:
        rows = np.flatnonzero(card.clean.correct & np.isin(card.labels, classes))
        kinds = [rows[survives[rows]][:1], rows[~survives[rows]][:1]]
        chosen += sorted(np.concatenate(kinds).tolist())
    return chosen


@pytest.mark.parametrize("attack", ["pgd-5", "autoattack-10", "quick"])
def test_of_each_group_the_first_image_that_survives_and_the_first_that_breaks_are_kept(
    evaluated: Evaluated, tmp_path: Path, attack: str
) -> None:
    card = evaluated("fgsm", attack, out=tmp_path, train_class_counts=COUNTS, eps=0.06)
    images = images_of(card)
    assert images.attack == attack
    rows = [image.row for image in images.images]
    assert rows == first_of_each_group(card, attack)
    assert len(rows) > len(GROUPS)


def test_the_images_are_those_of_the_attack_that_was_counted(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    model, images, labels = task
    card = evaluated("pgd-5", out=tmp_path, train_class_counts=COUNTS)
    runner = Runner(
        CountingModel(model), images, labels, 4, 8, 0, torch.device("cpu"), keep_probabilities=True
    )
    with runner.frozen_and_exact():
        attack = parse_attack("pgd-5", Evaluation(eps=EPS, step_size=EPS / 2))
        _, scores = runner.attack(attack)
    kept = images_of(card)
    pixels = kept.read(tmp_path)
    assert scores is not None
    assert pixels is not None
    for image, (original, attacked) in zip(kept.images, pixels, strict=True):
        assert image.probability == scores[image.row].max()
        assert np.array_equal(original, images[image.row])
        change = np.abs(attacked.astype(int) - original)
        assert 0 < change.max() <= round(255 * EPS)


@pytest.mark.full
def test_an_image_that_the_suite_leaves_as_it_is_shows_the_attempt_of_another_attack(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    attacks = "pgd-5", "autoattack-10"
    card = evaluated(*attacks, out=tmp_path, train_class_counts=COUNTS, eps=0.06)
    images = images_of(card)
    pixels = images.read(tmp_path)
    survives = card.column("autoattack-10").correct
    assert pixels is not None
    for image, (original, attacked) in zip(images.images, pixels, strict=True):
        assert image.made_by == ("pgd-5" if survives[image.row] else "")
        assert not np.array_equal(original, attacked)
    alone = evaluated(attacks[1], out=tmp_path / "alone", train_class_counts=COUNTS, eps=0.06)
    assert {image.made_by for image in images_of(alone).images} == {""}


@pytest.mark.full
def test_keeping_images_changes_no_number(evaluated: Evaluated, tmp_path: Path) -> None:
    attacks = "fgsm", "pgd-5", "quick", "autoattack-10"
    kept = evaluated(*attacks, out=tmp_path / "kept")
    without = evaluated(*attacks, out=tmp_path / "without", keep_images=False)
    in_memory = evaluated(*attacks)
    for other in (without, in_memory):
        assert other.images is None
        for column, same in zip(kept.columns, other.columns, strict=True):
            assert np.array_equal(column.predictions, same.predictions)
            assert (column.forwards, column.backwards) == (same.forwards, same.backwards)
    assert not [*(tmp_path / "without").glob("*.png")]


@pytest.mark.full
def test_an_interrupted_evaluation_keeps_the_same_images(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = "pgd-5", "autoattack-10"
    whole = evaluated(*attacks, out=tmp_path / "whole", train_class_counts=COUNTS)
    put, written = BatchStore.put, list[str]()

    def dying(self: BatchStore, key: str, arrays: Any) -> None:
        if len(written) == 7:  # in the middle of the suite
            raise KeyboardInterrupt
        written.append(key)
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluated(*attacks, out=tmp_path / "killed", train_class_counts=COUNTS)
    monkeypatch.setattr(BatchStore, "put", put)
    resumed = evaluated(*attacks, out=tmp_path / "killed", train_class_counts=COUNTS)
    assert resumed.images == whole.images


def test_a_weaker_attack_leaves_the_images_and_a_stronger_one_replaces_them(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    first = evaluated("pgd-5", out=tmp_path)
    assert evaluated("pgd-5", "fgsm", out=tmp_path).images == first.images
    images_of(first).file(tmp_path).unlink()
    assert evaluated("pgd-5", "fgsm", out=tmp_path).images is None
    last = evaluated("autoattack-10", out=tmp_path)
    assert images_of(last).attack == "autoattack-10"
    assert [*tmp_path.glob("*.png")] == [images_of(last).file(tmp_path)]
    assert evaluated("fgsm", out=tmp_path, keep_images=False).images is None
    assert not [*tmp_path.glob("*.png")]


def test_a_card_read_again_says_the_same_of_its_images(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    card = evaluated("pgd-5", out=tmp_path)
    assert ResultCard.load(tmp_path).images == card.images
    stored = card.to_json()
    stored["images"]["images"][0]["row"] = len(card.labels)
    with pytest.raises(UserError, match="images row: got 22; allowed: 0 to 21"):
        ResultCard.from_json(stored)
    assert "images" not in card.changed(images=None).to_json()


def test_a_flipped_byte_is_found(evaluated: Evaluated, tmp_path: Path) -> None:
    images = images_of(evaluated("pgd-5", out=tmp_path))
    file = images.file(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="differs from the one on its card"):
        images.read(tmp_path)
    file.unlink()
    assert images.read(tmp_path) is None


@pytest.mark.parametrize(("side", "whole"), [(8, True), (32, True), (224, False)])
def test_the_file_is_small_and_leaves_out_pixels_of_large_images_only(
    side: int, whole: bool
) -> None:
    draw = np.random.default_rng(0)
    original, attacked = draw.integers(0, 256, (2, 6, side, side, 3), dtype=np.uint8)
    sheet = sheet_of(original, attacked)
    assert len(sheet.content) <= MOST_BYTES
    assert (sheet.every == 1) == whole
