"""Views of result cards: one table, figures, a leaderboard, and a report as HTML, Markdown, CSV or LaTeX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taet.errors import UserError, located

if TYPE_CHECKING:
    from taet.report.results import Results
    from taet.report.sources import Sources

__all__ = ["fail_if_worse", "write"]

ENDINGS = (".html", ".md", ".csv", ".tex")


def write(
    sources: Sources | Results, out: str | os.PathLike[str], title: str | None = None, *, notes: Sequence[str] = ()
) -> Path:
    """Write the report of result cards to the file `out`, and return its path.

    The ending of `out` says how: .html, one page that contains its styles, figures and images; .md and .tex, its main
    tables; .csv, `Results.table()`. The same cards give the same bytes.

    Args:
        sources: `taet.results(...)`, or what it takes: run folders, cards, folders or patterns of these.
        out: a new file, or an earlier report.
        title: title of the page. Default: one that names the data sets.
        notes: sentences at the beginning, such as which runs are missing.

    Raises:
        UserError: a source without a card, another ending, or a file that is no report.
    """
    from taet.files import make_folder, write_atomically
    from taet.formatting import listed
    from taet.report import page
    from taet.report.results import Results, results

    out = Path(out)
    _check(out)
    found = sources if isinstance(sources, Results) else results(sources)
    title = title or f"Adversarial robustness on {listed(dict.fromkeys(card.data['name'] for card in found.cards))}"
    notes = [*notes, *([f"Not evaluated yet: {listed(found.waiting)}."] if found.waiting else [])]
    if out.suffix == ".csv":
        text = found.table().to_csv(index=False, float_format="%.6f", lineterminator="\n")
    else:
        text = {".html": page.html, ".md": page.markdown, ".tex": page.latex}[out.suffix](found, title, notes)
    with located("report"):
        make_folder(out.parent)
    write_atomically(out, text.encode(errors="backslashreplace"))  # names of folders may be any bytes
    return out


def _check(out: Path) -> None:
    """Raise a `UserError` rather than replace a file that is no report, such as one of a run."""
    from taet.files import opened
    from taet.training.folder import RunFolder

    if out.suffix not in ENDINGS or out.is_dir():
        raise UserError(f"report: got {out}; allowed: a file that ends in {', '.join(ENDINGS)}")
    run = RunFolder(out.parent)
    if run.is_run and out != run.report:
        raise UserError(f"report: {out} would be in the folder of a run; allowed: {run.report}, or another folder")
    if out.is_file() and out.suffix == ".html":
        with opened(out) as file:
            start = file.read(100).strip().lower()
        if start and not start.startswith((b"<!doctype html", b"<html")):
            raise UserError(f"report: {out} is there and is no HTML page; allowed: a new file, or an earlier report")


def fail_if_worse(new: Sources, old: Sources) -> list[str]:
    """Return a line for each attack under which `new` is worse than `old` beyond chance; none is a pass.

    Each side is the cards of one model, or of one method with several seeds. Clean images and every attack within a
    ball of `old` are compared by the paired test of balanced accuracy on the same images, each of k at the level 5 %/k,
    so that all decisions together hold with 95 %.

    Raises:
        UserError: other test images, another number of cards, or an attack that `new` lacks or has with other settings.
    """
    from taet.evaluation.card import compare_runs
    from taet.formatting import points
    from taet.intervals import LEVEL
    from taet.report.results import results

    ours, theirs = (sorted(results(side).cards, key=lambda card: card.seed or 0) for side in (new, old))
    names = [one.name for one in theirs[0].columns if one.ordinary and (one.bounded or one.norm is None)]
    if not names:
        raise UserError("the old card has no column of clean images or of an attack within a ball; evaluate it again")
    found = {name: compare_runs(ours, theirs, name, len(names)) for name in names}
    return [
        f"worse under {name}: {points(one.value)} points of balanced accuracy ({points(one.low)} to {points(one.high)})"
        for name, one in found.items()
        if one.decided and one.p < LEVEL / len(names) and one.value < 0
    ]
