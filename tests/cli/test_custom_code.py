"""Code that users bring: plug-ins and models. A fault of it is one line that names its file, and no
file chooses it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from taet.errors import CUSTOM
from taet.registry import Kind
from tests.calls import forget

TRAIN = (
    "--data.max-count 20 --data.test-max-count 2 --epochs 2 --threat.steps 1 --monitor-steps 1 "
    "--threads 1"
)
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
COMMANDS = {
    "methods": f"train mine --model resnet8 {TRAIN}",
    "attacks": "evaluate RUN --attacks mine",
    "models": f"train at --model mine {TRAIN}",
    "data": "data show mine",
}
SOURCES = {"methods": METHOD, "attacks": ATTACK, "models": MODEL, "data": DATA}
FAULTS = [
    ("methods", "", "def\n", "is no Python file"),
    ("methods", "total =", "raise ValueError('q'); total =", "ValueError: q"),
    (
        "methods",
        "    def",
        "    def stage_at(config, task, epoch): pass\n    def",
        "stage_at: got (None, None)",
    ),
    ("attacks", "", "import no_such_module_at_all\n", "ModuleNotFoundError"),
    (
        "models",
        "return models",
        "models",
        "mine.py: build returned a NoneType; allowed: Classifier",
    ),
    ("data", "return load", "load", "mine.py: read returned a NoneType; allowed: "),
]
"""Kind of a plug-in, what is replaced in a whole one, by what (at the head: ""), and what is said
of it."""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write the file mine.py of a kind into a folder of plug-ins."""
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.chdir(tmp_path)

    def write(kind: Kind, source: str) -> Path:
        path = tmp_path / "plugins" / kind / "mine.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        forget(kind, path)
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
@pytest.mark.sample(3)
@pytest.mark.parametrize(("kind", "before", "after", "message"), FAULTS)
def test_a_fault_of_a_plugin_is_one_line(
    taet: Any,
    plugin: Callable[..., Path],
    request: pytest.FixtureRequest,
    kind: str,
    before: str,
    after: str,
    message: str,
) -> None:
    assert before in SOURCES[kind]
    path = plugin(kind, SOURCES[kind].replace(before, after) if before else after + SOURCES[kind])
    command = f"list {kind}" if "Python" in message else COMMANDS[kind]
    run = request.getfixturevalue("run") if "RUN" in command else Path()  # only one needs it
    files = [path for path in run.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    refused(taet(*command.replace("RUN", str(run)).split()), message, path.name)
    assert [path.read_bytes() for path in files] == before


# -- models of a run folder

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
    "predict a-run an-image.png",
    "export a-run --format safetensors",
    "train --resume a-run",
)


@pytest.mark.full
def test_a_run_folder_alone_never_chooses_what_is_imported(taet: Any, custom: Path) -> None:
    Image.new("L", (8, 8)).save("an-image.png")
    for words in OPENING:
        sys.modules.pop("my_network", None)
        Path("my_network.touched").unlink()
        message = (
            "a-run: got the model 'my_network:build', which is code outside this package; "
            "allowed: with --trust-"
        )
        refused(taet(*words.split()), message)
        refused(taet(*words.split(), "--trust-model", "another:build"), message)
        assert not Path("my_network.touched").exists()
        outcome = taet(*words.split(), "--trust-model", "my_network:build")
        shown = outcome.out.splitlines() if words.startswith("check") else []
        failed = [line.split()[1] for line in shown if line.startswith("!")]
        assert failed in ([], ["accuracy"]), "only that two epochs may be no better than chance"
        assert outcome.code == len(failed), (words, outcome.out, outcome.err)
        assert Path("my_network.touched").exists()
    shutil.copy("my_network.py", custom)  # code in the folder itself is refused also with consent
    refused(
        taet("evaluate", "a-run", "--trust-model", "my_network:build", "--attacks", "my_network")
    )


def test_a_trusted_model_that_no_cell_has_is_refused(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(
        "methods = ['at']\ndata = ['digits-lt']\nsettings.model = 'resnet8'\n"
    )
    message = "--trust-model: got JUNK; allowed: a model of the specification, which has resnet8"
    refused(taet("compare", "s.toml", "--dry-run", "--trust-model", "JUNK"), message)


@pytest.mark.full
@pytest.mark.usefixtures("custom")
def test_a_specification_alone_never_chooses_what_is_imported(taet: Any) -> None:
    Path("s.toml").write_text(
        "methods = ['at']\ndata = ['digits-lt']\nsettings.model = 'my_network:build'\n"
    )
    sys.modules.pop("my_network")
    Path("my_network.touched").unlink()
    message = (
        "s.toml: got the model 'my_network:build', which is code outside this package; allowed: "
        "with --trust-"
    )
    refused(taet("compare", "s.toml", "--dry-run"), message)
    assert not Path("my_network.touched").exists()
    outcome = taet("compare", "s.toml", "--dry-run", "--trust-model", "my_network:build")
    assert outcome.code == 0, outcome.err
