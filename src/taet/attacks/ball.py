"""The L-infinity and L2 balls, their checks, and a frozen model."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from taet.errors import UserError
from taet.settings.types import Radius, RadiusL2, check_value

Norm = Literal["linf", "l2"]
Start = Literal["gaussian", "uniform", "positive", "none"]
BNMode = Literal["eval", "train"]
# a radius or a length: a number or one per sample (N,), in units of the image range
Size = float | Tensor

RADII: dict[Norm, object] = {"linf": Radius, "l2": RadiusL2}
BALL_TOLERANCE = 1e-6  # float32 rounds x + eps - x by less than 1.2e-7


def check_size(what: str, size: Size, x: Tensor, norm: Norm, *, values: bool) -> None:
    """Refuse a size that a ball of `norm` cannot have.

    `values` also checks the values of tensors, which waits for the device.
    """
    if isinstance(size, str):
        raise UserError(f"{what}: got '{size}'; allowed: a number, e.g. 8 / 255")
    if not isinstance(size, Tensor):
        check_value(what, size, RADII[norm])
    elif size.ndim > 0 and size.shape != x.shape[:1]:
        got = f"a tensor of shape {tuple(size.shape)}"
        raise UserError(f"{what}: got {got}; allowed: a number or one per image, ({len(x)},)")
    elif values:
        for end in size.detach().aminmax():
            check_value(what, end.item(), RADII[norm])


def per_sample(value: Size, x: Tensor) -> Size:
    """Return a size that broadcasts with `x` (N, ...): a number, or values per sample (N,)."""
    return spread(value, x).to(x) if isinstance(value, Tensor) and value.ndim == 1 else value


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per sample (N,) in a shape that broadcasts with `x` (N, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))


def choose(chosen: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return the samples of `x` (N, ...) where `chosen` (N,) is true, else those of `other`."""
    return torch.where(spread(chosen, x), x, other)


def finite(values: Tensor) -> Tensor:
    """Return for each sample of (N, ...) whether all its values are finite, (N,)."""
    # One sum in float64, which float32 values cannot overflow; testing every value takes six times
    # as long.
    return values.sum([*range(1, values.ndim)], dtype=torch.float64).isfinite()


def refuse_unsound(attack: str, sound: Tensor) -> None:
    """Raise a `UserError` if `sound` (N,) is false for an image.

    Its logits or gradients were not all finite.
    """
    if not bool(sound.all()):
        got = f"not finite on {int((~sound).sum())} of {len(sound)} images"
        raise UserError(
            f"{attack}: the model's logits or gradients are {got}; allowed: finite everywhere"
        )


def lengths(values: Tensor) -> Tensor:
    """Return the L2 norm of each sample of (N, ...), (N,).

    It is computed in float64, where no square underflows or overflows.
    """
    return torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float64)


def unit(values: Tensor) -> Tensor:
    """Scale each sample of (N, ...) to an L2 norm of 1; a zero sample stays zero."""
    length = lengths(values).to(values.dtype).clamp(min=torch.finfo(values.dtype).tiny)
    return values / spread(length, values)


def projection(x: Tensor, eps: Size, norm: Norm = "linf") -> Callable[[Tensor], Tensor]:
    """Return the function that brings `x_adv` into the ball around `x`, and into [0, 1].

    `x` is in [0, 1].

    L-infinity: clip to [x - eps, x + eps]. L2: x + min(1, eps / ||x_adv - x||) (x_adv - x), where
    eps is reduced by the largest rounding error of that sum, because a uniform image rounds all
    pixels in the same direction.
    """
    radius = per_sample(eps, x)
    if norm == "linf":  # a box with the same corners in every step
        box = ((x - radius).clamp(0, 1), (x + radius).clamp(0, 1))
        return lambda x_adv: x_adv.clamp(*box)
    limits = torch.finfo(x.dtype)
    # half a unit in the last place of a number below 1
    rounding = limits.eps / 4 * math.sqrt(math.prod(x.shape[1:]))

    def shortened(x_adv: Tensor) -> Tensor:
        delta = x_adv - x
        length = spread(lengths(delta).to(x.dtype).clamp(min=limits.tiny), x)
        return (x + delta * ((radius - rounding) / length).clamp(0, 1)).clamp(0, 1)

    return shortened


