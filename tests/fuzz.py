"""A mutational fuzzer: changed files and command lines must end well or in one line. `make fuzz SECONDS=600`.

Every case takes a whole input (a run folder, a card, a specification, images, weights, a plug-in, a command line),
changes it at random, and runs a command on it in this process. A finding is an exit status other than 0 and 2, a
traceback, an exception that leaves `main`, or a command that takes too long. A case is decided by its kind and number:

    python tests/fuzz.py --seconds 600                      # as many cases as fit
    python tests/fuzz.py --kind run.json --first 1234 --cases 1 --keep case
"""

from __future__ import annotations

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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from taet import registry
from taet.cli import main
from taet.errors import CUSTOM

SECONDS = 60
"""A case that takes longer hangs."""
TINY = "--data.max-count 10 --data.test-max-count 2 --threat.steps 1 --monitor-steps 1 --threads 1 --batch-size 32"
TINY += " --evaluation.attacks clean fgsm"
ODD_WORDS = [
    *("0", "-1", "1_0", "nan", "inf", "1e400", "99999999999", "0x10", "1/0", "8/255", "1.5", "None", "true", "x", "é"),
    *("/", "..", "~nouser/x", "/dev/null", "/dev/zero", "npz:", "folder:.", "os:getcwd", "--", "-", "=", "--help="),
    *("pgd-0", "pgd-1:restarts=0", "", "a b", "a\nb", "\udcff", "x" * 5000, "9" * 400),
]
ODD_BYTES = [word.encode("utf-8", "surrogateescape") for word in ODD_WORDS] + [
    *(b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\xff\xfe", b"NaN", b'"', b"\n", b",", b"\\ud800", b"PK\x03\x04"),
]
ODD_VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 10**9, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x", "x" * 5000, "\udcff"),
    *("../../x", [], {}, [0], [[]], [None], {"x": 1}, [1] * 10_000, "os:getcwd"),
]


# -- whole inputs ------------------------------------------------------------------------------------------------------

PLUGIN_SOURCE = '''"""A method."""
from taet.methods.base import Loss, Method
NAMES = {"fuzzed": "one line"}
class Fuzzed(Method):
    title = "Fuzzed"
    reference = "a test"
    deviations = ("one", "two")
    def loss(self, model, x, y, adversarial):
        logits = model(adversarial.x)
        return Loss(self.outer(logits, y).mean(), {}, logits)
'''
SPECIFICATION = """title = "Two methods"
methods = ["at", {name = "skip", method = "harl", settings = {absent = "skip"}}]
data = ["digits-lt"]
imbalance = [10, 5.5]
seeds = [0, 1]
[settings]
model = "resnet8"
threat.eps = "8/255"
[[variants]]
name = "bsl"
settings = {outer.name = "balanced-softmax"}
"""


