"""Folders that published sets unpack to, known by their files: labels and groups that generic rules would miss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from taet.data.images import files_below, is_image
from taet.data.storage import reading
from taet.data.tables import NUMBER, TABLE, Row, located, read_table
from taet.errors import UserError

SIGN = re.compile(r"(\d{5}_){1,2}\d{5}")
ISIC = "ISIC_2019_Training_GroundTruth.csv"
ORGANS = ("lower-gi-tract", "upper-gi-tract")


def rows(folder: Path, group: str | None) -> tuple[list[Row], list[str]] | None:
    """Return the images of a known layout, and notes; None for another folder.

    ISIC 2019 (arXiv:1908.02288): a table with a column for each class, and one with the lesions. HyperKvasir (Borgli et
    al., Scientific Data 2020): class folders two levels below a folder for each organ.
    """
    if (folder / ISIC).is_file():
        own, notes = located(_isic(folder, group), folder)
        return own, ["layout of ISIC 2019", *notes]
    if all((folder / organ).is_dir() for organ in ORGANS):
        files = [file for organ in ORGANS for file in files_below(folder / organ) if is_image(file)]
        return [Row(file, file.parent.name) for file in files], ["layout of HyperKvasir: classes are the inner folders"]
    return None


def _isic(folder: Path, group: str | None) -> list[Row]:
    lesions, made, path = dict[str, str](), list[Row](), folder / ISIC
    with reading(path, TABLE):
        if group != "none":
            table = read_table(folder / ISIC.replace("GroundTruth", "Metadata"))
            lesions = {cells["image"]: cells[group or "lesion_id"] for _, cells in table}
        for place, cells in read_table(path):
            name = cells.pop("image")
            classes = [label for label, cell in cells.items() if float(cell) == 1]
            if len(classes) != 1:
                raise UserError(f"{place}: got {len(classes)} classes of '{name}'; allowed: one")
            made.append(Row(Path(name), classes[0], "", lesions.get(name, ""), place))
    return made


def signs(own: Sequence[Row]) -> list[Row] | None:
    """Return the images with their tracks as groups if all are named as GTSRB's; None for other images.

    Names end in the numbers of track and frame, 00003_00029.ppm, of the tracks of a class; Kaggle's copy puts the class
    before them. A track is about 30 frames of one sign that a car passes.
    """
    made = list[Row]()
    for row in own:
        stem = Path(str(row.file)).stem
        if row.split == "test":
            made.append(row)
        elif SIGN.fullmatch(stem) and NUMBER.fullmatch(row.label):
            made.append(row._replace(group=f"{row.label}/{stem.split('_')[-2]}"))
        else:
            return None
    return made
