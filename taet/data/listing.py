"""Image files with labels, listed by a folder or a table, and the data set made from them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data.dataset import PARTS, Dataset, Labels, Outline, Split
from taet.data.images import Survey, decode_all, survey
from taet.data.long_tail import held_out_counts
from taet.data.selection import VALIDATION, divided
from taet.errors import UserError
from taet.settings import Data

FRAME = re.compile(r"(.*\d)[_-](\d+)\.\w+")
"""File name of a frame: the number of the frame follows that of its sequence, as in 00012_00003_00029.png."""
FRAMES = r"(.*\d)[_-]\d+\."
"""The same as a group pattern."""
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Listing:
    """N image files with their labels, splits and groups."""

    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    """(N,)."""
    splits: tuple[str, ...] | None
    """The split of each file, one of PARTS; None: not given, so that TEST_SHARE of each class is for testing."""
    undivided: str
    """Why there is no given split, for notes and errors."""
    group_names: tuple[str, ...] | None
    """The group of each file, "" if it has none; None: no groups are used."""
    ungrouped: str
    """The option that reads the files without groups, for errors."""
    notes: tuple[str, ...] = ()
    subfolders: tuple[str, ...] = ()
    """Of a folder: the path of each file below its class folder, which may be used as its group."""
    likely_group: str | None = None
    """For a table without groups: a column that may hold them."""

    @cached_property
    def whole(self) -> Labels:
        """The labels of all files, with groups as numbers; a file without a group gets a number of its own."""
        if self.group_names is None:
            return Labels(self.labels, self.class_names)
        numbers: dict[str | int, int] = {}
        found = [numbers.setdefault(name or i, len(numbers)) for i, name in enumerate(self.group_names)]
        return Labels(self.labels, self.class_names, np.array(found, np.int64))

    def grouped_by(self, pattern: str) -> Listing:
        """Return the same files with groups from their names: the match of the pattern, or its first capture group.

        A pattern with a / is searched in paths below the folder of all files. A group may span classes and folders,
        except sequences that are numbered separately in each class, as in GTSRB's own layout.
        """
        searched = self.paths if "/" in pattern else tuple(file.name for file in self.files)
        found = [re.search(pattern, text) for text in searched]
        if not any(found):
            kind, where = "path", ""
            if "/" not in pattern:
                kind, where = "file name", f"; a pattern with / is searched in paths, e.g. '{self.paths[0]}'"
            raise UserError(f"data group pattern: '{pattern}' is found in no {kind}, e.g. '{searched[0]}'{where}")
        names = ["" if match is None else (match.groups() or (match[0],))[0] or "" for match in found]
        notes = self.notes
        if pattern == FRAMES and self.recounted:
            pairs = zip(names, self.labels, strict=True)
            names = [name and f"{self.class_names[label]}/{name}" for name, label in pairs]
            notes = (*notes, "file names repeat in several classes: each group by file names is of one class")
        return replace(self, group_names=tuple(names), ungrouped="--data.group-pattern None", notes=notes)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Paths of the files below the folder of all files, with /."""
        absolute = [file.absolute() for file in self.files]
        root = os.path.commonpath([file.parent for file in absolute])
        return tuple(file.relative_to(root).as_posix() for file in absolute)

    @cached_property
    def recounted(self) -> bool:
        """Whether most files share their name with a file of another class in the same split."""
        splits = self.splits or ("",) * len(self.files)
        named = [(split, file.name) for split, file in zip(splits, self.files, strict=True)]
        classes = Counter(name for name, _ in set(zip(named, self.labels.tolist(), strict=True)))
        return sum(classes[name] > 1 for name in named) > len(named) / 2

    @cached_property
    def survey(self) -> Survey:
        """The facts from the headers of the files."""
        return survey(self.files)

    def subfolders_are_groups(self) -> bool:
        """Whether the subfolders of the class folders can be used as groups."""
        return any(self.subfolders) and replace(self, group_names=self.subfolders).has_usable_groups()

    def has_usable_groups(self) -> bool:
        """Whether there are two or more groups in each class, none in two splits and, where no split is given, small
        enough to train on more than half of the images.
        """
        try:
            parts = self.parts(seed=0)
        except UserError:
            return False
        owners = np.unique(np.stack([self.labels, np.asarray(self.whole.groups)]), axis=1)[0]
        fewest = np.bincount(owners, minlength=len(self.class_names)).min()
        return bool(fewest > 1) and (self.splits is not None or len(parts["train"]) > len(parts["test"]))

    def are_frames(self) -> bool:
        """Whether the names of the files that can be trained on number the frames of sequences, of which each class has
        two or more, none in two classes or two splits.

        Nine of ten sequences must be whole: two frames or more, without a gap.
        """
        frames: dict[tuple[int, str], list[int]] = defaultdict(list)
        owners = set[tuple[int, tuple[int, str]]]()
        for place, (file, label) in enumerate(zip(self.files, self.labels.tolist(), strict=True)):
            if self.splits is None or self.splits[place] == "train":
                match = FRAME.fullmatch(file.name)
                if match is None:
                    return False
                sequence = label if self.recounted else 0, match[1]
                frames[sequence].append(int(match[2]))
                owners.add((label, sequence))
        whole = [len(found) > 1 and max(found) - min(found) == len(found) - 1 for found in frames.values()]
        of_class = Counter(label for label, _ in owners)
        if not frames or sum(whole) < 0.9 * len(whole) or len(owners) > len(frames) or min(of_class.values()) < 2:
            return False
        try:
            self.grouped_by(FRAMES).parts(seed=0)
        except UserError:
            return False
        return True

    def parts(self, seed: int) -> dict[str, NDArray[np.int64]]:
        """Return the positions of the files of each split; splits that cannot be trained or tested on are refused."""
        if self.splits is None:
            found = self._divided(seed)
        else:
            given = np.array(self.splits)
            found = {part: np.flatnonzero(given == part) for part in PARTS if part in self.splits}
        self._check(found)
        return found

    def _divided(self, seed: int) -> dict[str, NDArray[np.int64]]:
        counts = self.whole.class_counts.tolist()
        train, test = divided(self.whole, counts, held_out_counts(counts, TEST_SHARE), seed)
        if train is None or test is None:
            reason = f"no class has a {'second image' if self.group_names is None else 'group to spare'}"
            others = "" if self.group_names is None else f"; without groups: {self.ungrouped}"
            raise UserError(
                f"{self.undivided}, and {reason} to test on; allowed: test images, or more of each class{others}"
            )
        return {"train": np.sort(train), "test": np.sort(test)}

    def by_split(self) -> dict[str, Sequence[Path]]:
        """Return for each split the files that its `indices` refer to: all files if no split is given.

        A validation split that is not given is held out from the training split, so its indices refer to those files.
        """
        if self.splits is None:
            return dict.fromkeys(PARTS, self.files)
        pairs = list(zip(self.files, self.splits, strict=True))
        found = {part: [file for file, split in pairs if split == part] for part in PARTS}
        return {part: found[part] or found["train"] for part in PARTS}

    def outline(self, data: Data) -> Outline:
        """Return the labels of each split, and the shape of the images by their headers."""
        width, height = self.survey.common_size(data.size)
        splits = {part: self.whole.choose(positions) for part, positions in self.parts(data.seed).items()}
        return Outline(splits, (self.survey.channels, height, width))

    def dataset(self, data: Data) -> Dataset:
        """Read the files: images are grey if all files are, else RGB; see `taet.data.images.decode_all`.

        If validation images replace the test images, the test files are not decoded.
        """
        parts = self.parts(data.seed)
        parts |= {"test": parts["test"][:0]} if data.test == VALIDATION else {}
        read = np.sort(np.concatenate([*parts.values()]))
        files = [self.files[position] for position in read]
        images = decode_all(files, data.size, data.storage, self.survey, data.fit)
        chosen = self.whole.choose(read)
        whole = Split(images, chosen.labels, self.class_names, read, chosen.groups)
        splits = {part: whole.choose(np.searchsorted(read, positions)) for part, positions in parts.items()}
        if self.splits is not None:
            splits = {part: replace(split, indices=np.arange(len(split))) for part, split in splits.items()}
        notes = [*self._division(data.seed), *self.notes, *_similar_names(self.class_names)]
        notes += self.survey.sentences(data.size, data.fit)
        return Dataset(data.name, splits["train"], splits.get("validation"), splits["test"], notes=tuple(notes))

    def _check(self, parts: dict[str, NDArray[np.int64]]) -> None:
        """Refuse a class without a training image, and a group in two splits."""
        in_training = self.whole.choose(parts["train"]).class_counts
        if not in_training.all():
            label = int(in_training.argmin())
            file = self.files[int((self.labels == label).argmax())]
            raise UserError(f"class '{self.class_names[label]}' has no training image, only others such as '{file}'")
        if self.group_names is None or self.splits is None:
            return
        first: dict[str, int] = {}
        for position, (group, split) in enumerate(zip(self.group_names, self.splits, strict=True)):
            before = first.setdefault(group, position) if group else position
            if split != self.splits[before]:
                raise UserError(
                    f"group '{group}' is in two splits: '{self.files[before]}' is for {self.splits[before]}, "
                    f"'{self.files[position]}' for {split}; keep it in one; without groups: {self.ungrouped}"
                )

    def _division(self, seed: int) -> list[str]:
        notes = []
        if self.splits is None:
            share = f"{TEST_SHARE:.0%} of each class"
            share = f"{share}, rounded" if self.group_names is None else f"as near to {share} as whole groups come"
            notes.append(f"{self.undivided}: {share}, at least 1 of 2, is for testing (seed {seed})")
        if self.group_names is not None:
            alone = sum(not name for name in self.group_names)
            named = len(set(self.group_names)) - (alone > 0)
            notes.append(f"{named} groups, each in one split" + (f"; {alone} images stand alone" if alone else ""))
        return notes


def _similar_names(class_names: Sequence[str]) -> list[str]:
    """Return a note for class names that differ only in the case of letters or in their Unicode form."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        alike[unicodedata.normalize("NFC", name).casefold()].append(name)
    groups = (", ".join(f"'{name}'" for name in names) for names in alike.values() if len(names) > 1)
    return [f"different classes with similar names: {names}" for names in groups]