def make_inputs(place: Path) -> None:
    """Write a whole input of every kind into a folder."""
    place.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 256, (12, 8, 8), np.uint8), np.arange(12) % 3
    np.savez(place / "arrays.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    for number, label in enumerate(labels):
        path = place / "images" / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number]).save(path)
    rows = [f"images/class {label}/{number}.png,{label},p{number // 2}" for number, label in enumerate(labels)]
    (place / "table.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
    (place / "spec.toml").write_text(SPECIFICATION)
    (place / "plugins" / "methods").mkdir(parents=True)
    (place / "plugins" / "methods" / "fuzzed.py").write_text(PLUGIN_SOURCE)
    os.chdir(place)
    for folder in ("run", "undone"):
        made = run("train", "at", "--model", "resnet8", "--epochs", 1, *TINY.split(), "--out", folder)
        assert made.code == 0, made
    assert run("evaluate", "run").code == 0
    (place / "undone" / "done").unlink()
    old = Path(shutil.copytree(place / "run", place / "old"))  # without checksums, so that changes reach the readers
    (old / "done").write_bytes(b"")
    for name in ("run.json", "evaluation.json"):
        stored = json.loads((old / name).read_text())
        del stored["sha256"]
        (old / name).write_text(json.dumps(stored))
    from safetensors.torch import load_file

    torch.save(load_file(place / "run" / "model.safetensors"), place / "weights.pt")


class Target(NamedTuple):
    """A file of an input that is changed, and the commands that read it."""

    file: str
    commands: tuple[str, ...]
    structured: bool = False
    """Whether it is JSON, whose values are changed as well."""


OPENING = ("evaluate run", "predict run images", "export run --format safetensors", "report run --out page.html")
OPENING += ("check run",)
RESUMING = ("train --resume undone", "train --resume undone --evaluate")
OWN = (
    "evaluate --model resnet8 --data digits-lt --data.test-max-count 2 --attacks clean --out card --weights weights.pt"
)
TARGETS = {
    **{
        f"{folder} {name}": Target(f"{folder}/{name}", tuple(w.replace(" run", f" {folder}") for w in OPENING), is_json)
        for folder in ("run", "old")
        for name, is_json in (
            *(("run.json", True), ("metrics.jsonl", True), ("evaluation.json", True), ("done", folder == "run")),
            *(("model.safetensors", False), ("artifacts/examples.npz", False)),
        )
    },
    "undone run.json": Target("undone/run.json", RESUMING, True),
    "undone metrics.jsonl": Target("undone/metrics.jsonl", RESUMING, True),
    "checkpoint.pt": Target("undone/checkpoint.pt", RESUMING),
    "spec.toml": Target("spec.toml", ("compare spec.toml --dry-run",)),
    "arrays.npz": Target("arrays.npz", ("data show npz:arrays.npz", "data prepare npz:arrays.npz")),
    "table.csv": Target("table.csv", ("data show csv:table.csv", "data show csv:table.csv --group patient")),
    "image.png": Target("images/class 1/1.png", ("data show folder:images", "predict run images")),
    "weights.pt": Target("weights.pt", (OWN,)),
    "plugin.py": Target(
        "plugins/methods/fuzzed.py", ("list methods", f"train fuzzed --model resnet8 --epochs 1 {TINY} --out new")
    ),
}
CALLS = (
    f"train at --model resnet8 --epochs 1 {TINY} --lr 0.1 --milestones 0.5 0.9 --seed 1 --device cpu --out new",
    "train --resume undone --evaluate",
    "evaluate run --attacks clean fgsm --eps 8/255 --batch-size 5 --weights model --device cpu",
    f"{OWN} --normalize none --device cpu",
    "check run --attacks clean --device cpu",
    "predict run images --top 2 --batch-size 3 --format json --attack fgsm",
    "export run --format safetensors --weights model --out exported.safetensors",
    "report run --out page.html --title T",
    "compare spec.toml --out grid --jobs 1 --part 1/2 --dry-run",
    "data show digits-lt --max-count 3 --imbalance-ratio 2 --size 8 --json",
    "list methods --json",
)
KINDS = (*TARGETS, "command line")


# -- changes -----------------------------------------------------------------------------------------------------------


def changed_bytes(content: bytes, draw: random.Random) -> bytes:
    """Return the content with one to four changes of bytes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1)
        if draw.random() < 0.5:  # headers decide more than pixels
            at = min(at, draw.randrange(400))
        length = draw.choice((1, 1, 2, 4, 8, 100, 4000))
        match draw.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at % len(data)] = draw.randrange(256)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = draw.choice(ODD_BYTES)
            case 5:
                odd = draw.choice(ODD_BYTES)
                data[at : at + len(odd)] = odd
            case _:
                del data[draw.choice((0, at, len(data) - length)) :]
    return bytes(data)


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """Return JSON with one or two of its values changed, in one of its lines where it has several documents."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    number = draw.randrange(len(lines))
    value = json.loads(lines[number] or "null")
    for _ in range(draw.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw.choice(places)
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(ODD_WORDS)] = holder.pop(key)
            case _:
                holder[key] = draw.choice(ODD_VALUES)
    lines[number] = json.dumps(value)
    return "\n".join(lines).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every list or dictionary of a value with each of its keys; of long lists the first keys only."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def changed_words(words: list[str], draw: random.Random) -> list[str]:
    """Return a command line with one to three of its words changed."""
    words = list(words)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(words))
        match draw.randrange(5):
            case 0:
                words[at] = draw.choice(ODD_WORDS)
            case 1:
                words.insert(at, draw.choice(ODD_WORDS))
            case 2 if len(words) > 1:
                del words[at]
            case 3:
                words.insert(at, draw.choice(words))
            case _:
                middle = draw.randrange(len(words[at]) + 1)
                words[at] = words[at][:middle] + draw.choice(ODD_WORDS) + words[at][middle:]
    return words


