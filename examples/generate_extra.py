"""Make extra images with a small generator that has seen the long-tailed training set alone.

    python examples/generate_extra.py made.npz --data digits-lt --imbalance-ratio 10 --validation
    0.2 taet train at-bsl --data digits-lt --data.imbalance-ratio 10 --data.validation 0.2
    --data.extra npz:made.npz
        --data.extra-fraction 0.5
        --data.extra-source "class-conditional Gaussian on PCA of the long-tailed training images"

Name the data set and how it is cut as in the run: then the generator never sees an image that the
long tail lost, nor one of validation or test. A class c with n_c images is a Gaussian on principal
components of all training images,

    z ~ N(mu_c, (1 - a_c) S_c + a_c S),    a_c = k / (k + n_c),

where S_c is the covariance of the class, S that of all classes around their means, and k = 20: a
rare class takes its directions of variation from the other classes. An image is the mean plus z
along the components, clipped and rounded. It is meant for small grey images. A better generator
goes in the place of `Generator`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taet.data import Split, load

Floats = NDArray[np.float64]
KEPT = 0.98  # share of the variance that the components hold
SHRINKAGE = 20.0  # k: images of a class at which its own covariance counts half


class Generator:
    """A Gaussian for each class, on principal components of uint8 images (N, H, W, channels)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> None:
        self.shape = images.shape[1:]
        flat = images.reshape(len(images), -1) / 255
        self.mean: Floats = flat.mean(0)
        _, lengths, directions = np.linalg.svd(flat - self.mean, full_matrices=False)
        share = np.cumsum(lengths**2) / (lengths**2).sum()
        self.directions: Floats = directions[: 1 + int(np.searchsorted(share, KEPT))]
        codes = (flat - self.mean) @ self.directions.T
        self.centres = np.stack([codes[labels == label].mean(0) for label in range(classes)])
        around = codes - self.centres[labels]
        common = around.T @ around / (len(codes) - classes)
        self.covariances = np.stack(
            [_shrunk(around[labels == label], common) for label in range(classes)]
        )

    def draw(self, label: int, count: int, draws: np.random.Generator) -> NDArray[np.uint8]:
        """Return `count` images of a class, (count, H, W, channels)."""
        codes = draws.multivariate_normal(
            self.centres[label], self.covariances[label], count, method="eigh"
        )
        flat = (self.mean + codes @ self.directions).clip(0, 1)
        return np.rint(255 * flat).astype(np.uint8).reshape(count, *self.shape)


def _shrunk(around: Floats, common: Floats) -> Floats:
    """Return the covariance of a class, from its codes around their mean, mixed with that of all
    classes."""
    weight = SHRINKAGE / (SHRINKAGE + len(around))
    mixed: Floats = (1 - weight) * around.T @ around / max(len(around) - 1, 1) + weight * common
    return mixed


def generate(
    train: Split, per_class: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return `per_class` images of every class, and their labels."""
    classes, draws = len(train.class_names), np.random.default_rng(seed)
    generator = Generator(np.asarray(train.images), train.labels, classes)
    images = [generator.draw(label, per_class, draws) for label in range(classes)]
    return np.concatenate(images), np.repeat(np.arange(classes), per_class)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file that `arguments` name."""
    parser = argparse.ArgumentParser(
        description="Extra images from a Gaussian per class of a long-tailed set."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="digits-lt")
    parser.add_argument("--imbalance-ratio", type=float, default=10.0)
    parser.add_argument("--validation", type=float, default=0.2)
    parser.add_argument("--max-count", type=int, help="data.max-count of the run")
    parser.add_argument("--data-seed", type=int, default=0, help="data.seed of the run")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the images drawn")
    given = parser.parse_args(arguments)
    train = load(
        given.data,
        imbalance_ratio=given.imbalance_ratio,
        validation=given.validation,
        max_count=given.max_count,
        seed=given.data_seed,
    ).train
    images, labels = generate(train, given.per_class, given.seed)
    np.savez(given.out, images=images, labels=labels)
    print(f"{given.out}: {len(images)} images, from {len(train)} training images alone")


if __name__ == "__main__":
    main()
