"""Which of two models is more robust? Attack both on the same images, in random order, until one is
shown to be better.

    python examples/until_decided.py runs/at runs/taet
    python examples/until_decided.py runs/at runs/taet --attack autoattack --within 0.02

A paired test by betting may be looked at after every round of images without losing its error
probability, and its interval holds at the stop. Let d = a - b in {-1, 0, 1} say which model is
right on an image. The quantity is D, the mean over the K classes of the mean of d in class c. A
gambler bets on the first model:

    E+ = mean over lambda of the product over all images so far of (1 + lambda w_c d),    w_c = min
    m / m_c

with m_c images of class c in a round; E- is the same with -d. If D <= 0, then at the ends of rounds
E+ is a non-negative supermartingale from 1: the mean factor of a round is at most exp(lambda min(m)
K D). By Ville's inequality it ever reaches 2 / alpha with probability alpha / 2 at most, however
often and for whatever reason one looks; both sides together alpha. Looks inside a round would not
be valid. The interval holds every difference m that neither side refutes with d - m in place of d.
It covers the choice of the images, not that of a training seed, and an estimate at a stop leans
away from 0.

Source: Ville, "Etude critique de la notion de collectif", 1939; Waudby-Smith, Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 86, 2024, arXiv:2010.09686. The stratified
rounds and their weights are ours.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

import taet
from taet.attacks import autoattack, fgsm, pgd
from taet.evaluation.attack_sets import of_run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Fractions of the wealth that are bet; each bet runs from the beginning, and the mean of their
wealths counts."""
REACH = 0.25
"""Largest difference that can be tested: beyond it a factor of the largest bet could be
negative."""
BISECTIONS = 40
BATCH = 250  # images that are attacked between two looks, in whole rounds


