"""The most memory that tensors hold at once while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations return, from then on until each is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.bytes = 0
        self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count the storage of `tensor`, which others may share, once."""
        storage = tensor.untyped_storage()
        if id(storage) in self.known:
            return
        self.known.add(id(storage))
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        # A storage keeps its Python object, and so its id, until its memory is freed.
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes()).atexit = False

    def _forget(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return output


def held_bytes(held: Iterable[Tensor]) -> int:
    """Bytes of the storages of `held`, each counted once."""
    watch = _Alive()
    for tensor in held:
        watch.add(tensor)
    return watch.bytes


def peak_bytes(work: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """Most bytes that `held` and the tensors that `work()` makes take together at any time.

    On a GPU by the allocator's own counters; `work` must free nothing that is neither held nor its own. Elsewhere by
    watching every operation, those of the backward pass too: storages count from the operation that returns them until
    they are freed, whoever keeps them, also autograd; what an operation takes and gives back within itself is not seen.
    """
    watch = _Alive()
    for tensor in held:
        watch.add(tensor)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return watch.bytes + torch.cuda.max_memory_allocated(device) - before
    with watch:
        work()
    return watch.peak
