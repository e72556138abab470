"""The oracle: every number that a change of the code must not move, as data in tests/golden/oracle.

    python tests/oracle.py compare [SECTION ...]       one line per section and one per difference; exits 1 on any
    python tests/oracle.py collect OUT [SECTION ...]   writes the sections as they are now into the folder OUT

The sections cards, flags, runs, grids, paired, verdicts, boards and tables read the committed files; training and
commands run something, a minute each. They are as of v0.1.0, but for boards and tables: these hold today's rows, each
of whose numbers was found to be that of v0.1.0's row, or of the rows of the same cards, before it was stored. A
difference is named, and no failure, if tests/golden/oracle/named_changes.toml matches it.

The package is reached only through tests/oracle_package.py: when a name moves, change it there.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import oracle_package as package
from oracle_package import RESULTS

os.environ.setdefault("OMP_NUM_THREADS", "1")
STORED = Path(__file__).parent / "golden" / "oracle"
Section = dict[str, Any]
"""Plain JSON by key; the key is the unit that is counted as equal or not."""

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
    return names_by_facts()[facts(card)]


def facts(card: Any) -> tuple[Any, ...]:
    return card.model["weights_sha256"], card.created, len(card.columns)


@functools.cache
def names_by_facts() -> dict[tuple[Any, ...], str]:
    return {facts(package.load_card(path)): name for name, path in reversed(card_paths().items())}


def cards(_: Section | None) -> Section:
    return {name: one_card(path) for name, path in card_paths().items()}


def one_card(path: Path) -> Any:
    card, before = package.load_card(path), path.read_bytes()
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
        "summary": package.summary_json(card, column),
    }


def flags(_: Section | None) -> Section:
    return {name: package.raised_flags(package.load_card(path)) for name, path in card_paths().items()}


def runs(_: Section | None) -> Section:
    found = {}
    for name, path in card_paths().items():
        stored, run = package.load_card(path).run.get("hash"), package.load_card(path).run.get("config")
        if run is not None:
            found[name] = {"stored": stored, "recomputed": package.run_hash(run), **read_again(run)}
    return found


def read_again(config: Mapping[str, Any]) -> Any:
    again = package.round_trip(config)
    if again is None:
        return {"refused": True}
    return {"read": again, "hash_of_read": package.run_hash(again)}


def grids(_: Section | None) -> Section:
    found = {}
    for path in sorted(RESULTS.rglob("*.toml")):
        for name, row, run in package.grid(path):
            of = f"{path.relative_to(RESULTS).as_posix().removeprefix('archive/')} {name}"
            found[of] = [row, None if run is None else package.run_hash(run)]
    return found


def paired(stored: Section | None) -> Section:
    """Each difference again from the cards that its key names; the keys were recorded by v0.1.0."""
    return {key: answer(json.loads(key)) for key in stored or ()}


def answer(key: list[Any]) -> Any:
    paths = card_paths()
    if lacking := [name for side in key[:2] for name in side.values() if name not in paths]:
        return f"no card {lacking[0]}"
    first, second = ({int(seed): package.load_card(paths[name]) for seed, name in side.items()} for side in key[:2])
    found = package.paired_difference(first, second, *key[2:])
    return found and [found.value, found.low, found.high, found.p, found.runs, found.standard_error]


def verdicts(_: Section | None) -> Section:
    return {name: dict(zip(("word", "scale", "numbers"), one, strict=True)) for name, one in package.claims().items()}


def boards(_: Section | None) -> Section:
    found: Section = {}
    for rank, held in package.leaderboards():
        names, attacks = sorted(map(name_of, held)), ("autoattack", "clean", "pgd-20")
        scores = {attack: mean_balanced(held, attack) for attack in attacks}
        found[names[0]] = {"rank": rank, "cards": names, "balanced": scores}
    return found


def mean_balanced(held: Sequence[Any], attack: str) -> float | None:
    found = [card.summary(attack).balanced for card in held if attack in {column.name for column in card.columns}]
    return sum(found) / len(found) if len(found) == len(held) else None


def tables(_: Section | None) -> Section:
    found: Section = {}
    paths = {path: name for name, path in card_paths().items()}
    for folder in sorted({path.parent for path in paths}):
        rows = [*package.report_rows([path for path in paths if path.parent == folder])]
        place = str(Path(paths[rows[0][1][0]]).parent)
        found.setdefault(place, []).extend(label for label, _, _ in rows)
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

    card = package.trained(method, settings, attacks, out)
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


# -- commands that fail ------------------------------------------------------------------------------------------------

SMALL = "train at --model resnet8 --epochs 1 --data.max-count 10 --data.test-max-count 2 --threat.steps 1 --out o"


def commands(_: Section | None) -> Section:
    """Exit status and the line on stderr of each command of commands.txt; a change of the wording is only shown."""
    lines = (STORED / "commands.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        base, digits = Path(folder) / "base", tomllib.loads((STORED / "digits.toml").read_text(encoding="utf-8"))
        package.trained("at", digits["settings"], ["clean", "fgsm"], base / "run")
        made_files(base)
        cases = [line for line in lines if line and not line.startswith("#")]
        return {case: one_command(case, base, Path(folder) / str(number)) for number, case in enumerate(cases)}


def made_files(base: Path) -> None:
    from PIL import Image

    for name, number in itertools.product("ab", range(3)):
        (base / "f" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(base / "f" / name / f"{number}.png")
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 0, 1, 0, 1])
    np.savez(base / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
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
        try:
            path.write_text(json.dumps(package.sealed(record)))
        except ValueError:  # no checksum of NaN
            path.write_text(json.dumps(record))


def one_command(case: str, base: Path, folder: Path) -> Any:
    edits, words, names = (part.strip() for part in f" {case}".split(" | "))
    shutil.copytree(base, folder)
    for text in filter(None, edits.split(" ; ")):
        edit(text, folder)
    before, here, said = contents(folder), Path.cwd(), io.StringIO()
    os.chdir(folder)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status: Any = package.command_line(shlex.split(words.replace("TRAIN", SMALL).replace("MANY", "9" * 400)))
    except BaseException as error:
        status = repr(error)
    finally:
        signal.alarm(0)
        os.chdir(here)
    lines = [line for line in said.getvalue().splitlines() if line.startswith(("taet: error: ", "Traceback"))]
    wording = lines[0].replace(str(folder), ".")[:300] if lines else ""
    found = {"status": status, "lines": len(lines), "unchanged": contents(folder) == before}
    shutil.rmtree(folder)
    return {**found, "named": bool(lines) and names in lines[0], "wording": wording}


def too_long(*_: object) -> None:
    raise KeyboardInterrupt  # the command was accepted, and runs on: status 130


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- storing and comparing ---------------------------------------------------------------------------------------------

PARTS = (machine, cards, flags, runs, grids, paired, verdicts, boards, tables, commands, training)
SECTIONS: dict[str, Callable[[Section | None], Section]] = {one.__name__: one for one in PARTS}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, sort_keys=True, default=lambda one: one.item()))


def collect(out: Path, names: Sequence[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = json.dumps(plain(SECTIONS[name](None)), sort_keys=True, separators=(",", ":")).encode()
        (out / f"{name}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        print(f"{name}: {len(content):,} bytes, sha256 {sha256(content)[:12]}")
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
        return math.isclose(old, new, rel_tol=1e-12, abs_tol=1e-12) or (math.isnan(old) and math.isnan(new))
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
    named = [
        (pattern, one["why"])
        for one in changes
        for pattern in ([one["match"]] if isinstance(one["match"], str) else one["match"])
    ]
    abroad, failed = read("machine") != machine(None), False
    for name in names:
        old = read(name)
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
                why = next((why for pattern, why in named if fnmatchcase(f"{name}/{at}: {how}", pattern)), None)
                why = "only the wording" if why is None and at.endswith("/wording") else why
                failed |= why is None
                lines.append(f"  {at}: {how}" if why is None else f"  named ({why}): {at}: {how}")
        lines += [f"  {added} new, not compared"] if (added := len(new.keys() - old.keys())) else []
        print(f"{name}: equal {equal} of {len(old)}{', on another machine' * abroad}", *lines, sep="\n", flush=True)
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
