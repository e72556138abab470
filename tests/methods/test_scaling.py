"""What the benchmarks of methods and of scaling count and fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taet import methods
from taet.methods import Task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("scaling", "methods", "steps", "common")
SMALL = {"counts": (6, 4, 2), "shape": (3, 8, 8), "attack_steps": 2}


@pytest.fixture
def load() -> Iterator[Any]:
    """Name of a script -> the script; afterwards nothing of it is left under its short name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield import_module
        for name in MODULES:
            sys.modules.pop(name, None)


def test_the_exponent_is_that_of_a_power(load: Any) -> None:
    scaling = load("scaling")
    sizes = [10, 100, 1000]
    assert scaling.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    rounds = {str(size): [size * 1e-3, size**2 * 1e-3, 2e-3] for size in sizes}
    row = scaling.summary(sizes, rounds, sizes)
    assert (row["exponent"], row["spread"], row["n"], row["arithmetic"]) == (1, [0, 2], 3, 1)


def test_arithmetic_is_counted_forwards_and_backwards(load: Any) -> None:
    """A linear layer of a x b: 2 a b per image forwards, as many for the input and as many for the weights."""
    operations = load("steps").operations
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert operations(lambda: layer(x).sum().backward()) == 2 * (2 * 3 * 5 * 7)
    frozen, x = layer.requires_grad_(False), x.requires_grad_()
    assert operations(lambda: torch.autograd.grad(frozen(x).sum(), x)) == 2 * (2 * 3 * 5 * 7)


@pytest.mark.full
def test_arithmetic_and_memory_grow_with_the_batch_and_not_with_the_share_of_another(load: Any) -> None:
    steps = load("steps").Steps
    one, two = (steps("at", batch_size=size, **SMALL) for size in (4, 8))
    assert two.flops() == pytest.approx(2 * one.flops(), rel=1e-6)
    assert one.peak_mb() < two.peak_mb() < 2 * one.peak_mb()
    half = steps("at", batch_size=8, share=slice(4, 8), **SMALL)
    assert torch.equal(half.batch.x, two.batch.x[4:])
    assert (half.source.begin, half.source.total) == (4, 8)
    assert half.flops() == one.flops()


def test_a_step_of_every_method_moves_the_weights_and_counts_its_cycle(load: Any) -> None:
    steps = load("steps").Steps
    las = steps("las-at", {"steps": (1, 1), "width": 2, "interval": 2}, batch_size=4, **SMALL)
    before = [parameter.detach().clone() for parameter in las.model.parameters()]
    las.run()
    assert las.cycle == 2
    assert not any(torch.equal(old, new) for old, new in zip(before, las.model.parameters(), strict=True))


def test_every_method_and_weight_perturbation_are_measured(load: Any) -> None:
    found = [str(case) for case in load("methods").cases(())]
    assert {case.split()[0] for case in found} >= {"at", "las-at", "adt", "trades"}
    assert found[-1] == "at awp=0.01"
    assert len(set(found)) == len(found)
    assert [str(case) for case in load("methods").cases(["at"])] == ["at", "at awp=0.01"]


@pytest.mark.full
def test_the_passes_of_a_case_are_those_that_are_counted(load: Any) -> None:
    script = load("methods")
    ratios = script.passes_ratios([script.Case("at", {}), script.Case("trades", {}), script.Case("at", {}, 0.01)])
    assert ratios == [1.0, pytest.approx(25 / 22, abs=1e-3), pytest.approx(24 / 22, abs=1e-3)]


def test_the_clean_stage_is_not_the_one_that_is_measured(load: Any) -> None:
    taet = load("steps").Steps("taet", batch_size=4, **SMALL).method
    assert taet.stage == "adversarial"
    fresh = methods.build("taet", None, Task((6, 4, 2), (3, 8, 8), epochs=100, steps_per_epoch=1, milestones=(75,)))
    assert fresh.stage == "clean"
