"""Predictions of a finished run for new images, and whether each survives an attack."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks import catalogue
from taet.attacks.counted import Counted
from taet.attacks.spec import Clean
from taet.data.dataset import checked_images, fingerprints
from taet.data.images import SUFFIXES, decode_where_possible, files_below, is_image, left_out, picture, scaled
from taet.data.storage import Pixels
from taet.errors import UserError, custom_code
from taet.evaluation.bundles import of_run
from taet.evaluation.runner import Runner
from taet.fields import Count, check_value
from taet.formatting import plural
from taet.models.foreign import ImageShape
from taet.progress import Progress
from taet.training.environment import resolve_device
from taet.training.runs import load_model

if TYPE_CHECKING:
    import pandas

BATCH_SIZE = 250
DIGITS = 6  # of a probability in a table; `probabilities` has full precision
NO_CLASS = -1

ImageSource = Pixels | Tensor | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions for N images, in the given order."""

    paths: tuple[str, ...]
    """The files, or positions in an array."""
    labels: NDArray[np.int64]
    """(N,): the class of the largest logit; -1 for an image that could not be read."""
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(N, C): softmax of the logits; nan for an image that could not be read."""
    survives: NDArray[np.bool_] | None
    """(N,): whether the class is the same under the attack, False for an unreadable image; None without an attack."""
    errors: tuple[str, ...]
    """Why an image could not be read; empty if it could."""
    attack: str
    """The attack, with its options; empty without one."""
    notes: tuple[str, ...] = ()  # on the folders that were searched through

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unread(self) -> int:
        """How many images could not be read."""
        return sum(map(bool, self.errors))

    def table(self, top: int = 1) -> "pandas.DataFrame":
        """Return a row per image: path, class, probability; survives after an attack; error if any image has one.

        `top` above 1: the next classes follow as class_2, probability_2, and so on. None: the image could not be read.
        """
        import pandas  # takes a second, and only this needs it

        ranked = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top]
        shares = np.take_along_axis(self.probabilities, ranked, 1).astype(np.float64).round(DIGITS)
        columns: dict[str, object] = {"path": self.paths}
        for place, (labels, share) in enumerate(zip(ranked.T, shares.T, strict=True), 1):
            ending = "" if place == 1 else f"_{place}"
            columns[f"class{ending}"] = np.asarray(self.class_names, dtype=object)[labels]
            columns[f"probability{ending}"] = share
        if self.survives is not None:
            columns["survives"] = self.survives
        table = pandas.DataFrame(columns, dtype=object)
        unread = np.array(self.errors, dtype=object) != ""
        table.loc[unread, table.columns[1:]] = None
        return table.assign(error=[error or None for error in self.errors]) if unread.any() else table

    def to_csv(self, top: int = 1) -> str:
        """Return the table as CSV with a header: survives is true or false, and unknown values are empty."""
        table = self.table(top)
        if "survives" in table:
            table["survives"] = table["survives"].map({True: "true", False: "false"})
        return table.to_csv(index=False, lineterminator="\n")

    def __repr__(self) -> str:
        counts = np.bincount(self.labels[self.labels != NO_CLASS], minlength=len(self.class_names))
        classes = [f"{self.class_names[label]} {counts[label]}" for label in np.argsort(-counts, kind="stable")]
        parts = [f"{plural(len(self), 'image')}: {', '.join(classes[: np.count_nonzero(counts)]) or 'no class'}"]
        if self.survives is not None:
            parts.append(f"{int(self.survives.sum())} of {len(self) - self.unread} survive {self.attack}")
        return "; ".join([*parts, *([f"{self.unread} could not be read"] if self.unread else [])])


def predict(
    run_dir: str | os.PathLike[str],
    images: ImageSource,
    *,
    attack: str | None = None,
    weights: str = "model",
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    progress: Progress | None = None,
    model: nn.Module | None = None,
) -> Predictions:
    """Return the predicted class of every image by the model of a finished run; the run's data are not needed.

    Images are read and resized as in training; grey and colour are converted to match the run's images. Up to float32
    rounding, a prediction does not depend on the other images or their order.

    Args:
        run_dir: a finished run.
        images: files and folders (searched through, hidden files left out), or an array uint8 (N, H, W, C), C 1 or 3.
        attack: an attack, such as pgd-20 or pgd-20:restarts=5, with the run's ball and settings; `survives`
            says whether the predicted class (no label is known) survives it; this proves only that one attack failed.
        weights: which of the run's weights: model, model-last or model-best.
        batch_size: images that are in memory, and passed to the model, at a time.
        device: auto, cpu, cuda or cuda:N.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: a run that is not finished, an unknown attack or one without a ball, no image. An unreadable file
            does not raise: `errors` has the reason.
    """
    check_value("batch size", batch_size, Count)
    (names, listed, notes), where = find(images), resolve_device(device)
    run, network, record = load_model(run_dir, weights, model=model)
    classes, total, counted = record.data.class_names, len(names), Counted(network.to(where))
    spec = None if attack is None else catalogue.parse(attack, of_run(run, {"attacks": attack}))
    if spec is not None and spec.eps is None:  # survival is not defined
        advice = "" if spec.norm is None else f", or {spec.name} with a radius of its own, such as eps=0.5"
        raise UserError(f"attack: got {spec.name}, which has no ball; allowed: e.g. pgd-20, autoattack{advice}")
    cost = 1 + (0 if spec is None else spec.passes(len(classes)))
    labels = np.full(total, NO_CLASS, np.int64)
    probabilities = np.full((total, len(classes)), np.nan, np.float32)
    survives = None if spec is None else np.zeros(total, np.bool_)
    errors = [""] * total
    for start in range(0, total, batch_size):

        def report(inside: float, _: float, label: str, start: int = start) -> None:
            if progress is not None:
                progress(start * cost + inside, total * cost, label)

        batch, pixels = read(listed[start : start + batch_size], record.data.image_shape), dict[int, Pixels]()
        for number, image in enumerate(batch, start):
            if isinstance(image, str):
                errors[number] = image
            else:
                pixels[number] = image
        if rows := [*pixels]:
            images = np.stack([*pixels.values()])
            # The pixels of an image seed its random draws, by the first 63 bits of their hash.
            keys, seed = (fingerprints(images).byteswap() >> 1).astype(np.int64), run.evaluation.seed
            runner = Runner(counted, images, labels[rows], len(classes), batch_size, seed, where, keys=keys)
            with runner.still():
                clean, scores = runner.attack(Clean())
                labels[rows], probabilities[rows] = clean.predictions, scores
                if spec is not None and survives is not None:
                    side_by_side = batch_size if spec.batch_independent else 1
                    attacked = replace(runner, labels=clean.predictions, batch_size=side_by_side)
                    survives[rows] = attacked.attack(spec, natural=clean.predictions, progress=report)[0].correct
        report(len(batch) * cost, 0, f"{start + len(batch)} of {total} images")
    return Predictions(names, labels, classes, probabilities, survives, tuple(errors), attack or "", tuple(notes))


def find(given: ImageSource) -> tuple[tuple[str, ...], Sequence[Path] | Pixels, list[str]]:
    """Return names, images and notes of files, of folders (searched recursively) or of an array (N, H, W, C)."""
    if isinstance(given, np.ndarray | Tensor):
        if given.ndim == 3:  # one colour picture, or several grey ones
            allowed = "(N, H, W, C): x[None] of one picture, x[..., None] of grey ones"
            raise UserError(f"images: got shape {tuple(given.shape)}; allowed: {allowed}")
        return tuple(map(str, range(len(given)))), checked_images("images", given), []
    with custom_code("images: no array, file, folder, or list of files and folders"):
        listed = [Path(given)] if isinstance(given, str | os.PathLike) else [*map(Path, given)]
    below = {path: files_below(path) for path in listed if path.is_dir()}
    files = [file for path in listed for file in (filter(is_image, below[path]) if path in below else [path])]
    if not files:
        places = ", ".join(f"'{path}'" for path in listed[:3]) or "what was given"
        raise UserError(f"no image in {places}; allowed: files, or folders with any of {', '.join(sorted(SUFFIXES))}")
    return tuple(map(str, files)), files, left_out([file for inner in below.values() for file in inner])


def read(images: Sequence[Path] | Pixels, shape: ImageShape) -> list[Pixels | str]:
    """Return images (H, W, C) as inputs of a model of images `shape`, or the reason why one cannot be read."""
    if isinstance(images, np.ndarray):
        return [fitted(image, shape) for image in images]
    return [
        f"cannot read image '{path}': {image}" if isinstance(image, str) else fitted(image, shape)
        for path, image in decode_where_possible(images, shape[:0:-1])
    ]


def fitted(image: Pixels, shape: ImageShape) -> Pixels:
    """Return an image (H, W) or (H, W, C) as input for a model of images `shape` (C, H, W), uint8 (H, W, C).

    It is resized as in training, then converted to grey (ITU-R 601 luma) or colour.
    """
    channels, height, width = shape
    resized = scaled(picture(image), (width, height))
    return np.asarray(resized.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)
