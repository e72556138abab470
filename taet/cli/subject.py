"""The model of `taet evaluate` and `taet check`: a run, or a model of any origin with its test images."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
from torch import nn

from taet import registry
from taet.cli import flags
from taet.data import Dataset, load
from taet.errors import UserError
from taet.models import foreign, hub
from taet.settings import Data
from taet.training.folder import DELIVERED, RunFolder, WeightsName

R = TypeVar("R", bound="OfRun")
M = TypeVar("M", bound="OfNamed")


@dataclass(frozen=True, kw_only=True)
class Trusting:
    """Consent to run the code that a run folder names."""

    trust_model: str | None = None
    """Name of the run's model if it is package.module:callable. Its code is imported and run only if it is named here.
    Code inside a run folder is never run."""


@dataclass(frozen=True, kw_only=True)
class OfRun(Trusting):
    """A run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    weights: WeightsName = DELIVERED
    """Weights: those that the run delivers, those of its last epoch, or of its best one."""


@dataclass(frozen=True, kw_only=True)
class OfModel(Trusting):
    """A model of any origin, or a run on data other than its own."""

    weights: Path | None = None
    """File of the model's weights, a folder that taet push wrote, or hf:USER/NAME@COMMIT. Default: those that the
    callable returns, or random ones."""
    normalize: str = "none"
    """Input normalisation that the model expects: none, imagenet, cifar10, cifar100, or means and standard deviations
    of the channels, M1,M2,M3/S1,S2,S3."""
    data: flags.Given = flags.options(Data(name=""), "data", "--data")

    def chosen(self, name: str) -> Data:
        """Return the data that the options choose for the model called `name`."""
        if not self.data.get("name"):
            raise UserError(f"--data is missing: {name} names no test images; see taet list data")
        return Data().replace(**self.data)


@dataclass(frozen=True, kw_only=True)
class OfNamed(OfModel):
    """A model of any origin, or a run, and its test images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, a run folder, or
    hf:USER/NAME@COMMIT."""


def parse(
    run: type[R], model: type[M], arguments: list[str], command: str, description: str, examples: Sequence[str]
) -> R | M:
    """Parse a call `taet COMMAND MODEL` about a `run` on its own data, or a `model` on those that --data names."""
    if not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0].startswith("-")):
        takes = "a run folder, or what taet evaluate --model takes"
        raise UserError(f"which model? taet {command} MODEL [options]: {takes}")
    own_data = not flags.options_of(arguments) & {"--data", "--data.name"}
    kind: type[R] | type[M] = run if is_folder(arguments[0]) and own_data else model
    return flags.parse(kind, arguments, f"taet {command}", description, examples)


def data_for_run(name: str, origin: OfModel) -> Dataset:
    """Load data other than a run's own, by default resized to the run's images by its fit, if these are square."""
    data = origin.chosen(name)
    if origin.weights is not None or origin.normalize != "none":
        raise UserError(f"{name} is a run: it has its own weights and normalisation; allowed: --data alone")
    record = RunFolder(Path(name)).record
    _, height, width = record.data.image_shape
    if data.size is None and height == width:
        data = data.replace(size=height)
    if data.size is not None:
        data = data.replace(fit=origin.data.get("fit", record.fit))
    return load(data)


class Opened(NamedTuple):
    """A model and the test images that --data names."""

    model: Path | nn.Module
    """The folder of a run, or a model of any origin."""
    dataset: Dataset
    name: str | None = None
    """Of a model of any origin, as are the notes."""
    notes: tuple[str, ...] = ()


def opened(name: str, origin: OfModel) -> Opened:
    """Load the data, and a model of any origin with as many classes."""
    if is_folder(name):
        return Opened(Path(name), data_for_run(name, origin))
    dataset = load(origin.chosen(name))
    loaded = foreign.load(
        name,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        weights=origin.weights,
        normalize=origin.normalize,
    )
    return Opened(loaded.model, dataset, name, loaded.notes)


def folder_for(command: str, name: str, origin: OfModel) -> Path:
    """Return the default output folder of a command for the model called `name`."""
    parts = [name, *([origin.weights.stem] if origin.weights else [])]
    return results_of(command, *parts, *([origin.normalize] if origin.normalize != "none" else []))


def results_of(command: str, *words: str) -> Path:
    """Return the folder runs/COMMAND-WORDS."""
    return Path("runs", "-".join([command, *(re.sub(r"[^\w.-]+", "-", word) for word in words)]))


def here(parsed: flags.T, command: str = "") -> flags.T:
    """Return the options of a call with a published model, hf:USER/NAME@COMMIT, replaced by its folder.

    With the name of a command, its output goes into a separate folder unless --out is given.
    """
    field = "model" if hasattr(parsed, "model") else "run"
    name = getattr(parsed, field)
    if not hub.is_published(name):
        if (Path(name) / hub.CONFIG).is_file():
            hub.verify(Path(name))
        return parsed
    changes: dict[str, Any] = {field: type(name)(hub.local(name))}
    if command and getattr(parsed, "out", None) is None:
        changes["out"] = results_of(command, str(name))
    return dataclasses.replace(parsed, **changes)  # type: ignore[type-var]


def is_folder(name: str) -> bool:
    """Whether `name` refers to a folder rather than a model; a published model is a folder."""
    if hub.is_published(name) or RunFolder(Path(name)).is_run or (":" not in name and os.sep in name):
        return True
    return Path(name).is_dir() and name not in registry.entries("models")
