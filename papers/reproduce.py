"""Fill the tables and figures of both papers, and print published beside measured numbers.

Without an item: what is filled at which scale, and what the rest takes. With items: list their
runs, run the missing ones, print the tables.

    python papers/reproduce.py
    python papers/reproduce.py taet/table1 --scale mini
    python papers/reproduce.py taet reat/table8 --time-budget 12h --jobs 2
    python papers/reproduce.py reat/table2 --methods reat at-bsl --seeds 0 1 2
"""

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import taet
from items import SCALES, Item, Row, Scale, chosen, items, scale
from runs import CARD, EPOCHS, Measured, Runs, name_of, price, thinned
from tables import page, table
from taet.errors import UserError
from taet.files import digest
from taet.formatting import duration, read_duration
from taet.settings.types import Duration, Processes, Whole, check_value


@dataclass(frozen=True)
class Cell:
    """A run that items need, as it is trained at a scale."""

    label: str
    run: Row
    name: str
    """Shared by all items that need it, without the seed."""
    seed: int
    measured: Measured | None
    started: bool

    @property
    def lacks(self) -> list[str]:
        """The attacks that its card does not have."""
        return [
            attack
            for attack in self.run.attacks
            if self.measured is None or attack not in self.measured.attacks
        ]

    @property
    def seconds(self) -> float:
        """About how long the rest takes on one core; a committed card has no weights, so its run is
        trained again."""
        trained = self.measured is not None and self.measured.path.name == CARD
        return price(self.run, trained, self.lacks) if self.lacks else 0.0

    @property
    def state(self) -> str:
        """Where its card is, and what it lacks."""
        if self.measured is not None:
            where = self.measured.where
        else:
            where = "started" if self.started else "missing"
        if not self.lacks:
            return where
        lacks = f", lacks {', '.join(self.lacks)}" if self.measured else ""
        known = not math.isnan(self.seconds)
        cost = f"{duration(self.seconds)} of one core" if known else "no estimate"
        return f"{where}{lacks}, {cost}"


def cells(wanted: Sequence[Item], at: Scale, runs: Runs, options: argparse.Namespace) -> list[Cell]:
    """Return the runs that items need, each once with all attacks that it takes."""
    found: dict[tuple[str, int], Cell] = {}
    for item in wanted:
        for label, row in zip(item.labels, item.rows, strict=True):
            if options.methods and row.method not in options.methods:
                continue
            run = at.run(row)
            name = name_of(run)
            for seed in options.seeds or seeds_of(run, at, runs, options.again):
                before = found.get((name, seed))
                attacks = (*before.run.attacks, *run.attacks) if before else run.attacks
                asked = replace(run, attacks=tuple(dict.fromkeys(attacks)))
                measured = runs.of(asked).get(seed)
                if measured is not None and options.again and measured.path.name != CARD:
                    measured = None
                started = runs.is_started(name, seed)
                label_of_item = f"{item.name}: {label}"
                found[name, seed] = Cell(label_of_item, asked, name, seed, measured, started)
    return list(found.values())


def seeds_of(run: Row, at: Scale, runs: Runs, again: bool) -> list[int]:
    """Return the seeds of a scale, and those of complete cards that are in its numbers too."""
    seeds = {*at.seeds(run.protocol)}
    if not again:
        complete = (s for s, one in runs.of(run).items() if {*run.attacks} <= {*one.attacks})
        seeds.update(complete)
    return sorted(seeds)


