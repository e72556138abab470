"""The report: one self-contained HTML file from any number of run folders, with every number traced to its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taet.errors import UserError, located

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

    Only runs with the same training counts and test set are compared in one table; runs that differ only in the seed
    are one row, with means and standard errors. Runs without a result card are listed with their training curves; a
    folder with a result card alone is a row without them. The file contains its styles, figures and images, and the
    same runs give the same bytes.

    Args:
        run_dirs: folders with a run or a result card.
        out: file to write.
        title: title of the page; by default one that names the data sets.
        names: the label of each folder; by default labels follow from the settings.
        not_run: (name, reason) of other runs that were asked for.

    Raises:
        UserError: a folder without a run, or a file that cannot be written.
    """
    from taet.files import make_folder, write_atomically
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
    with located("report"):
        make_folder(out.parent)
    write_atomically(out, text.encode())
    return out
