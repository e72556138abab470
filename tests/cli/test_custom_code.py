"""Custom code: what plug-ins and custom models raise or wrongly return is one line, and no run folder chooses any."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from taet import cli, registry
from taet.errors import CUSTOM, UserError
from taet.registry import Kind

TRAIN = "--data.max-count 10 --data.test-max-count 2 --threat.steps 1 --monitor-steps 1 --threads 1 --epochs 1"
METHOD = """
from taet.methods.base import Adversarial, Loss, Method
class Mine(Method):
    title = "Mine"
    reference = "a test"
    def loss(self, model, x, y, adversarial):
        logits = model(adversarial.x)
        total = self.outer(logits, y).mean()
        return Loss(total, {}, logits)
"""
ATTACK = """
from dataclasses import dataclass
from taet.attacks.spec import AttackSpec
NAMES = {"mine": "a test"}
@dataclass(frozen=True, kw_only=True)
class Mine(AttackSpec):
    names = {"mine": "linf"}
    def run(self, model, x, y, draws):
        return x
"""
MODEL = """
import torch
NAMES = {"mine": "a test"}
def build(name, num_classes, image_shape, head, stem):
    from taet import models
    return models.build("resnet8", num_classes, image_shape)
"""
DATA = """
from taet.data import load
NAMES = {"mine": "a test"}
def read(data):
    return load("digits-lt")
"""
CONFIG = """
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Config:
        a: int = 1
        def __post_init__(self):
            raise ValueError("q")
    def loss"""
OPTION = """
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Config:
        a: TYPE = 1
    def loss"""
SPLIT = "from dataclasses import replace; d = load('digits-lt'); return replace(d, train=WHAT); load"
COMMANDS = {
    "methods": f"train mine --model resnet8 {TRAIN}",
    "attacks": "evaluate RUN --attacks mine",
    "models": f"train at --model mine {TRAIN}",
    "data": "data show mine",
}
SOURCES = {"methods": METHOD, "attacks": ATTACK, "models": MODEL, "data": DATA}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write the file mine.py of a kind into a folder of plug-ins."""
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.chdir(tmp_path)

    def write(kind: Kind, source: str) -> Path:
        path = tmp_path / "plugins" / kind / "mine.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8", errors="surrogateescape")
        registry.forget(kind, path)
        return path

    return write


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "a-run"))


def refused(outcome: Any, *parts: str) -> None:
    assert outcome.code == 2, outcome
    last = outcome.err.splitlines()[-1]
    assert last.startswith("taet: error: "), outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in last


@pytest.mark.full
@pytest.mark.parametrize("kind", SOURCES)
def test_a_whole_plugin_is_used(taet: Any, plugin: Callable[..., Path], run: Path, kind: str) -> None:
    plugin(kind, SOURCES[kind])
    outcome = taet(*COMMANDS[kind].replace("RUN", str(run)).split())
    assert outcome.code == 0, outcome.err


