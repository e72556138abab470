"""A comparison divided into parts for several machines, and their finished runs merged into one folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taet.errors import UserError
from taet.experiments.cells import Cell
from taet.files import file_sha256
from taet.training.folder import PART, RunFolder


def deal(planned: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Return the cells that `part`, 1 to `parts`, works on; cells that are not applicable are in no part.

    In order, each cell goes to the part with the fewest cells of its row; ties are broken by the fewest cells, then the
    fewest of its data and ratio. Hence every method is spread evenly, up to one cell, and parts cost about the same.
    Finished cells count too, and additional seeds do not move the cells of other seeds.
    """
    if not 1 <= part <= parts:
        raise UserError(f"part: got {part}/{parts}; allowed: K/N with K from 1 to N, e.g. 3/16")
    dealt: list[Counter[Any]] = [Counter() for _ in range(parts)]
    chosen = []
    for cell in planned:
        if cell.run is None:
            continue
        row, data, ratio = ("row", cell.row), ("data", cell.data), ("ratio", cell.imbalance)
        taker = min(dealt, key=lambda held: (held[row], held["cells"], held[data] + held[ratio]))
        taker.update(["cells", row, data, ratio])
        if taker is dealt[part - 1]:
            chosen.append(cell)
    return chosen


def gather(planned: Sequence[Cell], folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Copy the finished runs from other folders of the same comparison into the folders of the cells.

    Nothing is copied if a run has other settings or the weights of another run, or if two runs of a cell differ.
    Unfinished runs are not copied.
    """
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise UserError(f"merge: {folder} is not the folder of a comparison: it holds no runs")
    wanted = [cell for cell in planned if cell.run is not None]
    copies = [(source, cell.folder) for cell in wanted if (source := _source(cell, folders, say)) is not None]
    for source, target in copies:
        _copy(source, target)
        say(f"{target.name}: from {source}")


def _source(cell: Cell, folders: Sequence[Path], say: Callable[[str], None]) -> Path | None:
    """Return the folder from which a cell's run is copied, if any; raise a `UserError` if two runs differ."""
    held = cell.folder if cell.folder.exists() else None
    source = None
    for folder in folders:
        there = dataclasses.replace(cell, folder=folder / "runs" / cell.name)
        there.check_folder()
        look = there.look()
        if look.state == "started":
            say(f"{cell.name}: not finished in {folder}, not copied")
        if look.state != "done":
            continue
        look.folder.check_weights()
        if held is None:
            held = source = there.folder
        elif held == cell.folder and cell.state != "done":
            raise UserError(f"{held} is not finished, and {there.folder} is; remove one of them")
        elif file_sha256(RunFolder(held).weights()) != file_sha256(look.folder.weights()):
            raise UserError(f"{held} and {there.folder} are two runs of one cell, with other weights; remove one")
    return source


def _copy(source: Path, target: Path) -> None:
    """Copy a folder; the copy gets its name once it is complete."""
    part = target.with_name(target.name + PART)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
        part.rename(target)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
