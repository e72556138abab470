"""Images on disk: the same numbers as in memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taet import evaluate
from taet.data import load
from taet.settings import Run
from taet.training import train


@pytest.mark.full
def test_a_run_on_images_on_disk_is_the_run_on_images_in_memory(
    tiny: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    digits, arrays = load("digits-lt", max_count=20, test_max_count=8, validation=0.2).splits, {}
    for name, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        arrays |= {f"{part}_images": digits[name].images, f"{part}_labels": digits[name].labels}
    np.savez_compressed(tmp_path / "digits.npz", **arrays)
    named = {"data.name": f"npz:{tmp_path / 'digits.npz'}", "data.max_count": None}
    named |= {
        "training.sampling": "class-balanced",
        "training.augment": "randaugment",
        "training.swa": 0.0,
    }
    disk, memory = (
        train(tiny("taet", {"data.storage": way, **named}), out=tmp_path / way)
        for way in ("disk", "memory")
    )
    assert isinstance(disk.dataset.train.images, np.memmap)
    assert not isinstance(memory.dataset.train.images, np.memmap)
    assert_same(disk.folder, memory.folder)
    cards = [
        evaluate(result.folder, attacks=("fgsm", "pgd-2"), batch_size=10)
        for result in (disk, memory)
    ]
    assert cards[0].data["test_sha256"] == cards[1].data["test_sha256"]
    for column, expected in zip(*(card.columns for card in cards), strict=True):
        np.testing.assert_array_equal(column.predictions, expected.predictions)
