"""The optimiser of the classifier's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taet.settings import Training


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters, or AdamW, which decays only the weights of layers.

    Those are parameters with two or more dimensions whose name contains "weight", such as attention's `in_proj_weight`.
    Biases, gains of normalisations, class tokens and position embeddings are not decayed, as usual for transformers
    (Touvron et al., DeiT, ICML 2021, arXiv:2012.12877). SGD decays all parameters, as in both papers of the protocols.
    AdamW: betas 0.9 and 0.999, epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    # The fused kernel reads each weight once; it exists on these devices only.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
    if training.optimizer == "sgd":
        momentum, decay = training.momentum, training.weight_decay
        return torch.optim.SGD(model.parameters(), lr=training.lr, momentum=momentum, weight_decay=decay, fused=fused)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        of_layer = parameter.ndim > 1 and "weight" in name.rpartition(".")[2]
        (decayed if of_layer else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    capturable = all(p.device.type == "cuda" for p in model.parameters())  # its step count is stored on the GPU
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused, capturable=capturable)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group; in place if it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def hold_learning_rates(optimizer: torch.optim.Optimizer) -> None:
    """Store learning rates as tensors on the device of the weights, so that a captured step can read them."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], device=group["params"][0].device)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore the state of an optimiser; that of another one, or with other settings, raises an error."""
    for held, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for name in held.keys() - {"params", "lr"}:  # the rate is set before each step
            if name in group and group[name] != held[name]:  # a version of torch may add names
                raise ValueError(f"optimizer: {name} is {group[name]!r:.100}, not {held[name]!r}")
    optimizer.load_state_dict(dict(saved))
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if (
                isinstance(value, Tensor)
                and value.ndim
                and (value.shape, value.dtype)
                != (
                    parameter.shape,
                    parameter.dtype,
                )
            ):
                raise ValueError(f"optimizer: {name} has another shape or type than in this run")
