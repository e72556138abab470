"""A network of the user's own, before anything is done with it: what it holds, and copies of it."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from taet.errors import UserError, exception_text, wrapping_user_code
from taet.formatting import join_words

QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
"""Modules whose layers compute with integers."""


def check_network(network: nn.Module, *, is_copied: bool = False) -> None:
    """Refuse a network whose weights have no values, or pass on no gradient.

    With `is_copied` a copy of it will be used, whose weights are ordinary tensors.
    """
    for name, value in _tensors(network):
        if is_lazy(value):
            raise UserError(
                f"model: got {name} without a shape; allowed: a lazy network after its first "
                "batch, model(images)"
            )
        if value.is_meta:
            raise UserError(
                f"model: got {name} on the device meta, which holds no values; allowed: cpu or cuda"
            )
        if value.is_inference() and not is_copied:
            raise UserError(
                f"model: got {name} made in torch.inference_mode, which has no gradient; allowed: "
                "copy.deepcopy(model), made outside of it"
            )
    quantised = [
        name
        for name, part in network.named_modules()
        if type(part).__module__.startswith(QUANTISED) and "packed_params" not in name
    ]
    if quantised:
        raise UserError(
            f"model: got quantised layers ({join_words(quantised, most=3)}), through which no "
            "gradient reaches the image; allowed: the network before it was quantised"
        )


def check_float32(network: nn.Module) -> None:
    """Refuse weights of another type than float32."""
    if any(
        value.is_floating_point() and value.dtype != torch.float32 for value in network.parameters()
    ):
        raise UserError(
            "model: got weights that are not float32; allowed: float32 (call model.float())"
        )


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def computed_tensors(network: nn.Module) -> dict[int, Tensor]:
    """Return copies of the tensors that parts of a network keep with their graph, by identity.

    `copy.deepcopy(network, memo)` refuses them unless they are in its memo. A pruned layer keeps
    its weight like this, and so do the older weight_norm and spectral_norm: each forward pass
    computes it anew.
    """
    return {
        id(value): value.detach().clone()
        for part in network.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }


def copied(network: nn.Module) -> nn.Module:
    """Return a copy of a network, also of one with computed weights."""
    return copy.deepcopy(network, computed_tensors(network))


def check_trainable(network: nn.Module) -> None:
    """Refuse a network whose copies cannot be trained."""
    check_network(network, is_copied=True)
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            "model: got TorchScript, whose copies cannot be trained; allowed: the nn.Module that "
            "it was made from"
        )
    try:
        network.train(network.training)
    except NotImplementedError:
        raise UserError(
            "model: got a graph of torch.export, which has no training mode; allowed: the "
            "nn.Module that it was made from"
        ) from None
    check_float32(network)


def copy_of(network: nn.Module) -> nn.Module:
    """Return a copy of a caller's network to train, which stays as it is."""
    check_trainable(network)
    try:
        return copied(network)
    except Exception as error:  # of any attribute that the network has
        raise UserError(
            f"model: cannot be copied ({exception_text(error)}); allowed: one that "
            "copy.deepcopy takes"
        ) from error


NO_GRADIENT = (
    "model: no gradient reaches the image; is there a detach, no_grad or argmax in forward, or is "
    "it quantised?"
)


def check_image_gradient(network: nn.Module, images: Tensor) -> None:
    """Refuse a network from whose logits no gradient reaches the image.

    Some layers claim a gradient that they do not have, so the gradient is computed.
    """
    leaf = images.clone().requires_grad_()
    fails = f"model: fails on images of shape {tuple(images.shape[1:])}"
    with torch.enable_grad(), wrapping_user_code(fails):
        logits: Tensor = network(leaf)
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise UserError(NO_GRADIENT)


def check_training(network: nn.Module, images: Tensor, precision: str) -> None:
    """Refuse a network that fails in training mode on `images`, or returns more than one tensor.

    `network` maps images to logits or features. A copy is tried in float32 and, if that is the
    precision of the training, in bf16; the random state is restored.
    """
    trial = copied(network).train()
    fails = f"model: fails in training mode on {len(images)} images"
    every_gpu = range(torch.cuda.device_count())
    with torch.random.fork_rng(every_gpu), torch.enable_grad():
        with wrapping_user_code(fails):
            output = trial(images)
        if not isinstance(output, Tensor):
            raise UserError(
                f"model: got a {type(output).__name__} in training mode; allowed: one tensor of "
                "logits, without auxiliary outputs"
            )
        with wrapping_user_code(fails):
            _backward(output)
        with wrapping_user_code("model: cannot be copied after a forward pass"):
            copied(trial)
        if precision == "bf16":
            computes_in_bf16 = torch.autocast(images.device.type, torch.bfloat16)
            with wrapping_user_code("model: allowed: --precision float32; fails in bf16"):
                with computes_in_bf16:
                    output = trial(images)
                _backward(output)


def _backward(output: Tensor) -> None:
    if output.requires_grad:  # a frozen body does not
        output.float().sum().backward()  # type: ignore[no-untyped-call]
