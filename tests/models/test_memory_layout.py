"""Layers that the CPU library cannot train in channels_last are kept out of it."""

import copy
import platform

import pytest
import torch
from torch import nn

from taet.models.classifier import guard_layout


def layer(channels: int = 4, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, **{"kernel_size": 1, "stride": 2, **settings})  # type: ignore[arg-type]


def gradients(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    network(x).square().mean().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the fault is one of x86 processors")
@pytest.mark.parametrize("channels", [2, 7])
def test_a_guarded_layer_has_the_gradients_of_the_ordinary_layout(channels: int) -> None:
    plain = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), layer(channels))
    guarded, x = (
        copy.deepcopy(plain).to(memory_format=torch.channels_last),
        torch.rand(8, 3, 64, 64),
    )
    assert guard_layout(guarded)
    found = gradients(guarded, x.contiguous(memory_format=torch.channels_last))
    for value, wanted in zip(found, gradients(plain, x), strict=True):
        torch.testing.assert_close(value, wanted)


def test_layers_narrower_than_a_vector_are_guarded_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for capability, width in (("AVX2", 8), ("AVX512", 16)):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        assert [bool(guard_layout(layer(c))) for c in range(1, 18)] == [
            1 < c < width for c in range(1, 18)
        ]
    network = nn.Sequential(nn.Identity(), layer()).to(memory_format=torch.channels_last)
    assert guard_layout(network)[0].endswith("(oneDNN issue 6035): 1")
    sound = nn.Sequential(
        layer(4, stride=1), layer(4, kernel_size=3), nn.ConvTranspose2d(4, 4, 1, 2)
    )
    assert guard_layout(sound) == ()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert not guard_layout(layer(4))
