"""Views of result cards: one table, figures, a leaderboard, and a report as HTML, Markdown, CSV or LaTeX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taet.errors import UserError, located

if TYPE_CHECKING:
    from taet.report.results import Results
    from taet.report.rows import Sources

__all__ = ["fail_if_worse", "write"]


def write(
    sources: Sources | Results,
    out: str | os.PathLike[str],
    title: str | None = None,
    *,
    notes: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write the report of `taet.results(...)`, or of what it takes, to the file `out`, and return its path.

    The suffix of `out` selects the form: .html, one page that contains its styles and figures; .md and .tex, the main
    tables; .csv, `Results.table()`. The same cards give the same bytes. `notes` stand below the title. A file
    that is no report, or is one of an old version in HTML, is replaced only with `force`.

    Raises:
        UserError: a source without a card, another suffix, a file that is no report, or one in a run but report.html.
    """
    from taet.files import check_output, make_folder, write_atomically
    from taet.formatting import listed
    from taet.report import page
    from taet.report.results import Results, results

    out = Path(out)
    if out.suffix not in page.FORMS or out.is_dir():
        raise UserError(f"report: got {out}; allowed: a file that ends in {', '.join(page.FORMS)}")
    check_output(out, "report.html")  # which taet train writes there
    found = sources if isinstance(sources, Results) else results(sources)
    title = title or f"Adversarial robustness on {listed(dict.fromkeys(card.data['name'] for card in found.cards))}"
    notes = [*notes, *([f"Without a card: {listed(found.waiting)}."] if found.waiting else [])]
    # Names of folders may be any bytes.
    text = page.FORMS[out.suffix](found, title, notes).encode(errors="backslashreplace")
    with located("report"):
        make_folder(out.parent)
    if out.exists() and not force and out.read_bytes().partition(b"\n")[0] not in (b"", text.partition(b"\n")[0]):
        raise UserError(f"{out} exists and is no report; allowed: another file, or --force (force=True) to replace it")
    write_atomically(out, text)
    return out


def fail_if_worse(new: Sources, old: Sources) -> tuple[bool, list[str]]:
    """Return whether `new` is worse than `old` under an attack beyond chance, and a line for each attack.

    Each side is the cards of one model, or of one method with several seeds. Clean images and every attack within a
    ball of `old` are compared by the paired test of balanced accuracy, each of k at the level 5 %/k.

    Raises:
        UserError: other test images, another number of cards, an attack that `new` lacks or has with other settings, or
            test images that some of the models were trained on.
    """
    from taet.evaluation.card import compare_runs
    from taet.formatting import listed, points
    from taet.intervals import LEVEL
    from taet.report.results import results

    sides = results(new), results(old)
    if many := next((side.rows for side in sides if len(side.rows) > 1), ()):
        raise UserError(f"got the cards of {listed(many)}; allowed: one method, or its seeds, on each side")
    new_runs, old_runs = ({card.seed: card for card in side.cards} for side in sides)
    if any(len(runs) < len(side.cards) for runs, side in zip((new_runs, old_runs), sides, strict=True)):
        raise UserError("got several cards of one seed; allowed: one")
    if new_runs.keys() != old_runs.keys() and new_runs.keys() & old_runs.keys():
        got = " and ".join(listed(map(str, runs)) for runs in (new_runs, old_runs))
        raise UserError(f"got the seeds {got}; allowed: the same on both sides, or no common one")
    ours, theirs = ([runs[seed] for seed in sorted(runs, key=lambda seed: seed or 0)] for runs in (new_runs, old_runs))
    names = [one.name for one in theirs[0].columns if one.ordinary and (one.bounded or one.norm is None)]
    if not names:
        raise UserError("the old card has no column of clean images or of an attack within a ball; evaluate it again")
    lacking = [name for name in names if not all(name in {one.name for one in card.columns} for card in ours)]
    found = {name: compare_runs(ours, theirs, name, len(names)) for name in names if name not in lacking}
    if lacking:  # checked after the comparison, which refuses cards that no further attack makes comparable
        raise UserError(f"the new card lacks {listed(lacking)}; first evaluate it with --attacks {' '.join(lacking)}")
    flags = [flag for card in (*ours, *theirs) for flag in card.flags]
    trained_on = [flag["text"] for flag in flags if flag["flag"] == "test-images-in-training"]
    if trained_on and len(trained_on) < len(ours) + len(theirs):
        raise UserError(f"of some of the models, {trained_on[0]}; allowed: test images that none was trained on")
    level = LEVEL / len(names)
    worse = {name for name, one in found.items() if one.decided and one.p < level and one.value < 0}
    lines = [
        f"{'worse' if name in worse else 'not known to be worse'} under {name}: {points(one.value)} points of balanced "
        f"accuracy ({points(one.low)} to {points(one.high)})"
        for name, one in found.items()
    ]
    return bool(worse), lines
