"""Attacks as pure functions: `(model, x, y, *, eps, ...) -> x_adv`, in the ball and in [0, 1]."""

from taet.attacks.autoattack import autoattack
from taet.attacks.fgsm import fgsm
from taet.attacks.pgd import pgd

__all__ = ["autoattack", "fgsm", "pgd"]
