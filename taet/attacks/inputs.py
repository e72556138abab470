"""Input checks that all attacks share: model, images, labels, radius and output. Each error is one line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from taet.attacks.ball import Norm, check_floating, check_range, frozen
from taet.attacks.objectives import check_classes
from taet.errors import UserError

P = ParamSpec("P")
Model = Callable[[Tensor], Tensor]

SUM_TOLERANCE = 1e-5  # of the official AutoAttack for a probability distribution
ROUNDING = 1e-3  # images this far outside [0, 1] came from an interpolation, not from a normalisation


def refusing(attack: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate an attack on `model`, `x`, `y`: check its inputs, and compute gradients in any mode of the caller.

    The attack has a keyword `checked`: with `checked=True` the inputs are taken as valid, and no check that would wait
    for the device is made.
    """
    defaults: dict[str, Any] = getattr(attack, "__kwdefaults__", {})

    @functools.wraps(attack)
    def call(model: Model, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        given = {**defaults, **options}
        ball = {"eps": given.get("eps"), "norm": given.get("norm", "l2"), "checked": bool(given["checked"])}
        with ready(model, x, y, **ball) as sound:
            return attack(*sound, **options)  # type: ignore[arg-type]

    return call  # type: ignore[return-value]


@contextmanager
def ready(
    model: Model, x: Tensor, y: Tensor, *, eps: object = None, norm: Norm = "linf", checked: bool = False
) -> Iterator[tuple[Model, Tensor, Tensor]]:
    """Yield model, images and labels in a form that attacks can use; raise a `UserError` for invalid inputs.

    The block runs outside of `torch.no_grad` and `torch.inference_mode`; tensors of inference mode are copied. The
    model's first output is checked as well, on x afterwards if the attack never calls the model.
    """
    if checked:
        check_floating(x)  # which costs nothing
        if not torch.is_inference_mode_enabled():
            yield model, x, y
            return
    else:
        check_model(model)
        check_shapes(x, y)
    with torch.inference_mode(False):  # this enables gradients, too
        x, y = (value.clone() if value.is_inference() else value for value in (x, y))
        if checked:
            yield model, x, y
            return
        answers = Answers(model, check_values(x, y, eps, norm))
        yield answers, x, y
        if not answers.asked:
            with torch.no_grad(), frozen(answers):
                answers(x)


def check_model(model: object) -> None:
    """Raise a `UserError` for a model that cannot be called on images, or with weights that let no gradient pass."""
    if isinstance(model, type) or not callable(model):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UserError(
            f"model: got {got}; allowed: a Module or function from images (N, ...) in [0, 1] to logits (N, classes), "
            "e.g. taet.models.build(NAME, C, weights=PATH)"
        )
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    if any(tensor.is_inference() for tensor in tensors):
        raise UserError(
            "model: got weights made under torch.inference_mode, which let no gradient pass; allowed: a model built or "
            "loaded outside of it"
        )


def check_shapes(x: object, y: object) -> None:
    """Raise a `UserError` for images and labels of a wrong kind, type or shape; no value is read."""
    for what, values in (("images", x), ("labels", y)):
        if not isinstance(values, Tensor):
            raise UserError(f"{what}: got a {type(values).__name__}; allowed: a torch.Tensor (see torch.as_tensor)")
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    check_floating(x)
    if x.ndim < 2 or x.numel() == 0:
        raise UserError(f"images: got shape {tuple(x.shape)}; allowed: a batch (N, ...) with N of 1 or more")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        hint = "; of one-hot rows pass y.argmax(1)" if y.ndim == 2 else ""
        hint = "; convert whole numbers by y.long()" if y.shape == x.shape[:1] else hint
        got, allowed = f"{y.dtype} {tuple(y.shape)}", f"torch.int64 ({len(x)},), the class of each image"
        raise UserError(f"labels: got {got}; allowed: {allowed}{hint}")


def check_values(x: Tensor, y: Tensor, eps: object = None, norm: Norm = "linf") -> tuple[int, int]:
    """Raise a `UserError` for values out of range; return the lowest and highest label. This waits for the device."""
    sizes = eps.detach().to(x.device) if isinstance(eps, Tensor) and eps.numel() else x.new_zeros(1)
    parts = (x.detach(), sizes, y)
    ends = torch.stack([end.double().to(x.device) for part in parts for end in (part.amin(), part.amax())])
    low, high, least, largest, first, last = ends.tolist()  # one wait for all
    if not (low >= 0 and high <= 1):
        hint = ""
        if low >= -ROUNDING and high <= 1 + ROUNDING:
            hint = "; clamp them: x.clamp(0, 1)"
        elif -torch.inf < low < 0:
            hint = "; put the mean and std of normalised images into the model: taet.models.Normalized"
        elif 2 < high <= 255:
            hint = "; divide them by 255"
        raise UserError(f"images: got values from {low:g} to {high:g}; allowed: 0 to 1, without NaN{hint}")
    check_range("eps", least, largest, norm)
    return int(first), int(last)


def check_labels(low: int, high: int, classes: int) -> None:
    """Raise a `UserError` if the lowest or highest label is no class of the model."""
    if low < 0 or high >= classes:
        got = f"{low}" if low < 0 else f"up to {high}"
        raise UserError(f"labels: got {got}; allowed: 0 to {classes - 1}, one per logit of the model")


def check_output(output: object, x: Tensor) -> Tensor:
    """Return a model's output for images x; raise a `UserError` unless it is one tensor of logits (N, classes)."""
    if not isinstance(output, Tensor):
        raise UserError(f"model output: got a {type(output).__name__}; allowed: one tensor of logits (N, classes)")
    if output.ndim != 2 or len(output) != len(x):
        raise UserError(f"model output: got shape {tuple(output.shape)}; allowed: logits ({len(x)}, classes)")
    if not output.is_floating_point():
        raise UserError(f"model output: got {output.dtype}; allowed: logits, floating point")
    return output


def distributions(logits: Tensor) -> Tensor:
    """Return for which images (N,) the logits (N, C) are probabilities: at least 0, with a sum of 1."""
    return (logits >= 0).all(1) & ((logits.sum(1, dtype=torch.float64) - 1).abs() <= SUM_TOLERANCE)


class Answers(nn.Module):
    """A model whose first output is checked: logits, one per class, and labels within these classes."""

    def __init__(self, model: Model, labels: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.labels = labels
        self.asked = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output."""
        if self.asked:
            return self.model(x)
        output = answer(self.model, x)
        logits = check_output(output, x)
        check_classes("model output", logits)
        check_labels(*self.labels, logits.shape[1])
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError("model: no gradient reaches the image; is there a detach, no_grad or argmax in forward?")
        # Rows of zeros and a one may be logits that somebody wrote by hand, unless they are known to be a softmax's.
        inside = ((logits > 0) & (logits < 1)).any() | type(logits.grad_fn).__name__.startswith("Softmax")
        if bool(distributions(logits.detach()).all() & inside):
            raise UserError(
                "model output: got probabilities, which sum to 1 for every image and hide the gradient; allowed: "
                "logits, as they are before the softmax, or lambda x: model(x).clamp(min=1e-12).log()"
            )
        self.asked = True
        return output


def answer(model: Model, x: Tensor) -> Tensor:
    """Return the model's output; a `UserError` if it fails on images of another type than its weights."""
    types = {one.dtype for one in model.parameters() if one.is_floating_point()} if isinstance(model, nn.Module) else ()
    try:
        return model(x)
    except RuntimeError as error:
        if not types or x.dtype in types:
            raise
        allowed = "the type of the model's weights, as in x.float() and model.float()"
        reason = str(error).partition("\n")[0]
        raise UserError(f"images: got {x.dtype}, on which the model fails ({reason}); allowed: {allowed}") from None
