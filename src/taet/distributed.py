"""Processes that share their work: joining, sums and decisions. With one process all functions are
the identity.

A global sum is all-reduced forward *and* backward. Every process then holds the same loss L; the
gradient that reaches a process's share is the sum over processes of dL/dS, that is P dL/dS, and
averaging the parameter gradients over the P processes gives exactly the gradient that one process
would have computed on the whole batch.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from taet.errors import UserError

T = TypeVar("T")

# for the slowest process, which may be hours behind; torchrun reports one that died
PATIENCE = timedelta(days=7)
GROUPS = itertools.count()  # numbers of the process groups that this process joins


@contextmanager
def joined(device_type: str) -> Iterator[None]:
    """Join the processes that torchrun started, each on the GPU of its LOCAL_RANK; do nothing
    without torchrun."""
    if not started_together() or dist.is_initialized():
        yield
        return
    if device_type == "cuda":
        place, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= devices:
            raise UserError(
                f"processes: got more than the {devices} GPUs of a machine; allowed: one per GPU"
            )
        torch.cuda.set_device(place)
    # A prefix, since a second group must not find the addresses of the first in the store.
    store, number, size = next(iter(dist.rendezvous("env://", timeout=PATIENCE)))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"taet/{next(GROUPS)}", store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    with reporting_peer_exit():
        yield
    # Not after an error: other processes may be inside a sum that never ends, and nccl would wait
    # for them.
    dist.destroy_process_group()


def started_together() -> bool:
    """Whether torchrun started this process together with others."""
    return (
        int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and dist.is_available()
    )


class ProcessEnded(RuntimeError):
    """An exchange between the processes failed, because another one has ended."""


@contextmanager
def _exchange() -> Iterator[None]:  # gloo and nccl have no exception type of their own
    try:
        yield
    except RuntimeError as error:
        raise ProcessEnded(str(error)) from error


def all_reduce_(value: Tensor) -> Tensor:
    """Add the values of all processes to `value`, in place, and return it."""
    with _exchange():
        dist.all_reduce(value)
    return value


@contextmanager
def reporting_peer_exit(remedy: str = "") -> Iterator[None]:
    """Turn the end of another process into a UserError, whose line ends with `remedy`."""
    try:
        yield
    except (ProcessEnded, dist.DistError) as error:
        if world_size() == 1:
            raise
        reason = re.sub(r"^\[\S+\] ", "", re.split(r"\n|\. ", str(error))[0])
        raise UserError(f"another process of this job has ended ({reason}){remedy}") from error


def claim(what: str) -> bool:
    """Whether this process is the first of its job to claim `what`; also works when other processes
    have ended."""
    if not started_together():
        return True
    try:
        store, *_ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=10))))  # type: ignore[attr-defined]
        return bool(store.add(f"taet/claimed/{what}", 1) == 1)
    # the store has ended too: printing twice is better than not at all
    except (RuntimeError, ValueError):
        return True


def world_size() -> int:
    """Number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(value: T) -> list[T]:
    """Return the values (anything that can be pickled) of all processes, in the order of their
    ranks, to each."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _exchange():
        dist.all_gather_object(values, value)
    return values


def run_on_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on the first process only and return its result on all; a UserError there is
    raised on all."""
    if world_size() == 1:
        return work()
    value, error = gather(_attempt(work, rank() == 0))[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def rank_zero_first(work: Callable[[], T]) -> T:
    """Run `work` on the first process of each machine, then on the others, which find its files;
    return its result.

    A UserError in any process is raised on all.
    """
    if world_size() == 1:
        return work()
    first, values = os.environ.get("LOCAL_RANK", str(rank())) == "0", []
    for is_turn in (first, not first):
        value, error = _attempt(work, is_turn)
        for any_error in filter(None, gather(error)):
            raise any_error
        values.append(value)
    return values[0 if first else 1]  # type: ignore[return-value]


def _attempt(work: Callable[[], T], is_turn: bool) -> tuple[T | None, UserError | None]:
    try:
        return (work() if is_turn else None), None
    except UserError as error:
        return None, error


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process; through the CPU, so that nothing waits
    for a GPU."""
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.uint8)
    with _exchange():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(map(bool, values.tolist()))


def batch_slice(total: int, rank: int, world_size: int) -> slice:
    """Return the consecutive samples, out of `total`, of one process; sizes differ by at most
    one."""
    size, longer = divmod(total, world_size)
    begin = rank * size + min(rank, longer)
    return slice(begin, begin + size + (rank < longer))


def broadcast_from_rank_zero(tensors: Iterable[Tensor]) -> None:
    """Set tensors, in place, to their values on the first process."""
    for tensor in tensors if world_size() > 1 else ():
        values = tensor.detach().contiguous()
        with _exchange():
            dist.broadcast(values, 0)
        tensor.detach().copy_(values)


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(_: object, value: Tensor) -> Tensor:
        return all_reduce_(value.clone())

    @staticmethod
    def backward(_: object, *grads: Tensor) -> Tensor:
        return all_reduce_(grads[0].clone())


def global_sum(value: Tensor) -> Tensor:
    """Sum `value` (any shape) over all processes, differentiably."""
    return value if world_size() == 1 else _GlobalSum.apply(value)


def global_mean(losses: Tensor) -> Tensor:
    """Mean of per-sample values (N,) over the global batch; shards may differ in length."""
    if world_size() == 1:
        return losses.mean()
    return global_sum(losses.sum()) / global_sum(losses.new_full((), float(losses.numel())))


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Replace gradients, or other tensors of one type, in place by their mean over all processes,
    in one reduction."""
    if world_size() == 1 or not gradients:
        return
    flat = all_reduce_(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    for gradient, mean in zip(
        gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(mean.view(gradient.shape))
