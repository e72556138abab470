"""A mutational fuzzer: changed files and command lines must end well or in one line. `make fuzz
SECONDS=600`.

Every case changes a whole input (a run folder, a card, a grid, images, weights, a command line) at
random, and runs a command on it in this process. A finding is an exit status other than 0 and 2, a
traceback, an exception that leaves `main`, or a command that takes too long. A case is decided by
its kind and number:

    python tests/fuzz.py --seconds 600                      # as many cases as fit
    python tests/fuzz.py --kind run/run.json --first 1234 --cases 1 --keep case
"""

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from taet.cli import main
from taet.errors import CUSTOM
from taet.files import seal

SECONDS = 60  # a case that takes longer hangs
TINY = (
    "--data.max-count 10 --data.test-max-count 2 --threat.steps 1 --monitor-steps 1 --threads 1 "
    "--batch-size 32"
)
TINY += " --model resnet8 --epochs 1 --evaluation.attacks clean fgsm"
ODD_WORDS = [
    *(
        "0",
        "-1",
        "1_0",
        "nan",
        "1e400",
        "99999999999",
        "1/0",
        "8/255",
        "1.5",
        "None",
        "x",
        "é",
        "/",
        "..",
        "~nouser/x",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "npz:",
        "folder:.",
        "os:getcwd",
        "--",
        "=",
        "--help=",
        "pgd-0",
        "pgd-1:restarts=0",
    ),
    *("", "a\nb", "\udcff", "x" * 5000, "9" * 400),
]
ODD_BYTES = [word.encode("utf-8", "surrogateescape") for word in ODD_WORDS]
ODD_BYTES += [
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b'"',
    b"\n",
    b"\\ud800",
    b"PK\x03\x04",
]
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        10**30,
        0.5,
        1e308,
        float("nan"),
        "",
        "x" * 5000,
        "\udcff",
        "../../x",
        [],
        {},
        [[]],
        {"x": 1},
    ),
    *([1] * 10_000, "os:getcwd"),
]
FAST = 'settings = {model = "resnet8", epochs = 1, evaluation.attacks = ["fgsm"]}\n'
GRID = f'methods = ["at"]\ndata = ["digits-lt"]\nimbalance = [10, 5.5]\n{FAST}'
OPENING = (
    "evaluate run",
    "predict run images",
    "export run --format safetensors",
    "report run --out page.html",
)
OPENING += ("check run", "train --resume run")
OWN = (
    "evaluate --model resnet8 --data digits-lt --data.test-max-count 2 --attacks clean --out card "
    "--weights weights.pt"
)
TARGETS = {
    **dict.fromkeys(
        ("run/run.json", "run/metrics.jsonl", "run/evaluation.json", "run/model.safetensors"),
        OPENING,
    ),
    "run/checkpoint.pt": ("train --resume run", "check run"),
    "grid.toml": ("compare grid.toml --dry-run",),
    "arrays.npz": ("data show npz:arrays.npz", "data prepare npz:arrays.npz"),
    "table.csv": ("data show csv:table.csv", "data show csv:table.csv --group patient"),
    "images/class 1/1.png": ("data show folder:images", "predict run images"),
    "weights.pt": (OWN,),
}
"""Files that are changed, and the commands that read them."""
CALLS = (
    f"train at {TINY} --lr 0.1 --milestones 0.5 0.9 --seed 1 --device cpu --out new",
    "evaluate run --attacks clean fgsm --eps 8/255 --batch-size 5 --weights model --device cpu",
    f"{OWN} --device cpu",
    "check run --attacks clean --device cpu",
    "predict run images --top 2 --batch-size 3 --attack fgsm",
    "export run --format safetensors --weights model --out exported.safetensors",
    "report run --out page.html --title T",
    "compare grid.toml --out grid --jobs 1 --dry-run",
    "data show digits-lt --max-count 3 --imbalance-ratio 2 --size 8",
    "list methods --json",
)
KINDS = (*TARGETS, "command line")


