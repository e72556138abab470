"""Input checks that all attacks share: model, images, labels, radius and output. Each error is one
line."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from taet.attacks.ball import Norm, Size, check_size
from taet.errors import UserError
from taet.machine import float32_by_default
from taet.network import NO_GRADIENT, check_network
from taet.settings.arguments import check_arguments
from taet.settings.types import check_value, leaves

PROBABILITIES = (
    "probabilities, which sum to 1 for every image; allowed: logits, as they are before the "
    "softmax, or a Module around the model with its output.clamp(min=1e-12).log()"
)
UNUSED = ("not have been used in the graph", "'NoneType' object has no attribute 'sum'")
"""What PyTorch says of a gradient that is not there, and pyautoattack, which reads x.grad."""
P = ParamSpec("P")
Model = Callable[[Tensor], Tensor]


def validate_inputs(attack: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate an attack on `model`, `x`, `y`: check its inputs.

    Gradients are then computed in any mode of the caller.

    The attack has the keywords `eps`, `checked` and, unless its ball is that of L2, `norm`. With
    `checked=True` the inputs are taken as valid, and no check waits for the device. Options are
    checked against their annotations.
    """
    defaults, hints = (
        getattr(attack, "__kwdefaults__", {}),
        get_type_hints(attack, include_extras=True),
    )
    known = [(name, kind, marks) for name, hint in hints.items() for kind, marks in leaves(hint)]
    bounded = {name for name, kind, marks in known if marks or get_origin(kind) is Literal}

    @functools.wraps(attack)
    def call(model: Model, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        given = {"norm": "l2", **defaults, **options}
        ball: dict[str, Any] = {name: given.get(name) for name in ("eps", "norm", "checked")}
        for name in (option for option in options if option in bounded):
            check_value(name.replace("_", " "), options[name], hints[name])
        with ready(model, x, y, **ball) as inputs:
            # every attack has its own message about eps
            others = {name: value for name, value in options.items() if name != "eps"}
            check_arguments(attack, others)
            with _without_gradient_refused():
                return attack(*inputs, **options)  # type: ignore[arg-type]

    return call  # type: ignore[return-value]


@contextmanager
def _without_gradient_refused() -> Iterator[None]:
    """Refuse a model whose outputs claim a gradient that they do not have, as quantised layers."""
    try:
        yield
    except (RuntimeError, AttributeError) as error:
        if any(text in str(error) for text in UNUSED):
            raise UserError(NO_GRADIENT) from error
        raise


@contextmanager
def ready(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: Size | None = None,
    norm: Norm = "linf",
    checked: bool = False,
) -> Iterator[tuple[Model, Tensor, Tensor]]:
    """Yield model, images and labels in a form that attacks can use.

    Invalid inputs are a `UserError`.

    The block runs outside of `torch.no_grad` and `torch.inference_mode`. The model's first output
    is checked as well.
    """
    if not checked:
        _check_inputs(model, x, y)
    if eps is not None:
        check_size("eps", eps, x, norm, values=not checked)
    # this enables gradients, too; libraries make tensors of the default type
    with torch.inference_mode(False), float32_by_default():
        x, y = (value.clone() if value.is_inference() else value for value in (x, y))
        yield model if checked else CheckedModel(model, y), x, y


def _check_inputs(model: object, x: object, y: object) -> None:
    if not callable(model):
        allowed = "a Module or function from images (N, ...) in [0, 1] to logits (N, classes)"
        raise UserError(f"model: got a {type(model).__name__}; allowed: {allowed}")
    if isinstance(model, nn.Module):
        check_network(model)
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        what, wrong = ("labels", y) if isinstance(x, Tensor) else ("images", x)
        raise UserError(
            f"{what}: got a {type(wrong).__name__}; allowed: a torch.Tensor (see torch.as_tensor)"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise UserError(
            f"images: got shape {tuple(x.shape)}; allowed: a batch (N, ...) with N of 1 or more"
        )
    if not x.is_floating_point():
        raise UserError(
            f"images: got {x.dtype}; allowed: floating point in [0, 1] (divide uint8 by 255)"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        got, allowed = (
            f"{y.dtype} {tuple(y.shape)}",
            (f"torch.int64 ({len(x)},), the class of each image"),
        )
        raise UserError(f"labels: got {got}; allowed: {allowed}")
    check_range(*(end.item() for end in x.detach().aminmax()))


def check_range(low: float, high: float) -> None:
    """Raise a `UserError` if the lowest or highest value of images is not in [0, 1]."""
    if not (low >= 0 and high <= 1):
        hint = "; divide them by 255" if low >= 0 and 2 < high <= 255 else ""
        if low < 0:
            hint = (
                "; put the mean and std of normalised images into the model: taet.models.Normalized"
            )
        raise UserError(
            f"images: got values from {low:g} to {high:g}; allowed: 0 to 1, without NaN{hint}"
        )


def check_labels(low: int, high: int, classes: int) -> None:
    """Raise a `UserError` if the lowest or highest label is no class of the model."""
    if low < 0 or high >= classes:
        got = f"{low}" if low < 0 else f"up to {high}"
        raise UserError(
            f"labels: got {got}; allowed: 0 to {classes - 1}, one per logit of the model"
        )


def check_output(output: object, x: Tensor) -> Tensor:
    """Return a model's output for images x, which must be one tensor of logits (N, classes)."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"model output: got a {type(output).__name__}; allowed: one tensor of logits (N, "
            "classes)"
        )
    if output.ndim != 2 or len(output) != len(x) or output.shape[1] < 2:
        allowed = f"logits ({len(x)}, classes) of 2 classes or more"
        if output.numel() == len(x):
            allowed += "; one logit z of a binary network is torch.cat([torch.zeros_like(z), z], 1)"
        raise UserError(f"model output: got shape {tuple(output.shape)}; allowed: {allowed}")
    if not output.is_floating_point():
        raise UserError(f"model output: got {output.dtype}; allowed: logits, floating point")
    return output


def distributions(logits: Tensor) -> Tensor:
    """Return for which images (N,) the logits (N, C) are probabilities.

    They are at least 0, and their sum is 1 up to 1e-5.
    """
    # as the official AutoAttack
    return (logits >= 0).all(1) & ((logits.sum(1, dtype=torch.float64) - 1).abs() <= 1e-5)


class CheckedModel(nn.Module):
    """A model whose first output is checked: logits, one per class, and labels within these
    classes.

    After the first backward pass from the logits, the gradient must have reached the image. Some
    layers only claim one, and an attack whose loss has other terms would not notice.
    """

    def __init__(self, model: Model, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels, self.checked = model, labels, False
        self.gradient_left_logits = self.gradient_reached_image = False

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_left_logits and not self.gradient_reached_image:
            raise UserError(NO_GRADIENT)
        has_gradient = x.requires_grad and torch.is_grad_enabled()
        watches = has_gradient and not self.gradient_reached_image
        if watches:
            x = x.view_as(x)  # whose gradient is that of the logits alone
            x.register_hook(self._image_reached)  # type: ignore[no-untyped-call]
        output = self.model(x) if self.checked else self._first_output(x)
        logits = output if self.checked else check_output(output, x)
        if has_gradient and not logits.requires_grad:
            raise UserError(NO_GRADIENT)
        if watches:
            logits.register_hook(self._logits_left)  # type: ignore[no-untyped-call]
        if self.checked:
            return output
        check_labels(int(self.labels.min()), int(self.labels.max()), logits.shape[1])
        # One-hot rows may be logits written by hand, unless they are known to come from a softmax.
        likely = ((logits > 0) & (logits < 1)).any() | type(logits.grad_fn).__name__.startswith(
            "Softmax"
        )
        if bool(distributions(logits.detach()).all() & likely):
            raise UserError(f"model output: got {PROBABILITIES}")
        self.checked = True
        return output

    def _logits_left(self, _gradient: Tensor) -> None:
        self.gradient_left_logits = True

    def _image_reached(self, gradient: Tensor | None) -> None:
        self.gradient_reached_image |= gradient is not None

    def _first_output(self, x: Tensor) -> Tensor:
        """Return the model's output for x, whose type may not be that of its weights."""
        try:
            return self.model(x)
        except RuntimeError as error:
            parameters = self.model.parameters() if isinstance(self.model, nn.Module) else ()
            types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
            if not types or x.dtype in types:
                raise
            raise UserError(
                f"images: got {x.dtype} for a model with weights of {types.pop()}; allowed: the "
                "same type for both, e.g. model.float() and images.float()"
            ) from error
