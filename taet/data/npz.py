"""Any data set in one `.npz` file with MedMNIST's keys."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from taet.config import Data
from taet.data.dataset import Dataset
from taet.data.places import locate
from taet.errors import UserError

NAMES = {"npz": "npz:PATH, a file with train_images, train_labels, test_images, test_labels (MedMNIST's keys)"}
REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
VALIDATION = ("val_images", "val_labels")


def read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of MedMNIST's keys that are in the file; one that is required and missing is a `UserError`."""
    if not path.is_file():
        raise UserError(f"no such file: '{path}'")
    try:
        with path.open("rb") as stream:  # np.load leaves a file that it opened itself open where it is no archive
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, NpzFile):
                raise UserError(f"'{path}' holds a single array; allowed: an .npz file")
            required = REQUIRED + (VALIDATION if any(key in file for key in VALIDATION) else ())
            missing = [key for key in required if key not in file]
            if missing:
                raise UserError(f"'{path}' has no {', '.join(missing)}; it has: {', '.join(file.files) or 'nothing'}")
            wanted = [key for key in (*required, "class_names") if key in file]
            return {key: np.asarray(file[key]) for key in wanted}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error)
        reason = "it holds pickled objects or is no .npz file" if pickled else " ".join(str(error).split())
        raise UserError(f"cannot read '{path}': {reason}; allowed: an .npz file of plain arrays") from error


def read(data: Data) -> Dataset:
    """Return the file's splits as they are; its optional array `class_names` names the classes.

    Format: Yang et al., MedMNIST v2, Scientific Data 2023, arXiv:2110.14795.
    """
    path = locate(data)
    arrays = read_arrays(path)
    names = arrays.get("class_names")
    if names is not None and (names.dtype.kind != "U" or names.ndim != 1):
        raise UserError(f"'{path}': class_names: got {names.dtype} of shape {names.shape}; allowed: text of shape (C,)")
    try:
        return Dataset.from_arrays(
            *(arrays[key] for key in REQUIRED),
            validation=(arrays["val_images"], arrays["val_labels"]) if "val_images" in arrays else None,
            class_names=None if names is None else names.tolist(),
            name=data.name,
        )
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
