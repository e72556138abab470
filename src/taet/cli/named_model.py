"""A model that a call names: a run folder, a published model, or a network of any origin."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from taet import registry
from taet.cli.options import OfModel
from taet.errors import UserError
from taet.files import Json
from taet.settings import Data

if TYPE_CHECKING:
    from torch import nn

    from taet.data import Dataset

_logger = logging.getLogger(__name__)

OF_DATA = ("name", "root", "imbalance_ratio", "test", "size")
"""Settings of the test images that --help shows."""
OF_TRAINING = frozenset(name for name in Data.model_fields if name.startswith("extra"))
"""Settings of data without an effect on test images."""


class NamedModel(NamedTuple):
    """A model with the images that it is tested on."""

    model: Path | nn.Module
    """A run folder, or a network with its weights."""
    dataset: Dataset
    notes: tuple[str, ...]
    """What was recognised in the file of weights, and how images are normalised."""
    network: str = ""
    """The name of a network; empty for a run."""
    weights: str | None = None
    """Its file of weights."""


def open_model(name: str, data: Json, options: OfModel, *, all_images: bool = False) -> NamedModel:
    """Read the test images, and load the model unless it is a run.

    Args:
        name: a folder, or the name of a network.
        data: the settings of the data that were given.
        options: those of the model.
        all_images: whether every image is a test image.
    """
    from taet.data import load
    from taet.data.sources import load_all

    if not data.get("name"):
        raise UserError(f"--data is missing: {name} names no test images; see taet list data")
    read = load_all if all_images else load
    settings = Data(**data)
    if is_folder(name):
        dataset = read(_with_size_of_run(settings, name, options))
        _warn_of_another_division(settings, Path(name), dataset)
        return NamedModel(Path(name), dataset, ())
    return _load_network(name, read(settings), options)


def _with_size_of_run(data: Data, folder: str, options: OfModel) -> Data:
    """Return the settings of the data with the size of a run's images; refuse weights and a
    normalisation beside those of the run."""
    from taet.run.folder import RunFolder

    if options.weights is not None or options.normalize != "auto" or options.classes:
        raise UserError(
            f"{folder} is a run: it has its own weights and normalisation; allowed: --data alone"
        )
    _, height, width = RunFolder(Path(folder)).record.data.image_shape
    if data.size is None and height == width:
        return data.replace(size=height)
    return data


def _warn_of_another_division(data: Data, folder: Path, dataset: Dataset) -> None:
    """Log a line if these are one's own images that a run was trained on, divided in another
    way."""
    from taet.data.sources import full_name, is_own
    from taet.run.folder import RunFolder

    def place(name: str) -> Path:
        return Path(full_name(name).partition(":")[2]).expanduser().resolve()

    record = RunFolder(folder).record
    trained_on = record.run.data.name
    is_trained_on = is_own(data.name) and place(data.name) == place(trained_on)
    if is_trained_on and dataset.test.sha256 != record.data.hashes["test"]:
        _logger.warning(
            "taet: %s was trained on %s, and its test images were others: training images may be "
            "among these; taet evaluate %s tests it on its own",
            *(folder, trained_on, folder),
        )


def _load_network(name: str, dataset: Dataset, options: OfModel) -> NamedModel:
    """Load a network by its name, or by that of a file of weights."""
    from taet.models import foreign
    from taet.models.class_order import read_classes
    from taet.models.trust import is_own
    from taet.models.weight_files import stored_weights
    from taet.models.weight_files.identification import model_of
    from taet.models.weight_files.location import split_key

    weights = options.weights
    if weights is None and Path(split_key(name)[0]).is_file():
        weights = name
        name = model_of(stored_weights.read(name))
    model, notes = foreign.load(
        name,
        dataset.class_names,
        dataset.image_shape,
        weights,
        options.normalize,
        None if options.classes is None else read_classes(options.classes),
    )
    if weights is not None or is_own(name):
        notes = (*notes, *_normalization_notes(model, dataset))
    return NamedModel(model, dataset, notes, name, weights)


def _normalization_notes(model: nn.Module, dataset: Dataset) -> list[str]:
    """Return a line if another normalisation makes many more of some clean images right."""
    import numpy as np
    import torch

    from taet.data.augmentation import to_unit
    from taet.models.normalization_trial import IMAGES, suggest_normalization

    by_class = np.argsort(dataset.test.labels, kind="stable")
    count = min(IMAGES, len(by_class))
    rows = by_class[np.linspace(0, len(by_class) - 1, count).astype(int)]
    images = to_unit(torch.from_numpy(dataset.test.images[rows]))
    labels = torch.from_numpy(dataset.test.labels[rows])
    try:
        line = suggest_normalization(model, images, labels)
    except Exception:  # the evaluation reports what is wrong with a network
        return []
    return [] if line is None else [line]


def download_or_path(name: str) -> str:
    """Return the folder of a published model, hf:USER/NAME@COMMIT, with its files checked; other
    names unchanged."""
    from taet.models.weight_files import location

    if not name.startswith(("hf:", "folder:")):
        return name
    return str(location.download_or_path(name))


def run_named_by(name: str | None) -> Path | None:
    """Return the folder of the run that `name` refers to, if it is one."""
    if name is None:
        return None
    path = download_or_path(name)
    return Path(path) if is_folder(path) else None


def is_network(name: str) -> bool:
    """Whether `name` in the place of a run is the name of a network, or a file of weights."""
    if name.startswith(("hf:", "folder:")):
        return False
    is_known = name in registry.entries("models") and not Path(name).is_dir()
    return ":" in name or Path(name).is_file() or is_known


def is_folder(name: str) -> bool:
    """Whether `name` refers to a folder rather than a model."""
    if ":" in name or Path(name).is_file():
        return False
    return os.sep in name or (Path(name).is_dir() and name not in registry.entries("models"))
