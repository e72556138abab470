"""The folders in which data are searched."""

from __future__ import annotations

import os
from pathlib import Path

from taet.errors import UserError
from taet.settings import Data


def roots(data: Data) -> list[Path]:
    """Return the folders that may hold data, in the order of search: --data.root, TAET_DATA, ./data."""
    given = [data.root, os.environ.get("TAET_DATA"), "data"]
    return list(dict.fromkeys(Path(os.path.expanduser(root)) for root in given if root))


def find(data: Data, *names: str | Path) -> Path | None:
    """Return the first of these files and folders that is in a folder of `roots`; None if none is."""
    places = (root / name for root in roots(data) for name in names)
    return next((place for place in places if place.exists()), None)


def not_found(what: str, data: Data, put: str, options: str = "") -> UserError:
    """Return the error for official files that no folder has; `put` says which file to put where by hand."""
    looked = ", ".join(f"'{root}'" for root in roots(data))
    own = f"; the folder '{data.name}' here is read by folder:{data.name}" if Path(data.name).is_dir() else ""
    return UserError(
        f"{what} is not in {looked}; run taet data prepare {data.name}{options}, or {put} into a folder and name that "
        f"with TAET_DATA, or for one run with --data.root{own}"
    )


def passed_over(data: Data) -> list[str]:
    """Return a note if the folder of --data.root does not exist; the data may be elsewhere or need no folder.

    This is not an error: a run that was copied to another machine keeps the folder name of the first one.
    """
    there = data.root is None or Path(os.path.expanduser(data.root)).is_dir()
    return [] if there else [f"data root '{data.root}' is not a folder here and is ignored"]


def locate(data: Data) -> Path:
    """Return the path in a name such as npz:PATH: unchanged or, if it is relative, in one of the folders."""
    path = Path(os.path.expanduser(data.name.partition(":")[2]))
    return path if path.exists() else find(data, path) or path
