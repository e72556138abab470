"""Layers that the CPU library cannot train in channels_last are kept out of it.

Run as a program, this file trains such layers. The fault would end the process, so the tests start a child process
with the settings that make an x86 processor work as one with AVX2 and without AVX-512.
"""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import taet
from taet import methods, protocols
from taet.models import memory_layout
from taet.settings import override

IMITATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
REPEATS = 20  # more than enough: the first steps without the guard end the process
TINY = {
    "data.max_count": 20,
    "threat.steps": 1,
    "training.epochs": 1,
    "training.batch_size": 32,
    "training.monitor_steps": 1,
    "training.threads": 1,
}


def layer(channels: int = 4, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, **{"kernel_size": 1, "stride": 2, **settings})  # type: ignore[arg-type]


def gradients(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    network(x).square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def train_layers() -> None:
    """Gradients of 2 to 15 channels are those of the ordinary layout."""
    for channels in range(2, 16):
        torch.manual_seed(channels)
        plain = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), layer(channels))
        x = torch.rand(8, 3, 64, 64)
        expected = gradients(plain, x)
        network = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        memory_layout.guard(network)
        for _ in range(REPEATS):
            found = gradients(network, x.contiguous(memory_format=torch.channels_last))
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value, wanted)


def train_own_network() -> None:
    """A user's network with such a layer is trained, and its notes say what was done."""
    torch.manual_seed(0)
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    network = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(1, 4, 3, padding=1), layer(), *pooling)
    run = override(protocols.taet("at"), TINY)
    (note,) = taet.train(run, model=network).model.notes
    assert "oneDNN issue 6035" in note
    assert note.endswith(": network.2")


def train_strategy() -> None:
    """The network of LAS-AT belongs to the method and takes the model's images."""
    changes = {"model.name": "resnet8", "settings": methods.find("las-at").Config(width=2, interval=1)}
    run = override(protocols.taet("las-at"), TINY | changes)
    (note,) = taet.train(run).model.notes
    assert "strategy.body" in note


@pytest.mark.full
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the fault is one of x86 processors")
@pytest.mark.parametrize(
    "cases", ["train_layers train_own_network", pytest.param("train_strategy", marks=pytest.mark.full)]
)
def test_training_does_not_write_outside_its_memory(cases: str, tmp_path: Path) -> None:
    environment = {**os.environ, **IMITATED, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, *cases.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


@pytest.mark.parametrize(
    "sound",
    [
        layer(4, stride=1),
        layer(4, kernel_size=3),
        layer(4, padding=1),
        layer(4, groups=2),
        layer(1),
        layer(16),
        nn.ConvTranspose2d(4, 4, 1, 2),
    ],
    ids=str,
)
def test_sound_layers_are_left_alone(sound: nn.Module) -> None:
    assert memory_layout.guard(sound) == ()
    assert not sound._forward_pre_hooks


@pytest.mark.parametrize(("capability", "width"), [("AVX2", 8), ("AVX512", 16)])
def test_layers_narrower_than_a_vector_are_guarded(
    capability: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert [bool(memory_layout.guard(layer(c))) for c in range(1, 18)] == [1 < c < width for c in range(1, 18)]
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert not memory_layout.guard(layer(4))


def test_only_gradients_of_weights_leave_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_layout, "_vector_width", lambda: 8)
    network = layer().to(memory_format=torch.channels_last)
    memory_layout.guard(network)
    memory_layout.guard(network)
    assert len(network._forward_pre_hooks) == 1
    seen: list[bool] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    x = torch.rand(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    network(x)
    with torch.no_grad():
        network(x)
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    network.requires_grad_(False)(x)
    assert seen == [True, False, False, False]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
