"""The optimiser of the classifier's weights."""

from __future__ import annotations

import torch
from torch import nn

from taet.config import Training


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters, or AdamW that decays the weights of layers alone.

    Those are the parameters of two dimensions or more that are called weights, as attention's `in_proj_weight`. Biases,
    the gains of normalisations, class tokens and position embeddings are left undecayed, as transformers are trained
    (Touvron et al., DeiT, ICML 2021, arXiv:2012.12877); with SGD everything decays, as both papers of the protocols do.
    AdamW: betas 0.9 and 0.999, epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        of_layer = parameter.ndim > 1 and "weight" in name.rpartition(".")[2]
        (decayed if of_layer else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.lr)
