"""The oracle: every number that a change of the code must not move, as data in tests/golden/oracle.

    python tests/oracle.py compare [SECTION ...]       one line per section and one per difference; exits 1 on any
    python tests/oracle.py collect OUT [SECTION ...]   writes the sections as they are now into the folder OUT

The sections cards, flags, runs, grids, paired, verdicts, boards and tables read the committed files; training and
commands run something, a minute each. A difference is named, and no failure, if tests/golden/oracle/named_changes.toml
matches it. The package is reached only through the functions of the first part: when a name moves, change it there.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import math
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RESULTS, STORED = ROOT / "results", ROOT / "tests" / "golden" / "oracle"
TOLERANCE = 1e-12
NEW = {"skip_unreadable"}
"""Settings of the data that are younger than the oracle."""
Section = dict[str, Any]
"""Plain JSON by key; the key is the unit that is counted as equal or not."""

# -- the package ------------------------------------------------------------------------------------------------------


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


# -- committed files ---------------------------------------------------------------------------------------------------


@functools.cache
def card_paths() -> dict[str, Path]:
    """Every committed result card by its name, relative to results/; one in results/archive keeps its old name."""
    found = {}
    for path in sorted(RESULTS.rglob("*.json")):
        if json.loads(path.read_text(encoding="utf-8")).get("kind") == "taet result card":
            found[path.relative_to(RESULTS).as_posix().removeprefix("archive/")] = path
    return found


def name_of(card: Any) -> str:
    """Name of the committed card that was read as `card`; of equal cards the first."""
    return _names()[card.model["weights_sha256"], card.created, len(card.columns)]


@functools.cache
def _names() -> dict[tuple[Any, ...], str]:
    every = [(name, load_card(path)) for name, path in reversed(card_paths().items())]
    return {(card.model["weights_sha256"], card.created, len(card.columns)): name for name, card in every}


def cards(_: Section | None) -> Section:
    return {name: card_facts(path) for name, path in card_paths().items()}


def card_facts(path: Path) -> Any:
    card, before = load_card(path), path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        card.save(Path(folder) / "card.json")
        saved = (Path(folder) / "card.json").read_bytes()
    columns = list(card.columns)
    for norm in ("linf", "l2"):
        with contextlib.suppress(Exception):  # no attack in this ball, or several radii
            columns.append(card.worst_case(norm))
    return {
        "schema": json.loads(before)["schema"],
        "saved_bytes_equal": saved == before,
        "saved_equal": rounded(saved) == rounded(before),
        "saved_sha256": sha256(rounded(saved)),
        "title": card.title,
        "method": card.method,
        "seed": card.seed,
        "threat": dict(card.threat),
        "labels_sha256": sha256(bytes(map(int, card.labels))),
        "deviations": [*card.deviations],
        "flags": [[flag["flag"], flag["text"]] for flag in card.flags],
        "columns": [column_facts(card, column) for column in columns],
    }


def rounded(text: bytes) -> bytes:
    """A card without its checksum and the last digits of its numbers, which depend on the processor."""
    text = re.sub(rb'\n "sha256": .*', b"", text)
    return re.sub(rb"\d+\.\d+(e-?\d+)?", lambda found: b"%.9g" % float(found[0]), text)


def column_facts(card: Any, column: Any) -> Any:
    facts = {name: getattr(column, name) for name in ("name", "norm", "eps", "bounded", "curve")}
    return facts | {
        "n": len(column.correct),
        "masks_sha256": sha256(b"".join(map(bytes, [column.correct, *column.parts.values()]))),
        "predictions_sha256": sha256(bytes(map(int, column.predictions))),
        "parts": {name: int(mask.sum()) for name, mask in column.parts.items()},
        "summary": summary_json(card, column),
    }


def flags(_: Section | None) -> Section:
    return {name: raised_flags(load_card(path)) for name, path in card_paths().items()}


def runs(_: Section | None) -> Section:
    found = {}
    for name, path in card_paths().items():
        stored, run = load_card(path).run.get("hash"), load_card(path).run.get("config")
        if run is not None:
            found[name] = {"stored": stored, "recomputed": run_hash(run), **read_again(run)}
    return found


def read_again(config: Mapping[str, Any]) -> Any:
    try:
        again = round_trip(config)
    except Exception:
        return {"refused": True}
    return {"read": again, "hash_of_read": run_hash(again)}


def grids(_: Section | None) -> Section:
    found = {}
    for path in sorted(RESULTS.rglob("*.toml")):
        for name, row, run in grid(path):
            of = f"{path.relative_to(RESULTS).as_posix().removeprefix('archive/')} {name}"
            found[of] = [row, None if run is None else run_hash(run)]
    return found


def paired(stored: Section | None) -> Section:
    """Each difference again from the cards that its key names; the keys are recorded once, by `collect`."""
    keys = stored or {question(*one): None for one in recorded()}
    return {key: answer(json.loads(key)) for key in keys}


def question(first: Any, second: Any, attacks: Any, of: Any, comparisons: int, less: Any) -> str:
    """The arguments of a paired difference as JSON, with the names of cards in the place of cards."""
    sides = [{str(seed): name_of(card) for seed, card in side.items()} for side in (first, second)]
    return json.dumps([*sides, [*attacks], of, comparisons, less])


def answer(key: list[Any]) -> Any:
    paths = card_paths()
    if lacking := [name for side in key[:2] for name in side.values() if name not in paths]:
        return f"no card {lacking[0]}"
    first, second = ({int(seed): load_card(paths[name]) for seed, name in side.items()} for side in key[:2])
    found = paired_difference(first, second, *key[2:])
    return found and [found.value, found.low, found.high, found.p, found.runs, found.standard_error]


def verdicts(_: Section | None) -> Section:
    return {name: dict(zip(("word", "because", "scale"), one, strict=True)) for name, one in claims().items()}


def boards(_: Section | None) -> Section:
    found: Section = {}
    for title, rows in leaderboards():
        found[title] = [label for label, _, _ in rows]
        for label, rank, held in rows:
            names, attacks = [*map(name_of, held)], ("autoattack", "clean", "pgd-20")
            scores = {attack: mean_balanced(held, attack) for attack in attacks}
            found[f"{title}: {names[0]}"] = {"label": label, "rank": rank, "cards": names, "balanced": scores}
    return found


def mean_balanced(held: Sequence[Any], attack: str) -> float | None:
    found = [card.summary(attack).balanced for card in held if attack in {column.name for column in card.columns}]
    return sum(found) / len(found) if len(found) == len(held) else None


def tables(_: Section | None) -> Section:
    found: Section = {}
    paths = {path: name for name, path in card_paths().items()}
    for folder in sorted({path.parent for path in paths}):
        rows = [*report_rows([path for path in paths if path.parent == folder])]
        place = str(Path(paths[rows[0][1][0]]).parent)
        found[place] = [label for label, _, _ in rows]
        for label, held, values in rows:
            found[f"{place}: {paths[held[0]]}"] = {"label": label, "cards": [*map(paths.get, held)], "balanced": values}
    return found


# -- training ----------------------------------------------------------------------------------------------------------

TIMES = ("seconds", "images_per_second", "peak_memory_mb")
ABROAD = 0.25
"""On another machine only the shares of correct images are compared, within this: 36 images and four epochs."""


def training(_: Section | None) -> Section:
    """Weights, curve, masks and flags of seven methods on digits. Bit-equal on one kind of processor and one torch."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    digits = tomllib.loads((STORED / "digits.toml").read_text(encoding="utf-8"))
    found: Section = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, method in itertools.product(digits["attacks"], digits["methods"]):
            attacks = digits["attacks"][precision] + (digits["more"].get(method, []) if precision == "float32" else [])
            settings, name = {**digits["settings"], "training.precision": precision}, f"{method} {precision}"
            found[name] = one_training(method, settings, attacks, Path(folder) / name)
    torch.set_num_threads(threads)
    return found


