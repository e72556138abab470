"""The target of an evaluation: a model with its test images, checked, and what its card says."""

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
from taet.attacks.arithmetic import frozen_and_exact
from taet.attacks.counting_model import CountingModel
from taet.attacks.inputs import check_labels, check_range
from taet.attacks.spec import AttackSpec, Clean
from taet.card.card import Card
from taet.card.column import to_jsonable
from taet.data import Dataset
from taet.data.class_names import check_names
from taet.data.dataset import as_array, fingerprints, images_sha256
from taet.data.image_files import as_grey
from taet.data.notes import DataNote, Repeated, repeated_in_training
from taet.errors import UserError, unknown, wrapping_user_code
from taet.evaluation.attack_sets import attacks_of, resolve_evaluation
from taet.evaluation.gallery import DRAWN_CHANNELS, groups_of
from taet.evaluation.runner import Runner, TestImages, as_unit, restored, source_digest
from taet.files import Json, file_sha256
from taet.formatting import join_words
from taet.machine import environment, resolve_device
from taet.metrics.accuracies import Ints
from taet.metrics.counts_in_order import in_class_order
from taet.models import Classifier
from taet.models.classifier import lay_out
from taet.models.view import make_view
from taet.network import check_float32, check_image_gradient, check_network
from taet.run.folder import BEST, DELIVERED, LAST, RunFolder, weights_digest
from taet.run.loading import load_model, load_run
from taet.run.record import RunRecord
from taet.settings import Evaluation, Threat
from taet.settings.types import LongSeed, ModelName, StoredCount, check_value
from taet.training.checks import learns

ArrayOrTensor = NDArray[Any] | Tensor
# fields in the record of extra images that a card leaves out
OF_TRAINING = ("draw", "exposure", "test_sha256")


