"""`taet reproduce [ITEM...]`: reproduce the tables and figures of both papers, next to the published numbers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.compare import part_numbers, seconds
from taet.cli.progress import saved, say
from taet.errors import UserError
from taet.fields import LongSeed, Processes
from taet.files import make_folder, write_atomically
from taet.formatting import listed
from taet.reproduce.cell_store import Store
from taet.reproduce.checks import check_manifest
from taet.reproduce.claims import chosen
from taet.reproduce.manifest import scale_named, scales
from taet.reproduce.render import tables
from taet.reproduce.session import Session, overview
from taet.reproduce.site import site
from taet.reproduce.text_table import rendered
from taet.reproduce.verdicts import verdicts

EXAMPLES = (
    "taet reproduce",
    "taet reproduce taet/table1 --dry-run",
    "taet reproduce taet/table1 --scale mini --methods at-bsl taet",
    "taet reproduce taet reat/table8 --scale mini --time-budget 12h --jobs 2",
    "taet reproduce R5 --scale mini --seeds 0 1 2",
    "taet reproduce reat/table1 --form latex --dry-run",
    "taet reproduce --render site",
)
DESCRIPTION = """Reproduce tables and figures of both papers with runs of this package, and print them next to the
published numbers. Without ITEM: print what is done at which scale and what the rest costs; nothing is run.

A run is trained once for all items that need it, in OUT/runs. Finished runs are kept, and interrupted runs continue.
Runs that settle most claims per hour come first. Scales: full (as published), cpu, mini (about an hour of one
core a run), smoke (digits, seconds). Numbers of two scales are never mixed in a table.

Exit status: 0 all done, or the time budget is used up; 1 a run failed; 2 a mistake in the call; 130 interrupted, with
all finished work saved."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Items, their scale, and how they are run."""

    items: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Tables and figures, e.g. taet/table1 reat/figure3; taet or reat: all of that paper; R5: the runs of claim R5."""
    scale: str = "mini"
    """full, cpu, mini or smoke."""
    methods: tuple[str, ...] = ()
    """Only rows of these methods."""
    seeds: tuple[LongSeed, ...] = ()
    """Seeds of the runs. Default: those of the scale. Tables and verdicts also use finished runs of other seeds."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs."""
    results: tuple[Path, ...] | None = None
    """Folders with committed cards, which are not run again. Default: results of the repository."""
    form: Literal["terminal", "markdown", "latex", "html"] = "terminal"
    """Format of the tables."""
    to: Path | None = None
    """File for the tables. Default: the terminal."""
    time_budget: str | None = None
    """Time after which running cells are saved and stopped, and no others are started, e.g. 12h, 90m or 600s."""
    jobs: Processes | Literal["auto"] = 1
    """Runs at the same time, as in taet compare."""
    part: str | None = None
    """K/N, e.g. 3/16: run only the third of 16 fixed parts of the runs, and print no tables."""
    merge: tuple[Path, ...] | None = None
    """Run nothing, but copy the finished runs of other folders OUT to this one, and print the tables."""
    save: Path | None = None
    """Folder to which cards and a part of the epochs of finished runs are copied, e.g. results/reproduce/mini."""
    render: Path | None = None
    """Run nothing, but write a static site with all items, claims and a leaderboard into this folder."""
    dry_run: bool = False
    """Run nothing, but print the tables with the runs so far, and the missing runs with their estimated cost."""


def run(arguments: list[str]) -> int:
    """Run and print items, or list all of them; return 1 if a run failed."""
    parsed = read(arguments)
    scale, store = scale_named(parsed.scale), Store(parsed.out, parsed.results)
    if parsed.seeds:
        scale = replace(scale, seeds={"all": [*dict.fromkeys(parsed.seeds)]})
    if parsed.render is not None:
        return _write_site(parsed.render, store)
    if not parsed.items:
        _print(parsed, rendered([overview(store)], parsed.form))
        return 0
    items = chosen(parsed.items, parsed.methods)
    session = Session(store, scale, items, say)
    failed = False
    if parsed.merge is not None:
        session.gather(parsed.merge)
    elif items and not parsed.dry_run:
        budget, part = seconds(parsed.time_budget), part_numbers(parsed.part)
        with saved(["reproduce", *arguments], parsed.out):
            result = session.fill(budget, parsed.jobs, part)
        failed = "failed" in result.counts
        for outcome in result.outcomes:
            if outcome.state == "failed":
                say(f"failed: {outcome.cell.name}: {outcome.reason}")
        if result.out_of_time:
            say(f"the time budget is used up; continue: {shlex.join(['taet', 'reproduce', *arguments])}")
    if parsed.save is not None:
        written = session.save(parsed.save)
        say(f"{len(written)} cards in {parsed.save}")
    if parsed.part is None:
        found = [table for item in items for table in tables(session.store, scale, item)]
        found += [*verdicts(parsed.items, session.store, scale), *([session.left()] if items else [])]
        _print(parsed, rendered(found, parsed.form))
    return int(failed)


def read(arguments: list[str]) -> ReproduceOptions:
    """Parse a call; contradictory options and unknown items are refused."""
    parsed = flags.parse(ReproduceOptions, arguments, "taet reproduce", DESCRIPTION, EXAMPLES)
    check_manifest()
    scale_named(parsed.scale)
    chosen(parsed.items, parsed.methods if parsed.items else ())
    given = flags.given(parsed, "methods", "seeds", "time_budget", "part", "merge", "save")
    if given and not parsed.items:
        raise UserError(f"reproduce: got {listed(given)} without an item; allowed: with items, e.g. taet/table1")
    if parsed.merge == ():
        raise UserError("reproduce: --merge: got no folder; allowed: folders --out of other calls")
    if parsed.render is not None and parsed.items:
        raise UserError(f"reproduce: --render writes the pages of all items; got {listed(parsed.items)} as well")
    if (parsed.dry_run or parsed.merge is not None) and (parsed.time_budget or parsed.part):
        raise UserError("reproduce: --dry-run and --merge run nothing: got --time-budget or --part as well")
    return parsed


def _write_site(folder: Path, store: Store) -> int:
    """Write the pages; other files of the folder stay."""
    pages = site(store, [scale for scale in scales().values() if scale.name != "smoke"])
    make_folder(folder)
    for name, text in pages.items():
        write_atomically(folder / name, text.encode())
    print(f"open {folder / 'index.html'}")
    return 0


def _print(parsed: ReproduceOptions, text: str) -> None:
    if parsed.to is None:
        print(text)
        return
    make_folder(parsed.to.parent)
    write_atomically(parsed.to, f"{text.rstrip()}\n".encode(), devices=True)
    say(f"tables in {parsed.to}")
