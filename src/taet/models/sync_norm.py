"""Batch normalisation over the images of all processes, on any backend, for shares of any size,
even empty ones.

`nn.SyncBatchNorm` needs GPUs; this is the same function through `global_sum`, so that several
processes give the gradients of one also on the CPU. Source: Ioffe and Szegedy, ICML 2015,
arXiv:1502.03167.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from taet.distributed import global_sum, world_size


def synchronised() -> AbstractContextManager[object]:
    """Within this context, batch normalisation in train mode uses the batches of all processes."""
    return _GlobalStatistics() if world_size() > 1 else nullcontext()


class _GlobalStatistics(TorchFunctionMode):
    """Within this context, torch's batch normalisation is `batch_norm`, also in subclasses of its
    modules."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is functional.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's function of this name on x (N, C, ...), with mean and variance over the shares of
    all processes.

    Statistics are float32 or wider, and the variance is the mean of squares about the mean: without
    the mean, digits would be lost where it is large beside the spread.
    """
    if not training:
        return functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, momentum, eps
        )
    dims, shape = (
        [dim for dim in range(x.ndim) if dim != 1],
        [-1 if dim == 1 else 1 for dim in range(x.ndim)],
    )
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    count = global_sum(values.new_full((), x.numel() // x.shape[1]))
    mean = global_sum(values.sum(dims)) / count
    centred = values - mean.view(shape)
    variance = global_sum(centred.square().sum(dims)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_(
                (variance * (count / (count - 1).clamp(min=1))).to(running_var.dtype), momentum
            )
    result = centred * (variance + eps).rsqrt().view(shape)
    result = result if weight is None else result * weight.to(result.dtype).view(shape)
    if bias is not None:  # times 1, since the gradients of two summed biases could share memory
        result = result + bias.to(result.dtype).view(shape) * 1
    return result.to(x.dtype)