def specifications(missing: Sequence[Cell]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield comparisons that run cells, with their names: one for each protocol, data set,
    imbalance ratio and seed."""

    def kind(cell: Cell) -> tuple[str, str, float, int]:
        return cell.run.protocol, cell.run.data, cell.run.imbalance or 0.0, cell.seed

    for (protocol, data, ratio, seed), of in itertools.groupby(sorted(missing, key=kind), kind):
        entries = [
            {
                "name": cell.name,
                "method": cell.run.method,
                "settings": {**cell.run.settings, "evaluation.attacks": [*cell.run.attacks]},
            }
            for cell in of
        ]
        grid = {"protocol": protocol, "methods": entries, "data": [data], "seeds": [seed]}
        yield f"{protocol}_{data}_ir{ratio:g}", grid | ({"imbalance": [ratio]} if ratio else {})


def fill(missing: Sequence[Cell], options: argparse.Namespace) -> bool:
    """Run cells by `taet.compare`, each comparison in a folder below `out`; return whether all were
    done."""
    budget = math.inf if options.time_budget is None else read_duration(options.time_budget)
    end, all_done = time.monotonic() + budget, True
    for name, grid in specifications(missing):
        left = end - time.monotonic()
        if left <= 0:
            print(f"the time budget is used up before {name}; call again to continue")
            return all_done
        try:
            found = taet.compare(
                grid | {"title": name},
                options.out / name,
                time_budget=None if math.isinf(left) else left,
                jobs=options.jobs,
                progress=print,
            )
        except UserError as error:  # such as data that are not on this machine
            print(f"not run: {name}: {error}")
            all_done = False
            continue
        all_done &= not {"failed", "not applicable"} & found.counts.keys()
    return all_done


def save(done: Sequence[Cell], folder: Path) -> int:
    """Copy card and thinned epochs of finished runs to a folder of results; return how many."""
    own = [cell for cell in done if cell.measured and cell.measured.path.name == CARD]
    folder.mkdir(parents=True, exist_ok=True)
    for cell in own:
        assert cell.measured is not None
        run, rows = cell.measured.path.parent, thinned(cell.measured.epochs)
        head = {"weights_sha256": cell.measured.weights, "rows_sha256": digest(rows)}
        shutil.copyfile(cell.measured.path, folder / f"{run.name}.json")
        lines = "".join(f"{json.dumps(row)}\n" for row in (head, *rows))
        (folder / f"{run.name}.{EPOCHS}").write_text(lines, encoding="utf-8")
    return len(own)


def overview(runs: Runs, options: argparse.Namespace) -> str:
    """Return what is filled of every item at each scale, and what the rest takes."""
    lines: list[Sequence[str]] = [("", *SCALES[:-1], "")]
    for item in items().values():
        counts = []
        for name in SCALES[:-1]:
            found = cells([item], scale(name), runs, options)
            counts.append(f"{sum(not cell.lacks for cell in found)}/{len(found)}")
        lines.append((item.name, *counts, item.title))
    rest = [
        _rest(cells([*items().values()], scale(name), runs, options), name) for name in SCALES[:-1]
    ]
    return "\n".join(
        ["Runs that are there, of those that an item needs:", "", table(lines), "", *rest]
    )


def _rest(found: Sequence[Cell], name: str) -> str:
    """Return how many runs are there, and what the others take."""
    kinds = Counter(
        "missing" if cell.measured is None else cell.measured.where.split()[0] for cell in found
    )
    prices = [cell.seconds for cell in found]
    known = sum(seconds for seconds in prices if not math.isnan(seconds))
    unknown = sum(map(math.isnan, prices))
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    rest = f"; the rest takes {duration(known)} of one core" if known else ""
    return (
        f"{name} ({scale(name).says}): "
        f"{said}{rest}{f', and {unknown} without an estimate' if unknown else ''}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a call; return 0, 1 if a run failed, or 2 for a mistake in the call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "items", nargs="*", help="taet/table1, reat/figure3, or taet or reat: all of a paper"
    )
    parser.add_argument("--scale", default="mini", help="full, gpu, cpu, mini (default) or smoke")
    parser.add_argument("--methods", nargs="+", default=[], help="only rows of these methods")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], help="in place of those of the scale"
    )
    parser.add_argument("--again", action="store_true", help="run also what has a committed card")
    parser.add_argument("--dry-run", action="store_true", help="run nothing")
    parser.add_argument("--time-budget", help="12h, 90m or 600s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), help="folder of the runs"
    )
    parser.add_argument(
        "--save",
        type=Path,
        help="copy cards of finished runs to this folder, as results/reproduce/mini",
    )
    options = parser.parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; call again to continue", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    check_value("time budget", options.time_budget, Duration | None)
    check_value("jobs", options.jobs, Processes)
    check_value("seeds", tuple(options.seeds), tuple[Whole, ...])
    at = scale(options.scale)
    if not options.items:
        print(overview(Runs(options.out), options))
        return 0
    wanted = chosen(options.items, options.methods)
    runs, done = Runs(options.out), True
    found = cells(wanted, at, runs, options)
    width = max(len(cell.label) for cell in found)
    print(
        "\n".join((f"{cell.label.ljust(width)}  seed {cell.seed}  {cell.state}") for cell in found),
        end="\n\n",
    )
    missing = [cell for cell in found if cell.lacks]
    if missing and not options.dry_run:
        done = fill(missing, options)
        runs = Runs(options.out)
        found = cells(wanted, at, runs, options)
    if options.save:
        print(f"{save(found, options.save)} cards in {options.save}")
    print("\n\n".join(page(item, at, runs, options.methods) for item in wanted))
    print(f"\n{_rest(found, options.scale)}")
    return int(not done)


if __name__ == "__main__":
    sys.exit(main())
