"""Loading data sets by name: find the source, cut it to its class counts, hold out, read and resize."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet import registry
from taet.data.dataset import DataFacts, Dataset, Split
from taet.data.files import Listing
from taet.data.images import Files, pillow, resized
from taet.data.long_tail import PROFILES
from taet.data.places import Missing
from taet.data.selection import BALANCED_SMALL, VALIDATION, Choice, select
from taet.data.source import DataSource, Labels
from taet.data.storage import Images, Pixels, gather, pieces, portions
from taet.errors import UserError, custom_code, located
from taet.settings import Data, from_json, to_json
from taet.statistics import Ints

PATH_SOURCES = ("folder", "csv", "npz", "taet-npy", "hf")
LONG_TAILED = "-lt"
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
"""Pairs of splits whose images are compared."""


def full_name(name: str) -> str:
    """Return `name`; a bare path gets its kind as a prefix, e.g. folder:lesions for lesions if that is a folder."""
    known = registry.entries("data")
    if name in known or name.partition(":")[0] in known:
        return name
    for ending, kind in ((".npz", "npz"), (".csv", "csv"), (".json", "csv")):
        if name.lower().endswith(ending):
            return f"{kind}:{name}"
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return f"taet-npy:{name}" if (path / "train_images.npy").is_file() else f"folder:{name}"
    return name


def is_own(name: str) -> bool:
    """Whether `name` means the user's own images: {folder,csv,npz,taet-npy,hf}:PATH, or a bare path."""
    return full_name(name).partition(":")[0] in PATH_SOURCES


def _named(data: Data) -> tuple[Data, registry.RegistryEntry]:
    """Return `data` with its full name and the profile and ratio that this name implies, and its file."""
    name = full_name(data.name)
    kind, _, path = name.partition(":")
    if kind in PATH_SOURCES and not path:
        raise UserError(f"data '{kind}' needs a path: {kind}:PATH")
    known = registry.entries("data")
    if kind not in known:
        near = next(iter(difflib.get_close_matches(kind, known, 1, 0.65)), None)
        raise UserError(
            f"data: there is no folder or file '{name}' here, and no data set of this name; allowed: a folder, a .csv, "
            f".json or .npz file, or one of {', '.join(known)}" + (f"; did you mean '{near}'?" if near else "")
        )
    entry = known[kind]
    every = getattr(entry.load(), "PUBLISHED", {})
    published = every.get(name, {}) if isinstance(every, Mapping) else None
    if not isinstance(published, Mapping):
        raise UserError(f"{entry.path}: PUBLISHED: got {every!r}; allowed: names with their settings")
    ratio = data.imbalance_ratio
    if ratio is None and kind not in PATH_SOURCES and name.endswith((LONG_TAILED, BALANCED_SMALL)):
        ratio = float(published.get("imbalance_ratio", data.default_imbalance_ratio))
    profile = data.profile or published.get("profile", PROFILES[0])
    return data.replace(name=name, imbalance_ratio=ratio, profile=profile), entry


def image_listing(data: Data) -> Listing | None:
    """Return the labelled image files of a folder, a table or the hub; None for other data."""
    data, entry = _named(data)
    if not hasattr(entry.load(), "listing"):
        return None
    listed = entry.call("listing", Listing, data)
    return listed.readable() if data.skip_unreadable else listed


def source(data: Data) -> DataSource:
    """Return what the source of `data` holds, before anything is chosen; images are not read where that is possible."""
    listed = image_listing(data)
    data, entry = _named(data)
    if listed is not None:
        return listed.source(data)
    made: DataSource | Dataset = entry.call("read", DataSource | Dataset, data)  # type: ignore[arg-type]
    if isinstance(made, Dataset):
        if entry.path is not None:
            _check_custom(made, entry.path)
        splits = {part: Labels(of.labels, of.class_names, of.groups, of.indices) for part, of in made.splits.items()}
        images = {part: of.images for part, of in made.splits.items()}
        made = DataSource(made.name, splits, images, made.mirror, made.notes, made.resized)
    if data.group not in (None, "none") and (made.splits["train"].groups is None or not is_own(data.name)):
        raise UserError(
            f"data group: got '{data.group}' for {data.name}; allowed: with your own images that have groups"
        )
    return made


def _check_custom(made: Dataset, path: Path) -> None:
    """Refuse an invalid result from the file of a custom data set."""
    with located(f"{path}: read"), custom_code("no data set"):
        pairs = {part: (split.images, split.labels) for part, split in made.splits.items()}
        names, same = made.class_names, (split.class_names for split in made.splits.values())
        Dataset.from_arrays(*pairs["train"], *pairs["test"], validation=pairs.get("validation"), class_names=names)
        if not all(isinstance(split, Split) and split.labels.dtype == np.int64 for split in made.splits.values()):
            raise UserError("got no Split; allowed: what Dataset.from_arrays makes")
        if any(other != names for other in same):
            raise UserError("got splits with different class names; allowed: equal names")


def mirrors(data: Data, mirror: bool) -> bool:
    """Return whether images may be mirrored: by `data`, else by the source."""
    return mirror if data.mirror == "auto" else data.mirror == "yes"


