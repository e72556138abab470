"""Batch normalisation over the images of all processes, on any backend, for shares of any size, even empty ones.

The formulas are those of batch normalisation (Ioffe and Szegedy, ICML 2015, arXiv:1502.03167); the statistics of the
shares are joined as in Chan, Golub, LeVeque, Algorithms for computing the sample variance, 1983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from taet.distributed import add_up, average_gradients, global_sum, rank, world_size


@contextmanager
def synchronised(*modules: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Within this context, batch normalisation in `modules` uses the batches of all processes.

    The modules stay the same objects, of subclasses of their classes. With one process, or where it is not `wanted`,
    nothing changes.
    """
    several = wanted and world_size() > 1
    norms = [norm for norm in normalisations(*modules) if several and not isinstance(norm, nn.SyncBatchNorm)]
    kinds = [type(norm) for norm in norms]
    others = {kind: _synchronised_kind(kind) for kind in set(kinds)}
    try:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = others[kind]
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind


def normalisations(*modules: nn.Module) -> list[_BatchNorm]:
    """Return the modules of batch normalisation in `modules`."""
    return [norm for module in modules for norm in module.modules() if isinstance(norm, _BatchNorm)]


def average_statistics(*modules: nn.Module) -> None:
    """Replace the running statistics of batch normalisation, in place, by their mean over all processes."""
    found = [(norm.running_mean, norm.running_var) for norm in normalisations(*modules)]
    average_gradients([value for pair in found for value in pair if value is not None])


def _synchronised_kind(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A subclass of `kind` with the same forward, in which only the function `batch_norm` is replaced.

    Additions of a subclass to its forward, such as an activation, are kept, as are momentum and the choice of
    statistics.
    """

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        with _GlobalStatistics():
            result: Tensor = kind.forward(self, x)
        return result

    return type(f"Synchronised{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})


class _GlobalStatistics(TorchFunctionMode):
    """Within this context, torch's batch normalisation is `batch_norm`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
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
    """As torch's function of this name on x (N, C, ...), with mean and variance over the shares of all processes."""
    if not training or world_size() == 1:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    result, mean, variance, count = _BatchNormalised.apply(x, weight, bias, eps)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * (count / (count - 1).clamp(min=1))).to(running_var.dtype), momentum)
    normalised: Tensor = result
    return normalised


class _BatchNormalised(torch.autograd.Function):
    """y = w (x - m) / sqrt(v + eps) + b with the mean m and the variance v of every channel of the global batch.

    With s = 1 / sqrt(v + eps), g = dL/dy and means over the global batch, dL/dx = w s (g - mean(g) - (x - m) s^2
    mean(g (x - m))). Statistics are float32 or wider; one reduction forward and one backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        mean, variance, count = _moments(x)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        gain, shift = (None if value is None else value.to(mean.dtype) for value in (weight, bias))
        return functional.batch_norm(x, mean, variance, gain, shift, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _dims(x), _shape(x)
        gradient, centred = gradients[0].to(mean.dtype), x - mean.view(shape)
        own = torch.stack([gradient.sum(dims), (gradient * centred).sum(dims)])
        of_mean, of_scale = global_sum(own) / count
        factor = scale if weight is None else scale * weight
        moved = gradient - of_mean.view(shape) - centred * (of_scale * scale.square()).view(shape)
        return (
            (moved * factor.view(shape)).to(x.dtype),
            None if weight is None else (own[1] * scale).to(weight.dtype),
            own[0] if ctx.has_bias else None,
            None,
        )


def _dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.ndim) if dim != 1]


def _shape(x: Tensor) -> list[int]:
    return [-1 if dim == 1 else 1 for dim in range(x.ndim)]


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number of values per channel, a scalar, over the shares x (N, C, ...) of all.

    Each process sends count, mean and sum of squares about it: a sum of plain squares would lose digits where the mean
    is large beside the spread.
    """
    dims, channels = _dims(x), x.shape[1]
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    number = x.numel() // channels  # may be 0
    # Two sums, because torch.var_mean over these dimensions takes fifteen times as long on a CPU.
    mean = values.sum(dims) / max(number, 1)
    squares = (values - mean.view(_shape(x))).square_().sum(dims)
    shares = values.new_zeros(world_size(), 2 * channels + 1)
    shares[rank()] = torch.cat([mean, squares, mean.new_full((1,), number)])
    add_up(shares)  # zeros where other processes fill in theirs
    means, squares, counts = torch.split(shares, [channels, channels, 1], 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0) / count, count