@dataclass(frozen=True, eq=False)
class EvaluationTarget:
    """A model with its test images and settings, and the fields of the card that describe them."""

    model: nn.Module
    images: TestImages
    labels: Ints
    about: Json  # method, title, protocol, seed, run, model and data, as the card has them
    device: torch.device
    settings: Evaluation
    eps: float  # radius of the L-infinity ball that the card is about
    # its file in the run; None for a Module, or with other images than those of the run
    card: Path | None = None

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
        """Return the target for a Module on images, or for a run on its own or other images.

        The arguments are those of `taet.evaluate`.
        """
        network = _module_or_folder(model_or_run_dir)
        given_without_images = labels is not None or class_names is not None
        if (images is None or isinstance(images, Dataset)) and given_without_images:
            raise UserError(
                "evaluate: got labels or class names without images; allowed: with images as an "
                "array"
            )
        data: Json = {"name": "arrays"}
        if isinstance(images, Dataset):
            class_names = images.class_names
            if train_class_counts is None and not images.only_test:
                train_class_counts = images.class_counts.tolist()
            trained_on = (
                isinstance(network, nn.Module)
                or network.record.data.train.sha256 == images.train.sha256
            )
            data, test = images.about(of_training=trained_on), images.test
            images, labels = test.images, test.labels
        if class_names is not None:  # of one class if the test images are
            class_names = [*check_names(map(str, class_names), fewest=1)]
        given = None if images is None else _test_images(images, labels)
        if isinstance(network, RunFolder):
            target = cls._of_run(network, weights, given, class_names, data, model, dataset)
            check_value("name", name, ModelName | None)
            return replace(target, about={**target.about, "name": name})
        if given is None:
            raise UserError(
                "got a model without images and labels; allowed: both, a Dataset, or a run folder "
                "alone"
            )
        counts = to_jsonable(in_class_order(train_class_counts, class_names))
        about = _about_module(name or type(network).__name__, title, notes, training_seed)
        check_value("training counts", counts, tuple[StoredCount, ...] | None)
        about["data"] = {
            **data,
            "class_names": class_names,
            "train_class_counts": counts,
            "test_sha256": images_sha256(*given),
        }
        return cls(network, *given, about, device_of(network), Evaluation(), Threat().eps)

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
        """Return the target for a run on its own images, or on those `given`; `data` is about
        these."""
        if given is None:
            run, network, loaded, record = load_run(
                folder.path, weights, model=model, dataset=dataset
            )
            images, labels, sha256 = loaded.test.images, loaded.test.labels, loaded.test.sha256
            # training images may have changed since
            data = {"name": loaded.name, "notes": [*record.data.notes]}
        else:
            run, network, record = load_model(folder.path, weights, model=model)
            images = match_channels(given[0], record.data.image_shape)
            labels = given[1]
            as_numbers = are_numbers(class_names, record.data.class_names)
            if class_names is not None and not as_numbers:
                labels = by_name(labels, class_names, record.data.class_names)
            sha256 = images_sha256(images, labels)
            data = {"notes": [], **data}
            data["notes"] += _notes_on_given(given[0], class_names if as_numbers else None, record)
        if not record.data.fingerprints and sha256 != record.data.test.sha256:
            data["notes"].append(
                "this run does not say which images it was trained on: test images may be among "
                "them"
            )
        elif given is not None or record.data.arrays:
            data["notes"] += repeats(images, record.data.fingerprints, data["notes"])
        if record.data.extra is not None:
            data["extra"] = _about_extra(record, sha256)
        counts = list(record.data.train.class_counts)
        data["imbalance_ratio"] = max(counts) / min(counts)
        data["class_names"] = list(record.data.class_names)
        data["train_class_counts"] = counts
        data["test_sha256"] = sha256
        rule = _selection_rule(record, weights)
        about: Json = {
            "method": run.method,
            "title": record.method_title,
            "protocol": run.protocol,
            "seed": run.seed,
            "run": _about_training(record),
            "model": {
                "name": run.model.name if model is None else type(model).__name__,
                "selection": rule,
                "epoch": folder.weights_about(weights).epoch,
                "leak": _is_leak(record, rule, sha256),
                "file_sha256": file_sha256(folder.weights(weights)),
            },
            "data": data,
        }
        return cls(
            network,
            images,
            labels,
            about,
            resolve_device("auto"),
            run.evaluation,
            run.threat.eps,
            folder.card(weights) if given is None else None,
        )

    @property
    def attacks(self) -> list[AttackSpec]:
        """The attacks of its settings, the clean images first."""
        names = dict.fromkeys((Clean.name, *self.settings.attacks))
        return attacks_of(self.settings.replace(attacks=tuple(names)))

    def changed(self, changes: Mapping[str, Any], device: str) -> Self:
        """Return the target on a device, with fields of its settings changed.

        See `resolve_evaluation`.
        """
        protocol = self.about["protocol"]
        usual = protocols.start(protocol, self.about["method"]) if protocol else protocols.taet()
        settings = resolve_evaluation(self.settings, changes, self.eps, usual)
        chosen = self.device if device == "auto" else resolve_device(device)
        return replace(self, settings=settings, eps=settings.eps or self.eps, device=chosen)

    def runner(self, state_dir: Path | None = None, most_per_class: int = 1) -> Runner:
        """Move the model to the device and return its runner.

        The model may have up to `most_per_class` logits for a class.
        """
        device, model = self.device, self.model.to(self.device)
        width = count_classes(model, self.images, self.labels, device)
        names = self.about["data"]["class_names"]
        if names is not None:
            allowed_widths = range(len(names), most_per_class * len(names) + 1, len(names))
            if width not in allowed_widths:
                raise UserError(
                    f"model output: got {width} logits; allowed: {len(names)}, one per class"
                )
        sources = self._sources(names)
        counts = self.about["data"]["train_class_counts"]
        is_drawn = as_unit(self.images[:1]).shape[1] in DRAWN_CHANNELS
        keeps = self.settings.keep_images and state_dir is not None and is_drawn
        return Runner(
            attacked(model, self.images),
            self.images,
            self.labels,
            width,
            self.settings.batch_size,
            self.settings.seed,
            device,
            state_dir,
            sources=sources,
            groups=groups_of(self.labels, counts) if keeps else None,
        )

    def card_of(self, runner: Runner) -> Card:
        """Return the card of an evaluation by this runner, without columns."""
        machine = environment(runner.device)
        model = {
            **self.about["model"],
            "weights_sha256": weights_digest(self.model),
            "answers": to_jsonable(runner.fingerprint),
        }
        code = source_digest(runner.model.model)
        if code:
            model["code"] = code
        model["parameters"] = sum(parameter.numel() for parameter in self.model.parameters())
        names = self.about["data"]["class_names"]
        if not names:
            names = [str(label) for label in range(runner.num_classes)]
        fields = {
            **self.about,
            "model": model,
            "data": {**self.about["data"], "class_names": names},
            "threat": {"norm": "linf", "eps": self.eps},
            "batch_size": runner.batch_size,
            "labels": self.labels,
            "columns": (),
            "created": machine.pop("started"),
            "environment": machine,
        }
        return Card(**fields)

    def _sources(self, names: Sequence[str] | None) -> dict[str, CountingModel]:
        """Return the models of the runs in ATTACK@RUN, by the SHA-256 of their weights."""
        folders = dict.fromkeys(
            name.partition("@")[2] for name in self.settings.attacks if "@" in name
        )
        found: dict[str, CountingModel] = {}
        for folder in folders:
            _, model, record = load_model(folder)
            match_channels(self.images, record.data.image_shape, exactly=True)
            if names is not None and [*record.data.class_names] != [*names]:
                raise UserError(
                    f"attack @{folder}: got a run of other classes; allowed: {', '.join(names)}"
                )
            sha256 = weights_digest(model)
            if sha256 == weights_digest(self.model):
                raise UserError(
                    f"attack @{folder}: got the attacked model itself; allowed: another run, or no "
                    "@"
                )
            found[sha256] = CountingModel(model.to(self.device))
        return found


