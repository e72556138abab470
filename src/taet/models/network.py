"""A network from memory, before anything is done with it."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from taet.errors import UserError, exception_text, wrapping_user_code


def check_values(network: nn.Module) -> None:
    """Refuse a network whose weights have no values yet."""
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            raise UserError(
                f"model: got {name} without a shape; allowed: a lazy network after its first "
                "batch, model(images)"
            )
        if value.is_meta:
            raise UserError(
                f"model: got {name} on the device meta, which holds no values; allowed: cpu or cuda"
            )


def copy_of(network: nn.Module) -> nn.Module:
    """Return a copy of a network, which the caller keeps as it is."""
    check_values(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(
            "model: got TorchScript, whose copies cannot be trained; allowed: the nn.Module that "
            "it was made from"
        )
    try:
        return copy.deepcopy(network)
    except Exception as error:  # of any attribute that the network has
        raise UserError(
            f"model: cannot be copied ({exception_text(error)}); allowed: one that "
            "copy.deepcopy takes"
        ) from error


def check_output_in_training(network: nn.Module, images: Tensor) -> None:
    """Refuse a network that in training mode returns anything but one tensor for `images`.

    `network` maps images to logits or features. A copy is tried, and the random state restored.
    """
    trial = copy.deepcopy(network).train()
    every_gpu = range(torch.cuda.device_count())
    with (
        wrapping_user_code(f"model: fails in training mode on {len(images)} images"),
        torch.random.fork_rng(every_gpu),
        torch.no_grad(),
    ):
        output = trial(images)
    if not isinstance(output, Tensor):
        raise UserError(
            f"model: got a {type(output).__name__} in training mode; allowed: one tensor of "
            "logits, without auxiliary outputs"
        )
