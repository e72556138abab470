"""Adversarial weight perturbation (AWP): the gradient is taken at nearby weights with a higher loss.

Source: Wu, Xia, Wang, Adversarial weight perturbation helps robust generalization, NeurIPS 2020, arXiv:2004.05884.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taet.distributed import average_gradients

TINY = 1e-20  # from the public code: a weight tensor without a gradient is not perturbed


def weight_perturbations(weights: list[Tensor], gradients: list[Tensor], gamma: float) -> tuple[Tensor, ...]:
    """Return v = gamma ||w|| g / ||g|| for each weight and gradient; norms are over whole tensors (equations 7 to 9).

    The public code takes the direction from a step of a proxy model whose learning rate cancels; this is exact.
    """
    norms = torch._foreach_add(torch._foreach_norm(gradients), TINY)
    lengths = torch._foreach_div(torch._foreach_norm(weights), norms)
    return torch._foreach_mul(gradients, torch._foreach_mul(lengths, gamma))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of `model`, such as statistics of batch normalisation, afterwards, in place."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


@contextmanager
def perturbed_weights(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Perturb each weight tensor with more than one dimension so that `loss`() rises; undo it afterwards.

    Gradients and statistics of batch normalisation stay as they were. The optimiser's step within the context, with its
    weight decay, happens at the perturbed weights. gamma 0 changes nothing.
    """
    if gamma == 0:
        yield
        return
    weights: list[Tensor] = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    with buffers_kept(model):
        found = torch.autograd.grad(loss(), weights, allow_unused=True)
    weights = [weight for weight, gradient in zip(weights, found, strict=True) if gradient is not None]
    gradients = [gradient for gradient in found if gradient is not None]
    average_gradients(gradients)
    with torch.no_grad():
        moves = weight_perturbations(weights, gradients, gamma)
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)
