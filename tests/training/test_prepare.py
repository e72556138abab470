"""What is settled before the first step: the precision."""

import pytest
import torch

from taet.machine import bf16_instructions
from taet.training import prepare
from tests.training.conftest import Tiny

PROCESSORS = [  # the instructions of a processor, the limit that a user set, bf16 in use
    ("fma avx512_bf16", "ALL", True),
    ("fma avx512f", "ALL", False),
    ("amx_bf16", "AVX2", False),
]


@pytest.mark.parametrize(("instructions", "limit", "bf16"), PROCESSORS)
def test_the_precision_follows_the_processor_and_its_limit(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, instructions: str, limit: str, bf16: bool
) -> None:
    monkeypatch.setattr("taet.machine.cpuinfo", lambda *_: instructions)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert bool(bf16_instructions(torch.device("cpu"))) == bf16
    plan, _ = prepare.prepare(tiny("at", {"training.precision": "auto"}))
    assert plan.run.training.precision == ("bf16" if bf16 else "float32")


def test_a_precision_that_was_chosen_is_told_and_recorded(tiny: Tiny) -> None:
    plan, state = prepare.prepare(tiny("at", {"training.precision": "auto"}))
    assert plan.choices["training.precision"][0] == plan.run.training.precision
    record = prepare.describe(plan, state, "")
    assert record.run == plan.run
    assert record.choices["training.precision"].startswith(f"{plan.run.training.precision}: ")