def _module_or_folder(given: object) -> nn.Module | RunFolder:
    """Return a network as it is, and a path as the folder of a run; refuse anything else."""
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, str | os.PathLike):
        return RunFolder(Path(given))
    raise UserError(
        f"evaluate: got a {type(given).__name__}; allowed: a torch.nn.Module, or the folder of a "
        "run"
    )


def _notes_on_given(
    images: TestImages, numbered: Sequence[str] | None, record: RunRecord
) -> list[str]:
    """Return notes on how other images are taken for those of a run.

    `numbered` are the names of classes whose labels are taken as numbers of the run's classes.
    """
    notes = []
    if as_unit(images[:1]).shape[1] > record.data.image_shape[0]:
        notes.append("colour images are made grey, as the run's images are")
    if numbered is not None:
        pairs = zip(numbered, record.data.class_names, strict=False)
        named = join_words([f"{one} is '{other}'" for one, other in pairs], most=10)
        notes.append(f"labels are numbers of the run's classes: {named}")
    return notes


def _about_module(
    name: str, title: str | None, notes: Sequence[str], training_seed: int | None
) -> Json:
    """Return what a card says of a Module, but for its data."""
    seed = to_jsonable(training_seed)
    check_value("name", name, str)
    check_value("training seed", seed, LongSeed | None)
    return {
        "method": name,
        "title": title or name,
        "protocol": "",
        "seed": seed,
        "run": {},
        "model": {
            "name": name,
            "selection": None,
            "epoch": None,
            "leak": False,
            "notes": [notes] if isinstance(notes, str) else [*notes],
        },
    }


def _about_extra(record: RunRecord, test_sha256: str) -> Json:
    """Return what a card says of extra training images, and whether these test images were compared
    with them."""
    extra = record.data.extra or {}
    of_card = {name: to_jsonable(extra[name]) for name in extra if name not in OF_TRAINING}
    compared = test_sha256 in (record.data.test.sha256, extra.get("test_sha256"))
    return {**of_card, "compared": compared}


def _about_training(record: RunRecord) -> Json:
    """Return what a card says of a training run."""
    about: Json = {
        "config": record.settings,
        "hash": record.run_hash,
        "command": record.command,
        "deviations": list(record.deviations),
    }
    if record.code:
        about["code"] = record.code
    if record.pretrained_sha256:
        about["pretrained_sha256"] = record.pretrained_sha256
    return about


def _selection_rule(record: RunRecord, weights: str) -> str:
    """Return the rule by which the epoch of the weights was chosen."""
    rule = record.selection.rule
    if weights == LAST:
        return "last"
    # only a curve on validation images has a best epoch then
    if weights == BEST and rule == "last":
        return "best-validation"
    return rule


def _is_leak(record: RunRecord, rule: str, test_sha256: str) -> bool:
    """Return whether the training, or the choice of its epoch, watched the test images."""
    watched = record.data.splits[record.selection.split or "test"].sha256
    # Where test images were watched, a hash cannot tell that other images contain none of them.
    watched_test = watched in (record.data.test.sha256, test_sha256)
    return watched_test and (rule != "last" or learns(record.run))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights, the CPU for a model without any."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def _test_images(images: ArrayOrTensor, labels: ArrayOrTensor | None) -> tuple[TestImages, Ints]:
    """Return images and labels as arrays in one of the two allowed forms; any other is a
    `UserError`."""
    pixels, classes = as_array("images", images), as_array("labels", labels)
    known = (
        pixels.size and pixels.ndim == 4 and (pixels.dtype.kind == "f" or pixels.dtype == np.uint8)
    )
    if not known or (pixels.dtype == np.uint8 and pixels.shape[3] not in (1, 3)):
        forms = "uint8 (N, H, W, C) with 1 or 3 channels, or float (N, C, H, W) from 0 to 1"
        raise UserError(f"images: got {pixels.dtype} {pixels.shape}; allowed: {forms}")
    if pixels.dtype != np.uint8:
        check_range(float(pixels.min()), float(pixels.max()))
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    if classes.dtype.kind not in "iu" or classes.shape != (len(pixels),):
        raise UserError(
            f"labels: got {classes.dtype} {classes.shape}; allowed: integers ({len(pixels)},)"
        )
    return pixels, classes.astype(np.int64)


