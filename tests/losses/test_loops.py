"""The loops over classes, examples and steps that our losses are timed against give the same numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("losses", "common")


@pytest.fixture
def benchmark() -> Iterator[Any]:
    """The script, and afterwards nothing of it under its short name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield import_module("losses")
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("classes", [4, 30])
def test_they_agree(classes: int, benchmark: Any) -> None:
    for name, pair in benchmark.pairs(classes, torch.float64).items():
        assert benchmark.difference(pair) <= benchmark.AGREEMENT, name
        value, gradient = benchmark.gradient(pair.ours, pair.inputs)
        assert value != 0, name
        assert gradient.any(), name


def test_a_loop_that_differs_is_found_out(benchmark: Any) -> None:
    pair = benchmark.pairs(4, torch.float64)["HEL"]
    assert benchmark.difference(pair._replace(loop=lambda z: 1.001 * pair.loop(z))) > 100 * benchmark.AGREEMENT


def test_a_measurement_holds_the_ratio_its_spread_and_its_number(benchmark: Any) -> None:
    row = benchmark.measure(benchmark.pairs(4, torch.float32)["class means"], rounds=2)
    assert row["n"] == 2
    assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
    assert row["ratio"] > 0
