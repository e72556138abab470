"""Batches of images that an attack has finished: saved, resumed, and shared between processes."""

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.attacks.counting_model import CountingModel
from taet.distributed import gather, rank, reporting_peer_exit, world_size
from taet.files import make_folder, write_atomically

Unit = Mapping[str, NDArray[Any]]  # the arrays of a finished batch, by name


class BatchStore:
    """The finished batches of an attack, from which a killed evaluation continues.

    It is a folder with one file per batch.

    Each file begins with a SHA-256 of its content and of `identity`, a hash of all that determines
    the results. A file of another identity, or a damaged file, counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Unit | None:
        """Return the arrays of a finished batch, or None."""
        path = self.folder / f"{key}.npz"
        content = path.read_bytes() if path.is_file() else b""
        if content[:32] != self._sha256(content[32:]):
            return None
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as file:
            return dict(file)

    def put(self, key: str, arrays: Unit) -> None:
        """Save the arrays of a batch; after a kill the file is complete or missing."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        make_folder(self.folder)
        write_atomically(
            self.folder / f"{key}.npz", self._sha256(buffer.getvalue()) + buffer.getvalue()
        )

    def _sha256(self, content: bytes) -> bytes:
        return hashlib.sha256(self.identity.encode() + content).digest()

    def remove(self) -> None:
        """Delete the files, and the parent folder once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def in_batches(
    batches: Sequence[Any],
    work: Callable[[Any], Unit],
    *,
    model: CountingModel,
    cost: float,
    report: Callable[[float, int], None],
    state: BatchStore | None,
    key: Callable[[int], str] = str,
) -> list[Unit]:
    """Return the result of `work` on each batch of indices.

    `state` keeps finished ones under the names of `key`.

    With P processes, all of which must make the same call, process r works on the batches r, r + P,
    r + 2P, ...; afterwards each process has all results. `report(passes, number of the batch)`
    counts `cost` passes per image.
    """

    def finish(number: int) -> Unit:
        stored = None if state is None else state.get(key(number))
        if stored is not None:
            return stored
        passes = cost * len(batches[number])
        passes_before = cost * sum(map(len, batches[:number]))
        report(passes_before, number)
        with model.ticking(passes, lambda made: report(passes_before + made, number)):
            result = work(batches[number])
        if state is not None:
            state.put(key(number), result)
        return result

    finished = {number: finish(number) for number in range(rank(), len(batches), world_size())}
    with reporting_peer_exit("; finished batches are kept" if state is not None else ""):
        shares = gather(finished)
    results: dict[int, Unit] = {}
    for share in shares:
        results |= share
    return [results[number] for number in range(len(batches))]