def make_inputs(place: Path) -> None:
    """Write a whole input of every kind into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    images, labels = (
        np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8),
        np.arange(12) % 3,
    )
    np.savez(
        place / "arrays.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    for number, label in enumerate(labels):
        path = place / "images" / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    rows = [
        f"images/class {label}/{number}.png,{label},p{number // 2}"
        for number, label in enumerate(labels)
    ]
    (place / "table.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    (place / "grid.toml").write_text(GRID)
    os.chdir(place)
    assert (
        run(["train", "at", *TINY.split(), "--out", "run"]) == run(["evaluate", "run"]) == (0, "")
    )
    # so that changes reach the readers
    (place / "run" / "done").write_text(json.dumps(seal({"files": {}})))
    from safetensors.torch import load_file

    torch.save(load_file(place / "run" / "model.safetensors"), place / "weights.pt")


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one to four bytes or parts flipped, cut, doubled or replaced; headers
    more often."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 4, 8, 100, 4000))
        at = min(at, draw.randrange(400)) if draw.random() < 0.5 else at
        match draw.randrange(5):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = draw.choice(ODD_BYTES)
            case _:
                del data[draw.choice((0, at, len(data) - length)) :]
    return bytes(data)


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """Return JSON, or one of its lines, with one of its values removed, renamed or replaced."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number])
    holder, key = draw.choice(list(_places(value)))
    match draw.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(ODD_WORDS)] = holder.pop(key)
        case _:
            holder[key] = draw.choice(ODD_VALUES)
    sealed = isinstance(value, dict) and "sha256" in value
    # so that changes reach the readers
    lines[number] = json.dumps(seal(value) if sealed else value)
    return "\n".join(lines).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list or dictionary of a value with each of its keys; of long lists the first keys
    only."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(min(len(value), 3))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])


def changed_words(words: list[str], draw: random.Random) -> list[str]:
    """Return a command line with one of its words replaced, added or removed."""
    at, odd = draw.randrange(len(words)), draw.choice([*ODD_WORDS, *words])
    return [
        *words[:at],
        *draw.choice(([odd], [odd, words[at]], [], [words[at] + odd])),
        *words[at + 1 :],
    ] or ["x"]


def run(words: list[str]) -> tuple[object, str]:
    """Run a command in this process; return its exit status, and what is wrong with that; "" if
    nothing is."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except BaseException as error:
        return None, f"{type(error).__name__} leaves main: {error}"
    if code not in (0, 2) and not (code == 1 and words[0] == "check"):  # which found something
        return code, f"exit status {code}: {err.getvalue()[-300:]}"
    silent = code == 2 and not out.getvalue() and "taet: " not in err.getvalue()
    return code, "a traceback" if "Traceback" in err.getvalue() else "no line" if silent else ""


def play(kind: str, number: int, inputs: Path, place: Path) -> tuple[object, str]:
    """Play a case in the new folder `place`; return its exit status and what is wrong with it, with
    the command."""
    shutil.copytree(inputs, place)
    os.chdir(place)
    draw = random.Random(f"{kind} {number}")
    if kind == "command line":
        words = changed_words(shlex.split(draw.choice(CALLS)), draw)
    else:
        change = changed_json if ".json" in kind and draw.random() < 0.7 else changed_bytes
        Path(kind).write_bytes(change(Path(kind).read_bytes(), draw))
        words = shlex.split(draw.choice(TARGETS[kind]))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        code, finding = run(words)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        CUSTOM.clear()
    return code, finding and f"{kind} {number}: taet {shlex.join(words)[:300]}: {finding}"


def fuzz(
    inputs: Path,
    place: Path,
    going_on: Callable[[int], bool],
    kinds: tuple[str, ...] = KINDS,
    first: int = 0,
) -> tuple[list[object], list[str]]:
    """Play cases of all kinds in turn while `going_on(number of cases)`; return exit statuses and
    findings."""
    codes, findings = list[object](), list[str]()
    while going_on(len(codes)):
        number, kind = first + len(codes) // len(kinds), kinds[len(codes) % len(kinds)]
        folder = place / f"{kind.replace('/', '-')}-{number}"
        code, finding = play(kind, number, inputs, folder)
        codes.append(code)
        if finding:
            findings.append(finding)
            print(finding)
        else:
            os.chdir(place)
            shutil.rmtree(folder)
    return codes, findings


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A mutational fuzzer of the commands.")
    parser.add_argument("--seconds", type=float, help="time; without it, as many cases as --cases")
    parser.add_argument("--cases", type=int, default=len(KINDS))
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first case of each kind"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder of the inputs that were findings; default: a temporary one",
    )
    asked = parser.parse_args()
    place = (
        Path(tempfile.mkdtemp(prefix="taet-fuzz-")) if asked.keep is None else asked.keep.resolve()
    )
    os.environ["TAET_CACHE"] = str(place / "cache")
    torch.set_num_threads(1)
    make_inputs(place / "inputs")
    (place / "cases").mkdir()
    end = time.monotonic() + (asked.seconds or 0)
    going_on = (
        (lambda done: done < asked.cases)
        if asked.seconds is None
        else (lambda _: time.monotonic() < end)
    )
    codes, findings = fuzz(
        place / "inputs", place / "cases", going_on, tuple(asked.kind or KINDS), asked.first
    )
    print(f"{len(codes)} cases, {len(findings)} findings; their inputs are in {place / 'cases'}")
    sys.exit(bool(findings))
