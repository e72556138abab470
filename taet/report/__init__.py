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
    names: Sequence[str | None] | None = None,
    not_run: Sequence[tuple[str, str]] = (),
    class_attack: str | None = None,
) -> Path:
    """Write the report of the runs in `run_dirs` to the HTML file `out` and return its path.

    Only runs with the same training counts and test set are compared in one table; runs that differ only in the seed
    are one row, with means and standard errors. Runs without a result card are listed with their training curves; a
    folder with only a result card is a row without curves. Decisions of `taet.decide` have a section of their own, as
    they cover only some of the images. The file contains its styles, figures and images, and the same runs give the
    same bytes.

    Args:
        run_dirs: folders with a run or a result card, or with the decision of `taet.decide`; or files with a card.
        out: file to write: a new file, an HTML page to replace, a device or a FIFO.
        title: title of the page. Default: one that names the data sets.
        names: the label of each folder. Default: labels made from the settings.
        not_run: (name, reason) of other runs that were requested.
        class_attack: the attack in tables and figures of classes. Default: the strongest.

    Raises:
        UserError: a folder without a run, or a file that cannot be written.
    """
    from taet.evaluation.decision_card import DecisionCard
    from taet.files import make_folder, write_atomically
    from taet.report import figures, page, read

    if not run_dirs:
        raise UserError("report: got no run folder; allowed: one or more folders with a run or a result card")
    out, folders = Path(out), list(map(Path, run_dirs))
    _check_target(out)
    named = dict(zip(folders, [None] * len(folders) if names is None else names, strict=True))
    decisions = [DecisionCard.load(path) for path in named if read.is_decision(path)]
    shown = {path: name for path, name in named.items() if not read.is_decision(path)}
    runs = [read.read(path) for path in shown]
    with figures.style():
        text = page.page(runs, list(shown.values()), title, not_run, decisions, class_attack)
    with located("report"):
        make_folder(out.parent)
    write_atomically(out, text.encode(errors="backslashreplace"))  # names of folders may be any bytes
    return out


def _check_target(out: Path) -> None:
    """Raise a `UserError` rather than replace a file that is not a page, such as one of a run."""
    from taet.files import opened

    if out.is_dir():
        raise UserError(f"report: got the folder {out}; allowed: a file, e.g. {out / 'report.html'}")
    if out.is_file():
        with opened(out) as file:
            start = file.read(100).strip().lower()
        if start and not start.startswith((b"<!doctype html", b"<html")):
            raise UserError(f"report: {out} is there and is no HTML page; allowed: a new file, or an earlier report")
