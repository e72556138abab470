"""Loading data sets by name: find the source, choose images, read and resize them; preparing
official files."""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taet import registry
from taet.data.archives import command_to_unpack, is_archive
from taet.data.dataset import (
    DataFacts,
    Dataset,
    DataSource,
    Part,
    Split,
    dark,
    images_sha256,
)
from taet.data.downloads import Download, Missing, ready
from taet.data.image_files import PILLOW, ImageFiles, resized
from taet.data.long_tail import PROFILES
from taet.data.notes import OfTraining, Repeated
from taet.data.splits import BALANCED_SMALL, VALIDATION, select
from taet.data.storage import PIECE, Pixels, is_kept, kept, on_disk
from taet.errors import UserError, nearest, unknown
from taet.formatting import join_words
from taet.metrics.accuracies import Ints
from taet.progress import Progress
from taet.settings import Data
from taet.settings.arguments import checked_arguments
from taet.settings.schema import from_json, option

MANY_FILES = 2000  # from so many image files on, they are decoded once, into the cache
FILE_SOURCES = ("folder", "csv", "hf")
PATH_SOURCES = (*FILE_SOURCES, "npz")
# fields of `Data` that choose no images
WHOLE = {
    *("name", "root", "size", "storage", "skip_unreadable", "group"),
    *("group_pattern", "path_column", "label_column", "transparent"),
}
ALLOWED_FILES = "a folder, .zip, .tar, .tar.gz, .csv, .npz"
OPTIONS_OF_FILES = {
    "group_pattern": ("folder", "csv"),
    "path_column": FILE_SOURCES,
    "label_column": FILE_SOURCES,
    "transparent": FILE_SOURCES,
    "folds": FILE_SOURCES,
}
"""Fields of `Data` that have an effect on these sources only."""


def full_name(name: str) -> str:
    """Return the full name of a data set: a bare path gets its kind as a prefix.

    So `lesions` becomes folder:lesions if it is a folder. Other names are returned unchanged.
    """
    known, path = registry.entries("data"), Path(os.path.expanduser(name))
    if name in known or name.partition(":")[0] in known:
        return name
    if path.is_dir() or (path.is_file() and is_archive(path)):
        return f"folder:{name}"
    kind = {".npz": "npz", ".csv": "csv", ".tsv": "csv", ".tab": "csv"}.get(path.suffix.lower())
    return f"{kind}:{name}" if kind else name


def is_own(name: str) -> bool:
    """Whether `name` means the user's own images: {folder,csv,npz,hf}:PATH, or a bare path.

    Example:
        >>> from taet.data import is_own
        >>> is_own("folder:lesions"), is_own("cifar10-lt")
        (True, False)
    """
    return full_name(name).partition(":")[0] in PATH_SOURCES


def _resolved(data: Data) -> tuple[Data, registry.RegistryEntry]:
    """Return `data` with its full name and the profile and ratio that the name implies, and its
    registry entry."""
    name, known = full_name(data.name), registry.entries("data")
    kind, _, path = name.partition(":")
    if kind in PATH_SOURCES and not path:
        raise UserError(f"data '{kind}' needs a path: {kind}:PATH")
    place = Path(os.path.expanduser(name))
    if kind not in known and place.exists():
        command = command_to_unpack(place)
        allowed = f"the folder that it unpacks to: {command}" if command else ALLOWED_FILES
        raise UserError(f"data: got '{name}', a file of another kind; allowed: {allowed}")
    if kind not in known and os.sep in name:
        near = nearest(place.name, os.listdir(place.parent)) if place.parent.is_dir() else None
        hint = f"; did you mean '{place.parent / near}'?" if near else ""
        raise UserError(
            f"data: got '{name}', where nothing is; allowed: {ALLOWED_FILES} or "
            f"hf:NAME@COMMIT{hint}"
        )
    if kind not in known:
        here = [entry for entry in os.listdir() if not entry.startswith(".")]
        raise unknown("data set, and no folder, .csv or .npz file here:", name, known, also=here)
    published = getattr(known[kind].load(), "PUBLISHED", {}).get(name, {})
    ratio = data.imbalance_ratio
    if ratio is None and kind not in PATH_SOURCES and name.endswith(("-lt", BALANCED_SMALL)):
        ratio = float(published.get("imbalance_ratio", data.default_imbalance_ratio))
    profile = data.profile or published.get("profile", PROFILES[0])
    return data.replace(name=name, imbalance_ratio=ratio, profile=profile), known[kind]


