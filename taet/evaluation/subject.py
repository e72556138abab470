"""The subject of an evaluation: a model with its test images, and the origin of both as cards state it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.clean import Clean
from taet.attacks.spec import AttackSpec
from taet.data import Dataset
from taet.data.dataset import images_sha256
from taet.errors import UserError, unknown
from taet.evaluation.bundles import parse_attacks, settle
from taet.evaluation.card import EXTRA_ABOUT
from taet.evaluation.column import plain
from taet.evaluation.image_arrays import TestImages, as_arrays
from taet.evaluation.runner import Runner, make_runner
from taet.files import file_sha256
from taet.settings import Evaluation, Threat
from taet.statistics import Ints
from taet.training.decisive_settings import run_hash
from taet.training.environment import resolve_device
from taet.training.finished import load_model, load_run
from taet.training.folder import BEST, DELIVERED, LAST, RunFolder
from taet.training.record import SelectionRecord


@dataclass(frozen=True)
class Subject:
    """A model with its test images, and their description on the card."""

    model: nn.Module
    images: TestImages
    labels: Ints
    test_sha256: str
    class_names: list[str] | None
    train_class_counts: list[int] | None
    settings: Evaluation
    train_eps: float
    place: torch.device
    """Device of the work, unless the caller chooses another."""
    about: dict[str, Any]
    model_about: dict[str, Any]
    data_about: dict[str, Any]
    card: Path | None = None
    """File of the card in the run; None for a Module, or if other images replace those of the run."""

    @property
    def eps(self) -> float:
        """Radius of the L-infinity ball that the card is about."""
        return self.train_eps if self.settings.eps is None else self.settings.eps

    @property
    def attacks(self) -> tuple[AttackSpec, ...]:
        """The attacks of its settings, the clean images first."""
        others = (name for name in self.settings.attacks if name != Clean.name)
        return tuple(parse_attacks([Clean.name, *others], self.settings, self.eps))

    @property
    def inside(self) -> tuple[AttackSpec, ...]:
        """Those of its attacks in the ball that the card is about."""
        return tuple(one for one in self.attacks if (one.norm, one.eps) == ("linf", self.eps))

    def on(self, device: str) -> torch.device:
        """Return the device of the work for auto, cpu, cuda or cuda:N."""
        return self.place if device == "auto" else resolve_device(device)

    def runner(self, device: torch.device, state_dir: str | os.PathLike[str] | None = None) -> Runner:
        """Return a runner for the model, which is moved to the device, and its images."""
        model, batch_size, seed = self.model.to(device), self.settings.batch_size, self.settings.seed
        return make_runner(model, self.images, self.labels, batch_size=batch_size, seed=seed, state_dir=state_dir)

    def changed(self, changes: Mapping[str, Any]) -> Subject:
        """Return the subject with these fields of its settings changed, as `taet.evaluation.bundles.settle` does."""
        return replace(self, settings=settle(self.settings, changes, self.train_eps))


TestLabels = NDArray[Any] | Tensor
AnyModel = nn.Module | str | os.PathLike[str]
"""A model, or the folder of a run."""


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Test images that a caller gives with a Module, or in place of those of a run, and what is known about them."""

    images: TestImages | Tensor
    labels: TestLabels
    class_names: Sequence[str] | None = None
    train_class_counts: Sequence[int] | None = None
    """Training images of each class for a Module; a run has its own."""
    about: Mapping[str, Any] | None = None
    """Their description on the card."""

    @classmethod
    def of(cls, dataset: Dataset) -> GivenImages:
        """The test images of a data set."""
        test, counts = dataset.test, dataset.class_counts.tolist()
        return cls(test.images, test.labels, dataset.class_names, counts, dataset.about())


ImagesArgument = TestImages | Tensor | GivenImages | None
"""Images of a call, alone or with their labels and further information."""


def subject_of(
    what: str,
    source: AnyModel,
    images: ImagesArgument = None,
    labels: TestLabels | None = None,
    *,
    weights: str = DELIVERED,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    train_class_counts: Sequence[int] | None = None,
    data_about: Mapping[str, object] | None = None,
) -> Subject:
    """Return the subject for the model of a run, or a Module, on the given images or else those of the run.

    Errors begin with `what`, the caller's name. `model` and `dataset` are the objects in memory that a run may need;
    `name` and `notes` describe a Module, the last three arguments the images.
    """
    given = None
    known = {"class_names": class_names, "train_class_counts": train_class_counts, "data_about": data_about}
    if isinstance(images, GivenImages):
        given = images
        check_used(what, "GivenImages, which have their own", "arrays", labels=labels, **known)
    elif (images is None) != (labels is None):
        raise UserError(f"{what}: got images without labels, or labels without images; allowed: both, or neither")
    elif images is not None and labels is not None:
        given = GivenImages(images, labels, class_names, train_class_counts, data_about)
    if isinstance(source, nn.Module):
        if given is None:
            raise UserError(f"{what}: got a model without images and labels; allowed: both, or a run folder alone")
        return _of_module(source, given, name or type(source).__name__, notes)
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"{what}: got a {type(source).__name__}; allowed: a torch.nn.Module, or the folder of a run")
    own = "a run, which has its own"
    of_module = {"name": name, "notes": notes or None, "train_class_counts": train_class_counts}
    check_used(what, own, "a Module", **of_module)
    if given is None:
        check_used(what, own, "images=", class_names=class_names, data_about=data_about)
    return _of_run(Path(source), weights, model, dataset, given)


