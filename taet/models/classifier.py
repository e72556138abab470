"""The structure of every model: normalisation, features, head, and the deployed offset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network with its normalisation inside: logits(x) = head(features(x)) - offset.

    x (N, C, H, W) in [0, 1] -> (N, classes). Normalisation is part of the model, so that perturbations are always
    measured in units of the image. The head computes in float32 also under autocast, because class terms and attacks
    use small differences of logits. `offset` (classes,) is zero in training and set by the method afterwards (a
    post-hoc class prior).
    """

    body: nn.Module
    head: nn.Module
    mean: Tensor
    std: Tensor
    offset: Tensor
    notes: tuple[str, ...] = ()
    """On the origin of its parts and first weights."""

    def __init__(self, body: nn.Module, head: nn.Module, num_classes: int, channels: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.register_buffer("offset", torch.zeros(num_classes))

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation per channel of the input normalisation, in units of the image."""
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        self.std.copy_(torch.tensor(std).view_as(self.std))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, D) of images (N, C, H, W) in [0, 1]."""
        mean, std = self.mean, self.std
        if x.stride(1) == 1 and x.shape[1] > 1:  # channels last
            # In this layout a CPU needs a sixth of the time with rows of numbers instead of one number per channel.
            mean, std = (
                value.expand(-1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)
                for value in (mean, std)
            )
        features: Tensor = self.body((x - mean) / std)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.to(self.offset.dtype)) - self.offset
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def adapted(model: nn.Module, num_classes: int) -> Classifier | Adapter:
    """Return `model` if it is a Classifier or Adapter, else wrapped in an `Adapter`."""
    return model if isinstance(model, Classifier | Adapter) else Adapter(model, num_classes)


class Adapter(nn.Module):
    """A custom module (images in [0, 1] -> logits) with float32 logits and the deployed offset."""

    network: nn.Module
    offset: Tensor
    notes: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits.to(self.offset.dtype) - self.offset
