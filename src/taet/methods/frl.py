"""FRL: fair robust learning, with larger weights and budgets for classes that fall behind.

Source: Xu et al., To be Robust or to be Fair: Towards Fairness in Adversarial Training, ICML 2021.
"""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from taet.errors import UserError
from taet.losses import kl_divergence
from taet.methods.base import (
    Adversarial,
    Attack,
    ClassFeedback,
    Facts,
    Loss,
    Method,
    Task,
    first_epoch,
)
from taet.methods.gairat import weighted_mean
from taet.settings.types import NonNegative, OnlyWith, PartialShare, Share

FEEDBACKS = 40  # of the published run, one per epoch; its rates are for this number
FACTORS = (0.98, 3.0)  # smallest and largest budget over eps (public code)


def raised(multipliers: Tensor, gaps: Tensor, rate: float, limit: float) -> Tensor:
    """Return multipliers (C,) plus rate times gaps, clipped at 0, and scaled to a sum of at most
    `limit`."""
    moved = (multipliers + rate * gaps).clamp(min=0)
    return moved * (limit / moved.sum().clamp(min=limit or 1))


class FairRobust(Method):
    """Loss: first mean CE(f(x'), y); then mean w_y CE(f(x), y) + beta mean u_y KL(f(x) || f(x')).

    The second loss begins at the first decay of the learning rate. Both of its means are weighted,
    and its attack raises the KL in balls whose eps and step size have a factor by class. Weights
    and factors follow two errors of each class, measured on validation images: e without an attack,
    and b, how much of the accuracy the curve's attack takes. With delta the gap allowed, and means
    over the classes, g = e - mean e - delta and h = b - mean b - delta say how far a class falls
    behind:

        l <- [l + r g]+,    m <- [m + 2 r h]+    each scaled to a sum of `limit` at most
        w = 1/C + l - mean l,    u = 1/C + m - mean m    so no weight is below (1 - limit) / C
        n <- n + s h,    factor = exp(2 n), within 0.98 to 3

    r and s are those of 40 feedbacks; a run with fewer points of the curve learns as much in total.
    Without `margin` it is FRL-RW. FRL was published as 40 epochs of fine-tuning of a trained AT
    model. Here it is part of the run, so that it has no more epochs than other methods.

    Differences from the public code (hannxu123/fair_robust, utils_frl2.py):

    - It halves r every 40 epochs; ours stays.
    - It steps by a quarter of the largest ball in the batch; our steps follow the class's ball.
    - It passes the clean images through the network a third time in each step, in train mode, which
      moves the statistics of batch normalisation; ours makes two passes.
    """

    title = "FRL"
    reference = "Xu et al., ICML 2021"
    deviations = (
        "weights, eps (0.98 to 3 times) and step size of the classes follow their error on "
        "validation images",
    )
    label_attack = False
    needs_feedback = True

    class Config(Method.Config):
        """The divergence, the tolerated gap, and the rates of the multipliers."""

        beta: NonNegative = 1.5
        """Factor of the divergence (public code)."""
        margin: bool = True
        """Larger balls for classes that attacks break more often (off: FRL-RW)."""
        delta: PartialShare | None = None
        """Tolerated gap to the mean. Default: 0.07, without margin 0.1 (public code)."""
        rate: NonNegative = 0.05
        """Rate r of the weights, for 40 points of the curve that precede epochs of the second stage
        (public code)."""
        margin_rate: Annotated[NonNegative, OnlyWith(margin=True)] = 0.2
        """Rate s of the budgets, for the same number of points (public code)."""
        limit: PartialShare = 0.5
        """Largest sum of the multipliers of the weights (public code)."""
        begin: Share | None = None
        """Share of the epochs before the second stage. Default: up to the first milestone."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.delta = config.delta if config.delta is not None else 0.07 if config.margin else 0.1
        feedbacks = sum(self._is_followed(epoch) for epoch in task.monitored_epochs)
        if min(task.monitored_epochs, default=task.epochs) + 1 < task.epochs and not feedbacks:
            allowed = "a smaller --monitor-every, or more epochs"
            raise UserError(f"frl: got no point of the curve that it could use; allowed: {allowed}")
        self.scale = FEEDBACKS / max(feedbacks, 1)
        self.multipliers = nn.Buffer(torch.zeros(3, task.num_classes, dtype=torch.float64))
        self.weights = nn.Buffer(torch.full((2, task.num_classes), 1 / task.num_classes))
        self.factor = nn.Buffer(torch.ones(task.num_classes))

    @classmethod
    def facts(cls, config: Config) -> Facts:
        followers = []
        if config.rate and config.limit:
            followers.append("weights")
        if config.margin and config.margin_rate:
            followers.append("eps (0.98 to 3 times) and step size")
        follow = f"{', '.join(followers)} of the classes follow their error on validation images"
        return replace(super().facts(config), deviations=(follow,) if followers else ())

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        return "fair" if epoch >= first_epoch(config.begin, task) else "burn-in"

    def _is_followed(self, epoch: int) -> bool:
        """Whether the next epoch uses the weights that the feedback of `epoch` sets."""
        return epoch + 1 < self.task.epochs and self.task.stages[epoch + 1] == "fair"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        if self.stage == "burn-in":
            return Adversarial(attack(model, x, y))
        return super().perturb(model, x, y, attack.scaled(self.factor[y]))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.stage == "burn-in":
            return self.label_loss(model, adversarial.x, y)
        natural, logits = model(x), model(adversarial.x)
        clean_weights, boundary_weights = self.weights[:, y]
        label = weighted_mean(clean_weights, self.outer(natural, y))
        kl = weighted_mean(boundary_weights, kl_divergence(natural, logits))
        return Loss(label + self.config.beta * kl, {"label": label, "kl": kl}, logits)

    def feedback(self, epoch: int, seen: ClassFeedback) -> None:
        if not self._is_followed(epoch):
            return
        clean, robust = seen.rates(seen.clean), seen.rates(seen.robust)
        error_gap, boundary_gap = (
            each - each.mean() - self.delta for each in (1 - clean, clean - robust)
        )
        config, rate = self.config, self.config.rate * self.scale
        error, boundary, budget = self.multipliers
        error.copy_(raised(error, error_gap, rate, config.limit))
        boundary.copy_(raised(boundary, boundary_gap, 2 * rate, config.limit))
        both = self.multipliers[:2]
        self.weights.copy_(1 / self.task.num_classes + both - both.mean(1, keepdim=True))
        if config.margin:
            budget += config.margin_rate * self.scale * boundary_gap
            self.factor.copy_((2 * budget).exp().clamp(*FACTORS))
