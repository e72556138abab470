"""A model with differentiable replacements for the operations that stop or distort its gradient (BPDA).

Operations are found during a forward pass: rounding, signs, comparisons and conversions to integers of values that
depend on the image, and the choice of the largest values.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taet.fields import check_value

Replacement = Literal["straight-through", "smooth"]
SOFTNESS = 0.1  # width of a smooth threshold, in standard deviations of what is compared with it

ROUNDING, SIGNS = {"round", "floor", "ceil", "trunc", "fix"}, {"sign", "sgn"}
ABOVE, BELOW = {"gt", "ge", "greater", "greater_equal"}, {"lt", "le", "less", "less_equal"}
CONVERSIONS = {"to", "type", "int", "long", "short", "char", "byte"}
CHOICES = {"argmax", "argmin", "argsort", "sort", "topk", "kthvalue"}  # reported only: the use of indices is not known


class Replaced(nn.Module):
    """A model with replacements for its non-differentiable operations: images in [0, 1] -> logits (N, C).

    "straight-through" keeps every output of the model; the derivative of an operation h -> q(h) is the identity.
    "smooth" also changes the outputs: q(h) becomes h, and a threshold h > t becomes
    sigmoid((h - t) / (0.1 s)), s the standard deviation of h - t. Attacks on this model are attacks on a surrogate.

    `sites` holds the operations found so far with the number of calls of each.

    Source: Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 4.1.
    """

    def __init__(self, model: nn.Module, replacement: Replacement = "straight-through") -> None:
        super().__init__()
        check_value("replacement", replacement, Replacement)
        self.model, self.smooth, self.sites = model, replacement == "smooth", dict[str, int]()

    def forward(self, x: Tensor) -> Tensor:
        with _Operations(self.sites, self.smooth):
            return self.model(x)


def find(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the operations of a model in eval mode that `Replaced` finds, with the number of calls for a few images x.

    If replacing would change the model's outputs, or fails, the operations are reported with 0 calls.
    """
    replaced = Replaced(model)

    def drawn(answer: nn.Module) -> Tensor:
        torch.manual_seed(0)  # the same numbers, if the model draws any
        return answer(x.clone().requires_grad_()).detach()

    with torch.enable_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        logits = drawn(model)
        try:
            sound = torch.allclose(drawn(replaced), logits, rtol=1e-4, atol=1e-4)
        except Exception:  # whatever a model does with what has become a number
            sound = False
    return {name: calls if sound else 0 for name, calls in replaced.sites.items()}


class _Operations(TorchFunctionMode):
    """Replaces operations on values that depend on the image; a comparison returns numbers with a gradient."""

    def __init__(self, sites: dict[str, int], smooth: bool) -> None:
        super().__init__()
        self.sites, self.smooth = sites, smooth

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if not args:
            return func(**(kwargs or {}))
        called, place = getattr(func, "__name__", ""), args[0]
        name = called.strip("_")
        if name == "where" and len(args) == 3:
            condition, one, other = (args[1], place, args[2]) if func is Tensor.where else args
            if _follows(condition):  # a comparison, which has become numbers
                return condition * one + (1 - condition) * other
        in_place = called == f"{name}_" and _follows(place)
        first = place.clone() if in_place else place
        output = func(*args, **(kwargs or {}))
        if not any(map(_follows, (first, *args[1:2]))) or getattr(output, "ndim", 1) == 0:
            return output  # a single value may decide a branch of Python
        smooth: Callable[[Tensor], Tensor]
        if name in ROUNDING or (name in CONVERSIONS and isinstance(output, Tensor) and not output.is_floating_point()):
            h, smooth = first, lambda h: h
        elif name in SIGNS:
            h, smooth = first, lambda h: 2 * _soft(h) - 1
        elif name in ABOVE | BELOW:
            h, smooth = first - args[1] if name in ABOVE else args[1] - first, _soft
        elif name not in CHOICES:
            return output
        self.sites[name] = self.sites.get(name, 0) + 1
        if name in CHOICES:
            return output
        value = smooth(h) if self.smooth else h + (output.to(h.dtype) - h).detach()  # the derivative 1 by h
        return place.copy_(value) if in_place else value


def _follows(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of floating point numbers that depends on the image."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _soft(difference: Tensor) -> Tensor:
    """Return sigmoid(d / (0.1 s)), s the standard deviation of d (N, ...): a smooth step from 0 to 1 at d = 0."""
    width = SOFTNESS * difference.detach().std(correction=0).clamp_min(1e-12)
    return (difference / width).sigmoid()
