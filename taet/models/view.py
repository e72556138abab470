"""A view of a model to attack: the same function, frozen, with batch normalisation folded into the convolutions."""

import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from taet.errors import cut, said
from taet.models.classifier import Classifier
from taet.randomness import derive_seed

AGREEMENT = 1e-4  # largest difference of two logits over the largest one; float32 rounds by 6e-8 in every layer
SPREAD = (0.5, 2.0)  # of random statistics in the trial: far enough from 1 that a wrong fold shows

_logger = logging.getLogger(__name__)

Pair = tuple[str, str]
"""A convolution and the normalisation of its output, by the names of the modules."""


class View:
    """A model's function in eval mode, cheaper to differentiate by its input; `module` has the model's interface.

    Batch normalisation in eval mode is affine: with s = gamma / sqrt(variance + eps), the convolution W' = s W,
    b' = beta + s (b - mean) replaces it, exactly up to rounding. With a `dtype` the weights of convolutions and
    linear layers are cast to it once and not, as autocast does, in every pass. All other tensors are the model's own,
    so that changes in place apply to the view; `refresh` brings the folded and cast ones up to date.
    """

    def __init__(self, model: nn.Module, pairs: list[Pair], dtype: torch.dtype | None) -> None:
        shared: dict[int, Tensor] = {
            id(value): nn.Parameter(value.detach(), requires_grad=False) for value in model.parameters()
        }
        self.module = copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})
        self._folds: list[tuple[Any, Any, Any]] = []  # convolution and normalisation of the model, their replacement
        self._casts: list[tuple[Tensor, Tensor]] = []
        for convolution, normalization in pairs:
            source, target = model.get_submodule(convolution), self.module.get_submodule(convolution)
            weight = source.get_parameter("weight")
            target.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype))
            target.bias = nn.Parameter(torch.empty(len(weight), dtype=dtype or weight.dtype, device=weight.device))
            self.module.set_submodule(normalization, nn.Identity())
            self._folds.append((source, model.get_submodule(normalization), target))
        folded = {convolution for convolution, _ in pairs}
        # The head computes in float32 (see Classifier); for other networks, the float32 parts are unknown.
        for name, layer in self.module.named_modules() if dtype is not None and isinstance(model, Classifier) else []:
            if name.startswith("body.") and name not in folded and isinstance(layer, _ConvNd | nn.Linear):
                for kind, value in list(layer.named_parameters(recurse=False)):
                    setattr(layer, kind, nn.Parameter(torch.empty_like(value, dtype=dtype)))
                    self._casts.append((layer.get_parameter(kind), model.get_parameter(f"{name}.{kind}")))
        self.module.eval().requires_grad_(False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """Fold and cast the model's weights and statistics, in place, and return `module`; nothing waits for a GPU."""
        if self._folds:  # in few calls, because a GPU waits for the CPU that launches them
            sources, norms, targets = zip(*self._folds, strict=True)
            scales = torch._foreach_rsqrt(torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms]))
            gains = [torch.ones_like(n.running_var) if n.weight is None else n.weight for n in norms]
            biases = [torch.zeros_like(n.running_var) if n.bias is None else n.bias for n in norms]
            means = [n.running_mean if c.bias is None else n.running_mean - c.bias for c, n, _ in self._folds]
            torch._foreach_mul_(scales, gains)
            shifted = torch._foreach_sub(biases, torch._foreach_mul(scales, means))
            torch._foreach_copy_([target.bias for target in targets], shifted)
            for source, scale, target in zip(sources, scales, targets, strict=True):
                torch.mul(source.weight, scale.view(-1, *[1] * (source.weight.ndim - 1)), out=target.weight)
        for target_value, value in self._casts:
            target_value.copy_(value)
        return self.module

    def compile(self) -> None:
        """Compile `module` with CUDA graphs; its logits are copies, since the next call overwrites a graph's outputs.

        In everything that this process compiles, backward passes then run outside autocast, as in `pgd`.
        """
        from torch._functorch import config  # not loaded by torch

        config.backward_pass_autocast = "off"
        self.module = torch.compile(self.module, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]
        self.module.register_forward_hook(lambda _module, _inputs, logits: logits.clone())


def make_view(model: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None = None) -> View | None:
    """Return the view of `model`, or None, with a line in the log, if no view gives its logits.

    `model` maps images (N, *image_shape) to logits, with its parameters on one device. `dtype` is that of the weights
    of convolutions and linear layers, e.g. bfloat16 where the view runs under autocast to it.
    """
    try:
        return View(model, _folds(model, image_shape, dtype), dtype)
    except Exception as error:  # a custom module may refuse to be copied or run, for any reason
        _logger.warning("taet: attacks run on the model itself and not on a folded view of it: %s", cut(said(error)))
        return None


def _folds(model: nn.Module, image_shape: tuple[int, int, int], dtype: torch.dtype | None) -> list[Pair]:
    """Return the pairs to fold, tested in float32 on noise, with random statistics: fresh ones would hide errors."""
    trial = copy.deepcopy(model).cpu().eval().requires_grad_()  # a GPU's TF32 rounds more than a fold may
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
        if dtype is not None:  # fails where a part is kept out of autocast, which public code does by device
            with torch.autocast(first.device.type, dtype):
                View(copy.deepcopy(model), pairs, dtype).module(x.to(first.device))
    return pairs


def _pairs(model: nn.Module, x: Tensor) -> list[Pair]:
    """Return each convolution whose output is used once only, by a normalisation with running statistics."""
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
        elif getattr(module, "running_mean", None) is not None and type(module).forward is _BatchNorm.forward:
            handles += [module.register_forward_hook(after), module.register_forward_pre_hook(before)]
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
    """Return how often the result of each operation that led to `output` is used, as recorded by autograd."""
    uses: Counter[Any] = Counter()
    stack = [output.grad_fn]
    while stack:
        inputs = [operation for operation, _ in stack.pop().next_functions if operation is not None]  # type: ignore[union-attr]
        stack += [operation for operation in inputs if operation not in uses]
        uses.update(inputs)
    return uses
