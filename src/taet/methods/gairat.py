"""GAIRAT: adversarial training with larger weights on examples that withstand fewer attack steps.

Source: Zhang et al., Geometry-aware Instance-reweighted Adversarial Training, ICLR 2021,
arXiv:2010.01736.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from taet.distributed import global_sum
from taet.methods.base import Adversarial, Attack, Loss, Method, Task, published
from taet.settings.types import OnlyWith

WeightFunction = Literal["tanh", "sigmoid", "discrete"]


def importance(kappa: Tensor, steps: int, weighting: WeightFunction, lam: float) -> Tensor:
    """Return unnormalised weights (N,) of examples that were classified correctly before kappa (N,)
    of K `steps`.

    tanh       [tanh(lam + 5 (k0 - kappa) / k0) + 1] / 2,  k0 = floor(K / 2)
    sigmoid    sigmoid(lam + 5 (k0 - kappa) / k0)
    discrete   (K + 1 - kappa) / (K + 1)
    """
    if weighting == "discrete":
        return (steps + 1 - kappa) / (steps + 1)
    # At K = 1 the public code divides by zero; the paper's K / 2 does not. At K = 0 all weights are
    # equal.
    half = max(steps // 2, 0.5)
    margin = lam + 5 * (half - kappa) / half
    # (tanh(t) + 1) / 2 = sigmoid(2 t), which keeps its digits where tanh is nearly -1.
    return torch.sigmoid(2 * margin if weighting == "tanh" else margin)


def weighted_mean(weights: Tensor, losses: Tensor) -> Tensor:
    """sum_i w_i l_i / sum_i w_i over the global batch: weights (N,), losses (N,) -> scalar."""
    sums = global_sum(torch.stack([(weights * losses).sum(), weights.sum()]))
    return sums[0] / sums[1]


class Gairat(Method):
    """Loss: mean CE(f(x'), y); from the first milestone on, weighted by `importance`.

    By default, an example that was classified correctly before kappa of K attack steps weighs

        [tanh(lambda + 5 (k0 - kappa) / k0) + 1] / 2,   k0 = floor(K / 2)

    kappa counts over the whole attack, not only up to the first failure, and does not count the
    final example. The public code switches at epoch 60 of 120, its first decay of the learning
    rate; here the weights begin at that decay in any schedule. Without a milestone, or in a run too
    short to reach it, they are never used.

    Official: a WRN-32-10, a third decay, by 2, at 11/12 of the epochs, and eps and step rounded to
    0.031 and 0.007.
    """

    title = "GAIRAT"
    reference = "Zhang et al., ICLR 2021, arXiv:2010.01736"
    official = published(
        threat={"eps": 0.031, "step_size": 0.007, "steps": 10, "start": "uniform"},
        training={"epochs": 120, "weight_decay": 2e-4, "milestones": (59 / 120, 89 / 120)},
    )

    class Config(Method.Config):
        """The weights of the examples."""

        weighting: WeightFunction = "tanh"
        """Function from the number of steps to the weight (public code)."""
        lam: Annotated[float, Field(ge=-20, le=20), OnlyWith(weighting=("tanh", "sigmoid"))] = -1.0
        """Lambda, added to the argument of tanh and sigmoid: larger values give more equal weights
        (public code)."""

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        return "weighted" if task.milestones and epoch >= min(task.milestones) else "burn-in"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        kappa = x.new_zeros(len(y))

        def count(_: int, logits: Tensor) -> None:
            kappa.add_(logits.argmax(1) == y)

        examples = attack(model, x, y, observe=count)
        weights = importance(kappa, attack.threat.steps, self.config.weighting, self.config.lam)
        return Adversarial(examples, {"kappa": kappa, "weights": weights})

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.stage == "burn-in":
            return self.label_loss(model, adversarial.x, y)
        logits = model(adversarial.x)
        return Loss(weighted_mean(adversarial.info["weights"], self.outer(logits, y)), {}, logits)