def match_channels(images: TestImages, shape: Sequence[int], exactly: bool = False) -> TestImages:
    """Return images for a network of images (C, H, W); refuse another size.

    As in predictions, grey images get C channels, and colours of 8 bits become grey.
    """
    own = tuple(as_unit(images[:1]).shape[1:])
    if own == tuple(shape):
        return images
    is_colour = own == (3, *shape[1:]) and images.dtype == np.uint8
    if not exactly and is_colour and shape[0] == 1:
        return as_grey(images)
    is_grey = own == (1, *shape[1:])
    if exactly or not is_grey:
        got, allowed = (" x ".join(map(str, lengths)) for lengths in (own, shape))
        raise UserError(
            f"images: got {got}; allowed: {allowed}, channels, height and width as in training"
        )
    channel_axis = 3 if images.dtype == np.uint8 else 1
    return np.repeat(images, shape[0], channel_axis)


def attacked(model: nn.Module, images: TestImages) -> CountingModel:
    """Return the model for attacks; a network of this package gets a cheaper equivalent view."""
    channels, height, width = as_unit(images[:1]).shape[1:]
    shape = channels, height, width
    view = make_view(model, shape) if isinstance(model, Classifier) else None
    if view is None:
        return CountingModel(model)
    # In another layout the libraries would convert every tensor to this one and back.
    lay_out(view.module, shape)
    return CountingModel(model, view.module)


def count_classes(model: nn.Module, images: TestImages, labels: Ints, device: torch.device) -> int:
    """Return the number of logits, found on two images.

    A model that cannot be attacked is a `UserError`.
    """
    check_network(model)
    check_float32(model)
    with frozen_and_exact(device.type, model), restored(model) as changes:
        x = as_unit(images[:2]).to(device)
        copies = x.clone().requires_grad_(), x.clone()
        with wrapping_user_code(f"model: fails on images of shape {tuple(x.shape)}"):
            logits = CountingModel(model)(copies[0])
            check_image_gradient(model, x)
            with torch.no_grad():
                CountingModel(model)(copies[1])
        changed = changes()
    if not all(one.equal(x) for one in copies):
        raise UserError("model: writes into its images; allowed: one that works on a copy")
    if changed:
        got = f"{changed[0]} changes during a forward pass in eval mode"
        raise UserError(f"model: {got}; allowed: one that does not change")
    width = int(logits.shape[1])
    check_labels(int(labels.min()), int(labels.max()), width)
    return width


def are_numbers(names: Sequence[str] | None, known: Sequence[str]) -> bool:
    """Return whether labels are numbers of the known classes.

    They are without `names`, or with numbers as names where the known ones are words. Labels
    without names, where numbers are the names of the known classes in another order, are a
    `UserError`: they may be names or numbers.
    """
    numbers = [str(label) for label in range(len(known))]
    if names is None:
        if [*known] != numbers and {*known} == {*numbers}:
            got = f"numbers, where the run's classes are called {join_words(known, most=4)}"
            raise UserError(f"labels: got {got}; allowed: with class_names, or a Dataset")
        return True
    return [*names] == numbers[: len(names)] and not {*names} & {*known}


def by_name(labels: Ints, names: Sequence[str], known: Sequence[str]) -> Ints:
    """Return labels (N,), indices into `names`, as indices into `known`.

    Names that differ are compared in Unicode NFC. An unknown name is a `UserError`.
    """
    ours, theirs = [*names], [*known]
    if not {*ours} <= {*theirs}:
        ours = [unicodedata.normalize("NFC", name) for name in ours]
        theirs = [unicodedata.normalize("NFC", name) for name in theirs]
    strange = [name for name in ours if name not in theirs]
    if strange:
        raise unknown("class of the test images, which the model does not know,", strange[0], known)
    check_labels(int(labels.min()), int(labels.max()), len(names))
    return np.array([theirs.index(name) for name in ours], np.int64)[labels]


def repeats(images: TestImages, trained_on: str, notes: Sequence[str]) -> list[DataNote]:
    """Return a note on how many images have fingerprints in `trained_on`.

    There is none if no image has, or if `notes` say so.
    """
    if repeated_in_training(notes) is not None:
        return []
    if images.dtype == np.uint8:
        pixels = images
    else:
        pixels = np.rint(255 * images).astype(np.uint8).transpose(0, 2, 3, 1)
    known = np.frombuffer(bytes.fromhex(trained_on), np.uint64)
    repeated = Repeated(int(np.isin(fingerprints(pixels), known).sum()), len(images))
    if not repeated.in_training:
        return []
    return [DataNote(str(repeated), "identical-images", repeated_in_training=repeated)]
