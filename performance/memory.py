"""Peak memory of a function: by the counters of torch's allocator on a GPU, by tracing every
operation on a CPU."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations return, each once, until it is freed."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.bytes = self.peak = 0
        for tensor in held:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self.known:
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


def peak_bytes(work: Callable[[], object], held: Sequence[Tensor], device: torch.device) -> int:
    """Return the peak bytes of `held` together with the tensors that `work()` makes.

    On a GPU by the counters of torch's allocator; `work` may free only tensors that are held or its
    own. On a CPU every operation is traced, and temporary memory inside an operation is not seen.
    """
    watch = Storages(held)
    if device.type != "cuda":
        with watch:
            work()
        return watch.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return watch.bytes + torch.cuda.max_memory_allocated(device) - before
