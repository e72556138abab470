"""HARL: hierarchical adversarially robust learning, the equalization loss on PGD examples.

Source: TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions, CVPR 2025,
arXiv:2503.01924.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from taet.errors import UserError
from taet.losses.equalization import Absent, class_losses, hierarchical_equalization
from taet.methods.base import (
    Adversarial,
    Loss,
    Method,
    Step,
    Task,
    published,
    refuse_outer,
    refuse_smoothing,
)
from taet.settings.types import NonNegative, OnlyWith, PartialShare


class Harl(Method):
    """Loss: HEL(f(x'), y) = alpha BCL + beta HDL + gamma RCEL.

    See `taet.losses.hierarchical_equalization`.

    A class without a sample in the batch counts as loss 0 by default, as in the public code: it
    lowers the mean, in most batches raises the variance, and leaves the emphasis as it is. `absent`
    has two alternatives. With several processes the class means are those of the whole batch.

    Official: the notebooks of TAET, with a ResNet-50 on images enlarged to 224 x 224 and an extra
    clean pass in train mode at each step. Their ten steps end 0.001 short of the edge of the ball;
    the protocols' steps cross the ball.
    """

    title = "HARL"
    reference = "TAET, CVPR 2025, arXiv:2503.01924"
    official = published(
        threat={"eps": 0.031, "step_size": 0.003, "steps": 10, "start": "gaussian"},
        training={"epochs": 100, "weight_decay": 5e-4, "milestones": (0.75, 0.9)},
    )

    class Config(Method.Config):
        """Factors of the three terms, and the treatment of classes without a sample in the
        batch."""

        alpha: NonNegative = 0.1
        """Factor of the balanced cross-class loss (appendix A.1 and public code of TAET)."""
        beta: NonNegative = 0.1
        """Factor of the hierarchical deviation loss (the same)."""
        gamma: NonNegative = 0.1
        """Factor of the rare-class emphasis loss (the same)."""
        absent: Absent = "zero"
        """zero: loss 0 (public code); skip: left out of the means; ema: running mean of its loss,
        from log C on."""
        momentum: Annotated[PartialShare, OnlyWith(absent="ema")] = 0.9
        """Share of the past in the running mean of `absent` ema (our choice)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        refuse_outer("harl", task, "its loss already balances the classes and takes none")
        refuse_smoothing(
            "harl",
            task,
            "its loss compares classes by one label; allowed: --outer.label-smoothing 0",
        )
        if not (config.alpha or config.beta or config.gamma):
            raise UserError(
                "harl: got alpha, beta and gamma 0, which leaves no loss; allowed: one of them "
                "above 0"
            )
        # log C: the cross-entropy of a model that knows nothing, until a class has been seen.
        self.running = nn.Buffer(torch.full((task.num_classes,), math.log(task.num_classes)))

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        config = self.config
        published = config.alpha == config.beta == config.gamma == 0.1
        tuned = (
            "--method.alpha 1 was more robust with small networks than the published 0.1 "
            "(docs/notes-on-papers.md)"
        )
        notes = (tuned,) if published else ()
        if config.absent != "zero" or batch_size > sum(class_counts):
            return notes
        classes, total = len(class_counts), sum(class_counts)
        drawn = self.task.drawn_class_counts
        absent = sum((1 - count / sum(drawn)) ** batch_size for count in drawn)
        if drawn == self.task.class_counts:  # without replacement
            absent = sum(math.comb(total - n, batch_size) for n in class_counts) / math.comb(
                total, batch_size
            )
        counted = (
            "and the loss counts them as 0, which weakens it (docs/protocols.md); "
            "--method.absent skip omits them"
        )
        missed = (
            f"a batch of {batch_size} misses about {absent:,.0f} of {classes:,} classes, {counted}"
        )
        return (*notes, missed) if absent > classes / 2 else notes

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        config = self.config
        logits = model(adversarial.x)
        return hierarchical_equalization(
            logits, y, config.alpha, config.beta, config.gamma, config.absent, self.running
        )

    def after_step(self, model: nn.Module, step: Step) -> None:
        if self.config.absent != "ema":
            return
        with torch.no_grad():
            means, counts = class_losses(step.loss.logits, step.y)
            moved = torch.lerp(means, self.running, self.config.momentum)
            self.running.copy_(torch.where(counts > 0, moved, self.running))
