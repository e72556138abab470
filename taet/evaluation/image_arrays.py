"""Test images and their labels as an evaluation takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.data.augmentation import as_tensor, to_unit
from taet.errors import UserError
from taet.statistics import Ints

TestImages = NDArray[Any]
"""uint8 (N, H, W, C), in memory or on disk, or float32 (N, C, H, W) in [0, 1]."""


def as_arrays(images: TestImages | Tensor, labels: NDArray[Any] | Tensor) -> tuple[TestImages, Ints]:
    """Return images and labels as arrays of the two forms that are allowed; any other is a `UserError`."""
    pixels: TestImages
    if isinstance(images, np.memmap):
        pixels = images
    else:
        pixels = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    classes = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if pixels.ndim != 4 or len(pixels) == 0:
        raise UserError(f"images: got shape {pixels.shape}; allowed: uint8 (N, H, W, C) or float (N, C, H, W)")
    if pixels.dtype == np.uint8:
        if pixels.shape[3] not in (1, 3):
            raise UserError(f"images: got uint8 {pixels.shape}; allowed: (N, H, W, C) with 1 or 3 channels")
    elif pixels.dtype.kind == "f":
        if not ((pixels >= 0) & (pixels <= 1)).all():
            hint = " (divide by 255)" if 1 < pixels.max() <= 255 else ", without NaN"
            raise UserError(f"images: got {pixels.min():g} to {pixels.max():g}; allowed: floats from 0 to 1{hint}")
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    else:
        raise UserError(f"images: got {pixels.dtype}; allowed: uint8 0 to 255, or floats from 0 to 1")
    if classes.dtype.kind not in "iu" or classes.shape != (len(pixels),):
        raise UserError(f"labels: got {classes.dtype} {classes.shape}; allowed: integers ({len(pixels)},)")
    if classes.min() < 0:
        raise UserError(f"labels: got {classes.min()}; allowed: 0 or more")
    return pixels, classes.astype(np.int64)


def channels_first(pixels: NDArray[Any]) -> Tensor:
    """Return images as (N, C, H, W), uint8 or float as they are; a copy only of images on disk."""
    tensor = as_tensor(pixels)
    return tensor.permute(0, 3, 1, 2) if tensor.dtype == torch.uint8 else tensor


def as_unit(pixels: NDArray[Any]) -> Tensor:
    """Return images as float32 (N, C, H, W) in [0, 1], contiguous."""
    tensor = as_tensor(pixels)
    return to_unit(tensor) if tensor.dtype == torch.uint8 else tensor
