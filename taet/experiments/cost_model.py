"""The cost model of the TAET paper: its formulas, the numbers that it gives, and what follows from them.

Source: TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions, CVPR 2025, arXiv:2503.01924,
appendices C and D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

GAMMA = 0.619
RHO = 0.139
ETA = 0.608
STEPS = 10
"""kappa."""
CLEAN_SHARE = 0.4
"""N_CE / N_total: 40 clean epochs of 100."""
MEMORY_MB, XI_MB = 1629.42, 651.77
"""Extra memory of the adversarial stage at batch 128, and its mean over the epochs that TAET saves of it."""
BATCH_SHAPE = (128, 3, 32, 32)
EPOCH_SECONDS = {5: 54.0, 10: 85.0, 30: 208.0, 40: 270.0}
"""By steps of the attack in training, beside table 9; 20 steps are not given."""
REAT_EPOCH_SECONDS = {
    "cifar10-lt 50": {"at": 46.0, "robal": 50.0, "reat": 54.0},
    "cifar10-lt 100": {"at": 42.0, "robal": 45.0, "reat": 47.0},
    "cifar100-lt 20": {"at": 53.0, "robal": 58.0, "reat": 75.0},
    "cifar100-lt 50": {"at": 42.0, "robal": 45.0, "reat": 52.0},
}
"""By data, with its imbalance ratio, and method: ResNet-18, one V100 (REAT, arXiv:2307.10205, table 14)."""


@dataclass(frozen=True)
class CostModel:
    """How long TAET takes beside adversarial training in every epoch; both times are those of `steps` = kappa.

    With F and B the passes of a step on clean images, F' and B_adv those of one step of the attack (in the paper
    F' = F), s = N_CE / N_total the clean share of the epochs and N_AT the other epochs:

        T_AT   = N_total [F + B + kappa (F' + B_adv)]
        T_TAET = N_CE (F + B) + N_AT [F + B + kappa (F' + B_adv)]
        gamma  = (F' + B_adv) / (F + B)
        rho    = (F + B) / [F + B + kappa (F' + B_adv)] = 1 / (1 + kappa gamma)
        eta    = T_TAET / T_AT = s rho + 1 - s                                      (equation 12)

    So eta is never below 1 - s, however cheap a clean epoch is.
    """

    gamma: float
    steps: int = STEPS

    @property
    def rho(self) -> float:
        """Cost of a clean epoch beside an adversarial one."""
        return 1 / (1 + self.steps * self.gamma)

    def eta(self, clean_share: float = CLEAN_SHARE) -> float:
        """Cost of TAET beside adversarial training, by the two times themselves; `clean_share` is s, 0 to 1."""
        return clean_share * self.rho + 1 - clean_share

    def printed_eta(self, clean_share: float = CLEAN_SHARE) -> float:
        """The same by equation 13, [s rho + (1 - s) (1 + kappa gamma)] / (1 + kappa gamma) = s rho^2 + 1 - s.

        The numerator counts in clean epochs, where a clean epoch costs 1 and not rho; so its price is divided twice.
        """
        return clean_share * self.rho**2 + 1 - clean_share


def by_multiplications(steps: int = STEPS) -> CostModel:
    """The model by the multiplications of a deep network alone: gamma = (F + B_adv) / (F + B) = 2/3.

    A backward pass to the images costs what a forward pass does (B_adv = F); one to the weights as much again for the
    gradients of the weights (B = 2 F).
    """
    return CostModel(2 / 3, steps)


def line(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Least squares of seconds = a + b steps over two or more numbers of steps: (a, b), F + B and F' + B_adv."""
    mean_steps, mean_seconds = sum(seconds) / len(seconds), sum(seconds.values()) / len(seconds)
    rise = sum((steps - mean_steps) * (value - mean_seconds) for steps, value in seconds.items())
    slope = rise / sum((steps - mean_steps) ** 2 for steps in seconds)
    return mean_seconds - slope * mean_steps, slope


def by_line(seconds: Mapping[int, float], steps: int = STEPS, clean_share: float = 0.0) -> CostModel:
    """The model of a line through the seconds of an epoch by steps of the attack; what else an epoch does counts as F.

    `clean_share` is that of the epochs over which the seconds are a mean: a clean one takes none of those steps.
    """
    clean, attack_step = line(seconds)
    return CostModel(attack_step / (1 - clean_share) / clean, steps)


def steps_for(eta: float, gamma: float = GAMMA, clean_share: float = CLEAN_SHARE) -> float:
    """Steps of the attack at which equation 12 gives `eta`, above 1 - s: kappa = (s / (eta - 1 + s) - 1) / gamma."""
    return (clean_share / (eta - 1 + clean_share) - 1) / gamma


def xi(clean_share: float, extra: float) -> float:
    """Mean over all epochs of the memory that is saved, s M_delta, in the unit of `extra` = M_delta.

    M_delta is what an adversarial step needs beyond a clean one. The most that is needed at any time stays the same.
    """
    return clean_share * extra


def image_megabytes(shape: tuple[int, ...] = BATCH_SHAPE) -> float:
    """A float32 batch of images in 10^6 bytes: b c h w d of appendix D with d = 4 bytes."""
    return 4 * math.prod(shape) / 1e6
