"""A guard that restores a model after code that may change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def restored(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Restore the model's tensors and the random state afterwards; yield a function that names changed tensors."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}

    def changes() -> list[str]:
        return [
            name
            for name, now in _tensors(model).items()
            if name not in before or not now.nan_to_num().equal(before[name].nan_to_num())
        ]

    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield changes
    finally:
        with torch.no_grad():
            for name in changes():
                if name in before:
                    _tensors(model)[name].copy_(before[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