OF_ANY = {
    "raises": ("raise ValueError('q')\n", "ValueError: q"),
    "exits": ("import sys; sys.exit(0)\n", "SystemExit: 0"),
    "exits in words": ("raise SystemExit('all is well')\n", "SystemExit: all is well"),
    "imports nothing": ("import no_such_module_at_all\n", "ModuleNotFoundError"),
}
"""At the head of a plug-in of any kind."""
NO_FILE = {
    "no Python": ("def\n", "is no Python file"),
    "null byte": ("a = '\0'\n", "is no Python file"),
    "no UTF-8": ("a = '\udcff'\n", "is no Python file"),
    "nested too deeply": (f"a = {'(' * 3000}{')' * 3000}\n", "is no Python file"),
    "int keys": ("NAMES = {1: 'one', 'a': 'b'}\n", "NAMES: got {1: 'one', 'a': 'b'}; allowed"),
    "None key": ("NAMES = {None: 'one', 'a': 'b'}\n", "NAMES: got {None"),
    "unhashable": ("NAMES = {['a']: 'one'}\n", "NAMES: got something computed; allowed"),
    "call": ("NAMES = dict(mine='one')\n", "NAMES: got something computed; allowed"),
    "list": ("NAMES = ['mine']\n", "NAMES: got ['mine']; allowed"),
    "number": ("NAMES = 5\n", "NAMES: got 5; allowed"),
    "with a type": ("NAMES: dict = 5\n", "NAMES: got 5; allowed"),
    "int title": ("NAMES = {'mine': 5}\n", "NAMES: got {'mine': 5}; allowed"),
    "empty name": ("NAMES = {'': 'one'}\n", "NAMES: got {'': 'one'}; allowed"),
    "two lines": ("NAMES = {'a\\nb': 'one'}\n", "allowed: a literal {'name'"),
}
"""What no kind of plug-in may be."""
CHANGES = {
    "methods": {
        "text as deviations": ("reference =", "deviations = 'one'; reference =", "deviations: got 'one'"),
        "numbers as deviations": ("reference =", "deviations = (1,); reference =", "deviations: got (1,)"),
        "text as baseline": (
            "reference =",
            "baseline = 'no'; reference =",
            "baseline: got 'no'; allowed: True",
        ),
        "no class": ("class Mine(Method)", "class Mine", "got 0 methods; allowed: one class"),
        "a Config that raises": ("    def loss", CONFIG, "Mine: Config: ValueError: q"),
        "number as official": ("reference =", "official = 5; reference =", "official: got a int; allowed: Mapping"),
        "option of no type": ("    def loss", OPTION.replace("TYPE", "'Nothing'"), "Config: NameError"),
        "option of odd type": (
            "    def loss",
            OPTION.replace("TYPE = 1", "bytes = b''"),
            "option a: got the type",
        ),
        "text for a number": (
            "    def loss",
            OPTION.replace("TYPE = 1", "int = 'q'"),
            "method a: got 'q'; allowed: a w",
        ),
        "raises": ("total =", "raise ValueError('q'); total =", "loss: ValueError: q"),
        "exits": ("total =", "raise SystemExit(0); total =", "loss: SystemExit: 0"),
        "breaks a pipe": ("total =", "raise BrokenPipeError; total =", "loss: BrokenPipeError"),
        "other arguments": ("(self, model, x, y, adversarial)", "(self)", "loss: TypeError: Mine.loss() takes 1"),
        "None": ("return Loss", "Loss", "loss returned a NoneType; allowed: a Loss"),
        "no total": ("Loss(total,", "Loss(None,", "loss returned a Loss; allowed: a Loss(total"),
        "a loss per image": (".mean()", "", "loss returned a Loss; allowed: a Loss(total"),
        "a loss without a graph": (
            "Loss(total,",
            "Loss(total.detach(),",
            "loss returned a Loss; allowed: a Loss(total",
        ),
        "a complex loss": ("Loss(total,", "Loss(total * 1j,", "loss returned a Loss; allowed: a Loss(total"),
        "logits of one image": ("{}, logits)", "{}, logits[:1])", "loss returned a Loss; allowed: a Loss(total"),
        "no constructor of Method": (
            "    def loss",
            "    def __init__(self, config, task): ...\n    def loss",
            "__init__ returned a NoneType; allowed: None, after a call of super().__init__",
        ),
        "half a character in the title": ('"Mine"', '"\\udcff"', "got no title; allowed: a text that can be printed"),
        "a long message": ("total =", "raise ValueError('q' * 10**6); total =", "... (1,000,000 characters)"),
        "ends the command": (
            "total =",
            "from taet.errors import Done; raise Done(0); total =",
            "loss: Done: 0",
        ),
        "no head": (
            "    def loss",
            "    @staticmethod\n    def head(config, task): ...\n    def loss",
            "head returned",
        ),
    },
    "attacks": {
        "raises": ("return x", "raise ValueError('q')", "mine.py: Mine: run: ValueError: q"),
        "exits": ("return x", "raise SystemExit(0)", "mine.py: Mine: run: SystemExit: 0"),
        "None": ("return x", "return None", "mine.py: Mine: run returned a NoneType; allowed: a tensor"),
        "no names": ('{"mine": "linf"}', "5", "mine.py: Mine: names: got 5"),
        "another norm": ('"linf"', "'l7'", "mine.py: Mine: names: got {'mine': 'l7'}"),
        "no run": ("def run", "def walk", "mine.py: Mine: got no dataclass with run"),
        "no dataclass": ("@dataclass(frozen=True, kw_only=True)", "", "mine.py: Mine: got no dataclass with run"),
    },
    "models": {
        "raises": ("    return", "    raise ValueError('q')\n    return", "mine.py: build: ValueError: q"),
        "exits": ("    return", "    raise SystemExit(0)\n    return", "mine.py: build: SystemExit: 0"),
        "None": ("return models", "models", "mine.py: build returned a NoneType; allowed: Classifier"),
        "no classifier": (
            "return models",
            "return torch.nn.Linear(2, 2)  #",
            "build returned a Linear",
        ),
        "other classes": ("num_classes, image_shape)", "3, image_shape)", "mine.py: model: got (2, 3) for 2 images"),
        "no build": ("def build", "def bild", "mine.py: has no function build"),
        "other arguments": ("(name, num_classes, image_shape, head, stem)", "()", "mine.py: build: TypeError"),
    },
    "data": {
        "no read": ("def read", "def red", "mine.py: has no function read"),
        "raises": ("return load", "raise ValueError('q'); load", "mine.py: read: ValueError: q"),
        "None": ("return load", "load", "mine.py: read returned a NoneType; allowed: Dataset"),
        "no split": ("return load", SPLIT.replace("WHAT", "None"), "mine.py: read: no data set: "),
        "list as split": ("return load", SPLIT.replace("WHAT", "[1, 2]"), "mine.py: read: no data set: "),
        "no images": (
            "return load",
            SPLIT.replace("WHAT", "replace(d.train, images=[1])"),
            "mine.py: read: train_images",
        ),
        "no labels": ("return load", SPLIT.replace("WHAT", "replace(d.train, labels=-d.train.labels)"), "got label -"),
        "a number as PUBLISHED": ("NAMES", "PUBLISHED = 5\nNAMES", "mine.py: PUBLISHED: got 5; allowed"),
    },
}
"""Faults of one kind of plug-in: what is replaced in a whole one, by what, and what is said of it."""
FUNCTION = 'NAMES = {"mine": "a test"}\n'
FUNCTIONS = {
    "no function": ("", "mine.py: has no function mine"),
    "other arguments": ("def mine(): ...\n", "mine.py: mine: TypeError"),
    "None": ("def mine(model, x, y, eps): ...\n", "mine.py: mine returned a NoneType"),
}
"""Attacks that are functions."""


