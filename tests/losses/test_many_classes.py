"""With thousands of classes, of which a batch holds few, no loss holds anything for each pair of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taet.losses import hierarchical_equalization, tail_margin
from taet.losses.equalization import Absent
from taet.losses.outer import OuterLoss
from taet.losses.tail_margin import Form
from taet.settings import Outer

SAMPLES, CLASSES, WIDTH = 16, 2000, 24
COUNTS = torch.linspace(1000, 2, CLASSES).round()
LABELS = torch.linspace(0, CLASSES - 1, SAMPLES).long()


class Largest(TorchDispatchMode):
    """Watches how many numbers the largest result holds."""

    size = 0

    def __torch_dispatch__(self, function: Any, _: Any, inputs: Any = (), more: Any = None) -> Any:
        output = function(*inputs, **(more or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))])
        return output


def largest(loss: Callable[[Tensor], Tensor], columns: int) -> int:
    """Numbers in the largest tensor that a loss of (N, columns) makes, forwards or backwards."""
    inputs = torch.randn(SAMPLES, columns, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with Largest() as seen:
        value = loss(inputs)
        (gradient,) = torch.autograd.grad(value, inputs)
    assert value != 0
    assert gradient.any()
    return seen.size


@pytest.mark.parametrize("form", get_args(Form))
def test_tail(form: Form) -> None:
    allowed = {"official": max(SAMPLES * (WIDTH + 1), CLASSES)}.get(form, 2 * CLASSES * (WIDTH + 1))
    assert largest(lambda h: tail_margin(h, LABELS, COUNTS, form), WIDTH) <= allowed


@pytest.mark.parametrize("absent", get_args(Absent))
def test_equalization(absent: Absent) -> None:
    def loss(logits: Tensor) -> Tensor:
        return hierarchical_equalization(logits, LABELS, absent=absent, running=torch.ones(CLASSES)).total

    assert largest(loss, CLASSES) == SAMPLES * CLASSES


@pytest.mark.parametrize("name", get_args(get_type_hints(Outer)["name"]))
def test_outer(name: Any) -> None:
    loss = OuterLoss(Outer(name=name), COUNTS)
    assert largest(lambda z: loss(z, LABELS).mean(), CLASSES) == SAMPLES * CLASSES
