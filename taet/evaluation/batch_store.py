"""Finished batches of an evaluation on disk, so that a killed evaluation can continue."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.attacks.units import Unit
from taet.files import make_folder, write_atomically


class BatchStore:
    """A folder with one file per batch of an attack.

    `identity` is a hash of everything that determines the results: weights, images, labels, settings of the attack. It
    is part of the folder's name. Each file holds a SHA-256 of the identity and its arrays: a file of another identity,
    or a damaged one, counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Unit | None:
        """Return the arrays of a batch, or None."""
        try:
            content = io.BytesIO((self.folder / f"{key}.npz").read_bytes())
            with np.load(content, allow_pickle=False) as file:
                arrays: dict[str, NDArray[Any]] = dict(file)
            return arrays if arrays.pop("sha256") == self._sha256(arrays) else None
        except Exception:  # a damaged file can fail at any point
            return None

    def put(self, key: str, arrays: Unit) -> None:
        """Save the arrays of a batch; after a kill the file is complete or missing."""
        buffer = io.BytesIO()
        content: dict[str, Any] = {"sha256": np.array(self._sha256(arrays)), **arrays}
        np.savez(buffer, **content)
        make_folder(self.folder)
        write_atomically(self.folder / f"{key}.npz", buffer.getvalue())

    def _sha256(self, arrays: Unit) -> str:
        """Return a hash of the identity and of the names, types, shapes and numbers of the arrays."""
        total = hashlib.sha256(self.identity.encode())
        for name in sorted(arrays):
            total.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
            total.update(np.ascontiguousarray(arrays[name]).tobytes())
        return total.hexdigest()

    def remove(self) -> None:
        """Delete the files, and the parent folder once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()
