"""Ctrl-C and SIGTERM end a command within seconds, also where no Python code runs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.calls import PATIENCE

MOST_SECONDS = 25.0
"""Four for the command, and the rest for a busy machine; what is interrupted takes minutes."""
PLUGIN = '''
import pathlib, time
import torch
from torch import nn
from taet.data.storage import ahead

NAMES = {"slow": "data whose images are never read"}


def wait():
    """A call outside Python, in which no handler of a signal runs."""
    matrix = torch.rand(5000, 5000)
    pathlib.Path("begun").touch()
    torch.linalg.eigvals(matrix)


def read(data):
    pathlib.Path("begun").touch()
    list(ahead(time.sleep, [600], most=1))


class Net(nn.Module):
    def __init__(self, waits_in_training):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.waits_in_training, self.calls = waits_in_training, 0

    def forward(self, x):
        self.calls += 1
        begun = self.calls > 6 and not self.training
        if self.waits_in_training:
            begun = self.training and pathlib.Path("run/checkpoint.pt").exists()
        if begun:
            wait()
        return self.layers(x)


def in_training():
    return Net(True)


def in_attack():
    return Net(False)
'''
SMALL = ["--data", "digits-lt", "--data.max-count", "20", "--epochs", "9", "--threat.steps", "1"]
WORDS = {
    "import": ["evaluate", "--model", "slow_import:build", "--data", "digits-lt"],
    "data": ["data", "show", "slow"],
    "training": ["train", "at", "--model", "slow:in_training", "--out", "run", *SMALL],
    "attack": ["evaluate", "--model", "slow:in_attack", "--data", "digits-lt", "--out", "card"],
}
SOME = [
    ("import", signal.SIGTERM),
    ("data", signal.SIGINT),
    ("training", signal.SIGTERM),
    ("attack", signal.SIGINT),
]


@pytest.mark.full
@pytest.mark.parametrize(("place", "number"), SOME)
def test_a_signal_ends_a_command_within_seconds(
    place: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(PLUGIN)
    (tmp_path / "slow_import.py").write_text(f"{PLUGIN}\nwait()\n")
    (tmp_path / "plugins/data").mkdir(parents=True)
    (tmp_path / "plugins/data/slow.py").write_text(PLUGIN)
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))
    process = subprocess.Popen(
        [sys.executable, "-m", "taet", *WORDS[place]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # until the call has begun
    process.send_signal(number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - begun < MOST_SECONDS
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("taet: interrupted; ")
    if place == "training":
        assert err.endswith(
            "continue with: taet train --resume run --trust-model slow:in_training\n"
        )
