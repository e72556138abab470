"""Attacks as pure functions, `(model, x, y, *, eps, ...) -> x_adv`, with results in the ball and in
[0, 1].

`cw_l2` and `deepfool` look for the smallest perturbation: for them eps may be None, which means
unbounded. Each file of an attack also declares an `AttackSpec`, by which evaluations run it;
`catalogue` finds them by name.
"""

from taet.attacks.autoattack import autoattack
from taet.attacks.cw_l2 import cw_l2
from taet.attacks.deepfool import deepfool
from taet.attacks.pgd import cw_linf, fgsm, pgd
from taet.attacks.quick import quick

__all__ = ["autoattack", "cw_l2", "cw_linf", "deepfool", "fgsm", "pgd", "quick"]
