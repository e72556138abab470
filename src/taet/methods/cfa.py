"""CFA: larger training budgets, and weights of the divergence, for classes that resist attacks.

Source: Wei et al., CFA: Class-Wise Calibrated Fair Adversarial Training, CVPR 2023.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses import kl_divergence
from taet.losses.long_tail import class_sums
from taet.methods.base import Adversarial, ClassFeedback, Facts, Loss, Task, first_epoch
from taet.methods.trades import Trades
from taet.methods.wrapper import Base, BudgetRule, ClassBudgets
from taet.settings.types import OnlyWith, PartialShare, Positive, Share

THRESHOLDS = {"relative": 0.4, "absolute": 0.2}  # 0.2 where balanced CIFAR-10 has a mean of 0.5
VOTES = 5  # fewest validation images of a class that counts in the gate
BEGIN = 1 / 20  # epoch 10 of 200


class CfaRule(BudgetRule):
    """Factors lambda_1 + R_c, with R_c the training robustness of class c over the epoch before; 1
    before `begin`."""

    def __init__(self, task: Task, lambda_1: float, lambda_2: float, begin: float) -> None:
        super().__init__()
        self.lambda_1, self.lambda_2 = lambda_1, lambda_2
        self.first = first_epoch(begin, task, least=1)  # the factors come from the epoch before
        zeros = torch.zeros(task.num_classes, dtype=torch.float64)
        self.hits, self.seen = nn.Buffer(zeros), nn.Buffer(zeros.clone())
        self.strength = nn.Buffer(zeros + 1)
        """lambda_2 + R_c, or 1: the factor of the base's beta for each class, (C,)."""

    def observe(self, epoch: int, logits: Tensor, labels: Tensor) -> None:
        hits, images = class_sums((logits.argmax(1) == labels)[:, None], labels, len(self.seen))
        self.hits.add_(hits[:, 0])
        self.seen.add_(images)

    def factors(self, epoch: int) -> Tensor | None:
        robust, known = self.hits / self.seen.clamp(min=1), self.seen > 0
        self.hits.zero_()
        self.seen.zero_()
        if epoch < self.first:
            return None
        self.strength.copy_(torch.where(known, self.lambda_2 + robust, 1.0))
        return torch.where(known, self.lambda_1 + robust, 1.0)


class Cfa(ClassBudgets):
    """The base's loss on examples in balls of f_y eps, with steps of f_y alpha.

    The factor of a class is f_c = lambda_1 + R_c. R_c is the share of the attacked training images
    of class c, in its own ball, that were classified correctly over the epoch before (public code:
    hits over N / 10, as in a balanced set). So classes that resist attacks have larger balls. On a
    long tail these are the head classes: the opposite of robust-lt and dafa. A smaller ball raises
    R, so f settles within lambda_1 to lambda_1 + 1. All factors are 1 before `begin` of the epochs.

    With the base trades, the divergence of a class has a weight too:

        loss = (1 + beta) mean [(1 - b_y) CE(f(x), y) + b_y KL(f(x) || f(x'))]
        b_c = (lambda_2 + R_c) beta / (1 + (lambda_2 + R_c) beta)

    This is TRADES where lambda_2 + R_c is 1. `regulariser` official lacks the factor 1 + beta, so
    its steps are a seventh as long at beta 6.

    With a `gate` the run delivers an average of the weights of its epochs, d average + (1 - d)
    weights. An epoch enters it only where the worst class is robust enough on the validation
    images, and the first such epoch starts it; until then the run delivers its own weights. The
    gate relative asks for a share of the mean of the classes, since on a long tail one lost class
    shuts the published gate, absolute, for good. Classes with fewer than five validation images do
    not count.

    Differences from the public code (PKU-ML/CFA 071f333, train.py:80, 173; 877a5b5,
    attack.py:67-72):

    - Its form for AT ignores the weights of the divergence and attacks in train mode.
    - Its clean images pass through the network a third time in each step, in train mode, which
      moves the statistics of batch normalisation.
    - Its steps are alike for all classes; ours follow the ball of the class.
    - Until the first epoch enters the average, it delivers the initial weights.
    """

    title = "CFA"
    reference = "Wei et al., CVPR 2023"
    deviations = ("training eps and step size differ by class, larger where it resists the attack",)

    class Config(ClassBudgets.Config):
        """The base method, the budgets and the weights of the divergence."""

        base: Base = "trades"
        """Name of the wrapped method (paper: trades and at)."""
        lambda_1: Positive = 0.5
        """Budget of a class with no robustness, as a share of eps (paper)."""
        lambda_2: Positive = 0.5
        """Weight of the divergence in a class without robustness, as a share of beta (paper)."""
        regulariser: Literal["scaled", "official", "off"] | None = None
        """Weights of the divergence by class: scaled like TRADES, as in the public code (official),
        or off. Default: scaled with trades, off with other methods, which have no such
        divergence."""
        begin: PartialShare = BEGIN
        """Share of the epochs before the first class-wise budgets: 10 of 200 (public code)."""
        gate: Literal["off", "relative", "absolute"] = "off"
        """Deliver an average of the weights of epochs whose worst class passes (FAWA in the paper),
        by the mean of the classes (relative) or as published (absolute); it needs a validation
        split. off: no average."""
        average: Annotated[PartialShare, OnlyWith(gate=("relative", "absolute"))] = 0.88
        """Decay d of that average (paper)."""
        threshold: Annotated[Share | None, OnlyWith(gate=("relative", "absolute"))] = None
        """Least robust accuracy of a class for an epoch to be averaged. Default: 0.4 of the mean,
        or 0.2 (paper)."""

    rule: CfaRule

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(
            config, task, lambda: CfaRule(task, config.lambda_1, config.lambda_2, config.begin)
        )
        divergence = isinstance(self.base, Trades)
        self.regulariser = config.regulariser or ("scaled" if divergence else "off")
        if self.regulariser != "off" and not divergence:
            got = f"got {config.regulariser}, and the base {config.base} has no divergence to weigh"
            raise UserError(f"method regulariser: {got}; allowed: off")
        if self.regulariser == "off" and config.lambda_2 != 0.5:
            raise UserError(
                f"method lambda 2: got {config.lambda_2:g}; allowed: with the regulariser only"
            )
        if config.gate != "off":
            self.threshold = (
                THRESHOLDS[config.gate] if config.threshold is None else config.threshold
            )

    @classmethod
    def facts(cls, config: Config) -> Facts:
        facts = super().facts(config)
        if config.gate == "off":
            return facts
        return replace(facts, average_decay=config.average, needs_feedback=True)

    def accepts_epoch(self, epoch: int, seen: ClassFeedback) -> bool:
        robust = seen.rates(seen.robust)[seen.images >= VOTES]
        if not (robust > 0).any():
            return False
        needed = self.threshold * (float(robust.mean()) if self.config.gate == "relative" else 1.0)
        return float(robust.min()) >= needed

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.regulariser == "off":
            return super().loss(model, x, y, adversarial)
        natural, logits = model(x), model(adversarial.x)
        beta: float = self.base.config.beta
        strength = self.rule.strength.to(logits.dtype)[y] * beta
        share = strength / (1 + strength)
        scale = 1 + beta if self.regulariser == "scaled" else 1.0
        label = global_mean(scale * (1 - share) * self.base.outer(natural, y))
        kl = global_mean(scale * share * kl_divergence(natural, logits))
        return Loss(label + kl, {"label": label, "kl": kl}, logits)
