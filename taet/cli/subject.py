"""The model that a command attacks or uses: a run, or a model of any origin with its test images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from taet import registry
from taet.data import Dataset, load
from taet.errors import UserError
from taet.models import foreign, hub
from taet.settings import Data
from taet.training.folder import RunFolder


class Opened(NamedTuple):
    """A model and the test images that --data names."""

    model: Path | nn.Module
    """The folder of a run, or a model of any origin."""
    dataset: Dataset
    name: str | None = None
    """Of a model of any origin, as are the notes."""
    notes: tuple[str, ...] = ()


def opened(name: str, data: Mapping[str, Any], weights: str | None, normalize: str) -> Opened:
    """Load the data, and a model of any origin with as many classes.

    Data other than a run's own are by default resized to the run's images, if these are square.
    """
    if not data.get("name"):
        raise UserError(f"--data is missing: {name} names no test images; see taet list data")
    wanted = Data(**data)
    if is_folder(name):
        if weights is not None or normalize != "none":
            raise UserError(f"{name} is a run: it has its own weights and normalisation; allowed: --data alone")
        record = RunFolder(Path(name)).record
        _, height, width = record.data.image_shape
        if wanted.size is not None or height == width:
            wanted = wanted.replace(size=wanted.size or height, fit=data.get("fit", record.fit))
        return Opened(Path(name), load(wanted))
    dataset = load(wanted)
    model, notes = foreign.load(
        name,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        weights=None if weights is None else Path(weights),
        normalize=normalize,
    )
    return Opened(model, dataset, name, notes)


def local(name: str) -> str:
    """Return the folder of a published model, hf:USER/NAME@COMMIT, whose files are checked; another name as it is."""
    if hub.is_published(name):
        return str(hub.local(name))
    if (Path(name) / hub.CONFIG).is_file():
        hub.verify(Path(name))
    return name


def results_of(*words: str) -> Path:
    """Return the folder runs/WORD-WORD."""
    return Path("runs", "-".join(re.sub(r"[^\w.-]+", "-", word) for word in words))


def is_folder(name: str) -> bool:
    """Whether `name` refers to a folder rather than a model; a published model is a folder."""
    if hub.is_published(name) or RunFolder(Path(name)).is_run or (":" not in name and os.sep in name):
        return True
    return Path(name).is_dir() and name not in registry.entries("models")
