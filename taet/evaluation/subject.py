"""The subject of an evaluation: a model with its test images, checked, and what their card says about both."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet import protocols
from taet.attacks.counted import Counted, still
from taet.attacks.inputs import check_labels, check_range
from taet.attacks.spec import AttackSpec, Clean
from taet.data import DataFacts, Dataset
from taet.data.dataset import as_array, check_names, fingerprints, images_sha256
from taet.errors import UserError, custom_code, unknown
from taet.evaluation.bundles import attacks_of, settle
from taet.evaluation.card import Card
from taet.evaluation.column import plain
from taet.evaluation.rules import repeated
from taet.evaluation.runner import Runner, TestImages, as_unit, restored, source_digest
from taet.fields import LongSeed, StoredCount, check_value
from taet.files import Json, file_sha256
from taet.formatting import listed
from taet.models import Classifier
from taet.models.view import make_view
from taet.settings import Evaluation, Threat
from taet.statistics import Ints
from taet.training.environment import environment, resolve_device
from taet.training.folder import BEST, DELIVERED, LAST, RunFolder, weights_digest
from taet.training.resolve import learns
from taet.training.runs import load_model, load_run

ArrayOrTensor = NDArray[Any] | Tensor
OF_TRAINING = ("draw", "exposure", "test_sha256")  # fields in the record of extra images that a card leaves out


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its test images and settings, and the fields of the card that describe them."""

    model: nn.Module
    images: TestImages
    labels: Ints
    about: Json  # method, title, protocol, seed, run, model and data, as the card has them
    device: torch.device
    settings: Evaluation
    eps: float  # radius of the L-infinity ball that the card is about
    card: Path | None = None  # its file in the run; None for a Module, or with other images than those of the run

    @classmethod
    def of(
        cls,
        model_or_run_dir: nn.Module | str | os.PathLike[str],
        images: ArrayOrTensor | Dataset | None = None,
        labels: ArrayOrTensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
        train_class_counts: Sequence[int] | None = None,
        training_seed: int | None = None,
        name: str | None = None,
        title: str | None = None,
        notes: Sequence[str] = (),
        weights: str = DELIVERED,
        model: nn.Module | None = None,
        dataset: Dataset | None = None,
    ) -> Self:
        """Return the subject for a Module on images, or for a run on its own or other images: see `taet.evaluate`."""
        about: Json = {"name": "arrays"}
        if not isinstance(model_or_run_dir, nn.Module | str | os.PathLike):
            got = type(model_or_run_dir).__name__
            raise UserError(f"evaluate: got a {got}; allowed: a torch.nn.Module, or the folder of a run")
        network = model_or_run_dir if isinstance(model_or_run_dir, nn.Module) else RunFolder(Path(model_or_run_dir))
        if (images is None or isinstance(images, Dataset)) and not (labels is None and class_names is None):
            raise UserError("evaluate: got labels or class names without images; allowed: with images as an array")
        if isinstance(images, Dataset):
            class_names = images.class_names
            if train_class_counts is None and not images.only_test:
                train_class_counts = images.class_counts.tolist()
            trained_on = isinstance(network, nn.Module) or network.record.data.train.sha256 == images.train.sha256
            about, test = images.about(of_training=trained_on), images.test
            images, labels = test.images, test.labels
        class_names = None if class_names is None else [*check_names(map(str, class_names))]
        given = None if images is None else _test_images(images, labels)
        if isinstance(network, RunFolder):
            return cls._of_run(network, weights, given, class_names, about, model, dataset)
        if given is None:
            raise UserError("got a model without images and labels; allowed: both, a Dataset, or a run folder alone")
        called = name or type(network).__name__
        by_label = getattr(train_class_counts, "sort_index", None)  # of pandas: value_counts() begins with the largest
        if by_label is not None and by_label().index.dtype.kind in "iu":
            train_class_counts = by_label()
        counts, training_seed = plain(train_class_counts), plain(training_seed)
        check_value("name", called, str)
        check_value("training counts", counts, tuple[StoredCount, ...] | None)
        check_value("training seed", training_seed, LongSeed | None)
        fields: Json = {"method": called, "title": title or called, "protocol": "", "seed": training_seed, "run": {}}
        notes = [notes] if isinstance(notes, str) else [*notes]
        fields["model"] = {"name": called, "selection": None, "epoch": None, "leak": False, "notes": notes}
        fields["data"] = about | {"class_names": class_names, "train_class_counts": counts}
        fields["data"] |= {"test_sha256": images_sha256(*given)}
        return cls(network, *given, fields, device_of(network), Evaluation(), Threat().eps)

    @classmethod
    def _of_run(
        cls,
        folder: RunFolder,
        weights: str,
        given: tuple[TestImages, Ints] | None,
        class_names: Sequence[str] | None,
        data: Json,
        model: nn.Module | None,
        dataset: Dataset | None,
    ) -> Self:
        if given is None:
            run, network, loaded, record = load_run(folder.path, weights, model=model, dataset=dataset)
            images, labels, sha256 = loaded.test.images, loaded.test.labels, loaded.test.sha256
            data = {"name": loaded.name, "notes": [*record.data.notes]}  # training images may have changed since
        else:
            run, network, record = load_model(folder.path, weights, model=model)
            images, labels, names = fitted(given[0], record.data.image_shape), given[1], record.data.class_names
            labels = by_name(labels, class_names, names)
            sha256 = images_sha256(images, labels)
            data = {"notes": [], **data}
            if class_names is not None and labels is given[1]:
                pairs = [f"{one} is '{other}'" for one, other in zip(class_names, names, strict=False)]
                data["notes"].append(f"labels are numbers of the run's classes: {listed(pairs, most=10)}")
        if not record.data.fingerprints and sha256 != record.data.test.sha256:
            data["notes"].append("this run does not say which images it was trained on: test images may be among them")
        elif given is not None or record.data.arrays:
            data["notes"] += repeats(images, record.data.fingerprints, data["notes"])
        if (extra := record.data.extra) is not None:
            about = {name: plain(value) for name, value in extra.items() if name not in OF_TRAINING}
            data["extra"] = {**about, "compared": sha256 in (record.data.test.sha256, extra.get("test_sha256"))}
        trained, rule, counts = record.data, record.selection.rule, list(record.data.train.class_counts)
        if weights == LAST:
            rule = "last"
        elif weights == BEST and rule == "last":  # only a curve on validation images has a best epoch then
            rule = "best-validation"
        watched = trained.splits[record.selection.split or "test"].sha256
        # Where test images were watched, a hash cannot tell that other images contain none of them.
        facts = DataFacts(tuple(counts), trained.image_shape, {"train": sum(counts)})
        leak = watched in (trained.test.sha256, sha256) and (rule != "last" or learns(run, facts))
        data |= {"imbalance_ratio": max(counts) / min(counts), "class_names": list(trained.class_names)}
        data |= {"train_class_counts": counts, "test_sha256": sha256}
        fields: Json = {"method": run.method, "title": record.method_title, "protocol": run.protocol, "seed": run.seed}
        fields["run"] = {"config": record.settings, "hash": record.run_hash, "command": record.command}
        fields["run"] |= {"deviations": list(record.deviations), **({"code": record.code} if record.code else {})}
        fields["run"] |= {"pretrained_sha256": record.pretrained_sha256} if record.pretrained_sha256 else {}
        name, epoch = run.model.name if model is None else type(model).__name__, folder.weights_about(weights).epoch
        fields["model"] = {"name": name, "selection": rule, "epoch": epoch, "leak": leak}
        fields["model"] |= {"file_sha256": file_sha256(folder.weights(weights))}
        fields["data"], card = data, folder.card(weights) if given is None else None
        return cls(network, images, labels, fields, resolve_device("auto"), run.evaluation, run.threat.eps, card)

    @property
    def attacks(self) -> list[AttackSpec]:
        """The attacks of its settings, the clean images first."""
        names = dict.fromkeys((Clean.name, *self.settings.attacks))
        return attacks_of(self.settings.replace(attacks=tuple(names)))

    def changed(self, changes: Mapping[str, Any], device: str) -> Self:
        """Return the subject on a device, with these fields of its settings changed as `bundles.settle` does."""
        protocol = self.about["protocol"]
        usual = protocols.start(protocol, self.about["method"]) if protocol else protocols.taet()
        settings = settle(self.settings, changes, self.eps, usual)
        chosen = self.device if device == "auto" else resolve_device(device)
        return replace(self, settings=settings, eps=settings.eps or self.eps, device=chosen)

    def runner(self, state_dir: Path | None = None, most_per_class: int = 1) -> Runner:
        """Move the model to the device and return its runner; allow up to `most_per_class` logits for a class."""
        device, model = self.device, self.model.to(self.device)
        width = count_classes(model, self.images, self.labels, device)
        names = self.about["data"]["class_names"]
        if names is not None and width not in range(len(names), most_per_class * len(names) + 1, len(names)):
            raise UserError(f"model output: got {width} logits; allowed: {len(names)}, one per class")
        batch_size, seed, sources = self.settings.batch_size, self.settings.seed, self._sources(names)
        counted = attacked(model, self.images)
        return Runner(counted, self.images, self.labels, width, batch_size, seed, device, state_dir, sources=sources)

    def card_of(self, runner: Runner) -> Card:
        """Return the card of an evaluation by this runner, without columns."""
        machine = environment(runner.device)
        weights = weights_digest(self.model)
        about = {**self.about["model"], "weights_sha256": weights, "answers": plain(runner.fingerprint)}
        about |= {"code": code} if (code := source_digest(runner.model.model)) else {}
        about["parameters"] = sum(parameter.numel() for parameter in self.model.parameters())
        names = self.about["data"]["class_names"] or [str(label) for label in range(runner.num_classes)]
        fields = {**self.about, "model": about, "data": {**self.about["data"], "class_names": names}}
        fields |= {"threat": {"norm": "linf", "eps": self.eps}, "batch_size": runner.batch_size}
        fields |= {"labels": self.labels, "columns": (), "environment": machine, "created": machine.pop("started")}
        return Card(**fields)

    def _sources(self, names: Sequence[str] | None) -> dict[str, Counted]:
        """Return the models of the runs that attacks name as ATTACK@RUN, by the hash of their weights."""
        found: dict[str, Counted] = {}
        for folder in dict.fromkeys(name.partition("@")[2] for name in self.settings.attacks if "@" in name):
            _, model, record = load_model(folder)
            fitted(self.images, record.data.image_shape, exactly=True)
            if names is not None and [*record.data.class_names] != [*names]:
                raise UserError(f"attack @{folder}: got a run of other classes; allowed: {', '.join(names)}")
            if (sha256 := weights_digest(model)) == weights_digest(self.model):
                raise UserError(f"attack @{folder}: got the attacked model itself; allowed: another run, or no @")
            found[sha256] = Counted(model.to(self.device))
        return found


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights, the CPU for a model without any."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _test_images(images: ArrayOrTensor, labels: ArrayOrTensor | None) -> tuple[TestImages, Ints]:
    """Return images and labels as arrays in one of the two allowed forms; any other is a `UserError`."""
    pixels, classes = as_array("images", images), as_array("labels", labels)
    known = pixels.size and pixels.ndim == 4 and (pixels.dtype.kind == "f" or pixels.dtype == np.uint8)
    if not known or (pixels.dtype == np.uint8 and pixels.shape[3] not in (1, 3)):
        forms = "uint8 (N, H, W, C) with 1 or 3 channels, or float (N, C, H, W) from 0 to 1"
        raise UserError(f"images: got {pixels.dtype} {pixels.shape}; allowed: {forms}")
    if pixels.dtype != np.uint8:
        check_range(float(pixels.min()), float(pixels.max()))
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    if classes.dtype.kind not in "iu" or classes.shape != (len(pixels),):
        raise UserError(f"labels: got {classes.dtype} {classes.shape}; allowed: integers ({len(pixels)},)")
    return pixels, classes.astype(np.int64)


