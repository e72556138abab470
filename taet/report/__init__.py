"""The report: one self-contained HTML file from any number of run folders, every number traced to its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taet.errors import UserError

__all__ = ["write"]


def write(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    title: str | None = None,
    *,
    names: Sequence[str] | None = None,
    not_run: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the report of the runs in `run_dirs` to the HTML file `out` and return its path.

    Runs are compared in one table only where they share training counts and test set; those that differ in nothing but
    the seed are one row, with means and standard errors. A run that is not evaluated yet shows its curves and is named;
    a folder that holds a result card alone, that of a model from elsewhere, is a row without curves of training.
    `names` are the rows that the runs belong to, where the caller knows better than their settings; `not_run` lists
    what else was asked for, and why it is not there. The file asks for nothing else: styles, figures and images are
    inside it, and the same runs give the same bytes. A folder that is no run, or a file that cannot be written, is a
    `UserError`.
    """
    from taet.files import write_atomically
    from taet.report import figures, page, read

    if not run_dirs:
        raise UserError("report: got no run folder; allowed: one or more folders with a run or a result card")
    out, folders = Path(out), list(map(Path, run_dirs))
    named: dict[Path, str | None] = dict.fromkeys(folders)
    if names is not None:
        named.update(zip(folders, names, strict=True))
    runs = [read.read(path) for path in named]
    with figures.style():
        text = page.page(runs, list(named.values()), title, not_run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"report: cannot make the folder {out.parent}: {error.strerror}") from error
    write_atomically(out, text.encode())
    return out
