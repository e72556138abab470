"""Sums by class over the validation images of the curve, for a method that learns from them."""

from __future__ import annotations

import torch
from torch import Tensor

from taet.distributed import gather, global_sum
from taet.losses import cross_entropy, kl_divergence
from taet.losses.long_tail import is_label
from taet.methods.base import Seen


class FeedbackSums:
    """Sums over the images of each class in this process; `seen` adds up those of all processes."""

    def __init__(self, class_counts: Tensor, with_features: bool) -> None:
        classes, self.with_features = len(class_counts), with_features
        self.images = class_counts.double()
        self.sums = self.images.new_zeros(classes, 4 + classes)
        self.features: Tensor | None = None

    @torch.no_grad()
    def add(self, labels: Tensor, clean: Tensor, attacked: Tensor, features: Tensor | None) -> None:
        """Add a batch: labels (N,), logits of its images and of the attacked ones (N, C), features of those (N, D)."""
        clean, attacked = clean.double(), attacked.double()
        found = [
            clean.argmax(1) == labels,
            cross_entropy(clean, labels),
            cross_entropy(attacked, labels),
            kl_divergence(clean, attacked),
        ]
        values = torch.cat([torch.stack(found, 1), is_label(attacked, attacked.argmax(1))], 1)
        # A matrix product, because the order of sums in index_add_ varies on a GPU.
        members = is_label(attacked, labels).double().T
        self.sums += members @ values
        if features is not None:
            summed = members @ features.double()
            self.features = summed if self.features is None else self.features + summed

    def seen(self, split: str) -> Seen:
        """Return the sums over all processes; a process without a batch has no features."""
        together = global_sum(self.sums)
        clean, clean_loss, robust_loss, divergence = together[:, :4].unbind(1)
        features = None
        if self.with_features:
            width = max(gather(0 if self.features is None else self.features.shape[1]))
            mine = self.images.new_zeros(len(self.images), width) if self.features is None else self.features
            features = global_sum(mine)
        return Seen(split, self.images, clean, together[:, 4:], clean_loss, robust_loss, divergence, features)
