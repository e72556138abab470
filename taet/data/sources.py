"""Loading data sets by name: find the source, cut it to its class counts, hold out, resize."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from taet import registry
from taet.data.dataset import Dataset, Outline, Split
from taet.data.image_store import gather
from taet.data.images import pillow, resized
from taet.data.listing import Listing
from taet.data.long_tail import PROFILES
from taet.data.places import passed_over
from taet.data.repeats import exact, fingerprints, near, nearest
from taet.data.rows import NUMBER
from taet.data.selection import BALANCED_SMALL, VALIDATION, select
from taet.errors import UserError, custom_code, located
from taet.settings import Data, Fit, from_json, to_json

PATH_SOURCES = ("folder", "csv", "npz", "taet-npy")
GROUPED = "folder:PATH, csv:PATH, npz:PATH"
LONG_TAILED = "-lt"
NAMED = ("folder:", "csv:")
"""Sources in which the user names the classes."""
SIDES = re.compile(r"(?<![A-Za-z])(left|right|LEFT|RIGHT)(?![A-Za-z])|(Left|Right)(?![a-z])")
"""Whole words in class names (not bright or leftover) that are wrong for a mirrored image."""
SMALLEST = 16
"""Smallest side in pixels that is compared: too many smaller images are alike."""
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
"""Pairs of splits whose images are compared."""
MOST_PAIRS = 10**9
"""Most pairs of images that are compared when a set is read, which takes some seconds."""


def full_name(name: str) -> str:
    """Return `name`; a bare path gets its kind as a prefix, e.g. folder:lesions for lesions if that is a folder."""
    if name in registry.entries("data") or name.partition(":")[0] in PATH_SOURCES:
        return name
    for suffix in ("npz", "csv"):
        if name.lower().endswith(f".{suffix}"):
            return f"{suffix}:{name}"
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return f"taet-npy:{name}" if (path / "train_images.npy").is_file() else f"folder:{name}"
    if os.sep in name:
        raise UserError(
            f"no such data: '{name}'; allowed: an .npz or .csv file, a folder of class folders, "
            "or a name of `taet list data`"
        )
    return name


def is_own(name: str) -> bool:
    """Whether `name` means the user's own images: folder:PATH, csv:PATH, npz:PATH, taet-npy:PATH, or a bare path."""
    return full_name(name).partition(":")[0] in PATH_SOURCES


def _source(data: Data) -> tuple[Data, registry.RegistryEntry]:
    """Return `data` with its full name and the profile and ratio that this name implies, and its file."""
    name = full_name(data.name)
    kind, _, path = name.partition(":")
    if kind in PATH_SOURCES and not path:
        raise UserError(f"data '{kind}' needs a path: {kind}:PATH")
    source = registry.find("data", kind)
    every = getattr(source.load(), "PUBLISHED", {})
    published = every.get(name, {}) if isinstance(every, Mapping) else None
    if not isinstance(published, Mapping):
        raise UserError(f"{source.path}: PUBLISHED: got {every!r}; allowed: names with their settings")
    ratio = data.imbalance_ratio
    if ratio is None and kind not in PATH_SOURCES and name.endswith((LONG_TAILED, BALANCED_SMALL)):
        ratio = float(published.get("imbalance_ratio", data.default_imbalance_ratio))
    profile = data.profile or published.get("profile", PROFILES[0])
    return data.replace(name=name, imbalance_ratio=ratio, profile=profile), source


def _listing(data: Data, source: registry.RegistryEntry) -> Listing | None:
    listed = source.call("listing", Listing, data) if hasattr(source.load(), "listing") else None
    if data.group_pattern is None:
        return listed
    if listed is None:
        raise UserError(f"data group pattern: '{data.name}' has no file names; allowed with folder:PATH and csv:PATH")
    if data.group is not None:
        raise UserError(f"data group pattern: got '{data.group_pattern}' with data group '{data.group}'; allowed: one")
    return listed.grouped_by(data.group_pattern)


def image_listing(data: Data) -> Listing | None:
    """Return the image files of folder:PATH, csv:PATH or a bare path with their labels; None for other data."""
    return _listing(*_source(data))


def _check_group(data: Data, groups: object) -> None:
    """Refuse --data.group if the source has no `groups` or always uses them."""
    if data.group is not None and not (is_own(data.name) and groups is not None):
        why = "has no groups" if groups is None else "keeps its own groups in one split without it"
        allowed = "allowed" if is_own(data.name) else "allowed with"
        raise UserError(f"data group: got '{data.group}'; '{data.name}' {why}; {allowed}: {GROUPED}")


