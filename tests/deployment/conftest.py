"""Runs of RoBal, whose cosine head and deployed offset an answer must hold, of any network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import taet
from taet import methods, protocols
from taet.data import Dataset
from taet.settings import override

NAMES = ("red", "green", "blue")
SIDE = 16
RUN = {
    "settings": methods.find("robal").Config(tau_p=0.2),
    "model.name": "resnet8",
    "threat.eps": 0.05,
    "threat.step_size": 0.025,
    "threat.steps": 1,
    "training.epochs": 12,
    "training.batch_size": 8,
    "training.lr": 0.05,
    "training.monitor_every": 0,
    "training.precision": "float32",
    "training.threads": 1,
    "evaluation.step_size": 0.02,
}


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Noisy images that are more red, green or blue, 32, 16 and 8 for training, 24 for testing; 16
    x 16."""
    draws = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(3), (32, 16, 8)), np.arange(24) % 3])
    colours = 110 + 40 * np.eye(3)[labels] + draws.normal(0, 12, (80, 3))
    images = np.clip(
        colours[:, None, None] + draws.normal(0, 40, (80, SIDE, SIDE, 3)), 0, 255
    ).astype(np.uint8)
    made = Dataset.from_arrays(
        images[:56], labels[:56], images[56:], labels[56:], class_names=NAMES
    )
    return dataclasses.replace(made, resized=True)


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose images were resized."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    taet.train(override(protocols.taet("robal"), RUN), out=folder, dataset=dataset)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Train a network for an epoch on twelve images of a shape (C, H, W), and return its run
    folder."""

    def train(
        folder: Path, name: str, shape: tuple[int, int, int], *, resized: bool = False
    ) -> Path:
        labels = np.repeat(np.arange(3), (6, 4, 2))
        images = np.random.default_rng(0).integers(0, 256, (12, *shape[1:], shape[0]), np.uint8)
        dataset = Dataset.from_arrays(images, labels, images, labels, class_names=NAMES)
        run = override(protocols.taet("robal"), RUN | {"model.name": name, "training.epochs": 1})
        taet.train(run, out=folder, dataset=dataclasses.replace(dataset, resized=resized))
        return folder

    return train


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, tuple[int, ...]], np.ndarray]:
    """Return so many images of one shape (H, W, C): smooth, and hard black and white, where
    rounding shows."""

    def draw(count: int, shape: tuple[int, ...]) -> np.ndarray:
        draws = np.random.default_rng(count)
        images = np.clip(
            128 + draws.normal(0, 8, (count, *shape)).cumsum(1).cumsum(2), 0, 255
        ).astype(np.uint8)
        images[1::2] = 255 * draws.integers(0, 2, images[1::2].shape, dtype=np.uint8)
        return images

    return draw