def facts(data: Data) -> DataFacts | None:
    """Return the facts about `taet.data.load(data)` without reading its images; None: official files are not here.

    Image files are known by their headers, arrays by their labels. Settings that `load` refuses raise the same
    `UserError`.
    """
    data, _ = _named(data)
    try:
        found = source(data)
    except Missing:
        return None
    chosen, _ = select(found.splits, data)
    splits = {part: choice.of(found.splits) for part, choice in chosen.items()}
    channels, height, width = found.image_shape
    shape = channels, data.size or height, data.size or width
    return DataFacts.of_labels(splits, shape, mirrors(data, found.mirror))


def read_images(images: Images, rows: Ints | None, data: Data) -> Pixels:
    """Return the images at `rows`, None: all, resized as `data` says, in memory or mapped from disk."""
    number, height, width, channels = images.shape
    number = number if rows is None else len(rows)
    fits = data.size is None or (height, width) == (data.size, data.size)
    shape = number, *((height, width) if fits else (data.size, data.size)), channels
    if isinstance(images, np.ndarray):
        if fits and not isinstance(images, np.memmap):
            return images if rows is None else images[rows]
        chosen = np.arange(number) if rows is None else rows
        blocks: Iterator[Pixels] = (images[some] for some in portions(chosen, images.shape))
    else:
        blocks = images.read(rows)
    if not fits:
        assert data.size is not None
        blocks = resized(blocks, data.size, data.fit)

    def key() -> str:
        if isinstance(images, np.ndarray):
            whole = "".join(hashlib.sha256(np.ascontiguousarray(piece).data).hexdigest() for piece in pieces(images))
        else:
            whole = images.key
        chosen = "" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()
        return f"{whole}\n{chosen}\n{data.size} by {data.fit}, {pillow()}"

    return gather(blocks, shape, key=key, storage=data.storage)


def _read(found: DataSource, choice: Choice, data: Data) -> Split:
    labels = choice.of(found.splits)
    images = read_images(found.images[choice.origin], choice.positions, data)
    assert labels.indices is not None
    return Split(images, labels.labels, labels.class_names, labels.indices, labels.groups)


def load(name: str | Data, **settings: Any) -> Dataset:
    """Return a data set: `load(Data(...))`, or `load(name_or_path, **fields of Data)`.

    The name is one of `taet list data`, {folder,csv,npz,taet-npy,hf}:PATH, or a bare path; the settings are the fields
    of `taet.settings.Data`. Sets named -lt are cut to a long-tailed profile, with classes in the order of the labels;
    those named -balanced-small get as many training images, spread evenly over the classes; others stay as they are
    unless an imbalance ratio is given. `max_count` is the largest training class of the profile, or a cap on every
    class where nothing is cut; `test_max_count` does the same for the test set. `validation` is held out after the cut
    and before `class_counts` are taken, whole groups at a time; a source's own validation split is kept instead. `size`
    resizes with bilinear, antialiased interpolation, images that are not square by `fit`. The same `seed` always
    chooses the same images, smaller sets within larger ones where there are no groups. Mistakes in settings or files
    raise a `UserError`.
    """
    given = to_json(name) if isinstance(name, Data) else {"name": name}
    data, _ = _named(from_json(Data, {**given, **settings}))
    found = source(data)
    if data.fit != "squeeze" and data.size is None and not found.resized:
        raise UserError(f"data fit: got {data.fit} for images that keep their size; allowed: with --data.size")
    chosen, notes = select(found.splits, data)
    made = {part: _read(found, choice, data) for part, choice in chosen.items()}
    if is_own(data.name):
        own = {part: split for part, split in made.items() if part != "test" or data.test != VALIDATION}
        notes += _repeats(own, found, chosen)
    whole = data.extra is not None and chosen["test"].positions is not None and data.test != VALIDATION
    return Dataset(
        found.name,
        made["train"],
        made.get("validation"),
        made["test"],
        mirror=mirrors(data, found.mirror),
        notes=(*found.notes, *notes),
        resized=found.resized or data.size is not None,
        whole_test=_read(found, Choice("test", None), data) if whole else None,
    )


def fingerprints(images: Pixels) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each image's pixels, (N,)."""
    hashes = (
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
        for piece in pieces(images)
        for image in piece
    )
    return np.frombuffer(b"".join(hashes), np.uint64)


def _repeats(splits: Mapping[str, Split], found: DataSource, chosen: Mapping[str, Choice]) -> Sequence[str]:
    """Return a note on how many images of one split are also in another, with an example, if there are any."""
    hashes, notes = {part: fingerprints(split.images) for part, split in splits.items()}, []
    for part, other in PAIRS:
        if part not in hashes or other not in hashes:
            continue
        positions = np.flatnonzero(np.isin(hashes[part], hashes[other]))
        if len(positions):
            rows, held = chosen[part].positions, found.images[chosen[part].origin]
            number = int(positions[0] if rows is None else rows[positions[0]])
            example = f"'{held.files[number]}'" if isinstance(held, Files) else f"number {number}"
            notes.append(f"{len(positions)} of {len(splits[part])} {part} images are also in {other}, e.g. {example}")
    return ["identical images: " + "; ".join(notes)] if notes else []
