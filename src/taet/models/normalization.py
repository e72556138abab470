"""The normalisation of images inside a network that expects normalised ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taet.errors import UserError

# mean and standard deviation per channel, in image units
Statistics = tuple[Sequence[float], Sequence[float]]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""As in the documentation of torchvision's pretrained models."""
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
"""Over all pixels of the 50,000 training images; as in the code of Rice et al., ICML 2020,
arXiv:2002.11569."""
CIFAR100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""Over all pixels of the 50,000 training images."""
NORMALIZATIONS = {"imagenet": IMAGENET, "cifar10": CIFAR10, "cifar100": CIFAR100}
AUTO = "auto"
"""The normalisation that a file of weights holds, or that the code of its network has; else
none."""
RGB = 3


class Normalized(nn.Module):
    """network((x - mean) / std): images (N, C, H, W) in [0, 1] -> logits, so that eps stays in
    units of the image.

    Example:
        >>> import torch
        >>> from taet.models import Normalized
        >>> model = Normalized(torch.nn.Flatten(), ([0.5], [0.25]))
        >>> model(torch.full((1, 1, 1, 2), 0.75))
        tensor([[1., 1.]])
    """

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).view(1, -1, 1, 1)) for values in statistics
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def parse_normalization(text: str, channels: int) -> Statistics | None:
    """Return the statistics given by name or as MEANS/STDS; None for none."""
    if text == "none":
        return None
    named = NORMALIZATIONS.get(text)
    try:
        mean, std = named or (
            [float(number) for number in part.split(",")] for part in text.split("/")
        )
        valid = (
            len(mean) == len(std) in (channels, RGB)
            and min(std) > 0
            and all(map(math.isfinite, (*mean, *std)))
        )
    except ValueError:
        valid = False
    if not valid:
        number = " or ".join(map(str, sorted({channels, RGB})))
        own = f"or {number} means / as many deviations above 0, e.g. 0.49,0.48,0.45/0.25,0.24,0.26"
        allowed = ", ".join([AUTO, "none", *NORMALIZATIONS, own])
        raise UserError(f"normalisation: got '{text}'; allowed: {allowed}")
    return mean, std


def format_statistics(statistics: Statistics) -> str:
    """Return the name of statistics, or MEANS/STDS, as `parse_normalization` reads them."""
    for name, known in NORMALIZATIONS.items():
        if same_statistics(statistics, known):
            return name
    return "/".join(",".join(f"{value:.4g}" for value in values) for values in statistics)


def same_statistics(first: Statistics, second: Statistics) -> bool:
    """Whether two normalisations are the same up to the fourth digit."""
    values = [[*means, *deviations] for means, deviations in (first, second)]
    if len(values[0]) != len(values[1]):
        return False
    pairs = zip(*values, strict=True)
    return all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in pairs)
