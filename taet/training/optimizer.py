"""The optimiser of the classifier's weights."""

from __future__ import annotations

import torch
from torch import nn

from taet.config import Training


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters, or AdamW that decays what has two dimensions or more.

    Biases and the gains of normalisations are left undecayed, as transformers are trained (Touvron et al., DeiT, ICML
    2021, arXiv:2012.12877); with SGD everything decays, as both papers of the protocols do. AdamW: betas 0.9 and 0.999,
    epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
        )
    parameters = list(model.parameters())
    decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=training.lr)
