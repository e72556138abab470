"""The cost model of the TAET paper, and the costs that TAET and REAT print.

Source: TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions, CVPR 2025, arXiv:2503.01924,
appendices C and D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from taet.statistics import Floats

CLEAN, ADVERSARIAL, TWO_STAGE = "standard", "at", "taet"
"""The methods that the model compares."""
GAMMA = 0.619
BY_MULTIPLICATIONS = 2 / 3
"""gamma of a deep network: a pass forward or back to the images costs 1 (F, F', B_adv), back to the weights 2 (B)."""
STEPS = 10
"""kappa, the attack steps."""
CLEAN_SHARE = 0.4
"""N_CE / N_total: 40 clean epochs of 100."""
MEMORY_MB, XI_MB = 1629.42, 651.77
"""M_delta, the extra memory of the adversarial stage at batch 128, and xi = CLEAN_SHARE M_delta."""
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


Measurement: TypeAlias = Mapping[str, Any]
"""Plain JSON: what `taet.experiments.cost.measure` returns, or a part of it."""
Number = TypeVar("Number", float, Floats)


@dataclass(frozen=True)
class CostModel(Generic[Number]):
    """The time that TAET takes relative to adversarial training with the same number of attack steps, kappa.

    With F and B the passes of a step on clean images, F' and B_adv those of one step of the attack (in the paper
    F' = F), s = N_CE / N_total the clean share of the epochs and N_AT the other epochs:

        T_AT   = N_total [F + B + kappa (F' + B_adv)]
        T_TAET = N_CE (F + B) + N_AT [F + B + kappa (F' + B_adv)]
        gamma  = (F' + B_adv) / (F + B)
        rho    = (F + B) / [F + B + kappa (F' + B_adv)] = 1 / (1 + kappa gamma)
        eta    = T_TAET / T_AT = s rho + 1 - s                                      (equation 12)

    Hence eta is never below 1 - s, however cheap a clean epoch is.
    """

    gamma: Number
    """A number, or one for each of several measurements."""
    steps: int = STEPS

    @property
    def rho(self) -> Number:
        """Cost of a clean epoch relative to an adversarial one."""
        return 1 / (1 + self.steps * self.gamma)

    def eta(self, clean_share: float = CLEAN_SHARE) -> Number:
        """Cost of TAET relative to adversarial training by equation 12; `clean_share` is s, 0 to 1."""
        return clean_share * self.rho + 1 - clean_share

    def printed_eta(self, clean_share: float = CLEAN_SHARE) -> Number:
        """The same by equation 13, [s rho + (1 - s) (1 + kappa gamma)] / (1 + kappa gamma) = s rho^2 + 1 - s.

        In the numerator a clean epoch should cost 1, not rho: its cost is divided twice.
        """
        return clean_share * self.rho**2 + 1 - clean_share


def line_gamma(seconds: Mapping[int, float], clean_share: float = 0.0) -> float:
    """Return gamma by the least-squares line through the seconds of an epoch by attack steps.

    The line's value at 0 steps is F + B, its slope F' + B_adv. The seconds are a mean over epochs, of which a share
    `clean_share` is clean, without attack steps.
    """
    attack_step, clean = np.polyfit(list(seconds), list(seconds.values()), 1)
    return float(attack_step / (1 - clean_share) / clean)


def image_megabytes(shape: Sequence[int] = BATCH_SHAPE) -> float:
    """Return the size of a float32 batch of images in 10^6 bytes: b c h w d of appendix D with d = 4 bytes."""
    return 4 * math.prod(shape) / 1e6
