"""Class counts of a long-tailed set, and the selection of images with these counts."""

import bisect
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from taet.errors import UserError, unknown
from taet.settings.arguments import checked_arguments

PROFILES = ("exponential", "linear", "step")


def _floor(value: float) -> int:
    # 98 * (1 / 49) is 1.9999999999999998 in floating point. The margin is far above the rounding
    # error of any count below a million, and far below the distance of any published count to the
    # next integer before rounding down.
    return math.floor(value + 1e-9)


@checked_arguments
def long_tail_counts(
    num_classes: int, max_count: int, imbalance_ratio: float, profile: str = "exponential"
) -> list[int]:
    """Return the number of images n_c of each class c = 0..C-1, largest class first.

        exponential   floor(n_max IR^(-c / (C-1)))
        linear        floor(n_max - (n_max - n_max / IR) c / (C-1))
        step          n_max for the first ceil(C/2) classes, floor(n_max / IR) for the others

    `num_classes` C >= 2, `max_count` n_max, `imbalance_ratio` IR >= 1; anything else is a
    `UserError`. A count may be 0 where n_max < IR. Source: Cui et al., CVPR 2019, arXiv:1901.05555
    (exponential); Buda et al., Neural Networks 2018, arXiv:1710.05381 (linear, step).

    Example:
        >>> from taet.data import long_tail_counts
        >>> long_tail_counts(5, max_count=100, imbalance_ratio=10)
        [100, 56, 31, 17, 10]
    """
    if num_classes < 2:
        raise UserError(f"number of classes: got {num_classes}; allowed: 2 or more")
    if not imbalance_ratio >= 1:
        raise UserError(
            f"imbalance ratio: got {imbalance_ratio:g}; allowed: 1 or more (largest class over "
            "smallest)"
        )
    shares = [c / (num_classes - 1) for c in range(num_classes)]
    if profile == "exponential":
        return [_floor(max_count * imbalance_ratio**-share) for share in shares]
    if profile == "linear":
        drop = max_count - max_count / imbalance_ratio
        return [_floor(max_count - drop * share) for share in shares]
    if profile == "step":
        return [
            max_count if share <= 0.5 else _floor(max_count / imbalance_ratio) for share in shares
        ]
    raise unknown("profile", profile, PROFILES)


def balanced_small_counts(
    num_classes: int, max_count: int, imbalance_ratio: float, profile: str = "exponential"
) -> list[int]:
    """Return class counts with the same sum as those of `long_tail_counts`, spread evenly.

    n_c = floor(N / C) + (1 if c < N mod C else 0), N = sum of the long-tailed counts. Arguments and
    errors as in `long_tail_counts`. The upper bound that REAT compares with: Li et al.,
    arXiv:2307.10205.

    Example:
        >>> from taet.data import balanced_small_counts
        >>> balanced_small_counts(4, 100, 10)
        [45, 44, 44, 44]
    """
    each, over = divmod(
        sum(long_tail_counts(num_classes, max_count, imbalance_ratio, profile)), num_classes
    )
    return [each + (label < over) for label in range(num_classes)]


def largest_max_count(
    available: Sequence[int], imbalance_ratio: float, profile: str = "exponential"
) -> int:
    """Return the largest n_max whose counts do not exceed `available` (C,) images per class.

    It is 0 if there is none.
    """

    def exceeds(max_count: int) -> bool:
        counts = long_tail_counts(len(available), max_count, imbalance_ratio, profile)
        return any(count > held for count, held in zip(counts, available, strict=True))

    # The first count is n_max itself, and every count grows with it.
    return bisect.bisect_left(range(1, available[0] + 1), True, key=exceeds)


def held_out_counts(counts: Sequence[int], share: float) -> list[int]:
    """Return how many of each class's n_c images to hold out.

    This is floor(share n_c + 1/2), but 1 to n_c - 1 if n_c >= 2.

    A class with one image keeps it; `share` 0 holds nothing out.
    """
    if share == 0:
        return [0] * len(counts)
    return [max(0, min(max(1, _floor(share * count + 0.5)), count - 1)) for count in counts]


@checked_arguments
def long_tail_indices(labels: ArrayLike, counts: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """Choose `counts` (C,) images per class, and return their positions in `labels` (N,).

    The positions are int64, (sum of counts,), ordered by class. One Mersenne Twister (NumPy's
    legacy generator) is seeded once; for each class in ascending order the ascending list of its
    positions is shuffled and its first n_c are kept. So the choice for smaller counts is contained
    in that for larger ones. Labels are 0..C-1. A class with too few images is a `UserError`. With
    seed 0 this is the choice of LDAM-DRW (Cao et al., NeurIPS 2019, arXiv:1906.07413) and later
    work.

    Example:
        >>> from taet.data import long_tail_indices
        >>> long_tail_indices([0, 0, 0, 1, 1, 1], counts=[3, 1]).shape
        (4,)
    """
    labels = np.asarray(labels)
    generator = np.random.RandomState(seed)  # its numbers never change between versions
    chosen = [np.empty(0, np.int64)]
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        if not 0 <= count <= len(positions):
            raise UserError(
                f"class {label}: got a count of {count}; allowed: 0 to {len(positions)}, its images"
            )
        generator.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def even_sample(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of `count` of N images, in ascending order, as evenly distributed over
    classes as possible."""
    import torch  # importing taet.data needs none

    from taet.randomness import generator

    order = torch.randperm(len(labels), generator=generator("cpu", seed, "sample")).numpy()
    drawn = labels[order]
    grouped, sizes = np.argsort(drawn, kind="stable"), np.bincount(drawn)
    turn = np.empty_like(grouped)  # the first image of every class comes before the second of any
    turn[grouped] = np.arange(len(labels)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])
