"""What several tests of the data share: small arrays, and where real data are."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taet.data import DataFacts, facts, load
from taet.settings import Data

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


SETTINGS = (
    {},
    {"validation": 0.2},
    {"validation": 0.3, "seed": 3, "size": 8},
    {"max_count": 2, "test_max_count": 1},
    {"imbalance_ratio": 2, "test": "balanced", "validation": 0.1},
    {"imbalance_ratio": 2, "profile": "linear"},
)


@pytest.fixture
def facts_agree() -> Callable[..., None]:
    """Return a function that compares the facts of a data set with what loading it gives, cut in several ways.

    `published`: the facts are the same where no file is there.
    """

    def check(name, *, root=None, published=False, settings=SETTINGS, **more):
        for setting in settings:
            found = facts(Data(name=name, root=root, **setting, **more))
            loaded = DataFacts.of(load(name, root=root, **setting, **more))
            assert found == (loaded if found.class_names else replace(loaded, class_names=None)), setting
            assert not published or facts(Data(name=name, **setting, **more)) == found

    return check