def sized(split: Split, size: int | None, storage: str, fit: Fit = "squeeze") -> Split:
    """Return the split with images of `size` x `size` pixels; None: unchanged. `storage`: see `on_disk`."""
    number, height, width, channels = split.images.shape
    if size is None or (height, width) == (size, size):
        return split
    key = f"{split.sha256} resized to {size}, {pillow()}" + ("" if fit == "squeeze" else f", {fit}")
    images = gather(resized(split.images, size, fit), (number, size, size, channels), key=key, storage=storage)
    return replace(split, images=images)


def sided(data: Data, class_names: Sequence[str]) -> str:
    """Return why the user's own images are not mirrored; "" if they are. Arrays without class names have numbers."""
    if any(map(SIDES.search, class_names)):
        return "class names say left or right"
    if full_name(data.name).startswith(NAMED) and class_names and all(map(NUMBER.fullmatch, class_names)):
        return "class names that are numbers do not say whether left and right matter"
    return ""


def mirrors(data: Data, mirror: bool, class_names: Sequence[str]) -> bool:
    """Return whether images may be mirrored: by `data`, else by the source and, for own images, the class names."""
    if data.mirror != "auto":
        return data.mirror == "yes"
    return mirror and not (is_own(data.name) and sided(data, class_names))


def _repeats(splits: Mapping[str, Split], listed: Listing | None) -> list[str]:
    """Return a note on how many images of one split are also in another, with an example, if there are any."""
    found = {part: fingerprints(split.images) for part, split in splits.items()}
    notes = []
    for part, other in PAIRS:
        if part in found and other in found:
            positions = np.flatnonzero(np.isin(found[part], found[other]))
            if len(positions):
                index = int(splits[part].indices[positions[0]])
                example = f"number {index}" if listed is None else f"'{listed.by_split()[part][index]}'"
                notes.append(
                    f"{len(positions)} of {len(splits[part])} {part} images are also in {other}, e.g. {example}"
                )
    return ["identical images: " + "; ".join(notes)] if notes else []


def _near_repeats(splits: Mapping[str, Split], listed: Listing | None) -> list[str]:
    """Return notes about images that are nearly, but not exactly, equal to one of another split, with examples."""
    if min(splits["train"].images.shape[1:3]) < SMALLEST:
        return []
    files = {} if listed is None else listed.by_split()
    notes = list[str]()
    for part, other in PAIRS:
        if not {part, other} <= splits.keys():
            continue
        words = f"{part} images are nearly the same as a {'training' if other == 'train' else other} image"
        images, others = splits[part].images, splits[other].images
        if len(images) * len(others) > MOST_PAIRS:
            notes.append(f"near-duplicates: not looked for which {words}, among more than {MOST_PAIRS:,} pairs")
            continue
        found = np.flatnonzero(near(images, others, mirror=False) & ~exact(images, others))
        if len(found) == 0:
            continue
        position = int(splits[part].indices[found[0]])
        partner = int(splits[other].indices[nearest(images[found[:1]], others)[0]])
        one, like = (
            f"number {index}" if listed is None else f"'{files[name][index].name}'"
            for name, index in ((part, position), (other, partner))
        )
        grouped = splits[part].groups is not None
        way = "" if grouped else "; --data.group or --data.group-pattern keeps such in one split"
        notes.append(f"near-duplicates: {len(found)} of {len(images)} {words}, e.g. {one} as {like}{way}")
    return notes


def _check_custom(source: Dataset, path: Path) -> None:
    """Refuse an invalid result from the file of a custom data set."""
    with located(f"{path}: read"), custom_code("no data set"):
        pairs = {part: (split.images, split.labels) for part, split in source.splits.items()}
        names, same = source.class_names, (split.class_names for split in source.splits.values())
        Dataset.from_arrays(*pairs["train"], *pairs["test"], validation=pairs.get("validation"), class_names=names)
        if not all(isinstance(split, Split) and split.labels.dtype == np.int64 for split in source.splits.values()):
            raise UserError("got no Split; allowed: what Dataset.from_arrays makes")
        if any(other != names for other in same):
            raise UserError("got splits with different class names; allowed: equal names")


