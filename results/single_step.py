"""Measure what an epoch costs with one attack step and with ten: python results/single_step.py.

CPU seconds of one thread of a training epoch, without the curve, with the settings of
digits-lt-class-wise: a run of four epochs less one of one epoch. The time that a process waits for
others does not count. The methods take turns; the least of the rounds is the least disturbed.
Writes single-step.json beside this file, whose table is in README.md.
"""

import json
import os
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

import taet
from taet import protocols
from taet.machine import environment
from taet.settings import override

HERE = Path(__file__).parent
METHODS, ROUNDS, EPOCHS = ("at", "n-fgsm"), 2, (1, 4)
COMPARISON = "digits-lt-class-wise"


def settings() -> dict[str, Any]:
    """Return the training settings of the comparison, without the curve."""
    given = tomllib.loads((HERE / COMPARISON / "compare.toml").read_text(encoding="utf-8"))[
        "settings"
    ]
    given = {name: value for name, value in given.items() if not name.startswith("evaluation.")}
    return {
        **given,
        "data.name": "digits-lt",
        "data.imbalance_ratio": 10.0,
        "training.monitor_every": 0,
    }


def seconds(method: str, epochs: int) -> float:
    """Return the CPU seconds of a training."""
    run = override(protocols.taet(method), {**settings(), "training.epochs": epochs})
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        taet.train(run, out=Path(folder) / "run")
        return time.process_time() - begun


def epoch_seconds(method: str) -> float:
    """Return the CPU seconds of an epoch."""
    few, many = (seconds(method, epochs) for epochs in EPOCHS)
    return (many - few) / (EPOCHS[1] - EPOCHS[0])


def main() -> None:
    """Train every method a few times, in turn, and write the seconds."""
    torch.set_num_threads(1)
    seconds(METHODS[1], 1)  # what is made once is made before
    rounds = [{method: epoch_seconds(method) for method in METHODS} for _ in range(ROUNDS)]
    found = {
        "command": "python results/single_step.py",
        "comparison": COMPARISON,
        "epoch_seconds": {method: [each[method] for each in rounds] for method in METHODS},
        "epochs": settings()["training.epochs"],
        "load": os.getloadavg()[0],
        "environment": environment(torch.device("cpu")),
    }
    (HERE / "single-step.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
