"""Finished batches of an evaluation on disk, from which an evaluation that was killed continues."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.attacks.units import Arrays
from taet.files import write_atomically


class BatchStore:
    """A folder with one file per batch of an attack.

    `identity` is a hash of everything that decides the results: weights, images, labels, settings of the attack. It is
    part of the folder's name and of each file. A file of another identity, or a damaged one, counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a batch, or None."""
        try:
            content = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = dict(file)
        except Exception:  # a damaged file can fail at any point
            return None
        return arrays if arrays.pop("identity", np.array("")) == self.identity else None

    def put(self, key: str, arrays: Arrays) -> None:
        """Save the arrays of a batch; after a kill the file is complete or missing."""
        buffer = io.BytesIO()
        content: dict[str, Any] = {"identity": np.array(self.identity), **arrays}
        np.savez(buffer, **content)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{key}.npz", buffer.getvalue())

    def remove(self) -> None:
        """Delete the files, and the parent folder once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
