"""A small network with batch normalisation, and a few digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from taet.data import load
from taet.data.augmentation import to_unit
from taet.data.loader import Batch
from taet.models import Adapter

Network = Callable[..., Adapter]


@pytest.fixture(scope="session")
def network() -> Network:
    """Return (classes, channels, dtype) -> classifier: convolution, batch normalisation, pooling, a layer."""

    def build(classes: int, channels: int = 1, dtype: torch.dtype = torch.float32) -> Adapter:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                nn.Flatten(),
                nn.Linear(128, classes),
            )
        return Adapter(layers, classes).to(dtype)

    return build


@pytest.fixture(scope="session")
def digits() -> Batch:
    """64 long-tailed digits of all ten classes."""
    split = load("digits-lt", imbalance_ratio=5, max_count=14).train
    index = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:64]
    labels = torch.from_numpy(split.labels)[index]
    assert len(labels.unique()) == 10
    return Batch(index, to_unit(torch.from_numpy(split.images)[index], channels_last=False), labels)
