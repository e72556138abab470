"""Make the extra images of this comparison: python results/digits-lt-extra/generate.py FOLDER.

held.npz   real digits that the long tail lost: the ideal generator, an upper bound; it has seen the removed tail
mixed.npz  200 mixtures of two images of each class of the long-tailed training set alone
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from taet.data import load

PER_CLASS = 200
SMALLEST_SHARE = 0.2  # of the second image of a mixture


def main(folder: Path) -> None:
    """Write both files."""
    whole = load("digits-lt", imbalance_ratio=1, test="balanced").train
    tail = load("digits-lt", imbalance_ratio=10, test="balanced", validation=0.2)
    used = np.concatenate([split.indices for split in (tail.train, tail.validation) if split is not None])
    left = ~np.isin(whole.indices, used)
    np.savez(folder / "held.npz", images=whole.images[left], labels=whole.labels[left])
    draws, images, labels = np.random.default_rng(0), [], np.repeat(np.arange(10), PER_CLASS)
    for label in labels:
        own = tail.train.images[tail.train.labels == label].astype(float)
        first, second = own[draws.integers(len(own), size=2)]
        share = draws.uniform(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
        images.append(np.rint((1 - share) * first + share * second).astype(np.uint8))
    np.savez(folder / "mixed.npz", images=np.stack(images), labels=labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
