"""Where data are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from taet.config import Data


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, most wanted first: --data.root, TAET_DATA, ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(root).expanduser() for root in given if root))


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH, found from here or, where it is relative, from a data folder."""
    path = Path(data.name.partition(":")[2]).expanduser()
    candidates = [path, *(root / path for root in roots(data))]
    return next((candidate for candidate in candidates if candidate.exists()), path)
