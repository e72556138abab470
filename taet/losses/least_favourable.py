"""The distribution over classes, within a KL divergence of a prior, that maximises an expected utility."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STEPS = 50  # of the bisection, which halve an interval of 88: to 1e-13
LOWEST, HIGHEST = 1e-30, 1e8  # of s, in units of the spread of the utilities


def least_favourable(utility: Tensor, prior: Tensor, radius: float) -> Tensor:
    """Return p (C,) that maximises sum_c u_c p_c among the distributions with KL(q || p) <= r.

    utility u (C,), prior q (C,) with a sum of 1 -> p, 0 where q is. The maximum is as q_c / (s + v_c), with
    v = (max u - u) / (max u - min u) over the classes with q > 0: the divergence falls as s grows, so that one s meets
    the bound, which bisection finds. r = 0 and equal utilities give q. Source: the Lagrangian of the problem that
    Zhang et al., Towards Fairness-Aware Adversarial Learning, CVPR 2024, solve with a general solver.
    """
    if radius == 0:
        return prior
    present = prior > 0
    largest = utility.masked_fill(~present, -torch.inf).max()
    spread = largest - utility.masked_fill(~present, torch.inf).min()
    tiny = torch.finfo(utility.dtype).tiny
    worse = ((largest - utility) / spread.clamp(min=tiny)).masked_fill(~present, 1.0)

    def tilted(log_s: Tensor) -> Tensor:
        values = prior / (log_s.exp() + worse)
        return values / values.sum()

    low, high = utility.new_full((), math.log(LOWEST)), utility.new_full((), math.log(HIGHEST))
    for _ in range(STEPS):
        middle = (low + high) / 2
        divergence = (prior * (prior.clamp(min=tiny) / tilted(middle).clamp(min=tiny)).log()).sum()
        beyond = divergence > radius
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return torch.where(spread > 0, tilted(high), prior)
