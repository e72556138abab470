"""Images of one set that are, exactly or nearly, in another."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from taet.data.reading import counted
from taet.data.store import Images, pieces

SIDE = 8
"""Pixels of a side to which images are averaged before they are compared."""
NEAR = 0.03
"""Largest root mean square difference of averaged images in [0, 1] that counts as nearly the same. Of 20,000 training
images of CIFAR-10 14 are so near to one of its test images; the nearest pair of different digits is 0.06 apart."""
ROWS = 512
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
    encodings, noise, and a change of brightness up to 7 of 255 levels, not crops or shifts. Time: O(N M).
    """
    known = _averaged(others)
    if mirror:
        known = np.concatenate([known, known[:, :, ::-1]])
    flat, own = known.reshape(len(known), -1), _averaged(images).reshape(len(images), -1)
    squares, found = np.square(flat).sum(1), np.zeros(len(own), bool)
    begins = range(0, len(own), ROWS)
    for begin in counted(begins, len(own), "looking for near-duplicates", lambda begin: len(own[begin : begin + ROWS])):
        piece = own[begin : begin + ROWS]
        distance = np.square(piece).sum(1)[:, None] + squares - 2 * piece @ flat.T
        found[begin : begin + ROWS] = distance.min(1) <= NEAR**2 * flat.shape[1]
    return found


def nearest(images: Images, others: Images) -> NDArray[np.int64]:
    """Return for each of a few images (N,) the position of the nearest of the others, both averaged as in `near`."""
    known = _averaged(others)
    return np.array([np.square(known - one).sum((1, 2, 3)).argmin() for one in _averaged(images)], np.int64)


def _averaged(images: Images) -> NDArray[np.float32]:
    """Images (N, S, S, C) in [0, 1], S at most SIDE: means over blocks that differ by one pixel at most."""
    return np.concatenate(
        [_blocks(_blocks(piece.astype(np.float32) / np.float32(255), 1), 2) for piece in pieces(images)]
    )


def _blocks(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Means of at most SIDE blocks along one axis."""
    length = values.shape[axis]
    begins = np.arange(min(SIDE, length)) * length // min(SIDE, length)
    sizes = np.diff([*begins, length]).astype(np.float32)
    sums = np.add.reduceat(values, begins, axis)
    return np.asarray(sums / np.expand_dims(sizes, tuple(i for i in range(4) if i != axis)), np.float32)