def sources() -> Iterator[Any]:
    for kind in SOURCES:
        for name, (head, message) in OF_ANY.items():
            yield pytest.param(kind, COMMANDS[kind], head + SOURCES[kind], message, id=f"{kind}: {name}")
        for name, (source, message) in NO_FILE.items():
            yield pytest.param(kind, f"list {kind}", source, message, id=f"{kind}: {name}")
        for name, (before, after, message) in CHANGES[kind].items():
            assert before in SOURCES[kind]
            source = SOURCES[kind].replace(before, after)
            yield pytest.param(kind, COMMANDS[kind], source, message, id=f"{kind}: {name}")
    for name, (source, message) in FUNCTIONS.items():
        yield pytest.param("attacks", COMMANDS["attacks"], FUNCTION + source, message, id=f"function: {name}")
    outline = DATA + "def outline(data): return 'q'\n"
    yield pytest.param("data", "compare spec.toml --dry-run", outline, "outline returned a str", id="data: outline")


@pytest.mark.sample(18)
@pytest.mark.parametrize(("kind", "command", "source", "message"), [*sources()])
def test_a_fault_of_a_plugin_is_one_line(
    taet: Any, plugin: Callable[..., Path], run: Path, kind: str, command: str, source: str, message: str
) -> None:
    path = plugin(kind, source)
    Path("spec.toml").write_text('methods = ["at"]\ndata = ["mine"]\n')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(taet(*command.replace("RUN", str(run)).split()), message, path.name)
    assert {path: path.read_bytes() for path in before} == before


