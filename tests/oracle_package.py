"""All that tests/oracle.py uses of the package: when a name moves, this is the one place to change."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NEW = {"skip_unreadable"}
"""Settings of the data that are younger than the oracle."""
sys.path.insert(0, str(ROOT))  # the package of this checkout, not an installed one


@functools.cache
def load_card(path: Path) -> Any:
    from taet.evaluation.card import ResultCard

    return ResultCard.load(path)


def summary_json(card: Any, column: Any) -> Any:
    """The numbers of a column of a card, recomputed from its mask."""
    return card.summary_of(column).to_json()


def raised_flags(card: Any) -> list[list[str]]:
    """Names and texts of the flags that the numbers of a card raise now."""
    from taet.evaluation.diagnostics import flagged

    return [[flag["flag"], flag["text"]] for flag in flagged(card).flags]


def run_hash(config: Mapping[str, Any]) -> str:
    from taet.training import decisive_settings

    return decisive_settings.run_hash(config)


def as_stored(run: Any) -> dict[str, Any]:
    """The JSON of a Run with the settings of its data as they were: those that have left, and none that is new."""
    from taet.settings import LEFT, to_json

    config = to_json(run)
    return {**config, "data": {**LEFT, **{name: config["data"][name] for name in config["data"].keys() - NEW}}}


def round_trip(config: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a Run that is read from JSON."""
    from taet.training.record import run_from_json

    return as_stored(run_from_json(config))


def grid(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """Yield name, row and Run as JSON of each cell of a specification of `taet compare`; None where it is refused."""
    from taet.experiments.cells import cells
    from taet.experiments.specification import read

    for cell in cells(read(path), Path("out")):
        yield cell.name, cell.row, None if cell.run is None else as_stored(cell.run)


def paired_difference(
    first: Mapping[int, Any],
    second: Mapping[int, Any],
    attacks: Sequence[str],
    of: int | str | None,
    comparisons: int,
    less: str | None,
) -> Any:
    """Paired difference of cards by seed: value, low, high, p, runs, standard_error; None if they have no common seed.

    Of the classes `of` (a label, head, body, tail or None for all), each side under its attack, less the difference
    under the attack `less`.
    """
    from taet.reproduce.differences import paired_cards

    return paired_cards(first, second, attacks, of, comparisons, less)


def claims() -> dict[str, list[str]]:
    """Verdict, reason and scale of each claim of the papers."""
    from taet.reproduce.verdicts import best_verdicts

    return {name: [one.word, one.because, one.scale] for name, one in best_verdicts(*committed()).items()}


def leaderboards() -> Iterator[tuple[str, list[tuple[str, str, list[Any]]]]]:
    """Yield each leaderboard: its title, and of each row, best first, its label, ranks and cards."""
    from taet.reproduce.leaderboard import boards

    for board in boards(*committed()):
        yield board.kind.title, [(row.label, board.rank(row), [*row.cards.values()]) for row in board.rows]


def report_rows(paths: Sequence[Path]) -> Iterator[tuple[str, list[Path], dict[str, list[Any]]]]:
    """Yield the rows of a report of these cards, best first: label, cards, and balanced accuracy by attack.

    Of balanced accuracy: mean over the seeds, low, high, and number of seeds.
    """
    from taet.report import measured, read, series, tables

    runs = [read.read(path) for path in paths]
    for row in measured.ranked(measured.measured(series.grouped(runs, [None] * len(runs)))):
        attacks = measured.attacks_of([row])
        cells = [tables.balanced_cell(row.summaries[attack]) for attack in attacks]
        values = [[cell.value, cell.low, cell.high, cell.count] for cell in cells]
        names = [f"{attack.name} {attack.threat}" for attack in attacks]
        yield row.series.label, [run.path for run in row.series.runs], dict(zip(names, values, strict=True))


@functools.cache
def committed() -> tuple[Any, Any]:
    from taet.reproduce import Store, scales

    return Store(Path("none"), [RESULTS]), [*scales().values()]


def recorded() -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of every paired difference behind the findings and the ranks of the leaderboards."""
    from taet.reproduce import findings, leaderboard, verdicts

    found, places = [], (findings, leaderboard, verdicts)
    real = verdicts.paired_cards

    def record(*given: Any, **named: Any) -> Any:
        bound = inspect.signature(real).bind(*given, **named)
        bound.apply_defaults()
        found.append(bound.args)
        return real(*given, **named)

    for place in places:
        place.paired_cards = record
    findings.findings(*committed())
    list(leaderboards())
    for place in places:
        place.paired_cards = real
    yield from (one for one in found if one[0] and one[1] and None not in one[2])


def trained(method: str, settings: Mapping[str, Any], attacks: Sequence[str], out: Path) -> Any:
    """Train a method with protocol taet and these settings in the folder `out`, and return the card of the attacks."""
    import taet
    from taet import protocols
    from taet.settings import override

    taet.train(override(protocols.taet(method), dict(settings)), out=out)
    return taet.evaluate(out, attacks=attacks)


def command_line(words: Sequence[str]) -> int:
    from taet.cli import main

    return main([*words])


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its checksum, as if it had been written so."""
    from taet.files import seal

    return seal({name: value for name, value in values.items() if name != "sha256"})