def distance(x_adv: Tensor, x: Tensor, norm: Norm = "linf") -> Tensor:
    """Return the norm of each perturbation, (N,).

    In L-infinity it is max_i |x_adv_i - x_i|, in L2 ||x_adv - x||_2 in float64.
    """
    return (x_adv - x).abs().flatten(1).amax(1) if norm == "linf" else lengths(x_adv - x)


def verify(attack: str, x_adv: Tensor, x: Tensor, eps: Size | None, norm: Norm = "linf") -> None:
    """Raise a `UserError` if an image is outside its ball or [0, 1], or not finite.

    With eps None, for an unbounded attack, only the range is checked.
    """
    inside = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    if eps is not None:
        inside &= distance(x_adv, x, norm) <= eps + BALL_TOLERANCE
    if not bool(inside.all()):
        ball = (
            ""
            if eps is None
            else "their balls or "
            if isinstance(eps, Tensor)
            else f"the ball of {eps:g} or "
        )
        why = "" if bool(x_adv.isfinite().all()) else "; are the model's gradients finite?"
        raise UserError(f"{attack}: {int((~inside).sum())} images left {ball}the range 0 to 1{why}")


@contextmanager
def frozen(model: object, bn_mode: BNMode = "eval") -> Iterator[None]:
    """Put `model` in eval mode with parameters that need no gradient, and restore both afterwards.

    With `bn_mode="train"` only batch normalisation is in training mode: each forward pass uses the
    statistics of its batch and updates the running ones, unless the model is `still`. A function
    that is not a Module is not changed. Where several threads freeze one model, the last of them
    restores what the first found.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    train_bn = bn_mode == "train" and not getattr(model, "still", False)
    with _freezing:
        found = _Found.of(model)
        _active.append(found)
    try:
        with _freezing:
            for module in found.modes:
                mode = train_bn and isinstance(module, nn.modules.batchnorm._BatchNorm)
                if module.training != mode:  # Module.__setattr__ is slow, so write only changes
                    module.training = mode
            for parameter in found.requires_grad:
                parameter.requires_grad_(False)
        yield
    finally:
        with _freezing:
            _active.remove(found)
            found.restore()


@dataclass(eq=False)
class _Found:
    """The modes and flags of a model as they were before the current thread froze it."""

    thread: int
    modes: dict[nn.Module, bool]
    requires_grad: dict[nn.Parameter, bool]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Read them from the model, or from another thread that has parts of it frozen."""
        thread = threading.get_ident()
        modes = {module: module.training for module in model.modules()}
        requires_grad = {value: value.requires_grad for value in model.parameters()}
        for other in _others(thread):
            modes |= {module: other.modes[module] for module in modes.keys() & other.modes.keys()}
            shared = requires_grad.keys() & other.requires_grad.keys()
            requires_grad |= {value: other.requires_grad[value] for value in shared}
        return cls(thread, modes, requires_grad)

    def restore(self) -> None:
        """Restore what no other thread has frozen; the last one of several threads does it."""
        others = _others(self.thread)
        for module, mode in self.modes.items():
            used = any(module in other.modes for other in others)
            if not used and module.training != mode:
                module.training = mode
        for parameter, needed in self.requires_grad.items():
            if not any(parameter in other.requires_grad for other in others):
                parameter.requires_grad_(needed)


def _others(thread: int) -> list[_Found]:
    """Return what other threads found, the latest first: the first found counts."""
    return [found for found in reversed(_active) if found.thread != thread]


_freezing = threading.Lock()
_active: list[_Found] = []
"""What each thread that has a model frozen found, in order."""
