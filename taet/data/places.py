"""Where data are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from taet.config import Data


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, most wanted first: --data.root, TAET_DATA, ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(root).expanduser() for root in given if root))


def passed_over(data: Data) -> list[str]:
    """Say that the folder that --data.root names is not there, if so: data were found elsewhere, or need none.

    This is no mistake: a run that is taken to another machine brings the folder that it had.
    """
    there = data.root is None or Path(data.root).expanduser().is_dir()
    return [] if there else [f"data root '{data.root}' is no folder here, and was passed over"]


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH, found from here or, where it is relative, from a data folder."""
    path = Path(data.name.partition(":")[2]).expanduser()
    candidates = [path, *(root / path for root in roots(data))]
    return next((candidate for candidate in candidates if candidate.exists()), path)
