"""Finished units of an evaluation on disk, so that one that was killed goes on where it was."""

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
    """One file per unit in a folder of their own.

    `identity` is a hash of everything that decides a result: weights, images, labels, the attack's settings. It is
    part of the folder's name and of each file; a file that is foreign, truncated or damaged counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Arrays | None:
        """Return the arrays of a unit, or None."""
        try:
            content = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = dict(file)
        except Exception:  # damaged bytes fail anywhere between the archive and the header of an array
            return None
        return arrays if arrays.pop("identity", np.array("")) == self.identity else None

    def put(self, key: str, arrays: Arrays) -> None:
        """Save a unit; after a kill the file is there wholly or not at all."""
        buffer = io.BytesIO()
        content: dict[str, Any] = {"identity": np.array(self.identity), **arrays}
        np.savez(buffer, **content)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{key}.npz", buffer.getvalue())

    def remove(self) -> None:
        """Delete the units, and the folder that they share with those of other attacks once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
