"""An anytime-valid paired test of balanced accuracy, by betting on the flags of two models, image by image.

All functions take differences d = a - b in [-1, 1] of images that are drawn in rounds, (..., T, M): T rounds of M
images, each round with the same number m_c >= 1 of images of class c. The simulation that validates it is
benchmarks/until_decided.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from taet.fields import Note, Seed, Settings
from taet.randomness import derive_seed
from taet.statistics import Floats, Ints

BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Fractions of the wealth that are bet; each bet runs from the beginning, and the mean of their wealths counts."""
REACH = 0.25
"""Largest difference that can be tested, 25 points: beyond it a factor of the largest bet could be negative."""
BISECTIONS = 40

DecidingAccuracy = Literal["balanced", "tail"]
Reason = Literal["decided", "within", "exhausted", "hopeless", "time"]


class StopRule(Settings):
    """When an evaluation stops."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability, at most, of ever deciding between two equal models; of the wrong one of two, half of it."""
    within: Annotated[float, Field(gt=0, lt=REACH), Note(" (0.03 is 3 points)")] | None = None
    """Also stop once the difference is known to be smaller than this share. Default: only when one model is better."""
    of: DecidingAccuracy = "balanced"
    """Accuracy that decides: balanced over all classes, or over those of the tail; the other is reported as well."""
    order_seed: Seed = 0
    """Seed of the order of the images, which does not depend on the models."""

    @property
    def needed(self) -> float:
        """Natural logarithm of 2/alpha, the evidence that decides."""
        return math.log(2 / self.alpha)


def rounds(labels: ArrayLike, seed: int) -> Ints:
    """Return the order in which images are attacked: indices (T, M) into `labels` (N,), T rounds of M images.

    T is the size of the smallest class that has images. A round takes m_c = floor(n_c / T) images of class c, drawn at
    random without replacement; the remaining images of a class stay unused. On balanced sets m_c = 1.
    """
    classes = np.asarray(labels)
    present, counts = np.unique(classes, return_counts=True)
    length = int(counts.min())

    def of_class(label: int, count: int) -> Ints:
        generator = np.random.default_rng(derive_seed(seed, "until decided", label))
        drawn: Ints = generator.permutation(np.flatnonzero(classes == label))
        return drawn[: length * (count // length)].reshape(length, -1)

    return np.concatenate([of_class(int(c), int(n)) for c, n in zip(present, counts, strict=True)], axis=1)


def weights(classes: ArrayLike) -> Floats:
    """Return w_c = min m / m_c of each image of a round, (M,), given the classes of its images, (M,)."""
    _, place, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return np.asarray(counts.min() / counts[place], dtype=np.float64)


def wealth(differences: ArrayLike, weight: ArrayLike, against: float = 0.0) -> Floats:
    """Return the log wealth of each bet after each round, (..., T, bets).

        log W_lambda(t) = sum over the images of rounds 1 to t of log(1 + lambda w_c (d - m))

    with m = `against`, in (-REACH, REACH). In a round images are independent given the past, so that the mean factor is
    prod_c (1 + lambda w_c (D_c - m))^m_c <= exp(lambda min(m_c) K (D - m)) by log(1 + v) <= v, with D_c the mean of
    class c and D that of the K classes: at most 1 if D <= m, for any D_c. Hence at the ends of rounds, and only there,
    each W is a non-negative supermartingale that begins at 1.

    Args:
        differences: (..., T, M) in [-1, 1].
        weight: (M,), see `weights`.
        against: m, the difference to bet against.
    """
    stakes = np.asarray(weight) * (np.asarray(differences, dtype=np.float64) - against)
    return np.stack([np.log1p(bet * stakes).sum(-1).cumsum(-1) for bet in BETS], axis=-1)


def mixed(wealths: Floats) -> Floats:
    """Return ln E, the logarithm of the mean wealth of the bets (the last axis)."""
    top = wealths.max(-1)
    return np.asarray(top + np.log(np.exp(wealths - top[..., None]).mean(-1)))


def evidence(differences: ArrayLike, weight: ArrayLike, against: float = 0.0) -> tuple[Floats, Floats]:
    """Return (ln E+, ln E-) after each round, (..., T): evidence for a difference above, and below, `against`.

    If the difference is at most m, E+ ever reaches c with probability at most 1/c; the same holds for E- if it is at
    least m. `StopRule.needed` is ln(2/alpha), so that the two err with probability at most alpha in total.
    Source: Ville, "Etude critique de la notion de collectif", 1939; Waudby-Smith, Ramdas, "Estimating means of bounded
    random variables by betting", JRSS B 86, 2024, arXiv:2010.09686.
    """
    values = np.asarray(differences, dtype=np.float64)
    return mixed(wealth(values, weight, against)), mixed(wealth(-values, weight, -against))


def interval(differences: ArrayLike, weight: ArrayLike, alpha: float) -> tuple[float | None, float | None]:
    """Return (low, high) of the mean difference given T rounds (T, M): all m that neither E+(m) nor E-(m) rejects.

    Coverage is 1 - alpha for all looks at once, hence also for a look that was chosen by its result. A low end below
    -REACH or a high end above REACH is None; a low of REACH means REACH or more, a high of -REACH means -REACH or less.
    """
    values, needed = np.asarray(differences, dtype=np.float64), math.log(2 / alpha)

    def least(sample: Floats) -> float | None:
        low, high = -REACH, REACH
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            refuted = mixed(wealth(sample, weight, middle)[-1]) >= needed
            low, high = (middle, high) if refuted else (low, middle)
        return None if low == -REACH else high if high == REACH else low

    low, high = least(values), least(-values)
    return low, None if high is None else -high


def estimate(differences: ArrayLike, weight: ArrayLike) -> float:
    """Return the mean over classes of the mean difference of a class; at a stop it is biased away from 0."""
    return float(np.average(np.asarray(differences, dtype=np.float64).mean(0), weights=np.asarray(weight)))


def stop(differences: ArrayLike, weight: ArrayLike, total: int, rule: StopRule) -> tuple[int, Reason] | None:
    """Return the first round after which an evaluation stops, counted from 1, and why; None if it goes on.

    Args:
        differences: (T, M), of the T rounds so far.
        weight: (M,), see `weights`.
        total: largest possible number of rounds.
        rule: when to stop.
    """
    values = np.asarray(differences, dtype=np.float64)
    plus, minus = wealth(values, weight), wealth(-values, weight)
    # The most that the remaining images could add if all of them favoured the same model.
    most = np.outer(total - 1 - np.arange(len(values)), [np.log1p(bet * np.asarray(weight)).sum() for bet in BETS])
    small = np.zeros(len(values), dtype=bool)
    if rule.within is not None:
        above, _ = evidence(values, weight, -rule.within)
        _, below = evidence(values, weight, rule.within)
        small = (above >= rule.needed) & (below >= rule.needed)
    reached = {
        "decided": np.maximum(mixed(plus), mixed(minus)) >= rule.needed,
        "within": small,
        "exhausted": np.arange(1, len(values) + 1) == total,
        "hopeless": np.maximum(mixed(plus + most), mixed(minus + most)) < rule.needed,
    }
    if rule.within is not None:
        del reached["hopeless"]  # models too similar to be ordered may still be shown to be close
    ends = [(int(there.argmax()) + 1, place, why) for place, (why, there) in enumerate(reached.items()) if there.any()]
    if not ends:
        return None
    after, _, why = min(ends)
    return after, why  # type: ignore[return-value]