def machine(_: Section | None) -> Section:
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
    isa = sha256(" ".join(next((line for line in lines if line.startswith("flags")), "")).encode())[:12]
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "pyautoattack"))
    return {"is": ", ".join([model, torch.backends.cpu.get_cpu_capability(), isa, *versions])}


def one_training(method: str, settings: Mapping[str, Any], attacks: Sequence[str], out: Path) -> Any:
    from safetensors.numpy import load_file

    card = trained(method, settings, attacks, out)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    tensors = sorted(load_file(out / "model.safetensors").items())
    return {
        "weights_sha256": sha256(b"".join(name.encode() + value.tobytes() for name, value in tensors)),
        "metrics": [{name: value for name, value in row.items() if name not in TIMES} for row in lines],
        "masks": {column.name: "".join(map(str, column.correct.astype(int))) for column in card.columns},
        "flags": [[flag["flag"], flag["text"]] for flag in card.flags],
    }


def close_abroad(old: Any, new: Any) -> bool:
    """Whether a training on another machine has about the same accuracies under the same attacks."""
    shares = [{name: mask.count("1") / len(mask) for name, mask in one["masks"].items()} for one in (old, new)]
    return shares[0].keys() == shares[1].keys() and all(abs(v - shares[1][k]) <= ABROAD for k, v in shares[0].items())


