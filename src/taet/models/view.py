"""A view of a model to attack: the same function, frozen, with batch normalisation folded into the
convolutions."""

import copy
import logging
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from taet.errors import UserError, exception_text, shortened
from taet.models.classifier import Classifier
from taet.network import computed_tensors, copied
from taet.randomness import derive_seed

# largest difference of two logits over the largest one; float32 rounds by 6e-8 in every layer
AGREEMENT = 1e-4
SPREAD = (0.5, 2.0)  # of random statistics in the trial: far enough from 1 that a wrong fold shows

_logger = logging.getLogger(__name__)

Pair = tuple[str, str]
"""A convolution and the normalisation of its output, by the names of the modules."""


class Fold(NamedTuple):
    """A convolution of a model, the normalisation of its output, and what replaces both."""

    convolution: Any
    norm: Any
    folded: Any

    def gamma(self) -> Tensor:
        """Return the scale of the normalisation."""
        norm = self.norm
        return torch.ones_like(norm.running_var) if norm.weight is None else norm.weight

    def beta(self) -> Tensor:
        """Return the shift of the normalisation."""
        norm = self.norm
        return torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias

    def mean(self) -> Tensor:
        """Return what the normalisation subtracts from the convolution without its own bias."""
        mean, bias = self.norm.running_mean, self.convolution.bias
        return mean if bias is None else mean - bias


class View:
    """A model's function in eval mode, cheaper to differentiate by its input; `module` has the
    model's interface.

    Batch normalisation in eval mode is affine: with s = gamma / sqrt(variance + eps), the
    convolution W' = s W, b' = beta + s (b - mean) replaces it, exactly up to rounding. With a
    `dtype` the weights of convolutions and linear layers are cast to it once and not, as autocast
    does, in every pass. All other tensors are the model's own, so that changes in place apply to
    the view; `refresh` brings the folded and cast ones up to date.
    """

    def __init__(self, model: nn.Module, pairs: list[Pair], dtype: torch.dtype | None) -> None:
        shared: dict[int, Tensor] = {
            id(value): nn.Parameter(value.detach(), requires_grad=False)
            for value in model.parameters()
        }
        self.module = copy.deepcopy(
            model,
            shared | {id(buffer): buffer for buffer in model.buffers()} | computed_tensors(model),
        )
        self._folds: list[Fold] = []
        self._casts: list[tuple[Tensor, Tensor]] = []
        for convolution, normalization in pairs:
            original = model.get_submodule(convolution)
            folded = self.module.get_submodule(convolution)
            weight = original.get_parameter("weight")
            bias = torch.empty(len(weight), dtype=dtype or weight.dtype, device=weight.device)
            folded.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype))
            folded.bias = nn.Parameter(bias)
            self.module.set_submodule(normalization, nn.Identity())
            self._folds.append(Fold(original, model.get_submodule(normalization), folded))
        # The head computes in float32 (see Classifier); for other networks, the float32 parts are
        # unknown.
        if dtype is not None and isinstance(model, Classifier):
            self._cast_body(model, dtype, without={convolution for convolution, _ in pairs})
        self.module.eval().requires_grad_(False)
        self.refresh()

    def _cast_body(self, model: nn.Module, dtype: torch.dtype, without: Collection[str]) -> None:
        """Give the other convolutions and linear layers of the body weights of this type."""
        for name, layer in self.module.named_modules():
            is_castable = isinstance(layer, _ConvNd | nn.Linear)
            if is_castable and name.startswith("body.") and name not in without:
                for kind, value in list(layer.named_parameters(recurse=False)):
                    cast = nn.Parameter(torch.empty_like(value, dtype=dtype))
                    setattr(layer, kind, cast)
                    self._casts.append((cast, model.get_parameter(f"{name}.{kind}")))

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """Fold and cast the model's weights and statistics, in place, and return `module`.

        Nothing waits for a GPU.
        """
        if self._folds:
            self._refresh_folds()
        for cast, value in self._casts:
            cast.copy_(value)
        return self.module

    def _refresh_folds(self) -> None:
        """Write W' = s W and b' = beta + s (b - mean) into the folded convolutions.

        The vectors of all convolutions are computed in few calls, because a GPU waits for the CPU
        that launches them.
        """
        norms = [fold.norm for fold in self._folds]
        variances = torch._foreach_add(
            [norm.running_var for norm in norms], [norm.eps for norm in norms]
        )
        scales = torch._foreach_rsqrt(variances)  # s, after the factor gamma
        torch._foreach_mul_(scales, [fold.gamma() for fold in self._folds])
        shifts = torch._foreach_mul(scales, [fold.mean() for fold in self._folds])
        biases = torch._foreach_sub([fold.beta() for fold in self._folds], shifts)
        torch._foreach_copy_([fold.folded.bias for fold in self._folds], biases)
        for fold, scale in zip(self._folds, scales, strict=True):
            weight = fold.convolution.weight
            per_filter = scale.view(-1, *[1] * (weight.ndim - 1))
            torch.mul(weight, per_filter, out=fold.folded.weight)

    def compile(self, batch_size: int) -> None:
        """Compile the forward pass of `module` with CUDA graphs, for up to `batch_size` images.

        Smaller batches are filled up with zeros, so that the last batch of an epoch needs no graph
        of its own. The logits are copies, since the next call overwrites a graph's outputs. In
        everything that this process compiles, backward passes then run outside autocast, as in
        `pgd`; what it compiled before is compiled anew when it is called again. A PyTorch that
        cannot do so is a `UserError`.
        """
        from torch._functorch import config  # not loaded by torch

        if not can_compile():
            raise UserError(
                f"PyTorch {torch.__version__} would round the gradients of a compiled network; "
                "newer versions need not"
            )
        # torch compiles a function eight times at most, and then, silently, not at all
        torch.compiler.reset()
        config.backward_pass_autocast = "off"
        compiled = torch.compile(self.module.forward, mode="reduce-overhead", dynamic=False)

        def forward(x: Tensor) -> Tensor:
            missing = max(batch_size - len(x), 0)
            after_last_image = (*[0] * (2 * x.ndim - 1), missing)
            filled = functional.pad(x, after_last_image) if missing else x
            logits: Tensor = compiled(filled)
            return logits[: len(x)].clone()

        self.module.forward = forward

    def stop_compiling(self) -> None:
        """Let `module` compute as before `compile`."""
        vars(self.module).pop("forward", None)


