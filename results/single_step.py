"""Measure what a training costs with one attack step and with ten: python results/single_step.py.

Seconds of CPU time of one thread, without the curve, of the settings of digits-lt-class-wise: the time that a process
waits for others does not count. The methods take turns; the least of the rounds is the least disturbed. Writes
single-step.json beside this file, whose table is in README.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

import taet
from taet import config, protocols
from taet.training.environment import environment

HERE = Path(__file__).parent
METHODS, ROUNDS = ("at", "n-fgsm", "liet"), 2
COMPARISON = "digits-lt-class-wise"


def settings() -> dict[str, Any]:
    """Return the settings of the comparison, without the curve and what it is measured on."""
    given = tomllib.loads((HERE / COMPARISON / "compare.toml").read_text(encoding="utf-8"))["settings"]
    return {**given, "data.name": "digits-lt", "data.imbalance_ratio": 10.0, "training.monitor_every": 0}


def seconds(method: str) -> float:
    """Return the CPU seconds of one training."""
    run = config.override(protocols.taet(method), settings())
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        taet.train(run, out=Path(folder) / "run")
        return time.process_time() - begun


def main() -> None:
    """Train every method a few times, in turn, and write the seconds."""
    torch.set_num_threads(1)
    seconds(METHODS[1])  # what is made once is made before
    rounds = [{method: seconds(method) for method in METHODS} for _ in range(ROUNDS)]
    found = {
        "command": "python results/single_step.py",
        "comparison": COMPARISON,
        "seconds": {method: [each[method] for each in rounds] for method in METHODS},
        "load": os.getloadavg()[0],
        "environment": environment(torch.device("cpu")),
    }
    (HERE / "single-step.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
