"""A run of RoBal, whose cosine head and deployed offset an answer must hold, and run folders of any network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import taet
from taet import methods, models, protocols
from taet.data import Dataset
from taet.models import Head
from taet.settings import override, to_json
from taet.training.record import run_hash

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
    """Noisy images that are more red, green or blue, 32, 16 and 8 for training, 24 for testing; 16 x 16."""
    draws = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(3), (32, 16, 8)), np.arange(24) % 3])
    colours = 110 + 40 * np.eye(3)[labels] + draws.normal(0, 12, (80, 3))
    images = np.clip(colours[:, None, None] + draws.normal(0, 40, (80, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    made = Dataset.from_arrays(images[:56], labels[:56], images[56:], labels[56:], class_names=NAMES)
    return dataclasses.replace(made, resized=True)


@pytest.fixture(scope="session")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose images were resized."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    taet.train(override(protocols.taet("robal"), RUN), out=folder, dataset=dataset)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write the folder of a run that ended with fresh weights and a deployed offset."""

    def write(folder: Path, name: str, shape: tuple[int, int, int], size: int | None = None) -> Path:
        (folder / "artifacts").mkdir(parents=True)
        run = override(protocols.taet("at"), {"model.name": name, "data.size": size})
        model = models.build(name, len(NAMES), shape)
        with torch.no_grad():
            model.offset.copy_(torch.tensor([0.5, 0.0, -0.5]))
        splits = {part: {"sha256": "ab" * 32} for part in ("train", "test")}
        data = {"splits": splits, "arrays": False, "class_names": NAMES, "num_classes": len(NAMES)}
        data |= {"image_shape": shape}
        record = {"schema": 1, "run": to_json(run), "method_title": "AT", "deviations": [], "model_given": False}
        record |= {"selection": {"rule": "last", "leak": False}, "head": Head()._asdict(), "threads": 1}
        record |= {"command": "taet train at", "data": data}
        (folder / "run.json").write_text(json.dumps(record))
        about = {"method": "at", "epoch": 1, "run_hash": run_hash(run)}
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"taet": json.dumps(about)})
        return folder

    return write


@pytest.fixture(scope="session")
def pictures() -> Callable[[int, tuple[int, ...]], np.ndarray]:
    """Return so many images of one shape (H, W, C): smooth, and hard black and white, where rounding shows."""

    def draw(count: int, shape: tuple[int, ...]) -> np.ndarray:
        draws = np.random.default_rng(count)
        images = np.clip(128 + draws.normal(0, 8, (count, *shape)).cumsum(1).cumsum(2), 0, 255).astype(np.uint8)
        images[1::2] = 255 * draws.integers(0, 2, images[1::2].shape, dtype=np.uint8)
        return images

    return draw
