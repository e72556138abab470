"""Data sets of the Hugging Face hub, of parquet files or folders of images, at a pinned revision."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from taet.data.dataset import DataSource
from taet.data.files import of_rows
from taet.data.tables import MISSING, SPLITS, Row, by_number, usual_columns
from taet.errors import UserError, custom_code, located, needed, unknown
from taet.settings import Data

NAMES = {"hf": "hf:USER/NAME@REVISION, images of the Hugging Face hub with a column of labels; needs taet[datasets]"}


@dataclass(frozen=True, eq=False)
class HubImage:
    """An encoded image in a column of a table; its bytes are read from the cached table when it is opened."""

    table: Any
    column: str
    number: int
    name: str

    def open(self, _: str, /) -> IO[bytes]:
        cell = self.table[self.number][self.column]
        return Path(cell["path"]).open("rb") if cell["bytes"] is None else io.BytesIO(cell["bytes"])

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"{self.name} of {self.table._fingerprint}"  # of the table's content: a revision may move


def read(data: Data) -> DataSource:
    """Return the images of hf:USER/NAME@REVISION with its splits, labels and, if there is such a column, groups.

    The library `datasets` downloads and caches them; no code of the repository runs. Splits called train, validation
    and test are used; without a test split, that for validation takes its place, or else a fifth of each class. Labels
    are a column of class labels, whose names are the classes, or of text or numbers.
    """
    name, _, revision = data.name.removeprefix("hf:").partition("@")
    if not revision:
        raise UserError(f"data: got 'hf:{name}' without a revision; allowed: hf:USER/NAME@REVISION, e.g. a commit")
    datasets = needed("datasets", f"'{data.name}'", "datasets")
    with custom_code(f"data: cannot load '{data.name}'"):
        tables = datasets.load_dataset(name, revision=revision)
    splits = {SPLITS[split.lower()]: table for split, table in tables.items() if split.lower() in SPLITS}
    if "train" not in splits:
        raise UserError(f"data: '{data.name}' has the splits {', '.join(tables)}; allowed: with train")
    features = splits["train"].features
    image = next((name for name, feature in features.items() if isinstance(feature, datasets.Image)), None)
    columns = usual_columns([*features])
    if image is None or not (label := columns["label"]):
        raise UserError(f"data: '{data.name}' has the columns {', '.join(features)}; allowed: with images and a label")
    names, notes = getattr(features[label], "names", None), list[str]()
    given = {split: [*table[label]] for split, table in splits.items()}
    if any(isinstance(value, list) for value in given["train"]):
        raise UserError(f"data: '{data.name}' has lists of labels; allowed: one label for each image")
    known = {*given["train"]} - ({-1} if names else set())
    for split, values in given.items():  # a hidden label, as in a competition's test set, is none, empty or -1
        if any(value in (None, "") or value != value or (value == -1 and value not in known) for value in values):
            if split == "train":
                raise UserError(f"data: '{data.name}' has training images without a label; allowed: one for each")
            splits.pop(split)
            notes.append(f"the source's {split} split has images without a label, and is left out")
    if "test" not in splits and "validation" in splits:
        splits["test"], given["test"] = splits.pop("validation"), given["validation"]
        notes.append("the source's validation split is the test set")
    group = None if data.group == "none" else data.group or columns["group"] or None
    if group is not None and group not in features:
        raise unknown(f"column for data group of '{data.name}':", group, features)
    rows = list[Row]()
    for split, table in splits.items():
        coded = table.cast_column(image, datasets.Image(decode=False))
        labels = [str(value) if names is None else names[value] for value in given[split]]
        values = [None] * len(table) if group is None else table[group]
        groups = ["" if str(value) in MISSING else str(value) for value in values]
        place = split if "test" in splits else ""
        rows += [  # the cache names files kept on disk by these names, too
            Row(HubImage(coded, image, number, f"{data.name} {split} image {number}"), label, place, own)
            for number, (label, own) in enumerate(zip(labels, groups, strict=True))
        ]
    with located(f"'{data.name}'"):
        return of_rows(rows, data, notes, names or by_number(row.label for row in rows))