# -- models of a run folder --------------------------------------------------------------------------------------------

NETWORK = """
from pathlib import Path
from torch import nn
Path(__file__).with_suffix(".touched").touch()
def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def custom(taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A finished run of my_network:build, whose module lies in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("my_network.py").write_text(NETWORK)
    words = f"train at --model my_network:build {TRAIN} --evaluation.attacks fgsm --out a-run"
    assert taet(*words.split()).code == 0
    yield Path("a-run")
    sys.modules.pop("my_network", None)
    CUSTOM.discard("my_network")


OPENING = (
    "evaluate a-run",
    "evaluate --model a-run --data digits-lt --data.test-max-count 3 --out card",
    "check a-run",
    "check a-run --data digits-lt",
    "predict a-run an-image.png",
    "export a-run --format safetensors",
    "transfer a-run other",
    "train --resume a-run",
)


@pytest.mark.full
def test_a_run_folder_alone_never_chooses_what_is_imported(taet: Any, custom: Path) -> None:
    Image.new("L", (8, 8)).save("an-image.png")
    shutil.copytree(custom, "other")
    for words in OPENING:
        sys.modules.pop("my_network", None)
        Path("my_network.touched").unlink()
        message = "a-run: got the model 'my_network:build', which is code outside this package; allowed: with --trust-"
        refused(taet(*words.split()), message)
        refused(taet(*words.split(), "--trust-model", "another:build"), message)
        assert not Path("my_network.touched").exists()
        outcome = taet(*words.split(), "--trust-model", "my_network:build")
        assert outcome.code == 0, (words, outcome.err)
        assert Path("my_network.touched").exists()


def test_code_in_the_run_folder_is_refused_also_with_consent(
    taet: Any, custom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("my_network.py", custom)
    sys.modules.pop("my_network")
    monkeypatch.chdir(custom)
    refused(taet("evaluate", ".", "--trust-model", "my_network:build"), "is looked for in .")
    assert not Path("my_network.touched").exists()


def test_a_specification_alone_never_chooses_what_is_imported(taet: Any, custom: Path) -> None:
    shutil.rmtree(custom)
    Path("s.toml").write_text(
        "methods = ['at']\ndata = ['digits-lt']\nimbalance = [10]\nseeds = [0]\n"
        "settings.model = 'my_network:build'\nsettings.outer.name = 'cross-entropy'\n"
    )
    sys.modules.pop("my_network")
    Path("my_network.touched").unlink()
    message = "s.toml: got the model 'my_network:build', which is code outside this package; allowed: with --trust-"
    for words in ("compare s.toml --dry-run", "compare s.toml"):
        refused(taet(*words.split()), message)
        assert not Path("my_network.touched").exists()
        assert not Path("s").exists()
    outcome = taet("compare", "s.toml", "--dry-run", "--trust-model", "my_network:build")
    assert outcome.code == 0, outcome.err
    assert "taet train at --data digits-lt" in outcome.out
    assert Path("my_network.touched").exists()


def test_any_installed_callable_is_called_only_if_the_command_names_it(taet: Any, custom: Path) -> None:
    record = json.loads((custom / "run.json").read_text())
    record["run"]["model"]["name"] = "antigravity_of_mine:main"
    (custom / "run.json").write_text(json.dumps(record))
    Path("antigravity_of_mine.py").write_text(NETWORK)
    for words in ("evaluate a-run", "train --resume a-run", "predict a-run .", "export a-run --format pt2"):
        assert taet(*words.split()).code == 2
    assert not Path("antigravity_of_mine.touched").exists()


FAULTS = {
    "raises": "raise ValueError('q')",
    "exits": "raise SystemExit(0)",
    "gives None": "return None",
    "gives a number": "return 5",
    "gives other logits": "return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))",
    "breaks in forward": "return nn.Linear(3, 3)",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "words", ["evaluate --model bad_network:build --data digits-lt --out card", f"train at {TRAIN}"]
)
def test_a_fault_of_a_custom_model_is_one_line(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad_network.py").write_text(f"from torch import nn\ndef build():\n    {FAULTS[fault]}\n")
    outcome = taet(*words.split(), "--model", "bad_network:build")
    sys.modules.pop("bad_network")
    CUSTOM.discard("bad_network")
    refused(outcome)
    assert {path.name for path in tmp_path.iterdir()} <= {"bad_network.py", "__pycache__"}


SHADOW = "from pathlib import Path\nPath(__file__).with_suffix('.touched').touch()\nraise SystemExit(0)\n"


@pytest.mark.full
def test_no_file_of_the_current_directory_shadows_a_module(run: Path) -> None:
    """Neither in the processes that a command starts, nor in the command itself after Python has found it."""
    for name in ("torch", "numpy", "safetensors", "rich", "tyro", "json", "taet/__init__", "matplotlib", "jinja2"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / f"{name}.py").write_text(SHADOW)
    (run / "spec.toml").write_text(
        'methods = ["at"]\ndata = ["digits-lt"]\n[settings]\nmodel = "resnet8"\nepochs = 1\ndata.max_count = 10\n'
        'threat.steps = 1\nevaluation.attacks = ["clean"]\n'
    )
    main = [sys.executable, "-P", "-c", "import sys; from taet.cli import main; sys.exit(main())"]
    for words in ("evaluate . --processes 2 --attacks clean fgsm --batch-size 20", "compare spec.toml --out grid"):
        done = subprocess.run([*main, *words.split()], cwd=run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert not list(run.rglob("*.touched"))


def test_what_python_m_puts_first_on_the_path_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(SHADOW)
    command = [sys.executable, "-m", "taet", "list", "attacks", "--json"]
    path = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert not (tmp_path / "json.touched").exists()


# -- the last net ------------------------------------------------------------------------------------------------------

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ValueError("a\nb"),
            1,
            "unexpected: ValueError: a b. Please report this to the authors of taet with the output",
        ),
        (RecursionError("maximum recursion depth exceeded"), 1, "unexpected: RecursionError: maximum"),
        (MemoryError(), 1, "out of memory: MemoryError; a smaller --batch-size"),
        (RuntimeError(ALLOCATOR), 1, "out of memory: RuntimeError: [enforce fail"),
        (SystemExit(0), 1, "unexpected: SystemExit: 0"),
        (OSError("no number"), 1, "unexpected: OSError: no number"),
        (PermissionError(13, "Permission denied", "a-file"), 2, "a-file: Permission denied"),
        (OSError(28, "No space left on device", b"a-file"), 2, "a-file: No space left on device"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 1, "unexpected: UnicodeEncodeError"),
        (UserError("got this"), 2, "got this"),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    taet: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(_: list[str]) -> None:
        raise error

    monkeypatch.setattr("taet.cli.list.run", fail)
    outcome = taet("list", "methods")
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert outcome.err.startswith(f"taet: error: {message}")
    debug = taet("list", "methods", "--debug")
    assert debug.code == code
    assert "Traceback" in debug.err
    assert debug.err.endswith(outcome.err)
