"""Augmentation: random crop and mirroring of a whole batch in one gather, RandAugment and
AutoAugment by image."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from taet.data.image_files import picture
from taet.randomness import derive_seed

POLICIES = frozenset(("randaugment", "autoaugment"))


def crop_flip(
    images: Tensor,
    generator: torch.Generator,
    *,
    mirror: bool,
    begin: int = 0,
    total: int | None = None,
) -> Tensor:
    """Shift each image within a border of zeros and, with `mirror`, flip every second one on
    average.

    images uint8 (N, H, W, C) -> same shape. The border is an eighth of the side: 4 pixels at 32, as
    in the training of He et al., CVPR 2016, arXiv:1512.03385, section 4.2. Random numbers come from
    `generator`, on the device of the images, and are drawn for `total` images, of which these begin
    at position `begin` (default: all).
    """
    number, height, width, _ = images.shape
    top, left = height // 8, width // 8
    device = images.device
    padded = functional.pad(images, (0, 0, left, left, top, top))
    whole, own = (total or number, 1), slice(begin, begin + number)
    rows = torch.randint(2 * top + 1, whole, generator=generator, device=device)[own]
    columns = torch.randint(2 * left + 1, whole, generator=generator, device=device)[own]
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device).expand(number, width)
    if mirror:
        flipped = torch.rand(whole, generator=generator, device=device)[own] < 0.5
        x = torch.where(flipped, width - 1 - x, x)
    batch = torch.arange(number, device=device)[:, None, None]
    return padded[batch, (rows + y)[:, :, None], (columns + x)[:, None, :]]


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Return an array as a tensor that shares it, or a copy if it is read-only or has negative
    strides."""
    return torch.from_numpy(
        pixels if pixels.flags.writeable and min(pixels.strides, default=0) >= 0 else pixels.copy()
    )


def to_unit(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1], contiguous or, at no cost, in
    channels-last layout."""
    x = images.permute(0, 3, 1, 2)
    return (
        x.to(
            torch.float32,
            memory_format=torch.preserve_format if channels_last else torch.contiguous_format,
        )
        / 255
    )


@functools.cache
def transform(policy: str) -> Callable[[Image.Image], Image.Image]:
    """Return torchvision's transform as AT-BSL trains with it (Yue et al., CVPR 2024,
    arXiv:2403.10073).

    randaugment: two of fourteen operations, at magnitude 8 of 31 (Cubuk et al., CVPR Workshops
    2020, arXiv:1909.13719). autoaugment: one of the 25 pairs of operations found for CIFAR-10
    (Cubuk et al., CVPR 2019, arXiv:1805.09501).
    """
    # Imported here, so that a run without a policy does not wait for it.
    from torchvision.transforms import (
        AutoAugment,
        AutoAugmentPolicy,
        InterpolationMode,
        RandAugment,
    )

    if policy == "autoaugment":
        return AutoAugment(AutoAugmentPolicy.CIFAR10, interpolation=InterpolationMode.NEAREST)
    return RandAugment(
        num_ops=2, magnitude=8, num_magnitude_bins=31, interpolation=InterpolationMode.NEAREST
    )


def apply(
    policy: str, images: NDArray[np.uint8], seed: int, *purpose: str | int, begin: int = 0
) -> Tensor:
    """Apply the policy to every image of a batch, uint8 (N, H, W, C); pixels from outside the image
    are black.

    The random numbers of image i of the global batch, in which these begin at `begin`, are seeded
    by (seed, purpose..., i). Both policies are made for photographs: they shear, shift, rotate,
    invert and change colours, and can move a digit out of the image. Neither mirrors.
    """
    change = transform(policy)
    changed = np.empty_like(images)
    with torch.random.fork_rng(devices=()):  # torchvision draws from the global generator
        for place, image in enumerate(images):
            # Not torch.manual_seed, which reaches every device.
            torch.default_generator.manual_seed(derive_seed(seed, *purpose, begin + place))
            changed[place] = np.asarray(change(picture(image))).reshape(image.shape)
    return torch.from_numpy(changed)
