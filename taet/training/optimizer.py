"""The optimiser of the classifier's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taet.config import Training


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters, or AdamW that decays the weights of layers alone.

    Those are the parameters of two dimensions or more that are called weights, as attention's `in_proj_weight`. Biases,
    the gains of normalisations, class tokens and position embeddings are left undecayed, as transformers are trained
    (Touvron et al., DeiT, ICML 2021, arXiv:2012.12877); with SGD everything decays, as both papers of the protocols do.
    AdamW: betas 0.9 and 0.999, epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    # One kernel for all weights, which reads each once; other devices have none.
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
    capturable = all(p.device.type == "cuda" for p in model.parameters())  # its number of steps lies beside the weights
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused, capturable=capturable)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of weights this learning rate; in place where it is held in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def hold_learning_rates(optimizer: torch.optim.Optimizer) -> None:
    """Keep learning rates in tensors beside the weights, where a captured step reads them."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], device=group["params"][0].device)
