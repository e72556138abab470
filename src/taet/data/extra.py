"""Extra training images, real or generated: reading them, and how they are mixed into training
batches.

They fill a share of every training batch and never enter validation or test. The images are drawn
uniformly, so the class prior of the batches follows from the files, and every class count that a
loss uses is that of the mixture. Source of the batches: wzekai99/DM-Improves-AT (Wang et al., ICML
2023, arXiv:2302.04638).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taet.data.arrays import read_npz
from taet.data.class_folders import class_folders
from taet.data.class_names import NUMBER
from taet.data.dataset import Dataset, Part, Split, checked_images, checked_labels
from taet.data.downloads import locate
from taet.data.labelled_images import surveyed
from taet.data.sources import read_images
from taet.data.storage import Pixels
from taet.errors import UserError, prefix_errors, unknown
from taet.settings import Data


@dataclass(frozen=True)
class Mixture:
    """Batches of `batch` images, `extra` of which are extra ones."""

    batch: int
    extra: int
    draw: tuple[float, ...]
    """m: probability of each class for an extra image, (C,)."""
    drawn_class_counts: tuple[float, ...]
    """N pi: class counts of the real images as they would be if they had the prior of the batches,
    (C,).

    pi_c = (1 - phi) n_c / N + phi m_c, with phi the share of extra images in a batch
    """


def mixture(
    data: Data,
    class_counts: Sequence[int],
    batch_size: int,
    extra_counts: Sequence[int] | None = None,
) -> Mixture | None:
    """Return the mixture for real and extra class counts n and e (C,), m = e / sum(e); None without
    extra images.

    A fraction f gives floor(f B) extra images in a batch of B, at least one and not all. Before the
    extra images are read, m is the prior of the real ones.
    """
    if data.extra is None or data.extra_fraction == 0:
        return None
    kind, _, path = data.extra.partition(":")
    if kind not in ("npz", "folder") or not path:
        raise UserError(f"data extra: got '{data.extra}'; allowed: npz:PATH, folder:PATH")
    extra = math.floor(data.extra_fraction * batch_size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < extra < batch_size:
        got = f"got {data.extra_fraction:g} with a batch size of {batch_size}, which leaves no"
        raise UserError(
            f"data extra fraction: {got} {'extra' if extra == 0 else 'real'} image; allowed: 0, or "
            "another"
        )
    share, real = extra / batch_size, np.asarray(class_counts, np.float64)
    added = real if extra_counts is None else np.asarray(extra_counts, np.float64)
    draw = added / added.sum()
    drawn_class_counts = (1 - share) * real + share * real.sum() * draw
    return Mixture(batch_size, extra, tuple(draw.tolist()), tuple(drawn_class_counts.tolist()))


def read_extra(data: Data, dataset: Dataset) -> Split:
    """Return the extra images that `data.extra` names; mistakes, and images of the test set, raise
    a `UserError`.

    Classes are those of the data set: class folders by name or number, labels of an .npz by number.
    Pixels and channels must be those of the training images.
    """
    assert data.extra is not None
    path, names = locate(data.replace(name=data.extra)), dataset.class_names
    read_part = _of_npz if data.extra.startswith("npz:") else _of_folder
    with prefix_errors(f"data extra: '{path}'"):
        part = read_part(path, data, names)
        if part.labels.max() >= len(names) or len(part) != part.images.shape[0]:
            got = f"{part.images.shape[0]} images and {len(part)} labels up to {part.labels.max()}"
            raise UserError(f"got {got}; allowed: a label for each image, 0 to {len(names) - 1}")
        pixels = read_images(part, data)
        _check_shape(pixels, dataset.train.images)
        extra = Split(pixels, part.labels, names, part.indices)
        _check_unseen(extra, dataset.whole_test or dataset.test, "test")
        if dataset.validation is not None:
            _check_unseen(extra, dataset.validation, "validation")
        return extra


def _check_shape(extra: Pixels, training: Pixels) -> None:
    """Refuse images of another size, or with other channels, than the training images."""
    if extra.shape[1:] != training.shape[1:]:
        got, wanted = (
            f"{width}x{height} pixels, {channels} channels"
            for _, height, width, channels in (extra.shape, training.shape)
        )
        raise UserError(f"got {got}; allowed: {wanted}, as the training images")


def _check_unseen(extra: Split, held_out: Split, name: str) -> None:
    """Refuse images that are also in a split that training may not see."""
    same = np.isin(extra.fingerprints, held_out.fingerprints)
    if same.any():
        raise UserError(
            f"{same.sum()} of {len(extra)} images are {name} images, e.g. number {same.argmax()}"
        )


def _of_npz(path: Path, data: Data, names: tuple[str, ...]) -> Part:
    def keys(arrays: Sequence[str]) -> tuple[str, str]:
        # the first of generated images
        pair = ("image", "label") if "image" in arrays else ("images", "labels")
        if not {*pair} <= {*arrays}:
            raise UserError(
                f"got the arrays {', '.join(arrays) or 'none'}; allowed: images and labels"
            )
        return pair

    images, labels = read_npz(path, keys, data.storage).values()
    numbers = checked_labels("labels", labels)
    if {*names} == {str(number) for number in range(len(names))} and numbers.max() < len(names):
        # not 0, 1, 10, 2
        numbers = np.array([names.index(str(number)) for number in range(len(names))])[numbers]
    return Part(checked_images("images", images), numbers, names, np.arange(len(labels)))


def _of_folder(path: Path, data: Data, names: tuple[str, ...]) -> Part:
    listed, _ = class_folders(path)
    numbers = {name: label for label, name in enumerate(names)}
    labels = {image.label for image in listed}
    for name in labels - {*names}:
        # Numbers stand for classes only if no folder has the name of a class.
        if labels & {*names} or not (NUMBER.fullmatch(name) and 0 <= int(name) < len(names)):
            raise unknown("class:", name, names)
        numbers[name] = int(name)
    files, readable = surveyed(listed, data)
    if not readable:
        raise UserError("got no image that can be read; allowed: one or more")
    extra_labels = np.array([numbers[image.label] for image in readable])
    return Part(files, extra_labels, names, np.arange(len(readable)))
