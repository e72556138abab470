"""Views of result cards: one table, figures, a leaderboard, and a report as HTML, Markdown, CSV or
LaTeX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taet.errors import UserError, prefix_errors
from taet.settings.arguments import checked_arguments

if TYPE_CHECKING:
    from taet.report.read_cards import Sources
    from taet.report.results import Results

__all__ = ["write"]


@checked_arguments
def write(
    sources: Sources | Results,
    out: str | os.PathLike[str],
    title: str | None = None,
    *,
    notes: Sequence[str] = (),
    columns: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write the report of `taet.results(...)`, or of what it takes, to the file `out`, and return
    its path.

    The suffix of `out` selects the form: .html, one page that contains its styles and figures; .md
    and .tex, the main tables; .csv, `Results.table()`. The same cards give the same bytes. `notes`
    stand below the title, which is by default that of the comparison whose folder is given. With
    `columns`, e.g. clean, autoattack and tail, .md and .tex have the first table alone, with these.
    A file that is no report, or is one of an old version in HTML, is replaced only with `force`.

    Raises:
        UserError: a source without a card, another suffix, a file that is no report, or one in a
        run but report.html.

    Example:
        >>> import taet
        >>> taet.report.write("runs/example", "report.md").name
        'report.md'
    """
    from taet.files import check_output, make_folder, write_atomically
    from taet.formatting import join_words
    from taet.report import page
    from taet.report.results import Results, results

    out = Path(out)
    if out.suffix not in page.FORMS or out.is_dir():
        raise UserError(f"report: got {out}; allowed: a file that ends in {', '.join(page.FORMS)}")
    check_output(out, "report.html")  # which taet train writes there
    found = sources if isinstance(sources, Results) else results(sources)
    title = found.title if title is None else title
    if title is None:
        data_sets = dict.fromkeys(card.data["name"] for card in found.cards)
        title = f"Adversarial robustness on {join_words(data_sets)}"
    if found.waiting:
        notes = [*notes, f"Without a card: {join_words(found.waiting)}."]
    if columns and out.suffix not in page.WITH_COLUMNS:
        raise UserError(f"report: got columns for {out}; allowed: .md or .tex")
    if columns:
        text = page.WITH_COLUMNS[out.suffix](found, title, notes, columns)
    else:
        text = page.FORMS[out.suffix](found, title, notes)
    content = text.encode(errors="backslashreplace")  # names of folders may be any bytes
    with prefix_errors("report"):
        make_folder(out.parent)
    if not force and not _may_replace(out, content):
        raise UserError(
            f"{out} exists and is no report; allowed: another file, or --force (force=True) to "
            "replace it"
        )
    write_atomically(out, content)
    return out


def _may_replace(path: Path, content: bytes) -> bool:
    """Return whether no file would be lost: it is missing, empty, or begins as a report does."""
    if not path.exists():
        return True
    first_line = path.read_bytes().partition(b"\n")[0]
    return first_line in (b"", content.partition(b"\n")[0])
