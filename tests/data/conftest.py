"""What several tests of the data share: small arrays and image files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from taet.data import load
from taet.data.notes import DataNote
from tests.calls import one_line

# On a busy machine the first example takes seconds.
settings.register_profile("data", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("data")


@pytest.fixture
def arrays() -> Callable[..., dict[str, np.ndarray]]:
    """Return a function that makes random images with given counts per class, under MedMNIST's
    keys."""

    def make(train_counts=(6, 3, 1), test_counts=(2, 2, 1), shape=(4, 5, 3)):
        generator = np.random.default_rng(0)
        made = {}
        for part, counts in (("train", train_counts), ("test", test_counts)):
            made[f"{part}_images"] = generator.integers(0, 256, (sum(counts), *shape), np.uint8)
            made[f"{part}_labels"] = np.repeat(np.arange(len(counts)), counts)
        return made

    return make


@pytest.fixture
def npz(tmp_path) -> Callable[..., str]:
    """Return a function that writes arrays into a.npz, and returns the name of that data set."""

    def save(given, how=np.savez):
        how(tmp_path / "a.npz", **given)
        return f"npz:{tmp_path / 'a.npz'}"

    return save


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """Keep files of images in a folder of the test."""
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def here(cached, monkeypatch) -> Path:
    """Work in an empty folder, and know no other data."""
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(cached.parent)
    return cached.parent


@pytest.fixture
def refused() -> Callable[..., None]:
    """Return a function that asserts that a set is refused in one line of this message."""

    def check(name, message, **settings):
        with one_line(message):
            load(str(name), **settings)

    return check


@pytest.fixture
def fill() -> Callable[..., list[Path]]:
    """Return a function that writes images 00.png, 01.png, ... of grey levels level, level + 1, ...
    into a folder."""

    def write(folder, level=0, count=1, mode="L", size=(6, 6), name="{:02d}.png"):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name.format(i) for i in range(count)]
        for i, path in enumerate(paths):
            Image.new(mode, size, level + i if mode == "L" else (level + i,) * 3).save(path)
        return paths

    return write


@pytest.fixture
def write_table() -> Callable[..., str]:
    """Return a function that writes rows below a header into a table in a folder, and returns the
    name of that data set."""

    def write(folder, rows, header="path,label", name="table.csv"):
        (folder / name).write_text("\n".join([header, *rows]) + "\n")
        return f"csv:{folder / name}"

    return write


def note_of(dataset, kind: str) -> DataNote:
    """The only note of this kind."""
    (note,) = [note for note in dataset.notes if getattr(note, "kind", "") == kind]
    return note


def kinds(dataset) -> set[str]:
    """The kinds of all notes."""
    return {getattr(note, "kind", "") for note in dataset.notes}
