"""From a data set's name to its splits: find the source, cut it to its class counts, hold out, resize."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from taet import registry
from taet.config import Data
from taet.data.dataset import Dataset, Split
from taet.data.images import resize
from taet.data.long_tail import PROFILES, divide, held_out_counts, largest_max_count, long_tail_counts
from taet.errors import UserError, unknown

PATH_SOURCES = ("npz", "folder")
TESTS = ("long-tailed", "balanced")


def _full_name(name: str) -> str:
    """Return `name`, with npz: or folder: put before a bare path."""
    if name in registry.entries("data") or name.partition(":")[0] in PATH_SOURCES:
        return name
    if name.endswith(".npz"):
        return f"npz:{name}"
    if Path(name).expanduser().is_dir():
        return f"folder:{name}"
    if os.sep in name:
        raise UserError(
            f"no such data: '{name}'; allowed: an .npz file, a folder of class folders, or a name of `taet list data`"
        )
    return name


def _read(data: Data) -> Dataset:
    kind, _, path = data.name.partition(":")
    if kind in PATH_SOURCES and not path:
        raise UserError(f"data '{kind}' needs a path: {kind}:PATH")
    dataset: Dataset = registry.find("data", kind).load().read(data)
    return dataset


def _long_tailed(split: Split, part: str, ratio: float, profile: str, max_count: int | None) -> list[int]:
    """Return the long-tailed class counts of `split`, the largest that it allows where `max_count` is not given."""
    available = split.class_counts.tolist()
    largest = largest_max_count(available, ratio, profile)
    if largest == 0:
        raise UserError(f"{part}: class '{split.class_names[0]}' has no image, but is to be the largest class")
    if max_count is not None and max_count > largest:
        counts = long_tail_counts(len(available), max_count, ratio, profile)
        short = next(c for c, count in enumerate(counts) if count > available[c])
        raise UserError(
            f"{part}: a largest class of {max_count} at imbalance ratio {ratio:g} needs {counts[short]} images "
            f"of class '{split.class_names[short]}', which has {available[short]}; the largest that fits: {largest}"
        )
    return long_tail_counts(len(available), max_count or largest, ratio, profile)


def _capped(split: Split, max_count: int | None) -> list[int]:
    counts: list[int] = split.class_counts.tolist()
    return counts if max_count is None else [min(count, max_count) for count in counts]


def _class_counts(source: Dataset, data: Data) -> tuple[list[int], list[int], list[str]]:
    """Return the class counts of the training and of the test set, and in words how they came about."""
    ratio = data.imbalance_ratio
    if ratio is None and data.name.partition(":")[0] not in PATH_SOURCES:
        ratio = data.default_imbalance_ratio
    train_counts, test_counts = _capped(source.train, data.max_count), _capped(source.test, data.test_max_count)
    if ratio is None:
        capped = ", but for the caps on its classes" if data.max_count or data.test_max_count else ""
        notes = [f"taken as it is{capped}: the source's imbalance ratio is {source.imbalance_ratio:.4g}"]
    else:
        train_counts = _long_tailed(source.train, "training set", ratio, data.profile, data.max_count)
        notes = [f"training set cut to the {data.profile} profile, imbalance ratio {ratio:g}, seed {data.seed}"]
        if data.test == "long-tailed":
            test_counts = _long_tailed(source.test, "test set", ratio, data.profile, data.test_max_count)
            notes.append("test set cut to the same profile and ratio")
        else:
            most = "all images" if data.test_max_count is None else f"at most {data.test_max_count} images"
            notes.append(f"test set not made long-tailed: {most} of each class")
    if 0 in train_counts:
        empty, largest = source.class_names[train_counts.index(0)], max(train_counts)
        raise UserError(
            f"class '{empty}' would get no training image: imbalance ratio {ratio:g} with {largest} images in the "
            f"largest class; allowed: up to {largest}"
        )
    lacking = [name for name, count in zip(source.class_names, test_counts, strict=True) if count == 0]
    if lacking:
        notes.append(f"no test image of: {', '.join(lacking)}")
    return train_counts, test_counts, notes


def _divided(split: Split, counts: list[int], held_out: list[int], seed: int) -> tuple[Split, Split | None]:
    if sum(counts) == len(split) and not any(held_out):
        return split, None  # all of it, in its own order
    kept, held = divide(split.labels, counts, held_out, seed)
    return split.choose(kept), split.choose(held) if any(held_out) else None


def _resized(split: Split, size: int | None) -> Split:
    return split if size is None else replace(split, images=resize(split.images, size))


def load(
    name: str,
    *,
    root: str | None = None,
    imbalance_ratio: float | None = None,
    default_imbalance_ratio: float = 10.0,
    profile: Literal["exponential", "linear", "step"] = "exponential",
    max_count: int | None = None,
    test: Literal["long-tailed", "balanced"] = "long-tailed",
    test_max_count: int | None = None,
    validation: float = 0.0,
    size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Return the data set `name`: digits-lt, cifar10-lt, npz:PATH, folder:PATH, or the bare path of either.

    The sets named -lt are cut to a long-tailed profile with `imbalance_ratio`, or `default_imbalance_ratio` where that
    is not given, classes in the order of the labels; others are taken as they are unless it is given. `max_count` is
    the largest training class (by default the largest that the data allow) or, where nothing is cut, a cap on every
    class; `test_max_count` does the same for the test set. `test`: "long-tailed" cuts the test set with the same ratio,
    "balanced" leaves it. `validation` holds out that share of each training class, after the cut and before
    `class_counts` are counted; a source's own validation split is kept instead. `size` resizes to size x size pixels,
    bilinear and antialiased. The same `seed` always chooses the same images, smaller sets within larger ones. Mistakes
    in arguments or files are a `UserError`.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    if test not in TESTS:
        raise unknown("test set", test, TESTS)
    full_name = _full_name(name)
    data = Data(
        name=full_name,
        root=root,
        imbalance_ratio=imbalance_ratio,
        default_imbalance_ratio=default_imbalance_ratio,
        profile=profile,
        max_count=max_count,
        test=test,
        test_max_count=test_max_count,
        validation=validation,
        size=size,
        seed=seed,
    )
    source = _read(data)
    train_counts, test_counts, notes = _class_counts(source, data)

    held_out = [0] * source.num_classes
    if source.validation is not None:
        notes.append("the source's own validation split is kept" + (", nothing else is held out" if validation else ""))
    elif validation:
        held_out = held_out_counts(train_counts, validation)
        notes.append(f"{validation:.3g} of each training class, rounded, at least 1 of 2, is held out for validation")

    train_split, held_out_split = _divided(source.train, train_counts, held_out, seed)
    test_split, _ = _divided(source.test, test_counts, [0] * source.num_classes, seed)
    validation_split = held_out_split if source.validation is None else source.validation
    return replace(
        source,
        train=_resized(train_split, size),
        validation=None if validation_split is None else _resized(validation_split, size),
        test=_resized(test_split, size),
        notes=(*source.notes, *notes),
    )