def fitted(images: TestImages, shape: Sequence[int], exactly: bool = False) -> TestImages:
    """Return images for a network of images (C, H, W), grey ones with C channels; refuse another size."""
    own, channel_axis = tuple(as_unit(images[:1]).shape[1:]), 3 if images.dtype == np.uint8 else 1
    if own == tuple(shape):
        return images
    if exactly or own != (1, *shape[1:]):
        got, allowed = (" x ".join(map(str, lengths)) for lengths in (own, shape))
        raise UserError(f"images: got {got}; allowed: {allowed}, channels, height and width as in training")
    return np.repeat(images, shape[0], channel_axis)


def attacked(model: nn.Module, images: TestImages) -> Counted:
    """Return the model for attacks; a network of this package gets a cheaper equivalent view."""
    channels, height, width = as_unit(images[:1]).shape[1:]
    view = make_view(model, (channels, height, width)) if isinstance(model, Classifier) else None
    if view is None:
        return Counted(model)
    # In another layout the libraries would convert every tensor to this one and back.
    return Counted(model, view.module.to(memory_format=torch.channels_last))


def count_classes(model: nn.Module, images: TestImages, labels: Ints, device: torch.device) -> int:
    """Return the number of logits, found on two images; raise a `UserError` for a model that cannot be attacked."""
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in model.parameters()):
        raise UserError("model: got weights that are not float32; allowed: float32 (call model.float())")
    with still(device.type, model), restored(model) as changes:
        x = as_unit(images[:2]).to(device)
        copies = x.clone().requires_grad_(), x.clone()
        with custom_code(f"model: fails on images of shape {tuple(x.shape)}"):
            logits = Counted(model)(copies[0])
            with torch.no_grad():
                Counted(model)(copies[1])
        changed = changes()
    if not all(one.equal(x) for one in copies):
        raise UserError("model: writes into its images; allowed: one that works on a copy")
    if changed:
        got = f"{changed[0]} changes during a forward pass in eval mode"
        raise UserError(f"model: {got}; allowed: one that does not change")
    if not logits.requires_grad:
        raise UserError("model: no gradient reaches the image; is there a detach, no_grad or argmax in forward?")
    width = int(logits.shape[1])
    check_labels(int(labels.min()), int(labels.max()), width)
    return width


