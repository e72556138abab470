"""Sums over all processes; with one process, the identity.

A global sum is all-reduced forward *and* backward. Every process then holds the same loss L; the gradient that reaches
a process's share is the sum over processes of dL/dS, that is P dL/dS, and averaging the parameter gradients over the P
processes gives exactly the gradient that one process would have computed on the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def global_sum(value: Tensor) -> Tensor:
    """Sum `value` (any shape) over all processes, differentiably."""
    if world_size() == 1:
        return value
    total: Tensor = _GlobalSum.apply(value)
    return total


def global_mean(losses: Tensor) -> Tensor:
    """Mean of per-sample values (N,) over the global batch; shards may differ in length."""
    if world_size() == 1:
        return losses.mean()
    return global_sum(losses.sum()) / global_sum(losses.new_full((), float(losses.numel())))


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Replace gradients, in place, by their mean over all processes; one reduction for all of them."""
    if world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))
