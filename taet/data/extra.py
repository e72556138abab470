"""Extra training images, real or generated: reading them, and how they are mixed into training batches.

They fill a share of every training batch and never enter validation or test. The images are drawn uniformly, so the
class prior of the batches follows from the files, and every class count that a loss uses is that of the mixture.
Source of the batches: wzekai99/DM-Improves-AT (Wang et al., ICML 2023, arXiv:2302.04638).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taet.data.arrays import npz_names, read_npz
from taet.data.dataset import Dataset, Split
from taet.data.files import class_rows
from taet.data.images import Files, survey
from taet.data.places import locate
from taet.data.source import GivenArray, checked_images, checked_labels
from taet.data.sources import fingerprints, read_images
from taet.data.storage import Images
from taet.data.tables import NUMBER
from taet.errors import UserError, located, unknown
from taet.settings import Data
from taet.statistics import Ints

KEYS = (("images", "labels"), ("image", "label"))
"""Arrays of an .npz; the second pair is that of the public files of generated CIFAR images."""


@dataclass(frozen=True)
class Extra:
    """The extra images that can be drawn, and the SHA-256 of the test images, none of which is among them."""

    split: Split
    test_sha256: str


@dataclass(frozen=True)
class Mixture:
    """Batches of `batch` images, `extra` of which are extra ones."""

    batch: int
    extra: int
    draw: tuple[float, ...]
    """m: probability of each class for an extra image, (C,)."""
    exposure: tuple[float, ...]
    """N pi: class counts of the real images as they would be if they had the prior of the batches, (C,).

    pi_c = (1 - phi) n_c / N + phi m_c, with phi the share of extra images in a batch
    """


def mixture(
    data: Data, class_counts: Sequence[int], batch_size: int, extra_counts: Sequence[int] | None = None
) -> Mixture | None:
    """Return the mixture for real and extra class counts n and e (C,), m = e / sum(e); None without extra images.

    A fraction f gives floor(f B) extra images in a batch of B. One that leaves no real or no extra image is refused.
    Before the extra images are read, m is the prior of the real ones.
    """
    if data.extra is None or data.extra_fraction == 0:
        return None
    kind, _, path = data.extra.partition(":")
    if kind not in READERS or not path:
        raise UserError(f"data extra: got '{data.extra}'; allowed: {', '.join(f'{one}:PATH' for one in READERS)}")
    extra = math.floor(data.extra_fraction * batch_size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < extra < batch_size:
        got = f"got {data.extra_fraction:g} with a batch size of {batch_size}, which leaves no"
        raise UserError(f"data extra fraction: {got} {'extra' if extra == 0 else 'real'} image; allowed: 0, or another")
    share, real = extra / batch_size, np.asarray(class_counts, np.float64)
    added = real if extra_counts is None else np.asarray(extra_counts, np.float64)
    draw = added / added.sum()
    exposure = (1 - share) * real + share * real.sum() * draw
    return Mixture(batch_size, extra, tuple(draw.tolist()), tuple(exposure.tolist()))


def read_extra(data: Data, dataset: Dataset) -> Extra:
    """Return the extra images that `data.extra` names; mistakes, and images of the test set, raise a `UserError`.

    Classes are those of the data set: class folders by name or number, labels of an .npz by number. Pixels and channels
    must be those of the training images.
    """
    assert data.extra is not None
    path = locate(data.replace(name=data.extra))
    with located("data extra"):
        images, labels = READERS[data.extra.partition(":")[0]](path, data, dataset.class_names)
        if labels.max() >= dataset.num_classes:
            raise UserError(f"'{path}': got label {labels.max()}; allowed: 0 to {dataset.num_classes - 1}")
        pixels = read_images(images, None, data)
        shapes = pixels.shape[1:], dataset.train.images.shape[1:]
        if shapes[0] != shapes[1]:
            got, wanted = (f"{w}x{h} pixels, {c} channels" for h, w, c in shapes)
            raise UserError(f"'{path}': got {got}; allowed: {wanted}, as the training images")
        test = dataset.test if dataset.whole_test is None else dataset.whole_test
        known = {"test": test} | ({"validation": dataset.validation} if dataset.validation is not None else {})
        for part, split in known.items():
            same = np.isin(fingerprints(pixels), fingerprints(split.images))
            if same.any():
                first = int(same.argmax())
                raise UserError(
                    f"'{path}': {same.sum()} of {len(pixels)} images are {part} images, e.g. number {first}"
                )
        return Extra(Split(pixels, labels, dataset.class_names, np.arange(len(labels))), test.sha256)


def _of_npz(path: Path, _: Data, __: Sequence[str]) -> tuple[Images, Ints]:
    names = npz_names(path)
    keys = next((pair for pair in KEYS if {*pair} <= {*names}), None)
    if keys is None:
        raise UserError(f"'{path}': got the arrays {', '.join(names) or 'none'}; allowed: images and labels")
    arrays: dict[str, GivenArray] = read_npz(path, keys)
    images, labels = checked_images(keys[0], arrays[keys[0]]), checked_labels(keys[1], arrays[keys[1]])
    if images.shape[0] != len(labels):
        raise UserError(f"'{path}': got {images.shape[0]} images but {len(labels)} labels")
    return images, labels


def _of_folder(path: Path, data: Data, names: Sequence[str]) -> tuple[Images, Ints]:
    if not path.is_dir():
        raise UserError(f"no such folder: '{path}'")
    rows = class_rows(path, "", Counter())
    for name in {row.label for row in rows} - {*names}:
        if not (NUMBER.fullmatch(name) and 0 <= int(name) < len(names)):
            raise unknown(f"class in '{path}':", name, names)
    numbers = {name: label for label, name in enumerate(names)}
    labels = [numbers[row.label] if row.label in numbers else int(row.label) for row in rows]
    return Files(survey([row.file for row in rows]), data.size, data.fit), np.array(labels, np.int64)


READERS = {"npz": _of_npz, "folder": _of_folder}