def check_name(name: str) -> None:
    """Refuse a name that is no data set, and no path of images."""
    _resolved(Data(name=name))


def is_cut(data: Data) -> bool:
    """Whether the data are cut to a long tail: a class order then says which classes are rare."""
    return _resolved(data)[0].imbalance_ratio is not None


def source(data: Data, only_test: bool = False) -> DataSource | Dataset:
    """Return what the source of `data` holds, before anything is chosen; image files are not read.

    `only_test`: the images of a source of image files are all test images, in one split.
    """
    data, entry = _resolved(data)
    for name, sources in OPTIONS_OF_FILES.items():
        value = getattr(data, name)
        if value is not None and entry.name not in sources:
            allowed = join_words(f"{source}:" for source in sources)
            raise UserError(
                f"--{option(f'data.{name}')}: got '{value}' for {data.name}; "
                f"allowed: with {allowed}"
            )
    options = {"only_test": True} if only_test and entry.name in FILE_SOURCES else {}
    made: DataSource | Dataset = entry.call("read", DataSource | Dataset, data, **options)  # type: ignore[arg-type]
    if data.group not in (None, "none") and (
        next(iter(made.splits.values())).groups is None or not is_own(data.name)
    ):
        allowed = "with your own images that have groups"
        raise UserError(f"data group: got '{data.group}' for {data.name}; allowed: {allowed}")
    return replace(made, mirror=made.mirror if data.mirror == "auto" else data.mirror == "yes")


def facts(data: Data) -> DataFacts | None:
    """Return the facts about `load(data)`, from the headers of image files.

    It is None if official files are missing.

    Example:
        >>> import taet
        >>> facts = taet.data.facts(taet.settings.Data(imbalance_ratio=10, max_count=60))
        >>> facts.class_counts
        (60, 46, 35, 27, 21, 16, 12, 10, 7, 6)
    """
    data, _ = _resolved(data)
    try:
        found = source(data)
    except Missing:
        return None
    _, height, width, channels = found.splits["train"].images.shape
    shape = channels, data.size or height, data.size or width
    return DataFacts.of(select(found.splits, data)[0], shape)


def _decoded_once(part: Part, data: Data) -> Pixels | ImageFiles:
    """Return the images of a part, those of many files as a file of the cache, which is written
    once.

    That is done where the part has half of the files, and fits into memory; larger ones have files
    of their own. Without a cache that can be written, files are decoded each time.
    """
    images = part.images
    if not isinstance(images, ImageFiles) or data.storage != "auto":
        return images
    count, *pixels = images.shape
    if count < MANY_FILES or on_disk(len(part) * math.prod(pixels), data.storage):
        return images
    key = images.key
    if 2 * len(part) >= count or is_kept(images.shape, key):
        # also an image that cannot be read, which is then named where the part is read
        with contextlib.suppress(UserError):
            return kept(images.read(None), images.shape, key)
    return images


