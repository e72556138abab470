"""All that tests/oracle.py uses of the package: when a name moves, this is the one place to change."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NEW = {"skip_unreadable"}
"""Settings of the data that are younger than the oracle."""
sys.path[:0] = [str(ROOT), str(ROOT / "papers")]  # the package of this checkout, not an installed one


@functools.cache
def load_card(path: Path) -> Any:
    from taet.evaluation.card import ResultCard

    return ResultCard.load(path)


def summary_json(card: Any, column: Any) -> Any:
    """The numbers of a column of a card, recomputed from its mask."""
    return card.summary_of(column).to_json()


def raised_flags(card: Any) -> list[list[str]]:
    """Names and texts of the flags that the numbers of a card raise now."""
    from taet.evaluation.rules import flagged

    return [[flag["flag"], flag["text"]] for flag in flagged(card).flags]


def run_hash(config: Mapping[str, Any]) -> str:
    from taet.training import record

    return record.run_hash(config)


def as_stored(run: Any) -> dict[str, Any]:
    """The JSON of a Run with the settings of its data as they were: those that have left, and none that is new."""
    from taet.settings import Data, to_json

    config = to_json(run)
    return {**config, "data": {**Data.left, **{name: config["data"][name] for name in config["data"].keys() - NEW}}}


def round_trip(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON of a Run that is read from JSON; None where it is refused."""
    from taet.errors import UserError
    from taet.training.record import run_from_json

    try:
        return as_stored(run_from_json(config))
    except UserError:
        return None


def grid(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
    """Yield name, row and Run as JSON of each cell of a specification of `taet compare`; None where it is refused."""
    from taet.experiments.grid import cells_of, read

    for cell in cells_of(read(path), Path("out")):
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
    from paired import paired

    from taet.statistics import class_groups

    ranks = None
    if of is not None:
        counts = next(iter(first.values())).data["train_class_counts"]
        order = [label for name in ("head", "body", "tail") for label in class_groups(counts)[name]]
        places = [order.index(label) + 1 for label in (class_groups(counts)[of] if isinstance(of, str) else [of])]
        ranks = places[0], places[-1]
    return paired(first, second, (attacks[0], attacks[1]), ranks=ranks, less=less or "", comparisons=comparisons)


def claims() -> dict[str, list[Any]]:
    """Verdict, scale and the numbers behind it of each claim of the papers."""
    from findings import verdicts
    from runs import Runs

    tested = ("full", "cpu", "mini")
    found = {}
    for name, (_, one) in verdicts(Runs()).items():
        of_runs = one.scale in tested and one.word != "not tested"
        found[name] = [one.word, one.scale if of_runs else "", numbers(one.evidence) if of_runs else []]
    return found


def numbers(evidence: Sequence[str]) -> list[str]:
    """The differences with their intervals, or without any the per cents, of the evidence of a claim, sorted."""
    text = " ".join(evidence)
    return sorted(re.findall(r"[−+]?\d+\.\d \([^ ]+ to [−+]?\d+\.\d", text) or re.findall(r"[−+\d.]+ %", text))


def leaderboards() -> Iterator[tuple[str, list[Any]]]:
    """Yield the rank and the cards of each row of the leaderboards of the papers' scales."""
    import taet

    cpu, mini, more = (RESULTS / name for name in ("reproduce/cpu", "reproduce/mini", "cifar10-lt-class-wise"))
    for found in (taet.results(cpu), taet.results(mini, more)):
        for one in found.board().to_dict("records"):
            about = [one[name] for name in ("data", "model", "protocol", "row", "imbalance_ratio")]
            held = [of for of in found.named if [*setting(of.card), of.row, of.card.data["imbalance_ratio"]] == about]
            by_seed = {of.card.seed: of.card for of in held}  # two have equal weights
            yield one["rank"], [*by_seed.values()]


def setting(card: Any) -> list[str]:
    return [card.data["name"], card.model["name"], card.protocol]


def report_rows(paths: Sequence[Path]) -> Iterator[tuple[str, list[Path], dict[str, list[Any]]]]:
    """Yield the rows of a report of these cards, best first: label, cards, and balanced accuracy by attack.

    Of balanced accuracy: mean over the seeds, low, high, and number of seeds.
    """
    import taet
    from taet.report import tables

    for found in taet.results(list(paths)).by_test_set():
        scores = found.scores("balanced")
        for row in tables.order(found):
            values = {}
            for line in scores[scores["row"] == row].itertuples():
                column = found.columns[line.attack]
                said = "" if column.norm is None else tables.threat(column)
                values[f"{column.name} {said}"] = [line.accuracy, line.low, line.high, line.seeds]
            yield row, [Path(one.name) for one in found.named if one.row == row], values


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
