"""What several tests of the data share: small arrays, and where real data are."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REAL_DATA = os.environ.get("TAET_DATA")


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return a function from a file's name to its path in TAET_DATA, which skips the test where it is missing."""

    def find(name: str) -> Path:
        path = Path(REAL_DATA or "") / name
        if not REAL_DATA or not path.is_file():
            pytest.skip(f"TAET_DATA names no folder with {name}")
        return path

    return find


@pytest.fixture
def arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Return a function that makes random images with given counts per class, under MedMNIST's keys."""

    def make(train_counts=(6, 3, 1), test_counts=(2, 2, 1), shape=(4, 5, 3)):
        generator = np.random.default_rng(0)
        made = {}
        for part, counts in (("train", train_counts), ("test", test_counts)):
            made[f"{part}_images"] = generator.integers(0, 256, (sum(counts), *shape), np.uint8)
            made[f"{part}_labels"] = np.repeat(np.arange(len(counts)), counts)
        return made

    return make
