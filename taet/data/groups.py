"""Held-out images by group: all images of a group, such as one patient's, stay in one split."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from taet.data.long_tail import twister
from taet.statistics import Ints


def hold_out(labels: Ints, groups: Ints, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups so that about `share` of the images of each class are held out; return which images, (N,).

    labels (N,): 0..C-1; images with equal numbers in groups (N,) stay together. Folds of scikit-learn's
    `StratifiedGroupKFold`; then the smallest group of a class without any in training is given back, and the smallest
    group of a class that has several, and none held out, is held out if each of its classes keeps another.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    parts = Fraction(share).limit_denominator(10) or Fraction(1, round(1 / share))
    codes = np.unique(groups, return_inverse=True)[1]
    held = np.zeros(codes.max() + 1, bool)  # by group
    folds = max(2, min(parts.denominator, len(held), int(np.bincount(labels).max())))
    if len(held) < 2 or np.bincount(labels).max() < 2:
        return held[codes]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=twister(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer images than folds
        for _, test in islice(splitter.split(labels, labels, codes), max(1, parts.numerator)):
            held[codes[test]] = True
    sizes = np.bincount(codes)
    owners, classes = np.unique(np.stack([codes, labels]), axis=1)
    by_class = [owners[classes == label] for label in np.unique(labels)]
    for own in (own for own in by_class if held[own].all()):
        held[own[sizes[own].argmin()]] = False
    for own in (own for own in by_class if len(own) > 1 and not held[own].any()):
        left = np.bincount(classes[~held[owners]])
        free = np.setdiff1d(own, owners[left[classes] <= 1])
        held[free[sizes[free].argsort()[:1]]] = True
    return held[codes]
