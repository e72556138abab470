"""A model with differentiable replacements for the operations that stop or distort its gradient
(BPDA).

Operations are found during a forward pass: rounding, signs, comparisons and conversions to integers
of values that depend on the image, and the choice of the largest values.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taet.settings.types import check_value

Replacement = Literal["straight-through", "smooth"]
SOFTNESS = 0.1  # width of a smooth threshold, in standard deviations of what is compared with it

ROUNDING, SIGNS = {"round", "floor", "ceil", "trunc", "fix"}, {"sign", "sgn"}
ABOVE, BELOW = {"gt", "ge", "greater", "greater_equal"}, {"lt", "le", "less", "less_equal"}
CONVERSIONS = {"to", "type", "int", "long", "short", "char", "byte"}
# reported only: the use of indices is not known
CHOICES = {"argmax", "argmin", "argsort", "sort", "topk", "kthvalue"}


class Replaced(nn.Module):
    """A model with replacements for its non-differentiable operations: images in [0, 1] -> logits
    (N, C).

    "straight-through" keeps every output of the model; the derivative of an operation h -> q(h) is
    the identity. "smooth" also changes the outputs: q(h) becomes h, and a threshold h > t becomes
    sigmoid((h - t) / (0.1 s)), s the standard deviation of h - t. Attacks on this model are attacks
    on a surrogate.

    `sites` holds the operations found so far with the number of replaced calls of each: 0 of a
    choice of an index.

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
    """Return the operations of a model in eval mode that `Replaced` finds.

    Each has the number of its calls for a few images x.

    If replacing would change the model's outputs, or fails, the operations are reported with 0
    calls.
    """
    replaced = Replaced(model)

    def logits_of(network: nn.Module) -> Tensor:
        torch.manual_seed(0)  # the same random numbers for both networks
        return network(x.clone().requires_grad_()).detach()

    with torch.enable_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        logits = logits_of(model)
        try:
            unchanged = torch.allclose(logits_of(replaced), logits, rtol=1e-4, atol=1e-4)
        except Exception:  # a model may not expect numbers in place of booleans
            unchanged = False
    return {name: calls if unchanged else 0 for name, calls in replaced.sites.items()}


class _Operations(TorchFunctionMode):
    """Replaces operations on values that depend on the image; a comparison returns numbers with a
    gradient."""

    def __init__(self, sites: dict[str, int], smooth: bool) -> None:
        super().__init__()
        self.sites, self.smooth = sites, smooth

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if not args:
            return func(**(kwargs or {}))
        full_name, target = getattr(func, "__name__", ""), args[0]
        name = full_name.strip("_")
        if name == "where" and len(args) == 3:
            condition, if_true, if_false = (
                (args[1], target, args[2]) if func is Tensor.where else args
            )
            if _depends_on_image(condition):  # a comparison, which has become numbers
                return condition * if_true + (1 - condition) * if_false
        in_place = full_name == f"{name}_" and _depends_on_image(target)
        first = target.clone() if in_place else target
        output = func(*args, **(kwargs or {}))
        if not any(map(_depends_on_image, (first, *args[1:2]))) or getattr(output, "ndim", 1) == 0:
            return output  # a single value may decide a branch of Python
        smooth: Callable[[Tensor], Tensor]
        if name in ROUNDING or (
            name in CONVERSIONS and isinstance(output, Tensor) and not output.is_floating_point()
        ):
            h, smooth = first, lambda h: h
        elif name in SIGNS:
            h, smooth = first, lambda h: 2 * _soft_step(h) - 1
        elif name in ABOVE | BELOW:
            h, smooth = first - args[1] if name in ABOVE else args[1] - first, _soft_step
        else:
            if name in CHOICES:
                self.sites[name] = 0
            return output
        self.sites[name] = self.sites.get(name, 0) + 1
        # derivative 1 in h
        value = smooth(h) if self.smooth else h + (output.to(h.dtype) - h).detach()
        return target.copy_(value) if in_place else value


def _depends_on_image(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of floating point numbers that depends on the image."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _soft_step(difference: Tensor) -> Tensor:
    """Return a smooth step from 0 to 1 at d = 0: sigmoid(d / (0.1 s)).

    s is the standard deviation of d, (N, ...).
    """
    width = SOFTNESS * difference.detach().std(correction=0).clamp_min(1e-12)
    return (difference / width).sigmoid()
