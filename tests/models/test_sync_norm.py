"""Batch normalisation over shares of any size on two processes is torch's over the whole batch on
one."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.models.sync_norm import synchronised
from tests.calls import met

SAMPLES, CHANNELS = 7, 3
CUTS = {"even": 4, "one": 6, "none": 7}


class Activated(nn.BatchNorm2d):
    """A subclass with more in its forward, as timm has them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: nn.BatchNorm1d(CHANNELS),
    "2d": lambda: nn.BatchNorm2d(CHANNELS),
    "cumulative": lambda: nn.BatchNorm2d(CHANNELS, momentum=None),
    "without statistics": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "activated": lambda: Activated(CHANNELS),
    "frozen": lambda: nn.BatchNorm2d(CHANNELS),
    "eval": lambda: nn.BatchNorm2d(CHANNELS).eval(),
}


def norm_and_inputs(name: str) -> tuple[nn.Module, Tensor]:
    """The module, with parameters and statistics that are not those of a new one, and two
    batches."""
    draws = torch.Generator().manual_seed(0)
    norm = NORMS[name]().double()
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data.uniform_(0.5, 2, generator=draws)
    shape = (2, SAMPLES, CHANNELS, *(() if name == "1d" else (2, 3)))
    # a mean far above the spread
    return norm, 100 + torch.randn(shape, generator=draws, dtype=torch.float64)


def passed(name: str, mine: slice) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of two batches, of which `mine` are at hand; the loss is a
    sum over images."""
    norm, inputs = norm_and_inputs(name)
    weights = torch.rand(
        inputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found: dict[str, Tensor] = {}
    with synchronised(), frozen(norm, "train") if name == "frozen" else contextlib.nullcontext():
        for number in range(2):
            x = inputs[number, mine].clone().requires_grad_()
            y = norm(x)
            (weights[number, mine] * y.square()).sum().backward()
            found |= {f"output {number}": y.detach(), f"gradient {number}": x.grad}
    found |= {
        f"gradient of {key}": p.grad for key, p in norm.named_parameters() if p.grad is not None
    }
    return found | dict(norm.named_buffers())


def work(number: int, folder: Path) -> None:
    """What each process does with its share."""
    found: dict[str, Any] = {}
    with met(folder, number):
        for cut_name, cut in CUTS.items():
            mine = slice(0, cut) if number == 0 else slice(cut, SAMPLES)
            found |= {f"{cut_name}/{name}": passed(name, mine) for name in NORMS}
        torch.save(found, folder / f"{number}.pt")


@pytest.mark.full
@pytest.mark.parametrize("name", NORMS)
def test_it_is_that_of_the_whole_batch(name: str, two_processes: list[dict[str, Any]]) -> None:
    expected = passed(name, slice(0, SAMPLES))
    for cut in CUTS:
        first, second = (found[f"{cut}/{name}"] for found in two_processes)
        assert first.keys() == second.keys() == expected.keys()
        for key, value in expected.items():
            together = [first[key], second[key]]
            if key[-1].isdigit():  # of images
                together = [torch.cat([first[key], second[key]])]
            elif key.startswith("gradient of"):
                together = [first[key] + second[key]]
            for found in together:
                torch.testing.assert_close(
                    found, value, rtol=1e-10, atol=1e-10, msg=f"{cut}: {key}"
                )
