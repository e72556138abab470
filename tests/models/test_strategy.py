"""The strategy network: its published size, and any image size."""

from __future__ import annotations

import pytest
import torch

from taet import models
from taet.models.strategy import Strategy


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_at_width_64_it_is_resnet18_with_a_head_per_choice() -> None:
    body = parameters(models.build("resnet18", 10)) - 10 * 513
    assert parameters(Strategy((13, 12, 5), 64, 3)) == body + (13 + 12 + 5) * 513
    quarter = parameters(Strategy((13, 12, 5), 16, 3))
    assert body / 17 < quarter < body / 15


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 32, 32)])
def test_any_image_size(shape: tuple[int, int, int]) -> None:
    logits = Strategy((13, 1, 5), 2, shape[0])(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert [values.shape for values in logits] == [(2, 13), (2, 1), (2, 5)]
