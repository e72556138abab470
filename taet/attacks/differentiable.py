"""A model with differentiable replacements for the operations that stop or distort its gradient (BPDA).

Operations are found during a forward pass: rounding, signs, comparisons and conversions to integers of values that
depend on the image, the choice of the largest values, and custom layers without parameters that keep the shape of their
input. Layers of torch count as differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taet.errors import unknown

Replacement = Literal["straight-through", "smooth"]
SOFTNESS = 0.1  # width of a smooth threshold, in standard deviations of what is compared with it

ROUNDING = {"round", "floor", "ceil", "trunc", "fix"}
DIVISIONS = {"floordiv", "floor_divide"}
SIGNS = {"sign", "sgn"}
ABOVE, BELOW = {"gt", "ge", "greater", "greater_equal"}, {"lt", "le", "less", "less_equal"}
CONVERSIONS = {"to", "type", "int", "long", "short", "char", "byte"}
CHOICES = {"argmax", "argmin", "argsort", "sort", "topk", "kthvalue"}
"""Found, but replaced only inside a custom layer: elsewhere, the use of the indices is not known."""


class Replaced(nn.Module):
    """A model with replacements for its non-differentiable operations: images in [0, 1] -> logits (N, C).

    "straight-through" keeps every output of the model; the derivative of an operation h -> q(h) is the identity.
    "smooth" also changes the outputs: q(h) becomes h, and a threshold h > t becomes sigmoid((h - t) / (0.1 s)), s the
    standard deviation of h - t. A layer that passes its largest inputs and blocks the others, as k-winners do,
    multiplies each input by such a gate, with t halfway between the smallest that passes and the largest that does not.
    Attacks on this model are attacks on a surrogate with the weights of the original.

    `sites` holds the operations found so far with the number of calls of each.

    Source: Athalye, Carlini, Wagner, ICML 2018, arXiv:1802.00420, section 4.1.

    Raises:
        UserError: an unknown replacement.
    """

    def __init__(self, model: nn.Module, replacement: Replacement = "straight-through") -> None:
        super().__init__()
        if replacement not in get_args(Replacement):
            raise unknown("replacement", str(replacement), get_args(Replacement))
        self.model: nn.Module = model.model if isinstance(model, Replaced) else model
        self.replacement = replacement
        self.sites: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        with ExitStack() as stack:
            for name, layer in self.model.named_modules():
                if _is_custom(layer):
                    hook = layer.register_forward_hook(self._layer(f"{name} ({type(layer).__name__})"))
                    stack.callback(hook.remove)
            stack.enter_context(_Operations(self.sites, self.replacement == "smooth"))
            logits: Tensor = self.model(x)
        return logits

    def _layer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def replace(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            h: object = inputs[0] if inputs else None
            if not (_follows(h) and isinstance(output, Tensor) and output.shape == h.shape):
                return output
            self.sites[name] = self.sites.get(name, 0) + 1
            if self.replacement == "straight-through":
                return _straight(h, output)
            with torch.no_grad():  # inside it, operations were replaced already
                hard = layer.forward(*(one.detach() if isinstance(one, Tensor) else one for one in inputs))
            threshold = _threshold(h.detach(), hard)
            return h if threshold is None else h * _soft(h - threshold)

        return replace


def find(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the operations of a model that `Replaced` replaces or reports, with the number of calls for images x.

    x (N, C, H, W) are a few images; the model is in eval mode. If replacing would change the model's outputs, or fails,
    the operations are reported with 0 calls.
    """
    replaced = Replaced(model)

    def drawn(answer: nn.Module) -> Tensor:
        torch.manual_seed(0)  # the same numbers, if the model draws any
        logits: Tensor = answer(x.clone().requires_grad_())
        return logits.detach()

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
    ) -> Any:
        name, kwargs = getattr(func, "__name__", "").strip("_"), kwargs or {}
        if name in OF_TRUTHS and any(map(_follows, _truths(name, args))):
            return OF_TRUTHS[name](*args, **kwargs)
        output = func(*args, **kwargs)
        if not any(map(_follows, args[:2])) or getattr(output, "ndim", 1) == 0:
            return output  # a single value may decide a branch of Python
        replaced = self._replaced(name, args, output)
        if replaced is not None or name in CHOICES:
            self.sites[name] = self.sites.get(name, 0) + 1
        return output if replaced is None else replaced

    def _replaced(self, name: str, args: tuple[Any, ...], output: Any) -> Tensor | None:
        """Return the replacement of an operation's output; None for one that needs none."""
        h: Tensor = args[0]
        if name in ROUNDING or (name in CONVERSIONS and not output.is_floating_point()):
            return h if self.smooth else _straight(h, output)
        if name in DIVISIONS:
            return h / args[1] if self.smooth else _straight(h / args[1], output)
        if name in SIGNS:
            return 2 * _soft(h) - 1 if self.smooth else _straight(h, output)
        if name in ABOVE | BELOW:
            difference: Tensor = h - args[1] if name in ABOVE else args[1] - h
            return _soft(difference) if self.smooth else _straight(difference, output)
        return None


