"""Data sets of the Hugging Face hub, of parquet files or folders of images, at a pinned
revision."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from taet.data.class_names import MISSING, by_number
from taet.data.dataset import DataSource
from taet.data.labelled_images import SPLITS, LabelledImage, source_of
from taet.data.notes import DataNote
from taet.errors import UserError, needed, prefix_errors, unknown, wrapping_user_code
from taet.own_data.tables import roles_of
from taet.settings import Data

NAMES = {
    "hf": "hf:USER/NAME@REVISION, images of the Hugging Face hub with a column of labels; needs "
    "taet[datasets]"
}
HIDDEN = -1
"""Label of the images of a competition's test set in a column of class labels."""


@dataclass(frozen=True, eq=False)
class HubImage:
    """An encoded image in a column of a table; its bytes are read from the cached table when it is
    opened."""

    table: Any
    column: str
    number: int
    name: str

    def open(self, _: str, /) -> IO[bytes]:
        """Open the image for reading."""
        cell = self.table[self.number][self.column]
        return Path(cell["path"]).open("rb") if cell["bytes"] is None else io.BytesIO(cell["bytes"])

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        # of the table's content: a revision may move
        return f"{self.name} of {self.table._fingerprint}"


@dataclass(frozen=True)
class HubColumns:
    """The columns of a data set of the hub that are read."""

    image: str
    label: str
    group: str | None
    class_names: Sequence[str] | None
    """In the order of the labels, if these are numbers of named classes."""


def read(data: Data, only_test: bool = False) -> DataSource:
    """Return the images of hf:USER/NAME@REVISION with its splits, labels and, if there is such a
    column, groups.

    The library `datasets` downloads and caches them; no code of the repository runs. Splits called
    train, validation and test are used; without a test split, that for validation takes its place,
    or else a fifth of each class. Labels are a column of class labels, whose names are the classes,
    or of text or numbers. `only_test`: see `source_of`.
    """
    datasets, tables = _tables_of(data)
    columns = _columns(data, datasets, tables["train"].features)
    labels = {split: [*table[columns.label]] for split, table in tables.items()}
    notes = _leave_out_hidden_labels(data, tables, labels, columns)
    has_splits = len(tables) > 1
    images = list[LabelledImage]()
    for split, table in tables.items():
        coded = table.cast_column(columns.image, datasets.Image(decode=False))
        images += _images_of(
            coded, columns, labels[split], split if has_splits else "", f"{data.name} {split}"
        )
    order = columns.class_names or by_number(image.label for image in images)
    with prefix_errors(f"'{data.name}'"):
        return source_of(images, data, notes, order=order, only_test=only_test)


def _tables_of(data: Data) -> tuple[Any, dict[str, Any]]:
    """Return the library and the table of each split, train first."""
    name, _, revision = data.name.removeprefix("hf:").partition("@")
    if not revision:
        raise UserError(
            f"data: got 'hf:{name}' without a revision; allowed: hf:USER/NAME@REVISION, e.g. a "
            "commit"
        )
    datasets = needed("datasets", f"'{data.name}'", "datasets")
    with wrapping_user_code(f"data: cannot load '{data.name}'"):
        tables = datasets.load_dataset(name, revision=revision)
    splits = {
        SPLITS[split.lower()]: table for split, table in tables.items() if split.lower() in SPLITS
    }
    if "train" not in splits:
        got = ", ".join(tables)
        raise UserError(f"data: '{data.name}' has the splits {got}; allowed: with train")
    return datasets, splits


def _columns(data: Data, datasets: Any, features: Mapping[str, Any]) -> HubColumns:
    kinds = features.items()
    image = next((name for name, kind in kinds if isinstance(kind, datasets.Image)), None)
    roles = roles_of([*features], data)
    if data.path_column is not None:
        image = data.path_column if image is not None and data.path_column in features else None
    if image is None or not roles.label:
        got = ", ".join(features)
        raise UserError(
            f"data: '{data.name}' has the columns {got}; allowed: with images and a label"
        )
    if data.group is not None and data.group not in ("none", *features):
        raise unknown(f"column for data group of '{data.name}':", data.group, features)
    names = getattr(features[roles.label], "names", None)
    return HubColumns(image, roles.label, roles.group or None, names)


def _leave_out_hidden_labels(
    data: Data, tables: dict[str, Any], labels: Mapping[str, Sequence[Any]], columns: HubColumns
) -> list[DataNote]:
    """Remove the splits that have images without a label, as a competition's test set; return notes
    on them."""
    if any(isinstance(value, list) for value in labels["train"]):
        raise UserError(
            f"data: '{data.name}' has lists of labels; allowed: one label for each image"
        )
    # In training, -1 is a class of its own, unless the labels are numbers of named classes.
    hidden_is_class = HIDDEN in labels["train"] and columns.class_names is None
    notes = list[DataNote]()
    for split, values in labels.items():
        if not any(_is_no_label(value, hidden_is_class) for value in values):
            continue
        if split == "train":
            raise UserError(
                f"data: '{data.name}' has training images without a label; allowed: one for each"
            )
        tables.pop(split)
        text = f"the source's {split} split has images without a label, and is left out"
        notes.append(DataNote(text, "hidden-labels", split=split))
    return notes


def _is_no_label(value: Any, hidden_is_class: bool) -> bool:
    """Whether a label is none, empty, not a number, or -1 unless that is a class."""
    return value in (None, "") or value != value or (value == HIDDEN and not hidden_is_class)


def _images_of(
    table: Any, columns: HubColumns, labels: Sequence[Any], split: str, name: str
) -> list[LabelledImage]:
    groups = [None] * len(table) if columns.group is None else table[columns.group]
    images = list[LabelledImage]()
    for number, (label, group) in enumerate(zip(labels, groups, strict=True)):
        # the cache names files kept on disk by these names, too
        image = HubImage(table, columns.image, number, f"{name} image {number}")
        class_name = str(label) if columns.class_names is None else columns.class_names[label]
        group_name = "" if str(group) in MISSING else str(group)
        images.append(LabelledImage(image, class_name, split, group_name))
    return images
