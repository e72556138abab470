"""Processes that share their work: how they meet, and sums over all of them; with one process, the identity.

A global sum is all-reduced forward *and* backward. Every process then holds the same loss L; the gradient that reaches
a process's share is the sum over processes of dL/dS, that is P dL/dS, and averaging the parameter gradients over the P
processes gives exactly the gradient that one process would have computed on the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# A process waits for the slowest one, which may be hours behind; of one that died, torchrun tells the others.
PATIENCE = timedelta(days=7)


@contextmanager
def joined(device_type: str) -> Iterator[None]:
    """Inside, be one of the processes that torchrun started; without torchrun, and inside a group already, do nothing.

    Tensors on the CPU and other objects travel by gloo, those on a GPU by nccl; each process takes the GPU of its
    LOCAL_RANK.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ
    if alone or not dist.is_available() or dist.is_initialized():
        yield
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(value: T) -> list[T]:
    """Return the values (anything that can be pickled) of all processes, in the order of their ranks, to each."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


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
