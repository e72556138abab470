"""The oracle: every number that a change of the code must not move, as data in tests/golden/oracle.

    python tests/oracle.py compare [SECTION ...]
        one line per section and one per difference; exits 1 on any
    python tests/oracle.py collect OUT [SECTION ...]
        writes the sections as they are now into the folder OUT

The sections cards, flags, runs, grids, paired, verdicts, boards and tables read the committed
files; training and commands run something, a minute each. They are as of v0.1.0, but for three:
boards and tables hold today's rows, each of whose numbers was found to be that of v0.1.0's row, or
of the rows of the same cards, before it was stored; training is as of commit 5826cae9, since the
step of an evaluation follows the radius. A difference is named, and no failure, if
tests/golden/oracle/named_changes.toml matches it.

All names of the package stand in the imports: when one moves, change it there.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
# the package of this checkout, not an installed one
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "papers")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

import findings  # noqa: E402
import paired as pairing  # noqa: E402
import taet  # noqa: E402
from runs import Runs  # noqa: E402
from taet import cli, protocols  # noqa: E402
from taet.card.card import ResultCard  # noqa: E402
from taet.errors import UserError  # noqa: E402
from taet.evaluation.flags import flagged  # noqa: E402
from taet.experiments import grid  # noqa: E402
from taet.files import seal  # noqa: E402
from taet.metrics.accuracies import class_groups  # noqa: E402
from taet.report.tables import order, threat  # noqa: E402
from taet.run.identity import run_from_json, run_hash  # noqa: E402
from taet.settings import Data, override  # noqa: E402

RESULTS, STORED = ROOT / "results", ROOT / "tests" / "golden" / "oracle"
NEW = {
    "data": {
        *("skip_unreadable", "test_seed", "validation_per_class", "class_order", "group_share"),
        *("folds", "fold", "path_column", "transparent"),
    },
    "model": {"tune", "keep_statistics"},
    "evaluation": {"keep_images"},
    "training": {"compile"},
}
"""Settings that are younger than the oracle."""
DIGITS = tomllib.loads((STORED / "digits.toml").read_text(encoding="utf-8"))
Section = dict[str, Any]
"""Plain JSON by key; the key is the unit that is counted as equal or not."""
TIMES = ("seconds", "images_per_second", "peak_memory_mb")
ABROAD = 0.25
"""On another machine only the shares of correct images are compared, within this: 36 images and
four epochs."""
SMALL = (
    "train at --model resnet8 --epochs 1 --data.max-count 10 --data.test-max-count 2 "
    "--threat.steps 1 --out o"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def load(path: Path) -> ResultCard:
    return ResultCard.load(path)


@functools.cache
def card_paths() -> dict[str, Path]:
    """Every committed result card by its name, relative to results/; one in results/archive keeps
    its old name."""
    found = {
        path.relative_to(RESULTS).as_posix().removeprefix("archive/"): path
        for path in RESULTS.rglob("*.json")
    }
    return {
        name: path
        for name, path in sorted(found.items())
        if b'"taet result card"' in path.read_bytes()[:200]
    }


@functools.cache
def known_paths() -> dict[str, Path]:
    """The cards that the oracle holds: one that is committed later is a seed more of a row, not a
    number that moved."""
    known = json.loads(gzip.decompress((STORED / "cards.json.gz").read_bytes()))
    return {name: path for name, path in card_paths().items() if name in known}


def facts(card: Any) -> tuple[Any, ...]:
    return card.model["weights_sha256"], card.created, len(card.columns)


@functools.cache
def names_by_facts() -> dict[tuple[Any, ...], str]:
    """Name of each committed card by its facts; of equal cards the first."""
    return {facts(load(path)): name for name, path in reversed(known_paths().items())}


def cards(_: Section | None) -> Section:
    return {name: one_card(path) for name, path in card_paths().items()}


def one_card(path: Path) -> Any:
    card, before = load(path), path.read_bytes()
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
        **{name: getattr(card, name) for name in ("title", "method", "seed")},
        "threat": dict(card.threat),
        "labels_sha256": sha256(bytes(map(int, card.labels))),
        "deviations": [*card.deviations],
        "flags": [[flag["flag"], flag["text"]] for flag in card.flags],
        "columns": [column_facts(card, column) for column in columns],
    }


def rounded(text: bytes) -> bytes:
    """A card without its checksum and the last digits of its numbers, which depend on the
    processor."""
    text = re.sub(rb'\n "sha256": .*', b"", text)
    return re.sub(rb"\d+\.\d+(e-?\d+)?", lambda found: b"%.9g" % float(found[0]), text)


def column_facts(card: Any, column: Any) -> Any:
    return {
        **{name: getattr(column, name) for name in ("name", "norm", "eps", "bounded", "curve")},
        "n": len(column.correct),
        "masks_sha256": sha256(b"".join(map(bytes, [column.correct, *column.parts.values()]))),
        "predictions_sha256": sha256(bytes(map(int, column.predictions))),
        "parts": {name: int(mask.sum()) for name, mask in column.parts.items()},
        "summary": card.summary_of(column).to_json(),
    }


def flags(_: Section | None) -> Section:
    found = {name: flagged(load(path)).flags for name, path in card_paths().items()}
    return {name: [[flag["flag"], flag["text"]] for flag in of] for name, of in found.items()}


def as_stored(run: Any) -> dict[str, Any]:
    """The JSON of a Run with the settings of its data as they were: those that have left, and none
    that is new."""
    config = run.model_dump()
    old = {
        part: {name: config[part][name] for name in config[part].keys() - new}
        for part, new in NEW.items()
    }
    left = {"data": Data.retired, "training": {"sync_bn": True, "monitor_images": None}}
    return {**config, **{part: {**left.get(part, {}), **values} for part, values in old.items()}}


def runs(_: Section | None) -> Section:
    """The hash of the settings of each card, as stored, recomputed, and after they were read."""
    found = {}
    for name, path in card_paths().items():
        if (config := load(path).run.get("config")) is not None:
            found[name] = {
                "stored": load(path).run.get("hash"),
                "recomputed": run_hash(config),
                "refused": True,
            }
            with contextlib.suppress(UserError):
                again = as_stored(run_from_json(config))
                del found[name]["refused"]
                found[name] |= {"read": again, "hash_of_read": run_hash(again)}
    return found


def grids(_: Section | None) -> Section:
    found = {}
    for path in sorted(RESULTS.rglob("*.toml")):
        for cell in grid.cells_of(grid.read(path), Path("out")):
            of = f"{path.relative_to(RESULTS).as_posix().removeprefix('archive/')} {cell.name}"
            found[of] = [cell.row, None if cell.run is None else run_hash(as_stored(cell.run))]
    return found


def paired(stored: Section | None) -> Section:
    """Each difference again from the cards that its key names; the keys were recorded by v0.1.0."""
    return {key: answer(json.loads(key)) for key in stored or ()}


def answer(key: list[Any]) -> Any:
    """Of two sides, cards by seed: their attacks, classes (a label, a group or None), comparisons,
    and `less`."""
    paths = card_paths()
    if lacking := [name for side in key[:2] for name in side.values() if name not in paths]:
        return f"no card {lacking[0]}"
    first, second = (
        {int(seed): load(paths[name]) for seed, name in side.items()} for side in key[:2]
    )
    attacks, of, comparisons, less = key[2:]
    ranks = None
    if of is not None:
        groups = class_groups(next(iter(first.values())).data["train_class_counts"])
        by_size = [label for name in ("head", "body", "tail") for label in groups[name]]
        places = [
            by_size.index(label) + 1 for label in (groups[of] if isinstance(of, str) else [of])
        ]
        ranks = places[0], places[-1]
    asked = {"ranks": ranks, "less": less or "", "comparisons": comparisons}
    found = pairing.paired(first, second, (attacks[0], attacks[1]), **asked)
    return found and [found.value, found.low, found.high, found.p, found.runs, found.standard_error]


def verdicts(_: Section | None) -> Section:
    """Word, scale that decided, and the differences or per cents of the largest scale with runs."""
    found = {}
    for name, verdict in findings.verdicts(Runs()).items():
        seen = [outcome for outcome in verdict.outcomes.values() if outcome.word != "not tested"]
        text = "; ".join(line.found for line in seen[0].evidence) if seen else ""
        numbers = re.findall(r"[−+]?\d+\.\d \([^ ]+ to [−+]?\d+\.\d", text)
        numbers = numbers or re.findall(r"[−+\d.]+ %", text)
        found[name] = {"word": verdict.word, "scale": verdict.scale, "numbers": sorted(numbers)}
    return found


def boards(_: Section | None) -> Section:
    found: Section = {}
    for folders in (["reproduce/cpu"], ["reproduce/mini", "cifar10-lt-class-wise"]):
        results = taet.results(
            [
                path
                for path in known_paths().values()
                if path.parent in [RESULTS / f for f in folders]
            ]
        )
        for line in results.leaderboard().to_dict("records"):
            about = [line[name] for name in ("data", "model", "protocol", "row", "imbalance_ratio")]
            # two have equal weights
            held = {one.card.seed: one.card for one in results.entries if place(one) == about}
            names = sorted(names_by_facts()[facts(card)] for card in held.values())
            scores = {
                attack: mean_balanced([*held.values()], attack)
                for attack in ("autoattack", "clean", "pgd-20")
            }
            found[names[0]] = {"rank": line["rank"], "cards": names, "balanced": scores}
    return found


def place(one: Any) -> list[Any]:
    card = one.card
    return [
        card.data["name"],
        card.model["name"],
        card.protocol,
        one.row,
        card.data["imbalance_ratio"],
    ]


def mean_balanced(held: Sequence[Any], attack: str) -> float | None:
    found = [
        card.summary(attack).balanced
        for card in held
        if attack in {column.name for column in card.columns}
    ]
    return sum(found) / len(found) if len(found) == len(held) else None


def tables(_: Section | None) -> Section:
    """The rows of a report of each folder of cards, best first, with mean, interval and seeds under
    each attack."""
    found: Section = {}
    paths = {path.as_posix(): name for name, path in known_paths().items()}
    for folder in sorted({Path(path).parent for path in paths}):
        at = folder.relative_to(RESULTS).as_posix().removeprefix("archive/")
        for one in taet.results(
            [path for path in paths if Path(path).parent == folder]
        ).by_test_set():
            scores = one.scores("balanced")
            for row in order(one):
                values, held = {}, [paths[of.name] for of in one.entries if of.row == row]
                for line in scores[scores["row"] == row].itertuples():
                    column = one.columns[line.attack]
                    ball = "" if column.norm is None else threat(column)
                    values[f"{column.name} {ball}"] = [
                        line.accuracy,
                        line.low,
                        line.high,
                        line.seeds,
                    ]
                found.setdefault(at, []).append(row)
                found[f"{at}: {held[0]}"] = {"label": row, "cards": held, "balanced": values}
    return found


def training(_: Section | None) -> Section:
    """Weights, curve, masks and flags of seven methods on digits. Bit-equal on one kind of
    processor and one torch."""
    threads, found = torch.get_num_threads(), Section()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for precision, method in itertools.product(DIGITS["attacks"], DIGITS["methods"]):
            more = DIGITS["more"].get(method, []) if precision == "float32" else []
            settings, name = (
                {**DIGITS["settings"], "training.precision": precision},
                f"{method} {precision}",
            )
            found[name] = one_training(
                method, settings, DIGITS["attacks"][precision] + more, Path(folder) / name
            )
    torch.set_num_threads(threads)
    return found


def machine(_: Section | None) -> Section:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown"
    )
    isa = sha256(" ".join(next((line for line in lines if line.startswith("flags")), "")).encode())[
        :12
    ]
    versions = (
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "pyautoattack")
    )
    return {"is": ", ".join([model, torch.backends.cpu.get_cpu_capability(), isa, *versions])}


def trained(method: str, settings: Mapping[str, Any], attacks: Sequence[str], out: Path) -> Any:
    """Train a method with protocol taet and these settings in the folder `out`, and return the card
    of the attacks."""
    taet.train(override(protocols.taet(method), dict(settings)), out=out)
    return taet.evaluate(out, attacks=attacks)


def one_training(
    method: str, settings: Mapping[str, Any], attacks: Sequence[str], out: Path
) -> Any:
    card = trained(method, settings, attacks, out)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    tensors = sorted(load_file(out / "model.safetensors").items())
    return {
        "weights_sha256": sha256(
            b"".join(name.encode() + value.tobytes() for name, value in tensors)
        ),
        "metrics": [
            {name: value for name, value in row.items() if name not in TIMES} for row in lines
        ],
        "masks": {
            column.name: "".join(map(str, column.correct.astype(int))) for column in card.columns
        },
        "flags": [[flag["flag"], flag["text"]] for flag in card.flags],
    }


def close_abroad(old: Any, new: Any) -> bool:
    """Whether a training on another machine has about the same accuracies under the same
    attacks."""
    shares = [
        {name: mask.count("1") / len(mask) for name, mask in one["masks"].items()}
        for one in (old, new)
    ]
    return shares[0].keys() == shares[1].keys() and all(
        abs(v - shares[1][k]) <= ABROAD for k, v in shares[0].items()
    )


def commands(_: Section | None) -> Section:
    """Exit status and the line on stderr of each command of commands.txt; a change of the wording
    is only shown."""
    lines = (STORED / "commands.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        trained("at", DIGITS["settings"], ["clean", "fgsm"], base / "run")
        made_files(base)
        cases = [line for line in lines if line and not line.startswith("#")]
        return {
            case: one_command(case, base, Path(folder) / str(number))
            for number, case in enumerate(cases)
        }


def made_files(base: Path) -> None:
    for name, number in itertools.product("ab", range(3)):
        (base / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(base / "f" / name / f"{number}.png")
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 0, 1, 0, 1])
    np.savez(
        base / "x.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    (base / "t.csv").write_text("path,label\nf/a/0.png,a\nf/b/0.png,b\n")
    (base / "s.toml").write_text('methods = ["at"]\ndata = ["digits-lt"]\n')


def edit(text: str, folder: Path) -> None:
    file, _, change = text.partition(" ")
    path, (name, _, value) = folder / file, change.partition("=")
    if change.startswith(":"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(change[1:].replace("\\n", "\n"))
    elif path.suffix == ".npz":
        arrays = {**np.load(path), name: None if value == "null" else np.array(json.loads(value))}
        np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    else:
        record = json.loads(path.read_text())
        *above, last = (int(part) if part.isdigit() else part for part in name.split("."))
        functools.reduce(lambda one, key: one[key], above, record)[last] = json.loads(value)
        with contextlib.suppress(ValueError):  # no checksum of NaN
            record = seal({name: value for name, value in record.items() if name != "sha256"})
        path.write_text(json.dumps(record))


def one_command(case: str, base: Path, folder: Path) -> Any:
    edits, words, names = (part.strip() for part in f" {case}".split(" | "))
    shutil.copytree(base, folder)
    for text in filter(None, edits.split(" ; ")):
        edit(text, folder)
    before, said = contents(folder), io.StringIO()
    # a command that is accepted runs on: status 130
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(20)
    try:
        with (
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.chdir(folder),
        ):
            status: Any = cli.main(
                shlex.split(words.replace("TRAIN", SMALL).replace("MANY", "9" * 400))
            )
    except BaseException as error:
        status = repr(error)
    finally:
        signal.alarm(0)
    lines = [
        line
        for line in said.getvalue().splitlines()
        if line.startswith(("taet: error: ", "Traceback"))
    ]
    wording = lines[0].replace(str(folder), ".")[:300] if lines else ""
    found = {"status": status, "lines": len(lines), "unchanged": contents(folder) == before}
    shutil.rmtree(folder)
    return {**found, "named": bool(lines) and names in lines[0], "wording": wording}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


PARTS = (machine, cards, flags, runs, grids, paired, verdicts, boards, tables, commands, training)
SECTIONS = {one.__name__: one for one in PARTS}


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, sort_keys=True, default=lambda one: one.item()))


def collect(out: Path, names: Sequence[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = json.dumps(
            plain(SECTIONS[name](None)), sort_keys=True, separators=(",", ":")
        ).encode()
        (out / f"{name}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    return 0


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
        return math.isclose(old, new, rel_tol=1e-12, abs_tol=1e-12) or (
            math.isnan(old) and math.isnan(new)
        )
    return type(old) is type(new) and old == new


def is_known(name: str, old: Any, new: Any) -> bool:
    """Whether two values may differ as they are of two machines."""
    if name == "cards" and isinstance(new, dict):
        return not [*differences({**old, "saved_bytes_equal": 0}, {**new, "saved_bytes_equal": 0})]
    return name == "machine" or (
        name == "training" and isinstance(new, dict) and close_abroad(old, new)
    )


def compare(names: Sequence[str]) -> int:
    """Print how many keys of each section are equal, and every difference; return 1 if one is not
    named."""
    changes = tomllib.loads((STORED / "named_changes.toml").read_text(encoding="utf-8")).get(
        "change", []
    )
    matches = ((one["match"], one["why"]) for one in changes)
    named = [
        (pattern, why) for of, why in matches for pattern in ([of] if isinstance(of, str) else of)
    ]
    stored = {
        name: json.loads(gzip.decompress((STORED / f"{name}.json.gz").read_bytes()))
        for name in ("machine", *names)
    }
    abroad, failed = stored["machine"] != machine(None), False
    for name in names:
        old = stored[name]
        try:
            new = plain(SECTIONS[name](old))
        except Exception as error:
            print(f"{name}: not computed: {error!r}", flush=True)
            failed = True
            continue
        lines, equal = list[str](), 0
        for key in old:
            found = [*differences(old[key], new.get(key, "nothing"), key)]
            found = [] if found and abroad and is_known(name, old[key], new.get(key)) else found
            equal += not found
            for at, how in found:
                why = next(
                    (why for pattern, why in named if fnmatchcase(f"{name}/{at}: {how}", pattern)),
                    None,
                )
                why = "only the wording" if why is None and at.endswith("/wording") else why
                failed |= why is None
                lines.append(f"  {at}: {how}" if why is None else f"  named ({why}): {at}: {how}")
        lines += [f"  {added} new, not compared"] if (added := len(new.keys() - old.keys())) else []
        print(
            f"{name}: equal {equal} of {len(old)}{', on another machine' * abroad}",
            *lines,
            sep="\n",
            flush=True,
        )
    return int(failed)


def main(words: Sequence[str]) -> int:
    match words:
        case ["collect", out, *names]:
            return collect(Path(out), names or [*SECTIONS])
        case ["compare", *names]:
            return compare(names or [*SECTIONS])
    print(__doc__)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
