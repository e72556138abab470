"""Short runs, the comparison of two of them, and which cases of a product `make test` leaves out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taet import config, protocols
from taet.config import Run

MEASURED = ("seconds", "images_per_second", "peak_memory_mb")
TINY = {
    "data.max_count": 20,
    "model.name": "resnet8",
    "threat.eps": 0.05,
    "threat.step_size": 0.025,
    "threat.steps": 1,
    "training.epochs": 2,
    "training.batch_size": 32,
    "training.lr": 0.02,
    "training.monitor_steps": 1,
    "training.threads": 1,
    "evaluation.batch_size": 100,
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies off the diagonal of a product as `full`.

    diagonal("a", "b"): with the values of a and b counted from 0, the diagonal holds the cases (t mod n, t mod m) for t
    from 0, n and m values: as many cases as the longer list has values, and every value at least once.
    """
    products: dict[str, list[tuple[pytest.Item, dict[str, str]]]] = {}
    for item in items:
        mark = item.get_closest_marker("diagonal")
        if mark is not None:
            values = {name: str(item.callspec.params[name]) for name in mark.args}  # type: ignore[attr-defined]
            products.setdefault(item.nodeid.partition("[")[0], []).append((item, values))
    for cases in products.values():
        lists = [list(dict.fromkeys(values[name] for _, values in cases)) for name in cases[0][1]]
        longest = max(map(len, lists))
        wanted = {tuple(values[t % len(values)] for values in lists) for t in range(longest)}
        for item, values in cases:
            if tuple(values.values()) not in wanted:
                item.add_marker("full")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Run]:
    """Return a run of two epochs of three steps each on 78 digits; changes are dotted fields."""

    def build(method: str = "at", changes: dict[str, Any] | None = None) -> Run:
        return config.override(protocols.taet(method), TINY | (changes or {}))

    return build


@pytest.fixture(scope="session")
def side_by_side() -> Callable[[str, Path, int], None]:
    """Run a test file as several processes, with its rank and a shared folder as arguments, over the loopback."""

    def run(script: str, folder: Path, processes: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        started = [
            subprocess.Popen(
                [sys.executable, script, str(rank), str(folder)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            outputs = [process.communicate(timeout=300)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * processes, "\n".join(outputs)

    return run


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Return the rows of metrics.jsonl without times, speeds and memory."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in row.items() if name not in MEASURED} for row in lines]

    return read


@pytest.fixture(scope="session")
def assert_same(rows: Callable[[Path], list[dict[str, Any]]]) -> Callable[[Path, Path], None]:
    """Assert that two finished runs have the same files, bit-equal weights and the same curve."""

    def check(folder: Path, expected: Path) -> None:
        names = sorted(path.name for path in expected.iterdir())
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in (name for name in names if name.endswith(".safetensors")):
            tensors, wanted = load_file(folder / name), load_file(expected / name)
            assert tensors.keys() == wanted.keys()
            assert all(torch.equal(tensors[key], wanted[key]) for key in wanted), name
        assert rows(folder) == rows(expected)

    return check