def read_images(part: Part, data: Data) -> Pixels:
    """Return the images of a part, resized as `data` says, in memory or mapped from disk."""
    images, size = _decoded_once(part, data), data.size
    _, height, width, channels = images.shape
    fits = size is None or (height, width) == (size, size)
    blocks: Iterator[Pixels]
    if isinstance(images, np.ndarray):
        is_mapped = isinstance(images, np.memmap)
        if fits and not is_mapped and data.storage != "disk":
            return images if part.rows is None else images[part.rows]
        blocks = _blocks_of(images, part)
    else:
        blocks = images.read(part.rows)
    if size is not None and not fits:
        blocks, height, width = resized(blocks, size), size, size

    shape = len(part), height, width, channels
    if not on_disk(math.prod(shape), data.storage):
        return _joined(blocks, shape)
    whole = images.key if isinstance(images, ImageFiles) else images_sha256(images, part.labels)
    chosen = "" if part.rows is None else hashlib.sha256(part.rows.tobytes()).hexdigest()
    return kept(blocks, shape, f"{whole}\n{chosen}\n{size}, {PILLOW}")


def _blocks_of(images: Pixels, part: Part) -> Iterator[Pixels]:
    """Yield the images of a part in pieces that fit into memory."""
    rows = np.arange(len(part)) if part.rows is None else part.rows
    step = max(1, PIECE // math.prod(images.shape[1:]))
    for first in range(0, len(rows), step):
        yield np.asarray(images[rows[first : first + step]])


def _joined(blocks: Iterable[Pixels], shape: tuple[int, ...]) -> Pixels:
    """Return the blocks as one array of this shape."""
    images, done = np.empty(shape, np.uint8), 0
    for block in blocks:
        images[done : done + len(block)] = block
        done += len(block)
    return images


def _read(part: Part, data: Data) -> Split:
    return Split(read_images(part, data), part.labels, part.class_names, part.indices, part.groups)


@checked_arguments
def load(name: str | os.PathLike[str] | Data, **settings: Any) -> Dataset:
    """Return a data set: `load(Data(...))`, or `load(name_or_path, **fields of Data)`.

    The name is one of `taet list data`, {folder,csv,npz,hf}:PATH, or a bare path. Sets named -lt
    are cut to a long-tailed profile, with classes in the order of the labels; those named
    -balanced-small get as many training images, spread evenly over the classes; others stay as they
    are unless an imbalance ratio is given. `validation` is held out after the cut and before
    `class_counts` are taken, whole groups at a time; a source's own validation split is kept
    instead. The same `seed` always chooses the same images. Mistakes in settings or files raise a
    `UserError`.

    Example:
        >>> import taet
        >>> digits = taet.data.load("digits-lt", imbalance_ratio=10, max_count=60)
        >>> digits.class_counts
        array([60, 46, 35, 27, 21, 16, 12, 10,  7,  6])
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    given = name.model_dump() if isinstance(name, Data) else {"name": name}
    data, entry = _resolved(from_json(Data, {**given, **settings}))
    found = source(data)
    chosen, notes = select(found.splits, data)
    made = {part: _read(of, data) for part, of in chosen.items()}
    if is_own(data.name) or entry.path:
        notes += _duplicate_notes(chosen, made)
        notes += dark(made["train"].images)
    notes += _group_notes(made["test"].groups)
    whole = data.extra is not None and chosen["test"].rows is not None and data.test != VALIDATION
    return Dataset(
        data.name,
        made["train"],
        made.get("validation"),
        made["test"],
        mirror=found.mirror,
        notes=(*dict.fromkeys([*found.notes, *notes]),),  # arrays of a plug-in may have one of them
        resized=found.resized or data.size is not None,
        whole_test=_read(found.splits["test"], data) if whole else None,
    )


def load_all(data: Data) -> Dataset:
    """Return your own images, of every split, as test images.

    They test a model that was trained on none of them.
    """
    others = sorted(data.model_dump(exclude_defaults=True).keys() - WHOLE)
    if others or not is_own(data.name):
        got = f"--data.{others[0].replace('_', '-')}" if others else data.name
        raise UserError(
            f"all images: got {got}; allowed: your own images, {', '.join(PATH_SOURCES)}, without "
            "a cut"
        )
    found = source(data, only_test=True)
    parts = [_read(part, data) for part in found.splits.values()]
    images, labels = map(
        np.concatenate, zip(*((part.images, part.labels) for part in parts), strict=True)
    )
    whole = Split(images, labels, parts[0].class_names, np.arange(len(labels)))
    groups = [part.groups for part in parts if part.groups is not None]
    notes = [
        f"all {len(labels)} images are test images",
        *_group_notes(np.concatenate(groups) if groups else None),
    ]
    notes += found.notes
    return Dataset(
        full_name(data.name),
        whole,
        None,
        whole,
        notes=tuple(notes),
        resized=found.resized,
        only_test=True,
    )


def _group_notes(groups: Ints | None) -> list[str]:
    """Return a note if test images share a group (N,): the errors on one patient's images are not
    independent."""
    if groups is None or (several := len(np.unique(groups))) == len(groups):
        return []
    return [
        f"{len(groups)} test images of {several} groups: intervals take images as independent, so "
        "too narrow"
    ]


class SameImages(NamedTuple):
    """Which images of a split are also in another split, or in another class."""

    part: str
    other: str
    is_repeated: NDArray[np.bool_]
    """(N,)"""


def _same_images(made: Mapping[str, Split]) -> Iterator[SameImages]:
    """Yield which images of each split are also in an earlier split, then in another class."""
    prints = {part: split.fingerprints for part, split in made.items()}
    for other, part in combinations(prints, 2):
        yield SameImages(part, other, np.isin(prints[part], prints[other], kind="sort"))
    every_print = np.concatenate([*prints.values()])
    every_label = np.concatenate([split.labels for split in made.values()])
    with_labels = np.unique(np.stack([every_print, every_label.astype(np.uint64)], 1), axis=0)
    distinct, class_numbers = np.unique(with_labels[:, 0], return_counts=True)
    for part, of_part in prints.items():
        in_several = np.isin(of_part, distinct[class_numbers > 1], kind="sort")
        yield SameImages(part, "another class", in_several)


def _duplicate_notes(chosen: Mapping[str, Part], made: Mapping[str, Split]) -> list[OfTraining]:
    """Return a note on how many images of a split are also in another, or in another class, each
    with an example."""
    # each once: validation images may be the test images
    names = {id(part): name for name, part in chosen.items()}
    sentences, files = list[str](), list[str]()
    numbers: dict[str, object] = {}
    for part, other, is_repeated in _same_images({name: made[name] for name in names.values()}):
        positions = np.flatnonzero(is_repeated)
        if not len(positions):
            continue
        rows, images = chosen[part].rows, chosen[part].images
        number = int(positions[0] if rows is None else rows[positions[0]])
        example = f"number {number}"
        if isinstance(images, ImageFiles):
            example = f"'{images.files[number]}'"
            files.append(str(images.files[number]))
        count = f"{len(positions)} of {len(made[part])} {part} images"
        sentences.append(f"{count} are also in {other}, e.g. {example}")
        if (part, other) == ("test", "train"):
            numbers["repeated_in_training"] = Repeated(len(positions), len(made[part]))
    if not sentences:
        return []
    text = f"identical images: {'; '.join(sentences)}"
    return [OfTraining(text, "identical-images", files=tuple(files), **numbers)]


def prepare(data: Data, progress: Progress) -> tuple[Dataset, list[str]]:
    """Download, check and unpack the missing files of a data set.

    The result is the set, and lines about what was done.

    Files go to the first data folder. Without a network, a `UserError` says which file to put
    where.
    """
    _, entry = _resolved(data)
    wanted: list[Download] = (
        entry.call("downloads", list, data) if hasattr(entry.load(), "downloads") else []
    )
    done = ["all is there" if wanted else "nothing to download"]
    try:
        source(data)
    except Missing:
        done = [ready(one, data, progress) for one in wanted]
    return load(data), done
