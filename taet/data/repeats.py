"""Images that occur, exactly or nearly, in two sets."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from taet.data.image_store import Images, pieces
from taet.progress import counted

SIDE = 8
"""Side in pixels to which images are averaged before they are compared."""
NEAR = 0.03
"""Largest root mean square difference of averaged images in [0, 1] that counts as nearly the same. 14 of 20,000
training images of CIFAR-10 are this near to a test image; the nearest pair of different digits is 0.06 apart."""
FAR = NEAR + 1e-3
"""Difference of means beyond which images are not compared: rounding must not hide a pair at the limit."""
ROWS = 512
"""Images that are compared at once with as many others: their distances take 1 MB."""


def fingerprints(images: Images) -> NDArray[np.uint64]:
    """Return a hash of 64 bits of each image's pixels, (N,)."""
    digests = (
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
        for piece in pieces(images)
        for image in piece
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def exact(images: Images, others: Images) -> NDArray[np.bool_]:
    """Return which of the images (N,) occur, pixel by pixel, among the others."""
    return np.isin(fingerprints(images), fingerprints(others))


def near(images: Images, others: Images, *, mirror: bool) -> NDArray[np.bool_]:
    """Return which of the images (N,) are nearly one of the others, or with `mirror` its mirror image.

    Both are averaged to SIDE x SIDE pixels at most; their root mean square difference is at most NEAR. Found are other
    encodings, noise, and a change of brightness up to 7 of 255 levels, not crops or shifts. Only images whose means
    differ by at most that are compared, since no root mean square difference is below that of the means. Time: O(N M).
    The averages of the smaller set alone are kept in memory.
    """
    held, read = sorted((images, others), key=len)
    kept, order = _by_mean(_averaged(held))
    means = kept.mean((1, 2, 3))
    found, done = np.zeros(len(images), bool), 0
    views = (kept, kept[:, :, ::-1]) if mirror else (kept,)
    for piece in counted(pieces(read), len(read), "looking for near-duplicates", len):
        small, places = _by_mean(_small(piece))
        for begin in range(0, len(small), ROWS):
            rows = small[begin : begin + ROWS]
            first, end = np.searchsorted(means, (rows[0].mean() - FAR, rows[-1].mean() + FAR))
            for view in views:
                for start in range(first, end, ROWS):
                    stop = min(start + ROWS, end)
                    alike = _alike(view[start:stop], rows)
                    if read is images:
                        found[done + places[begin : begin + ROWS]] |= alike.any(0)
                    else:
                        found[order[start:stop]] |= alike.any(1)
        done += len(piece)
    return found


def _by_mean(averaged: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return averaged images (N, S, S, C) sorted by their mean, and where each was."""
    order = averaged.mean((1, 2, 3)).argsort()
    return averaged[order], order


def nearest(images: Images, others: Images) -> NDArray[np.int64]:
    """Return for each of a few images (N,) the position of the nearest of the others, both averaged as in `near`."""
    known = _averaged(others)
    return np.array([np.square(known - one).sum((1, 2, 3)).argmin() for one in _averaged(images)], np.int64)


def _averaged(images: Images) -> NDArray[np.float32]:
    """Images (N, S, S, C) in [0, 1], S at most SIDE: means over blocks that differ by one pixel at most."""
    return np.concatenate([_small(piece) for piece in pieces(images)])


def _small(images: NDArray[np.generic]) -> NDArray[np.float32]:
    """The same for images in memory."""
    return _blocks(_blocks(images, 1), 2) / np.float32(255)


def _alike(images: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which averaged images (N,) are nearly equal to which of the others (M,): (N, M)."""
    a, b = images.reshape(len(images), -1), others.reshape(len(others), -1)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.asarray(squares <= NEAR**2 * a.shape[1])


def _blocks(values: NDArray[np.generic], axis: int) -> NDArray[np.float32]:
    """Means of at most SIDE blocks along one axis."""
    length = values.shape[axis]
    begins = np.arange(min(SIDE, length)) * length // min(SIDE, length)
    sizes = np.diff([*begins, length]).astype(np.float32)
    sums = np.add.reduceat(values, begins, axis, dtype=np.float32)
    return np.asarray(sums / np.expand_dims(sizes, tuple(i for i in range(4) if i != axis)), np.float32)
