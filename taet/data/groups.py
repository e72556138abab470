"""Held-out images by group: all images of a group, such as one patient's, stay in one split."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taet.errors import UserError

ROUNDING = 1e-9
"""Gains up to this may be rounding errors."""


def _nearest(sizes: Sequence[int], target: int, everything: bool) -> list[int]:
    """Return positions of `sizes`, all above 0, whose sum is as near to `target` as possible.

    Of two sums that are equally near, the larger one is taken. `everything`: whether all may be chosen. Earlier
    positions are preferred, so a random order of sizes gives a random choice.
    """
    last: dict[int, int] = {}  # by sum: the position of the size that made it reachable
    reached, within = 1, (1 << 2 * target + 1) - 1  # bit s: some of the sizes so far add up to s
    forbidden = 0 if everything else 1 << sum(sizes)
    for position, size in enumerate(sizes):
        if reached >> target & 1:
            break
        new = reached << size & within & ~reached & ~forbidden
        reached |= new
        while new:
            made = new.bit_length() - 1
            last[made] = position
            new ^= 1 << made
    best = min((0, *last), key=lambda made: (abs(made - target), -made))
    chosen = []
    while best:
        chosen.append(last[best])
        best -= sizes[last[best]]
    return chosen


def _choose(groups: Mapping[int, list[tuple[int, int]]], room: list[float], left: list[int]) -> list[int]:
    """Return which of the groups together have about room[c] images of each class c.

    Each group is a list of (class, number of its images). Local search: groups are added and removed one by one while
    that lowers the sum over c of room[c]^2 / max(its initial value, 1), where `room` is what is still missing. left[c]
    is the number of groups with images of class c that are not chosen; it stays at least 1. Both are changed in place.
    """
    weights = [1 / max(wanted, 1) for wanted in room]
    chosen: set[int] = set()
    changed = True
    while changed:
        changed = False
        for number, group in groups.items():
            sign = -1 if number in chosen else 1
            if sign == 1 and any(left[label] <= 1 for label, _ in group):
                continue
            gain = sum(weights[label] * count * (2 * sign * room[label] - count) for label, count in group)
            if gain > ROUNDING:
                changed = True
                chosen ^= {number}
                for label, count in group:
                    room[label] -= sign * count
                    left[label] -= sign
    return list(chosen)


def _hold_one_of_each(
    labels: Sequence[int],
    owners: NDArray[np.int64],
    classes: NDArray[np.int64],
    sizes: NDArray[np.int64],
    held: NDArray[np.bool_],
) -> None:
    """Hold out the smallest group of each class in `labels` that has none held out, if all its classes keep another.

    Group owners[i] has images of class classes[i]; sizes and held are by group; held is changed in place.
    """
    for label in labels:
        own = owners[classes == label]
        if not held[own].any():
            left = np.bincount(classes[~held[owners]], minlength=1 + classes.max())
            free = np.setdiff1d(own, owners[left[classes] == 1])
            held[free[sizes[free].argsort(kind="stable")[:1]]] = True


def hold_out(
    labels: NDArray[np.int64], groups: NDArray[np.int64], held_out: Sequence[int], seed: int = 0
) -> NDArray[np.bool_]:
    """Choose whole groups so that about held_out[c] images of each class c are held out; return which images, (N,).

    labels (N,): 0..C-1; groups (N,): images with equal numbers stay together; held_out (C,): 0 or more. At least one
    group of every class stays. If held_out[c] is above 0, at least one group of the class is held out, unless it is the
    last remaining group of some class. If no group has images of several classes, the number of a class is the sum of
    whole groups that is nearest to held_out[c] (of two equally near, the larger). Groups of several classes are chosen
    first, by local search, for their share of held_out. Among equally good groups `seed` decides.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"data seed: got {seed}; allowed: 0 to 2**32 - 1")
    names, codes = np.unique(groups, return_inverse=True)
    # NumPy's legacy generator, as for long-tailed sets: its numbers never change between versions.
    codes = np.random.RandomState(seed).permutation(len(names))[codes]
    total = len(held_out)
    # The number of images of each group and class, sorted by group.
    cells, counts = np.unique(codes * total + labels, return_counts=True)
    owners, classes = np.divmod(cells, total)
    shared = np.bincount(owners, minlength=len(names))[owners] > 1
    left = np.bincount(classes, minlength=total).tolist()

    several: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for owner, label, count in zip(*(array[shared].tolist() for array in (owners, classes, counts)), strict=True):
        several[owner].append((label, count))
    share = np.bincount(classes, counts * shared, total) / np.bincount(labels, minlength=total).clip(min=1)
    held = np.zeros(len(names), bool)
    held[_choose(several, (share * held_out).tolist(), left)] = True

    without_single = np.setdiff1d(np.flatnonzero(held_out), classes[~shared])
    _hold_one_of_each(without_single.tolist(), owners, classes, np.bincount(codes), held)

    left, among = np.bincount(classes[~held[owners]], minlength=total), held[owners]
    missing = np.array(held_out) - np.bincount(classes[among], counts[among], total).astype(np.int64)
    single = np.flatnonzero(~shared)
    single = single[np.argsort(classes[single], kind="stable")]
    bounds = np.searchsorted(classes[single], np.arange(total + 1)).tolist()
    for label, (start, end) in enumerate(itertools.pairwise(bounds)):
        own = single[start:end]
        if missing[label] > 0:
            chosen = _nearest(counts[own].tolist(), int(missing[label]), everything=left[label] > end - start)
            if not chosen and missing[label] == held_out[label] and left[label] > 1:
                chosen = counts[own].argsort(kind="stable")[:1].tolist()  # the nearest number above 0
            held[owners[own[chosen]]] = True
    return held[codes]
