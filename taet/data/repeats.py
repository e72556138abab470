"""Images of one set that are, exactly or nearly, in another."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from taet.data.store import Images, pieces

SIDE = 8
"""Pixels of a side to which images are averaged before they are compared."""
NEAR = 0.03
"""Largest root mean square difference of averaged images in [0, 1] that counts as nearly the same. Of 20,000 training
images of CIFAR-10 14 are so near to one of its test images; the nearest pair of different digits is 0.06 apart."""
ROWS = 4096
"""Images that are compared at once."""


def fingerprints(images: Images) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each image's pixels, (N,)."""
    digests = (
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
        for piece in pieces(images)
        for image in piece
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def exact(images: Images, others: Images) -> NDArray[np.bool_]:
    """Return which of the images (N,) are pixel by pixel among the others."""
    return np.isin(fingerprints(images), fingerprints(others))


def near(images: Images, others: Images, *, mirror: bool) -> NDArray[np.bool_]:
    """Return which of the images (N,) are nearly one of the others, or with `mirror` its mirror image.

    Both are averaged to SIDE x SIDE pixels at most; their root mean square difference is at most NEAR. Found are other
    encodings, small changes of brightness and noise, not crops or shifts. Time: O(N M).
    """
    known = _averaged(others)
    if mirror:
        known = torch.cat([known, known.flip(3)])
    known = known.flatten(1)
    found = []
    for piece in torch.split(_averaged(images).flatten(1), ROWS):
        squares = torch.cdist(piece, known, compute_mode="use_mm_for_euclid_dist").square()
        found.append(squares.min(1).values <= NEAR**2 * known.shape[1])
    return torch.cat(found).numpy()


def _averaged(images: Images) -> Tensor:
    """Images (N, C, S, S) in [0, 1] as float32, S at most SIDE."""
    height, width, _ = images.shape[1:]
    size = min(SIDE, height), min(SIDE, width)
    blocks = (torch.from_numpy(np.ascontiguousarray(piece)).permute(0, 3, 1, 2) / 255 for piece in pieces(images))
    return torch.cat([functional.adaptive_avg_pool2d(block, size) for block in blocks])
