"""Layers that the CPU library cannot train in channels_last are kept out of it.

Run as a program, this file trains such layers. The fault would end the process, so the test starts a child process
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

from taet.models import memory_layout

IMITATED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
REPEATS = 20  # more than enough: the first steps without the guard end the process


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


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the fault is one of x86 processors")
def test_training_does_not_write_outside_its_memory(tmp_path: Path) -> None:
    environment = {**os.environ, **IMITATED, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, __file__], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


def test_layers_narrower_than_a_vector_are_guarded_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for capability, width in (("AVX2", 8), ("AVX512", 16)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert [bool(memory_layout.guard(layer(c))) for c in range(1, 18)] == [1 < c < width for c in range(1, 18)]
    network = nn.Sequential(nn.Identity(), layer()).to(memory_format=torch.channels_last)
    assert memory_layout.guard(network)[0].endswith("(oneDNN issue 6035): 1")
    sound = nn.Sequential(layer(4, stride=1), layer(4, kernel_size=3), nn.ConvTranspose2d(4, 4, 1, 2))
    assert memory_layout.guard(sound) == ()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert not memory_layout.guard(layer(4))


if __name__ == "__main__":
    train_layers()