def check_used(what: str, beside: str, allowed: str, **given: object) -> None:
    """Raise a `UserError` for arguments that were given, i.e. are not None, but would have no effect."""
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if names:
        raise UserError(f"{what}: got {' and '.join(names)} beside {beside}; allowed: with {allowed}")


def _of_module(model: nn.Module, given: GivenImages, name: str, notes: Sequence[str]) -> Subject:
    """Return the subject for a Module on the images given with it."""
    pixels, classes = as_arrays(given.images, given.labels)
    return Subject(
        model=model,
        images=pixels,
        labels=classes,
        test_sha256=images_sha256(pixels, classes),
        class_names=None if given.class_names is None else list(given.class_names),
        train_class_counts=None if given.train_class_counts is None else _counts(given.train_class_counts),
        settings=Evaluation(),
        train_eps=Threat().eps,
        place=next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu")),
        about={"method": name, "title": name, "protocol": "", "seed": None},
        model_about={"name": name, "selection": None, "epoch": None, "leak": False, "notes": list(notes)},
        data_about={"name": "arrays", **(given.about or {})},
    )


def by_name(labels: Ints, names: Sequence[str], known: Sequence[str]) -> Ints:
    """Return labels (N,), indices into `names`, as indices of the same names in `known`.

    Names are compared in Unicode normal form. If the names of one side are just the numbers 0, 1, ..., labels are not
    changed; otherwise an unknown name raises a `UserError`.
    """
    places = {unicodedata.normalize("NFC", name): label for label, name in enumerate(known)}
    places |= {name: label for label, name in enumerate(known)}
    found = [places.get(name, places.get(unicodedata.normalize("NFC", name))) for name in names]
    if None not in found:
        if labels.max() >= len(names):
            raise UserError(f"labels: got up to {labels.max()}; allowed: 0 to {len(names) - 1}, one per class name")
        return np.array(found, np.int64)[labels]
    if any(list(one) == [str(label) for label in range(len(one))] for one in (names, known)):
        return labels
    raise unknown("class of the test images", names[found.index(None)], known)


def _of_run(
    folder: Path, weights: str, given: nn.Module | None, arrays: Dataset | None, images: GivenImages | None
) -> Subject:
    """Return the subject for the model of a run on its own test images, or on others with class names of their own."""
    held = RunFolder(folder)
    if images is None:
        run, model, dataset, record = load_run(folder, weights, model=given, dataset=arrays)
        pixels, labels, sha256 = dataset.test.images, dataset.test.labels, dataset.test.sha256
        data_about = dataset.about()
    else:
        run, model, record = load_model(folder, weights, model=given)
        pixels, labels = as_arrays(images.images, images.labels)
        data_about = {"name": "arrays", **(images.about or {})}
        if images.class_names is not None:
            known = record.data.class_names
            labels = by_name(labels, images.class_names, known)
            absent = [name for label, name in enumerate(known) if label not in labels]
            note = [f"no test image of the run's classes: {', '.join(absent)}"] if absent else []
            data_about["notes"] = [*data_about.get("notes", ()), *note]
        sha256 = images_sha256(pixels, labels)
    extra = record.data.extra
    if extra is not None:
        about_extra = {name: plain(getattr(extra, name)) for name in EXTRA_ABOUT}
        compared = sha256 in (record.data.test.sha256, extra.test_sha256)
        data_about = {**data_about, "extra": {**about_extra, "compared": compared}}
    return Subject(
        model=model,
        images=pixels,
        labels=labels,
        test_sha256=sha256,
        class_names=list(record.data.class_names),
        train_class_counts=list(record.data.train.class_counts),
        settings=run.evaluation,
        train_eps=run.threat.eps,
        place=resolve_device("auto"),
        about={
            "method": run.method,
            "title": record.method_title,
            "protocol": run.protocol,
            "seed": run.seed,
            "run": {
                "config": record.settings,
                "hash": run_hash(run),
                "command": record.command,
                "deviations": list(record.deviations),
            },
        },
        model_about={
            "name": run.model.name if given is None else type(given).__name__,
            "selection": (chosen := selection_of(weights, record.selection)).rule,
            "epoch": held.weights_about(weights).epoch,
            "leak": chosen.leak,
            "file_sha256": file_sha256(held.weights(weights)),
        },
        data_about=data_about,
        card=held.card(weights) if images is None else None,
    )


def selection_of(weights: str, delivered: SelectionRecord) -> SelectionRecord:
    """Return how the epoch of some weights of a run was chosen, given how the delivered epoch was."""
    if weights == LAST:
        return delivered.model_copy(update={"rule": "last", "leak": False})
    if weights == BEST and delivered.rule == "last":  # only a curve on validation images has a best epoch then
        return delivered.model_copy(update={"rule": "best-validation"})
    return delivered


def _counts(given: Sequence[int]) -> list[int]:
    counts = np.asarray(given)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise UserError(f"training counts: got {given!r}; allowed: whole numbers of 0 or more, one per class")
    return [int(count) for count in counts]