def _is_custom(layer: nn.Module) -> bool:
    """Whether a layer has no parameters and does not come from torch."""
    return not type(layer).__module__.startswith("torch.nn.") and next(layer.parameters(), None) is None


def _follows(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of floating point numbers that depends on the image."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _straight(h: Tensor, output: Tensor) -> Tensor:
    """Return `output` with the derivative 1 by h."""
    return h + (output.to(h.dtype) - h).detach()


def _soft(difference: Tensor) -> Tensor:
    """Return sigmoid(d / (0.1 s)), s the standard deviation of d (N, ...): a smooth step from 0 to 1 at d = 0."""
    width = SOFTNESS * difference.detach().std(correction=0).clamp_min(1e-12)
    return (difference / width).sigmoid()


def _threshold(h: Tensor, output: Tensor) -> Tensor | None:
    """Return per sample the threshold above which `output` is h and below which it is 0, (N, 1, ...), if any is."""
    passed, blocked = (output == h) & (h != 0), (output == 0) & (h != 0)
    if not bool((passed | blocked | (h == 0)).all()):
        return None
    low = h.masked_fill(~passed, torch.inf).flatten(1).amin(1)
    high = h.masked_fill(~blocked, -torch.inf).flatten(1).amax(1)
    middle = (low + high) / 2
    if not bool((high <= low).all() & middle.isfinite().all()):
        return None
    return middle.view(-1, *[1] * (h.ndim - 1))


# Functions of truth values, where these have become numbers with a gradient


def _truths(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a function in `OF_TRUTHS` that are truth values."""
    if name == "where":
        return args[:1]
    if name in ("getitem", "setitem", "masked_fill"):
        return args[1] if isinstance(args[1], tuple) else args[1:2]
    return args


def _hard(index: Any) -> Any:
    """Return an index with truth values instead of numbers."""
    if isinstance(index, tuple):
        return tuple(map(_hard, index))
    return index.detach() > 0.5 if _follows(index) else index


def _where(truth: Tensor, one: Any, other: Any) -> Any:
    return truth * one + (1 - truth) * other


def _masked_fill(h: Tensor, truth: Tensor, value: Any) -> Any:
    finite = bool(torch.as_tensor(value).isfinite().all())
    return _where(truth, value, h) if finite else h.masked_fill(_hard(truth), value)


def _set(h: Tensor, index: Any, value: Any) -> None:
    h[_hard(index)] = value


OF_TRUTHS: Mapping[str, Callable[..., Any]] = {
    "where": _where,
    "masked_fill": _masked_fill,
    "getitem": lambda h, index: h[_hard(index)],
    "setitem": _set,
    **dict.fromkeys(("invert", "logical_not", "bitwise_not"), lambda truth: 1 - truth),
    **dict.fromkeys(("and", "logical_and", "bitwise_and"), lambda one, other: one * other),
    **dict.fromkeys(("or", "logical_or", "bitwise_or"), lambda one, other: one + other - one * other),
}
