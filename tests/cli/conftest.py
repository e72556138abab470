"""The command line in this process, and one run that went all the way through it."""

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from taet.cli import main

SMALL = (
    "--data.max-count 60 --data.test-max-count 6 --model resnet8 --batch-size 32 --threads 1 "
    "--precision float32"
)
SMALL += " --threat.eps 0.05 --threat.step-size 0.025 --threat.steps 2 --monitor-steps 2"
EPOCHS = 6  # after which most clean images are right


@dataclass(frozen=True)
class Outcome:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def call(*arguments: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # --help
            code = int(exit_.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def taet() -> Command:
    """Run `taet ARGUMENTS`."""
    return call


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of a run of seconds: 238 digits, ResNet-8, two PGD steps."""
    return SMALL.split()


@dataclass(frozen=True)
class Finished:
    """A run that was trained and attacked."""

    folder: Path
    train: Outcome
    evaluate: Outcome


@pytest.fixture(scope="session")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The whole way on digits, through the commands."""
    place = tmp_path_factory.mktemp("finished")
    folder = place / "run"
    trained = call("train", "at", *small, "--epochs", f"{EPOCHS}", "--out", folder)
    with pytest.MonkeyPatch.context() as patch:
        # the name is also a function
        patch.setattr(importlib.import_module("taet.attacks.autoattack"), "QUERIES", 20)
        evaluated = call(
            "evaluate", folder, "--attacks", "fgsm", "pgd-3", "autoattack-10", "--eps", "0.02"
        )
    return Finished(folder, trained, evaluated)