def can_compile() -> bool:
    """Return whether this PyTorch can keep the backward passes of a compiled view out of autocast.

    Older ones run them in the autocast of the forward pass, which rounds the gradients.
    """
    from torch._functorch import config  # not loaded by torch

    return hasattr(config, "backward_pass_autocast")


def make_view(
    model: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None = None
) -> View | None:
    """Return the view of `model`, or None, with a line in the log, if no view gives its logits.

    `model` maps images (N, *image_shape) to logits, with its parameters on one device. `dtype` is
    that of the weights of convolutions and linear layers, e.g. bfloat16 where the view runs under
    autocast to it.
    """
    try:
        return View(model, _folds(model, image_shape, dtype), dtype)
    except Exception as error:  # a custom module may refuse to be copied or run, for any reason
        _logger.warning(
            "taet: attacks run on the model itself and not on a folded view of it: %s",
            shortened(exception_text(error)),
        )
        return None


def _folds(
    model: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None
) -> list[Pair]:
    """Return the pairs to fold, tested in float32 on noise, with random statistics: fresh ones
    would hide errors."""
    # a GPU's TF32 rounds more than a fold may
    trial = copied(model).cpu().eval().requires_grad_()
    first = next(model.parameters(), torch.empty(0))
    noise = torch.Generator().manual_seed(derive_seed(0, "view"))
    x = torch.rand(2, *image_shape, generator=noise).to(first.dtype)
    with torch.enable_grad():
        pairs = _pairs(trial, x)
    with torch.no_grad():
        for norm in (trial.get_submodule(normalization) for _, normalization in pairs):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                if isinstance(value, Tensor):
                    value.copy_(torch.empty(value.shape).uniform_(*SPREAD, generator=noise))
        expected = trial(x)
        logits = View(trial, pairs, None).module(x)
        if not bool((expected - logits).abs().amax() <= AGREEMENT * expected.abs().amax()):
            raise ValueError("its logits differ from the model's")
        # fails where a part is kept out of autocast, which public code does by device
        if dtype is not None:
            with torch.autocast(first.device.type, dtype):
                View(copied(model), pairs, dtype).module(x.to(first.device))
    return pairs


def _pairs(model: nn.Module, x: Tensor) -> list[Pair]:
    """Return each convolution whose output is used once only, by a normalisation with running
    statistics."""
    names = {module: name for name, module in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[Tensor, _ConvNd]] = {}  # kept alive, so that each id is one tensor's
    candidates: list[tuple[_ConvNd, _BatchNorm, Any]] = []

    def after(module: nn.Module, _: object, output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, _ConvNd):
            outputs[id(output)] = (output, module)

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs and isinstance(module, _BatchNorm):
            output, convolution = outputs[id(inputs[0])]
            candidates.append((convolution, module, output.grad_fn))

    handles = []
    for module in names:
        if isinstance(module, _ConvNd) and not module.transposed and "weight" in module._parameters:
            handles.append(module.register_forward_hook(after))
        # A subclass with its own forward does more, as timm's, which include the activation.
        elif (
            getattr(module, "running_mean", None) is not None
            and type(module).forward is _BatchNorm.forward
        ):
            handles += [
                module.register_forward_hook(after),
                module.register_forward_pre_hook(before),
            ]
    try:
        uses = _uses(model(x))
    finally:
        for handle in handles:
            handle.remove()
    return [
        (names[convolution], names[norm])
        for convolution, norm, operation in candidates
        if calls[convolution] == calls[norm] == uses[operation] == 1
    ]


def _uses(output: Tensor) -> Counter[Any]:
    """Return how often the result of each operation that led to `output` is used, as recorded by
    autograd."""
    uses: Counter[Any] = Counter()
    stack = [output.grad_fn]
    while stack:
        inputs = [operation for operation, _ in stack.pop().next_functions if operation is not None]  # type: ignore[union-attr]
        stack += [operation for operation in inputs if operation not in uses]
        uses.update(inputs)
    return uses
