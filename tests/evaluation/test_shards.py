"""Two processes evaluate as one does: every flag, every part, and one card."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import taet
from taet.evaluation import ResultCard
from tests.calls import met

ATTACKS = ("fgsm", "pgd-3", "pgd-l2-3", "cw-l2:steps=5", "autoattack-10")


def evaluate(folder: Path) -> ResultCard:
    sys.modules["taet.attacks.autoattack"].QUERIES = 20
    generator = np.random.default_rng(0)
    labels = np.arange(23) % 4
    patterns = generator.uniform(80, 176, (4, 6, 6, 1))
    images = np.clip(patterns[labels] + generator.normal(0, 40, (23, 6, 6, 1)), 0, 255).astype(
        np.uint8
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(patterns.reshape(4, 36) - 128) / 128)
        model[1].bias.zero_()
    return taet.evaluate(
        model, images, labels, ATTACKS, eps=0.1, step_size=0.05, batch_size=5, out=folder
    )


def work(number: int, folder: Path) -> None:
    """What each process does."""
    with met(folder, number):
        card = evaluate(folder / "card")
        again = evaluate(folder / "card")  # at once, while the other may still be at work
        assert again.column("clean").seconds == card.column("clean").seconds
        np.savez(folder / f"{number}.npz", **{c.name: c.predictions for c in card.columns})


@pytest.mark.full
def test_flags_and_parts_are_those_of_one_process(
    tmp_path: Path, side_by_side: Callable[[str, Path, int], None]
) -> None:
    queries = sys.modules["taet.attacks.autoattack"].QUERIES
    try:
        expected = evaluate(tmp_path / "alone")
    finally:
        sys.modules["taet.attacks.autoattack"].QUERIES = queries
    side_by_side(__file__, tmp_path, 2)
    card = ResultCard.load(tmp_path / "card" / "evaluation.json")
    assert [column.name for column in card.columns] == [column.name for column in expected.columns]
    assert card.probe == expected.probe
    for column, wanted in zip(card.columns, expected.columns, strict=True):
        np.testing.assert_array_equal(column.predictions, wanted.predictions)
        masks = (
            {name: mask.tolist() for name, mask in one.parts.items()} for one in (column, wanted)
        )
        assert next(masks) == next(masks)
        assert (column.forwards, column.backwards) == (wanted.forwards, wanted.backwards)
        for number in range(2):
            with np.load(tmp_path / f"{number}.npz") as seen:
                np.testing.assert_array_equal(seen[column.name], wanted.predictions)
    assert not (tmp_path / "card" / "evaluation-state").exists()