# -- storing and comparing ---------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Section | None], Section]] = {
    one.__name__: one for one in (machine, cards, flags, runs, grids, paired, verdicts, boards, tables, training)
}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, sort_keys=True, default=lambda one: one.item()))


def collect(out: Path, names: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = json.dumps(plain(SECTIONS[name](None)), sort_keys=True, separators=(",", ":")).encode()
        (out / f"{name}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        print(f"{name}: {len(content):,} bytes, sha256 {sha256(content)[:12]}")


def differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield where two values differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key, "nothing"), new.get(key, "nothing"), f"{at}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{at}/{index}")
    elif not same(old, new):
        yield at, f"{str(old)[:200]} -> {str(new)[:200]}"


def same(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(old) and math.isnan(new))
    return type(old) is type(new) and old == new


def read(name: str) -> Section:
    found: Section = json.loads(gzip.decompress((STORED / f"{name}.json.gz").read_bytes()))
    return found


def is_known(name: str, old: Any, new: Any) -> bool:
    """Whether two values may differ as they are of two machines."""
    if name == "cards" and isinstance(new, dict):
        return not [*differences({**old, "saved_bytes_equal": 0}, {**new, "saved_bytes_equal": 0})]
    return name == "machine" or (name == "training" and isinstance(new, dict) and close_abroad(old, new))


def compare(names: Sequence[str]) -> int:
    """Print how many keys of each section are equal, and every difference; return 1 if one is not named."""
    changes = tomllib.loads((STORED / "named_changes.toml").read_text(encoding="utf-8")).get("change", [])
    abroad, failed = read("machine") != machine(None), False
    for name in names:
        old = read(name)
        new = plain(SECTIONS[name](old))
        lines, equal = list[str](), 0
        for key in old:
            found = [*differences(old[key], new.get(key, "nothing"), key)]
            found = [] if found and abroad and is_known(name, old[key], new.get(key)) else found
            equal += not found
            for at, how in found:
                why = next((one["why"] for one in changes if fnmatchcase(f"{name}/{at}", one["match"])), None)
                failed |= why is None
                lines.append(f"  {at}: {how}" if why is None else f"  named ({why}): {at}: {how}")
        lines += [f"  {added} new, not compared"] if (added := len(new.keys() - old.keys())) else []
        print(f"{name}: equal {equal} of {len(old)}{', on another machine' * abroad}", *lines, sep="\n", flush=True)
    return int(failed)


def main(words: Sequence[str]) -> int:
    command, *rest = words or [""]
    if command not in ("collect", "compare") or (command == "collect" and not rest):
        print(__doc__)
        return 2
    names = rest[1:] if command == "collect" else rest
    chosen = names or [*SECTIONS]
    return compare(chosen) if command == "compare" else collect(Path(rest[0]), chosen) or 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
