"""Random crop and mirroring of a whole batch in one gather."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def crop_flip(
    images: Tensor, generator: torch.Generator, *, mirror: bool, begin: int = 0, total: int | None = None
) -> Tensor:
    """Shift each image within a border of zeros and, with `mirror`, flip every second one on average.

    images uint8 (N, H, W, C) -> same shape. The border is an eighth of the side: 4 pixels at 32, as in the training of
    He et al., CVPR 2016, arXiv:1512.03385, section 4.2. Random numbers come from `generator`, on the device of the
    images, and are drawn for `total` images, of which these begin at position `begin` (default: all).
    """
    number, height, width, _ = images.shape
    top, left = height // 8, width // 8
    device = images.device
    padded = functional.pad(images, (0, 0, left, left, top, top))
    all_, mine = (total or number, 1), slice(begin, begin + number)
    rows = torch.randint(2 * top + 1, all_, generator=generator, device=device)[mine]
    columns = torch.randint(2 * left + 1, all_, generator=generator, device=device)[mine]
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device).expand(number, width)
    if mirror:
        flipped = torch.rand(all_, generator=generator, device=device)[mine] < 0.5
        x = torch.where(flipped, width - 1 - x, x)
    batch = torch.arange(number, device=device)[:, None, None]
    return padded[batch, (rows + y)[:, :, None], (columns + x)[:, None, :]]


def as_tensor(pixels: NDArray[Any]) -> Tensor:
    """Return an array as a tensor that shares it, or a copy of images on disk, which cannot be written to."""
    return torch.from_numpy(pixels if pixels.flags.writeable else np.array(pixels))


def to_unit(images: Tensor, *, channels_last: bool = False) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [0, 1], contiguous or, at no cost, in channels-last layout."""
    x = images.permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.preserve_format if channels_last else torch.contiguous_format) / 255