# -- cases -------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What a command did."""

    code: object
    said: str
    """The last line on standard error."""
    finding: str
    """What is wrong with that; "" if nothing is."""


def run(*words: object) -> Result:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
    except BaseException as error:
        return Result(None, "", f"{type(error).__name__} leaves main: {error}")
    lines = err.getvalue().strip().splitlines() or [""]
    finding = ""
    if code not in (0, 2) and not (code == 1 and words[0] == "check"):  # which found something
        finding = f"exit status {code}"
    elif "Traceback" in err.getvalue():
        finding = "a traceback"
    elif code == 2 and not out.getvalue() and not any(line.startswith("taet: ") for line in lines):
        finding = "exit status 2 without a line"
    return Result(code, lines[-1], finding)


def play(kind: str, number: int, inputs: Path, place: Path) -> tuple[list[str], Result]:
    """Play a case in the folder `place`, which is made; return the command and what it did."""
    shutil.copytree(inputs, place)
    os.chdir(place)
    draw = random.Random(f"{kind} {number}")
    if kind == "command line":
        words = changed_words(shlex.split(draw.choice(CALLS)), draw)
    else:
        target = TARGETS[kind]
        content = Path(target.file).read_bytes()
        change = changed_json if target.structured and draw.random() < 0.7 else changed_bytes
        Path(target.file).write_bytes(change(content, draw))
        words = shlex.split(draw.choice(target.commands))
    os.environ["TAET_PLUGINS"] = str(place / "plugins") if kind == "plugin.py" else ""
    (place / "words.txt").write_text("\0".join(words), "utf-8", "surrogateescape")
    registry.forget("methods", place / "plugins" / "methods" / "fuzzed.py")
    with _alarm() as rung:
        result = run(*words)
    CUSTOM.clear()
    return words, result._replace(finding=f"takes longer than {SECONDS} seconds") if rung else result


@contextlib.contextmanager
def _alarm() -> Iterator[list[bool]]:
    """Interrupt what is inside after SECONDS, and note that in the list."""
    rung: list[bool] = []

    def ring(*_: object) -> None:
        rung.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    inputs: Path,
    place: Path,
    going_on: Callable[[int], bool],
    say: Callable[[str], None] = print,
    kinds: tuple[str, ...] = KINDS,
    first: int = 0,
) -> Counter[str]:
    """Play the cases of all kinds in turn while `going_on(number of cases)`; return how many ended in which way."""
    ends: Counter[str] = Counter()
    number, done = first, 0
    while True:
        for kind in kinds:
            if not going_on(done):
                return ends
            folder = place / f"{kind.replace(' ', '-')}-{number}"
            words, result = play(kind, number, inputs, folder)
            done += 1
            ends["findings" if result.finding else "refused" if result.code == 2 else "done"] += 1
            if result.finding:
                say(f"{kind} {number}: {result.finding}: taet {shlex.join(words)[:300]}\n    {result.said}")
            else:
                os.chdir(place)
                shutil.rmtree(folder)
        number += 1


def start() -> int:
    """Run the command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, help="time; without it, as many cases as --cases")
    parser.add_argument("--cases", type=int, default=len(KINDS))
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--keep", type=Path, help="folder of the inputs that were findings; default: a temporary one")
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="taet-fuzz-")) if asked.keep is None else asked.keep.resolve()
    os.environ |= {"TAET_CACHE": str(place / "cache")}
    torch.set_num_threads(1)
    make_inputs(place / "inputs")
    (place / "cases").mkdir()
    end = None if asked.seconds is None else time.monotonic() + asked.seconds

    def going_on(done: int) -> bool:
        return done < asked.cases if end is None else time.monotonic() < end

    kinds = tuple(asked.kind or KINDS)
    ends = fuzz(place / "inputs", place / "cases", going_on, kinds=kinds, first=asked.first)
    print(f"{sum(ends.values())} cases: {', '.join(f'{count} {name}' for name, count in sorted(ends.items()))}")
    if ends["findings"]:
        print(f"the inputs of the findings are in {place / 'cases'}")
        return 1
    os.chdir("/")
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(start())
