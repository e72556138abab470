"""FAAL: worst-case class weights in every batch, within a divergence from equal weights.

Source: Zhang et al., Towards Fairness-Aware Adversarial Learning, CVPR 2024.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from taet.attacks.objectives import margin
from taet.distributed import global_mean
from taet.losses.long_tail import class_sums
from taet.methods.base import Adversarial, Facts, Loss, Method, Task, first_epoch
from taet.methods.trades import trades_loss
from taet.settings.types import NonNegative, OnlyWith, Share

STEPS = 50  # of the bisection of log s, from an interval of 88 to 1e-13
LOWEST, HIGHEST = 1e-30, 1e8  # of s, in units of the spread of the utilities


class FairnessAware(Method):
    """Loss: first the loss l of the form, as AT or TRADES; then K mean p_y l.

    K is the number of classes in the batch, and p are worst-case class weights:

        at       l = CE(f(x'), y)
        trades   l = CE(f(x), y) + beta KL(f(x) || f(x')), where x' raises the KL

    p maximises sum_c u_c p_c over the distributions on these K classes with KL(q || p) <= r, q
    uniform (`least_favourable`). u_c is the mean margin max_{j != y} p_j - p_y of the attacked
    images of the class, with probabilities p_j. No gradient flows through p.

    Three options choose between forms:

    - `utility` count-margin multiplies u by the class's images in the batch, as in the public code,
      where on a long tail the largest classes have hardly any weight.
    - `absent` official lets K and q count all C classes. A class without images in the batch has
      u = -1, the lowest. With count-margin it has 0, more than most, and takes its share of p, for
      example 16 %.
    - `aggregate` class is the paper's form, sum_c p_c mean_c l.

    FAAL was published as two epochs of fine-tuning. Here it begins at the first decay of the
    learning rate, so that it has no more epochs than other methods. The public code (TrustAI/FAAL,
    FAAL.py) chooses the epoch on the test set. In form at, too, it passes the clean images in train
    mode after the attacked ones, which moves the statistics of batch normalisation; ours does not.
    """

    title = "FAAL"
    reference = "Zhang et al., CVPR 2024"

    class Config(Method.Config):
        """The form of the loss, and how classes are weighted."""

        form: Literal["at", "trades"] = "at"
        """The loss that is weighted."""
        radius: NonNegative = 0.5
        """Largest divergence r of the weights from equal ones (public code); 0: equal weights."""
        beta: Annotated[NonNegative, OnlyWith(form="trades")] = 6.0
        """trades: factor of the divergence (public code)."""
        utility: Literal["margin", "count-margin"] = "margin"
        """Objective of the weights: mean margins (ours), or times the class's images in the batch
        (public code)."""
        aggregate: Literal["sample", "class"] = "sample"
        """Weight every sample by its class (public code), or the means of the classes (paper)."""
        absent: Literal["skip", "official"] = "skip"
        """Ignore classes without a sample in the batch (ours), or give them a share of the weights
        (public code)."""
        begin: Share | None = None
        """Share of the epochs before the weights begin. Default: up to the first milestone."""

    @classmethod
    def facts(cls, config: Config) -> Facts:
        return replace(super().facts(config), label_attack=config.form == "at")

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        return "fair" if epoch >= first_epoch(config.begin, task) else "burn-in"

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        natural = model(x) if self.config.form == "trades" else None
        logits = model(adversarial.x)
        weights: Tensor | float = (
            self.weights(logits.detach(), y).to(logits.dtype)[y] if self.stage == "fair" else 1.0
        )
        if natural is None:
            return Loss(global_mean(weights * self.outer(logits, y)), {}, logits)
        return trades_loss(self, natural, logits, y, weights)

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """Factors (C,) of the samples by their label, from attacked logits (N, C); their loss is
        the mean over all."""
        config, classes = self.config, logits.shape[1]
        sums, images = class_sums(margin(logits.double().softmax(1), y)[:, None], y, classes)
        means = torch.where(images > 0, sums[:, 0] / images.clamp(min=1), -1.0)
        included = torch.ones_like(images) if config.absent == "official" else (images > 0).double()
        prior = included / included.sum()
        p = least_favourable(
            images * means if config.utility == "count-margin" else means, prior, config.radius
        )
        return (
            p * included.sum()
            if config.aggregate == "sample"
            else p * images.sum() / images.clamp(min=1)
        )


def least_favourable(utility: Tensor, prior: Tensor, radius: float) -> Tensor:
    """Return p (C,) that maximises sum_c u_c p_c among the distributions with KL(q || p) <= r.

    utility u (C,), prior q (C,) with a sum of 1 -> p, 0 where q is 0. The solution is proportional
    to q_c / (s + v_c), v = (max u - u) / (max u - min u) over the classes with q > 0: the
    divergence falls as s grows, and bisection finds the s that meets the bound. r = 0 and equal
    utilities give q. Source: the Lagrangian of the problem that Zhang et al., Towards
    Fairness-Aware Adversarial Learning, CVPR 2024, solve with a general solver.
    """
    if radius == 0:
        return prior
    present = prior > 0
    largest = utility.masked_fill(~present, -torch.inf).max()
    spread = largest - utility.masked_fill(~present, torch.inf).min()
    tiny = torch.finfo(utility.dtype).tiny
    deficits = ((largest - utility) / spread.clamp(min=tiny)).masked_fill(~present, 1.0)

    def tilted(log_s: Tensor) -> Tensor:
        values = prior / (log_s.exp() + deficits)
        return values / values.sum()

    low, high = utility.new_full((), math.log(LOWEST)), utility.new_full((), math.log(HIGHEST))
    for _ in range(STEPS):
        middle = (low + high) / 2
        divergence = (prior * (prior.clamp(min=tiny) / tilted(middle).clamp(min=tiny)).log()).sum()
        exceeded = divergence > radius
        low, high = torch.where(exceeded, middle, low), torch.where(exceeded, high, middle)
    return torch.where(spread > 0, tilted(high), prior)
