"""The folders that data are looked for in."""

from __future__ import annotations

import os
from pathlib import Path

from taet.config import Data
from taet.errors import UserError


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, in the order of search: --data.root, TAET_DATA, ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(os.path.expanduser(root)) for root in given if root))


def not_found(what: str, data: Data, put: str, options: str = "") -> UserError:
    """Return the error for official files that are in none of the folders; `put` says what to put into one by hand."""
    looked = ", ".join(f"'{root}'" for root in roots(data))
    own = f"; the folder '{data.name}' here is read by folder:{data.name}" if Path(data.name).is_dir() else ""
    return UserError(
        f"{what} is not in {looked}; run taet data prepare {data.name}{options}, or {put} into a folder and name that "
        f"with --data.root or TAET_DATA{own}"
    )


def passed_over(data: Data) -> list[str]:
    """Return a note if the folder of --data.root does not exist, so that the data were found elsewhere or need none.

    This is no error: a run that is copied to another machine brings the name of the folder that it had.
    """
    there = data.root is None or Path(os.path.expanduser(data.root)).is_dir()
    return [] if there else [f"data root '{data.root}' is no folder here, and was passed over"]


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH: as it is or, where it is relative, in one of the folders."""
    path = Path(os.path.expanduser(data.name.partition(":")[2]))
    candidates = [path, *(root / path for root in roots(data))]
    return next((candidate for candidate in candidates if candidate.exists()), path)
