"""DAFA: larger training budgets and label weights for classes that are mistaken for others.

Source: Lee et al., DAFA: Distance-Aware Fair Adversarial Training, ICLR 2024.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from taet.errors import UserError
from taet.losses.long_tail import class_sums
from taet.methods.base import Task, first_epoch
from taet.methods.wrapper import Base, BudgetRule, ClassBudgets
from taet.settings.types import NonNegative

InnerShare = Annotated[float, Field(gt=0, lt=1)]
WARM_UP = 7 / 11  # 70 of 110 epochs
MANY_CLASSES = 100


def class_weights(confusion: Tensor, lam: float, floor: float) -> Tensor:
    """Weights of the classes, W = 1 + lambda d, from mean predictions P (C, C), rows the true class
    -> (C,).

    d_i = sum over j != i of P_ij P_jj where P_ii < P_jj, and of -P_ji P_ii where P_ii > P_jj. Of
    each two classes the harder one gains what the easier one loses, so sum d = 0. lambda is at most
    (1 - floor) / max_c (-d_c): no weight is below `floor`, and the weights sum to C. A class
    without an image has a row of zeros, and the weight 1.
    """
    own = confusion.diagonal()
    gained = torch.where(own[:, None] < own, confusion * own, 0.0)
    direction = gained.sum(1) - gained.sum(0)
    largest = (1 - floor) / (-direction).max().clamp(min=torch.finfo(direction.dtype).tiny)
    return 1 + largest.clamp(max=lam) * direction


class DafaRule(BudgetRule):
    """Factors by `class_weights` of the predictions in the last epoch of the warm-up; 1 before."""

    weighs_labels = True

    def __init__(self, task: Task, lam: float | None, floor: float, warm_up: float) -> None:
        super().__init__()
        self.lam = lam if lam is not None else 1.5 if task.num_classes >= MANY_CLASSES else 1.0
        self.floor = floor
        self.first = first_epoch(warm_up, task, "warm up", least=1)
        if task.stages[self.first - 1] == "clean":
            raise UserError(
                f"method warm up: got {warm_up:.3g}, which ends without an attack; allowed: "
                "another share"
            )
        classes = task.num_classes
        self.confusion = nn.Buffer(torch.zeros(classes, classes, dtype=torch.float64))
        self.seen = nn.Buffer(torch.zeros(classes, dtype=torch.float64))

    def observe(self, epoch: int, logits: Tensor, labels: Tensor) -> None:
        if epoch == self.first - 1:
            sums, images = class_sums(logits.double().softmax(1), labels, len(self.seen))
            self.confusion.add_(sums)
            self.seen.add_(images)

    def factors(self, epoch: int) -> Tensor | None:
        if epoch != self.first:
            return None
        mean = self.confusion / self.seen.clamp(min=1)[:, None]
        self.confusion.zero_()
        self.seen.zero_()
        return class_weights(mean, self.lam, self.floor)


class Dafa(ClassBudgets):
    """The base's loss with label terms W_y CE, on examples in balls of W_y eps.

    Steps are W_y alpha. The weights W = 1 + lambda d come from the mean predictions P for attacked
    training images over the last epoch of the warm-up. Of each two classes the harder i gains P_ij
    P_jj, which the easier j loses. Until then all weights are 1. Label terms are divided by the
    batch size, and no divergence is weighted. A base without a label term (harl, HEL in taet) has
    the budgets only. With at-bsl both the weights and the log prior favour rare classes.

    On long tails the published weights of the largest classes are negative, since all others are
    mistaken for them (-0.78 in an example of five classes): their loss is maximised. Here lambda is
    scaled down so that the smallest weight is `floor`.

    Differences from the public code (rucy74/DAFA 2dbfae0, 4a7f87e):

    - There two classes that are equally hard both lose (utils.py:46-49). Until 2 September 2024 the
      easier class i of a pair lost P_ij P_jj, not P_ji P_ii.
    - Its form for AT (losses.py:112-116) steps twice in an iteration and clips to eps last. Only
      the ball of classes with W_y < 1 - alpha / eps differs from ours; it is smaller.
    - Its form for TRADES passes the attacked images before the clean ones. Ours passes them after,
      which gives batch normalisation other running statistics.
    """

    title = "DAFA"
    reference = "Lee et al., ICLR 2024"
    deviations = ("training eps, step size and weight of the label term, if any, differ by class",)

    class Config(ClassBudgets.Config):
        """The base method and the weights."""

        base: Base = "trades"
        """Name of the wrapped method (the public code: trades)."""
        lam: NonNegative | None = None
        """Factor lambda of the differences between classes. Default: 1; 1.5 from 100 classes on
        (paper: and STL-10)."""
        floor: InnerShare = 0.25
        """Smallest weight of a class (our choice)."""
        warm_up: InnerShare = WARM_UP
        """Share of the epochs before the weights begin: 70 of 110 (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(
            config, task, lambda: DafaRule(task, config.lam, config.floor, config.warm_up)
        )
