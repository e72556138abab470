"""Let a model answer only where it is sure enough: thresholds by class, tested on validation images
under attack.

    taet train taet --data digits-lt --data.validation 0.3 --selection last --out runs/taet
    python examples/abstain.py runs/taet --share 0.2

prints, for each predicted class, the least probability at which at most `--share` of its answers
are wrong, clean and under PGD-20 towards any and towards the runner-up class. This holds with 95 %
confidence for all classes together, for images drawn as the validation images were, under each of
these attacks, not under others.

For each predicted class c and each candidate threshold t, N validation images are answered and W of
them wrong. Given N, W is binomial, so Clopper and Pearson's upper limit at the error 0.05 / (C K)
tests the rate; the lowest threshold that passes under every adversary is used. Adversaries need no
correction: that all limits fail is no likelier than that one fails.

Source: Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test", arXiv:2110.01052, with
Bonferroni's correction; Clopper, Pearson, Biometrika 26, 1934; Geifman, El-Yaniv, NeurIPS 2017,
arXiv:1705.08500.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor, nn

import taet
from taet.attacks import pgd
from taet.evaluation.attack_sets import of_run
from taet.losses import cross_entropy
from taet.training.checks import resolve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]

LEVEL = 0.95
CANDIDATES = np.array([0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
"""Thresholds that are tested, fixed in advance."""


def upper_limits(wrong: Ints, answered: Ints, tests: int) -> Floats:
    """Return upper limits of the rate of wrong answers, each at the error (1 - LEVEL) / tests; 1
    without answers."""
    limits = betaincinv(wrong + 1, np.maximum(answered - wrong, 1), 1 - (1 - LEVEL) / tests)
    return np.where(wrong < answered, limits, 1.0)


def counts(logits: Tensor, labels: Ints, classes: int) -> tuple[Ints, Ints]:
    """Return the numbers of wrong and of all answers, by predicted class and threshold, (C, K)."""
    scores, predicted = (each.numpy() for each in logits.softmax(1).max(1))
    above = scores[:, None] >= CANDIDATES
    answered, wrong = np.zeros((2, classes, len(CANDIDATES)), np.int64)
    np.add.at(answered, predicted, above)
    np.add.at(wrong, predicted, above & (predicted != labels)[:, None])
    return wrong, answered


def thresholds(
    model: nn.Module, x: Tensor, y: Tensor, attacks: Sequence[Attack], share: float, classes: int
) -> Floats:
    """Return the least probability at which each predicted class is answered, (C,).

    It is inf for a class that is never answered.

    Args:
        model: in eval mode.
        x: images (N, C, H, W) in [0, 1] that neither the training nor the choice of an epoch has
            seen.
        y: their labels, (N,).
        attacks: each is called as attack(model, x, y); the guarantee holds under each of them.
        share: largest share of wrong answers of a class.
        classes: number of classes.
    """
    passed = []
    for attack in attacks:
        x_adv = attack(model, x, y)
        with torch.no_grad():
            wrong, answered = counts(model(x_adv), y.numpy(), classes)
        passed.append(upper_limits(wrong, answered, answered.size) <= share)
    safe = np.all(passed, axis=0)
    return np.where(safe.any(1), CANDIDATES[safe.argmax(1)], np.inf)


def runner_up(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the likeliest wrong class of each image, (N,)."""
    with torch.no_grad():
        logits = model(x)
    return logits.scatter(1, y[:, None], -torch.inf).argmax(1)


def main(arguments: Sequence[str] | None = None) -> Floats:
    """Print and return the thresholds of a finished run."""
    parser = argparse.ArgumentParser(description="Thresholds below which a model should abstain.")
    parser.add_argument(
        "run", help="run folder; it held out validation images and delivers its last epoch"
    )
    parser.add_argument(
        "--share", type=float, default=0.1, help="largest share of wrong answers of a class"
    )
    given = parser.parse_args(arguments)
    result = taet.resume(given.run)
    run = result.run
    data = taet.data.load(run.data)
    learned = resolve(run, None).method.needs_feedback or run.training.selection != "last"
    if data.validation is None or learned:
        parser.error(
            "the run needs --data.validation, whose images chose no epoch and taught no method"
        )
    images, names = data.validation, data.class_names
    x = torch.from_numpy(np.asarray(images.images)).permute(0, 3, 1, 2) / 255
    y = torch.from_numpy(images.labels)
    ball = {"eps": run.threat.eps, "step_size": of_run(run).step_size, "steps": 20}

    def targeted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return pgd(
            model,
            x,
            runner_up(model, x, y),
            objective=lambda z, target: -cross_entropy(z, target),
            **ball,
        )

    def clean(_: nn.Module, x: Tensor, __: Tensor) -> Tensor:
        return x

    attacks: list[Attack] = [clean, partial(pgd, **ball), targeted]
    found = thresholds(result.model.eval(), x, y, attacks, given.share, len(names))
    for name, threshold in zip(names, found, strict=True):
        print(
            f"{name}: "
            + ("never answered" if np.isinf(threshold) else f"answered from {threshold:g} on")
        )
    wrong = f"at most {100 * given.share:g} % of the answers of a class are wrong"
    print(f"with 95 % confidence {wrong}; {len(y)} validation images")
    return found


if __name__ == "__main__":
    main()