def by_name(labels: Ints, names: Sequence[str] | None, known: Sequence[str]) -> Ints:
    """Return labels (N,), indices into `names`, as indices into `known`; names that differ are compared in Unicode NFC.

    Labels without `names`, or with numbers as names where the known ones are words, stay. Unknown is a `UserError`.
    """
    numbers = [str(label) for label in range(len(known))]
    if names is None:
        if [*known] != numbers and {*known} == {*numbers}:
            got = f"numbers, where the run's classes are called {listed(known, most=4)}"
            raise UserError(f"labels: got {got}; allowed: with class_names, or a Dataset")
        return labels
    ours, theirs = names, known
    if not {*names} <= {*known}:
        ours, theirs = ([unicodedata.normalize("NFC", name) for name in side] for side in (names, known))
    strange = [name for name in ours if name not in theirs]
    if len(strange) == len(ours) <= len(theirs) and ours == numbers[: len(ours)]:
        return labels
    if strange:
        raise unknown("class of the test images", strange[0], known)
    check_labels(int(labels.min()), int(labels.max()), len(names))
    return np.array([theirs.index(name) for name in ours], np.int64)[labels]


def repeats(images: TestImages, trained_on: str, notes: Sequence[str]) -> list[str]:
    """Return a note on how many images have fingerprints in `trained_on`; empty if none has or `notes` say so."""
    is_uint8 = images.dtype == np.uint8
    pixels = images if is_uint8 else np.rint(255 * images).astype(np.uint8).transpose(0, 2, 3, 1)
    found = int(np.isin(fingerprints(pixels), np.frombuffer(bytes.fromhex(trained_on), np.uint64)).sum())
    return [f"{found} of {len(images)} test images are also in train"] if found and not repeated(notes) else []
