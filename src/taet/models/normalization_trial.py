"""Whether a network was made for images that are normalised otherwise, tried on a few of them."""

import copy
import math

import torch
from torch import Tensor, nn

from taet.models.class_order import Reordered
from taet.models.classifier import Classifier
from taet.models.normalization import (
    IMAGENET,
    RGB,
    Normalized,
    Statistics,
    format_statistics,
    same_statistics,
)

IMAGES = 100  # that are tried
MUCH = 0.15  # more of the images that are right
DEVIATIONS = 3  # of the difference, if both were equally good


def suggest_normalization(network: nn.Module, images: Tensor, labels: Tensor) -> str | None:
    """Return a line if another normalisation of the images makes many more of them right.

    None, imagenet, 0.5/0.5 and the statistics of the images themselves are tried.

    Args:
        network: in eval mode, its normalisation, if any, in a `Normalized`.
        images: (N, C, H, W) in [0, 1], clean.
        labels: (N,).
    """
    base, used = _without_statistics(network)
    if isinstance(base, Classifier) and not _is_untouched(base):
        return None
    right = _right(_with_statistics(network, used), images, labels)
    best, best_right = used, right
    for statistics in _candidates(images):
        tried = _right(_with_statistics(network, statistics), images, labels)
        if tried.sum() > best_right.sum():
            best, best_right = statistics, tried
    gained = int((best_right & ~right).sum())
    lost = int((right & ~best_right).sum())
    enough = max(MUCH * len(labels), DEVIATIONS * math.sqrt(gained + lost))
    if gained - lost < enough or gained == lost:
        return None
    shares = [100 * float(values.double().mean()) for values in (right, best_right)]
    better = "none" if best is None else format_statistics(best)
    return (
        f"! normalisation: {shares[0]:.1f} % of {len(labels)} clean images are right; with "
        f"--normalize {better}: {shares[1]:.1f} %"
    )


def _candidates(images: Tensor) -> list[Statistics | None]:
    channels = images.shape[1]
    half = ([0.5] * channels, [0.5] * channels)
    std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    own = (mean.tolist(), std.clamp(min=1e-3).tolist())
    known: list[Statistics] = [IMAGENET] if channels == RGB else []
    return [None, *known, half, own]


def _without_statistics(network: nn.Module) -> tuple[nn.Module, Statistics | None]:
    """Return the network inside its wrappers, and the statistics of its normalisation."""
    if isinstance(network, Reordered):
        return _without_statistics(network.network)
    if isinstance(network, Normalized):
        return network.network, (network.mean.flatten().tolist(), network.std.flatten().tolist())
    return network, None


def _with_statistics(network: nn.Module, statistics: Statistics | None) -> nn.Module:
    """Return the network with another normalisation; it shares all parameters."""
    if isinstance(network, Reordered):
        wrapper = copy.copy(network)
        wrapper._modules = {"network": _with_statistics(network.network, statistics)}
        return wrapper
    base, used = _without_statistics(network)
    if statistics is None:
        return base
    if used is not None and same_statistics(used, statistics):
        return network
    return Normalized(base, statistics)


def _is_untouched(model: Classifier) -> bool:
    return not model.mean.any() and bool(model.std.eq(1).all())


@torch.no_grad()
def _right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return network(images).argmax(1) == labels