def load(name: str | Data, **settings: Any) -> Dataset:
    """Return a data set: `load(Data(...))`, or `load(name_or_path, **fields of Data)`.

    The name is one of `taet list data`, {folder,csv,npz,taet-npy}:PATH, or a bare path; the settings are the fields of
    `Data`. Sets named -lt are cut to a long-tailed profile, with classes in the order of the labels; those
    named -balanced-small get as many training images, spread evenly over the classes; others stay as they are unless an
    imbalance ratio is given. `max_count` is the largest training class of the profile, or a cap on every class where
    nothing is cut; `test_max_count` does the same for the test set. `validation` is held out after the cut and before
    `class_counts` are taken, whole groups at a time; a source's own validation split is kept instead. `size` resizes
    with bilinear, antialiased interpolation, images that are not square by `fit`. The same `seed` always chooses the
    same images, smaller sets within larger ones where there are no groups. Mistakes in settings or files raise a
    `UserError`.
    """
    given = to_json(name) if isinstance(name, Data) else {"name": name}
    data: Data = from_json(Data, {**given, **settings})
    data, file = _source(data)
    listed = _listing(data, file)
    source = file.call("read", Dataset, data) if listed is None else listed.dataset(data)
    if file.path is not None:
        _check_custom(source, file.path)
    _check_group(data, source.train.groups)
    if data.fit != "squeeze" and data.size is None and not source.resized:
        raise UserError(f"data fit: got {data.fit} for images that keep their size; allowed: with --data.size")
    chosen, notes = select(source.splits, data)
    notes += passed_over(data)
    splits = {part: choice.of(source.splits) for part, choice in chosen.items()}
    made = {part: sized(split, data.size, data.storage, data.fit) for part, split in splits.items()}
    if is_own(data.name):
        own = {part: split for part, split in splits.items() if part != "test" or data.test != VALIDATION}
        notes += [*_repeats(own, listed), *_near_repeats({part: made[part] for part in own}, listed)]
    return replace(
        source,
        train=made["train"],
        validation=made.get("validation"),
        test=made["test"],
        whole_test=None if chosen["test"].positions is None or data.test == VALIDATION else source.test,
        resized=source.resized or data.size is not None,
        mirror=mirrors(data, source.mirror, source.class_names),
        notes=(*source.notes, *notes),
    )


@dataclass(frozen=True)
class DataFacts:
    """Class counts, shape and sizes of a data set as a run uses it: after cut, split and resizing."""

    class_counts: tuple[int, ...]
    """Training images of each class, (C,)."""
    image_shape: tuple[int, int, int]
    """(C,H,W), as a model takes it."""
    sizes: Mapping[str, int]
    """Images of each split: "train", "test" and, if there is one, "validation"."""
    class_names: tuple[str, ...] | None = None
    """In the order of the labels; None if they are in files that are not there."""
    mirror: bool = True
    """Whether a mirrored image keeps its label."""
    test_counts: tuple[int, ...] = ()
    """Test images of each class, (C,)."""

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)

    @classmethod
    def of(cls, dataset: Dataset) -> DataFacts:
        """Return the facts of a data set that is loaded."""
        return cls(
            tuple(dataset.class_counts.tolist()),
            dataset.image_shape,
            {part: len(split) for part, split in dataset.splits.items()},
            dataset.class_names,
            dataset.mirror,
            tuple(dataset.test.class_counts.tolist()),
        )


def facts(data: Data) -> DataFacts | None:
    """Return the facts about `taet.data.load(data)` that are known without reading images, or None.

    Published sets are known from their constants, so that their files need not be there: digits, CIFAR, Fashion-MNIST,
    Tiny-ImageNet, GTSRB, and six sets of MedMNIST. User data are listed: image files by their headers, arrays by their
    labels. None: a set of a plugin, or one whose class counts are in files that are not there. Settings that `load`
    refuses raise the same `UserError`.
    """
    data, file = _source(data)
    listed = _listing(data, file)
    source: Outline | None = None
    if listed is not None:
        source = listed.outline(data)
    elif hasattr(file.load(), "outline"):
        source = file.call("outline", Outline | None, data)  # type: ignore[arg-type]
    if source is None:
        return None
    _check_group(data, source.splits["train"].groups)
    chosen, _ = select(source.splits, data)
    counts = {part: tuple(choice.of(source.splits).class_counts.tolist()) for part, choice in chosen.items()}
    channels, height, width = source.image_shape
    names = source.splits["train"].class_names if source.named else None
    return DataFacts(
        counts["train"],
        (channels, data.size or height, data.size or width),
        {part: sum(count) for part, count in counts.items()},
        names,
        mirrors(data, source.mirror, names or ()),
        counts["test"],
    )