def rounds(labels: ArrayLike, seed: int) -> Ints:
    """Return the order of the images: indices (T, M) into `labels` (N,), T rounds of M images.

    T is the size of the smallest class. A round takes m_c = floor(n_c / T) images of class c, drawn
    at random without replacement; the remaining images of a class stay unused. On balanced sets m_c
    = 1.
    """
    classes, draws = np.asarray(labels), np.random.default_rng(seed)
    present, counts = np.unique(classes, return_counts=True)
    length = int(counts.min())

    def of_class(label: int, count: int) -> Ints:
        drawn = draws.permutation(np.flatnonzero(classes == label))
        return drawn[: length * (count // length)].reshape(length, -1)

    return np.concatenate(
        [of_class(int(c), int(n)) for c, n in zip(present, counts, strict=True)], axis=1
    )


def weights(classes: ArrayLike) -> Floats:
    """Return w_c = min m / m_c of each image of a round, (M,), given the classes of its images,
    (M,)."""
    _, place, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return np.asarray(counts.min() / counts[place], dtype=np.float64)


def wealth(differences: ArrayLike, weight: ArrayLike, against: float = 0.0) -> Floats:
    """Return the log wealth of each bet after each round, (..., T, bets).

        log W_lambda(t) = sum over the images of rounds 1 to t of log(1 + lambda w_c (d - m))

    Args:
        differences: d, (..., T, M) in [-1, 1].
        weight: (M,), see `weights`.
        against: m, the difference to bet against, in (-REACH, REACH).
    """
    stakes = np.asarray(weight) * (np.asarray(differences, dtype=np.float64) - against)
    return np.stack([np.log1p(bet * stakes).sum(-1).cumsum(-1) for bet in BETS], axis=-1)


def mixed(wealths: Floats) -> Floats:
    """Return ln E, the logarithm of the mean wealth of the bets (the last axis)."""
    top = wealths.max(-1)
    return np.asarray(top + np.log(np.exp(wealths - top[..., None]).mean(-1)))


def evidence(
    differences: ArrayLike, weight: ArrayLike, against: float = 0.0
) -> tuple[Floats, Floats]:
    """Return (ln E+, ln E-) after each round, (..., T): evidence for a difference above, and below,
    `against`."""
    values = np.asarray(differences, dtype=np.float64)
    return mixed(wealth(values, weight, against)), mixed(wealth(-values, weight, -against))


def interval(differences: ArrayLike, weight: ArrayLike, alpha: float) -> tuple[float, float]:
    """Return (low, high) of the difference given T rounds (T, M), with coverage 1 - alpha for all
    looks at once.

    An end that is beyond -REACH or REACH is infinite.
    """
    values, needed = np.asarray(differences, dtype=np.float64), math.log(2 / alpha)

    def least(sample: Floats) -> float:
        low, high = -REACH, REACH
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            refuted = mixed(wealth(sample, weight, middle)).max() >= needed  # by any of the looks
            low, high = (middle, high) if refuted else (low, middle)
        return -math.inf if low == -REACH else low

    return least(values), -least(-values)


def stop(
    differences: ArrayLike, weight: ArrayLike, total: int, alpha: float, within: float | None
) -> str:
    """Return why an evaluation of the rounds (T, M) so far ends: decided, within, exhausted,
    hopeless; "" goes on.

    `total` is the largest possible number of rounds. Hopeless: even if all remaining images spoke
    for one model, it would not be decided.
    """
    values, needed = np.asarray(differences, dtype=np.float64), math.log(2 / alpha)
    plus, minus = wealth(values, weight), wealth(-values, weight)
    if max(mixed(plus).max(), mixed(minus).max()) >= needed:
        return "decided"
    if within is not None:
        above, below = evidence(values, weight, -within)[0], evidence(values, weight, within)[1]
        if ((above >= needed) & (below >= needed)).any():
            return "within"
    if len(values) == total:
        return "exhausted"
    most = (total - len(values)) * np.array(
        [np.log1p(bet * np.asarray(weight)).sum() for bet in BETS]
    )
    possible = max(mixed(plus[-1] + most), mixed(minus[-1] + most)) >= needed
    return "" if possible or within is not None else "hopeless"


class Decision(NamedTuple):
    """The outcome, after `images` of `of` images."""

    reason: str
    low: float
    high: float
    """The interval of the difference of balanced accuracy, first minus second, in [-1, 1]."""
    images: int
    of: int

    def __str__(self) -> str:
        better = "the first" if self.low >= 0 else "the second"
        said = f"{better} is better" if not self.low < 0 < self.high else "not told apart"
        ends = (f"{100 * self.low:+.1f}", f"{100 * self.high:+.1f}")
        return (
            f"{self.reason}: {said}, {' to '.join(ends)} points; {self.images} of {self.of} images"
        )


def decide(
    first: nn.Module,
    second: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    alpha: float = 0.05,
    within: float | None = None,
    seed: int = 0,
) -> Decision:
    """Attack both models on the same images until the test decides between them.

    Args:
        first, second: models in eval mode.
        x: test images (N, C, H, W) in [0, 1].
        y: their labels, (N,).
        attack: called as attack(model, x, y), returns adversarial examples.
        alpha: probability, at most, of ever deciding between two equal models.
        within: also stop once the difference is known to be smaller than this share.
        seed: of the order of the images, chosen before they are met: one question, one test.
    """
    labels = y.cpu().numpy()
    order = rounds(labels, seed)
    weight, block = weights(labels[order[0]]), max(1, BATCH // order.shape[1])
    right = np.zeros((2, *order.shape), dtype=bool)
    done, reason = 0, ""
    while not reason:
        rows = order[done : done + block]
        chosen = torch.from_numpy(rows.ravel())
        for side, model in enumerate((first, second)):
            x_adv = attack(model, x[chosen], y[chosen])
            with torch.no_grad():
                found = model(x_adv).argmax(1) == y[chosen]
            right[side, done : done + block] = found.cpu().numpy().reshape(rows.shape)
        done += len(rows)
        differences = right[0, :done].astype(float) - right[1, :done]
        reason = stop(differences, weight, len(order), alpha, within)
    return Decision(
        reason, *interval(differences, weight, alpha), done * order.shape[1], order.size
    )


def main(arguments: Sequence[str] | None = None) -> Decision:
    """Compare the models of two finished runs on the test images of the first."""
    parser = argparse.ArgumentParser(
        description="Attack two models until one is shown to be better."
    )
    parser.add_argument("first", help="run folder")
    parser.add_argument("second", help="run folder, with the same test images")
    parser.add_argument(
        "--attack", choices=("fgsm", "pgd-20", "pgd-100", "autoattack"), default="pgd-20"
    )
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--within", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    first, second = taet.resume(given.first), taet.resume(given.second)
    eps, step_size = first.run.threat.eps, of_run(first.run).step_size
    attacks = {"fgsm": partial(fgsm, eps=eps), "autoattack": partial(autoattack, eps=eps)}
    attacks |= {
        f"pgd-{steps}": partial(pgd, eps=eps, step_size=step_size, steps=steps)
        for steps in (20, 100)
    }
    test = taet.data.load(first.run.data).test
    x = torch.from_numpy(np.asarray(test.images)).permute(0, 3, 1, 2) / 255
    models = (first.model.eval(), second.model.eval())
    options = {"alpha": given.alpha, "within": given.within, "seed": given.seed}
    decision = decide(*models, x, torch.from_numpy(test.labels), attacks[given.attack], **options)
    print(decision)
    return decision


if __name__ == "__main__":
    main()
