"""Classification heads: linear, and the cosine head of hypersphere embedding, RoBal and LDAM."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-12  # features that are all zero have no direction; their cosines are 0, with a finite gradient


class Head(NamedTuple):
    """The head that a method needs."""

    kind: Literal["linear", "cosine"] = "linear"
    scale: float = 1.0
    """Cosine: factor s of the cosines, in training and evaluation."""
    gamma: float = 0.0
    """Cosine: added to the norm of each class weight (RoBal)."""


class CosineHead(nn.Module):
    """Scaled cosines, z_c = s <h / ||h||, w_c / (||w_c|| + gamma)>, without bias: (N, D) -> (N, C) in [-s, s].

    Both normalisations are differentiated. The scale belongs to the model, so that attacks and predictions see the same
    logits. Sources: Pang et al., Boosting Adversarial Training with Hypersphere Embedding, NeurIPS 2020,
    arXiv:2002.08619 (gamma 0; its public code overwrites the weights by their normalised values instead); Wu et al.,
    RoBal, CVPR 2021, arXiv:2104.02703 (gamma 1/32 or 1/16).
    """

    def __init__(self, features: int, num_classes: int, scale: float = 1.0, gamma: float = 0.0) -> None:
        super().__init__()
        self.scale, self.gamma = scale, gamma
        bound = features**-0.5  # as RoBal's public code draws it
        self.weight = nn.Parameter(torch.empty(num_classes, features).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        directions = functional.normalize(features, dim=1, eps=TINY)
        # The norm of a vanishing weight has no derivative; the clamp gives it the derivative 0.
        weights = self.weight / (self.weight.norm(dim=1, keepdim=True).clamp(min=TINY) + self.gamma)
        return self.scale * functional.linear(directions, weights)


def build_head(head: Head, features: int, num_classes: int) -> nn.Module:
    """Return the module that `head` describes, from `features` to `num_classes`."""
    if head.kind == "linear":
        return nn.Linear(features, num_classes)
    return CosineHead(features, num_classes, head.scale, head.gamma)
