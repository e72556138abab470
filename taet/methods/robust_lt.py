"""RobustLT: any method, with a smaller training budget for head classes and a larger one for tail classes.

Source: Zhang et al., RobustLT, CVPR 2026, arXiv:2605.13395.
"""

import torch
from torch import Tensor, nn

from taet.fields import Share
from taet.methods.base import Task
from taet.methods.wrapper import Base, BudgetRule, ClassBudgets

WARM_UP = {"taet": 1.0}  # share of the epochs, by base; 0.8 with others (public code)


def class_budgets(class_counts: Tensor, a: float) -> Tensor:
    """Budget of every class relative to eps, (1 - a) + a s_c / sum_k (n_k / N) s_k with s_c = sqrt(log(n_max / n_c)).

    class_counts n (C,) -> (C,), 1 - a for the largest class; the mean over the training images is 1. With equal counts
    every class has 1; a class without images counts as one image.
    """
    counts = class_counts.to(torch.float64)
    scores = (counts.max() / counts.clamp(min=1)).log().sqrt()
    mean = (counts * scores).sum() / counts.sum()
    return (1 - a + a * scores / mean if mean > 0 else torch.ones_like(scores)).to(class_counts.dtype)


class CountsRule(BudgetRule):
    """Factors by the class counts alone: min(t / (b E), 1) times `class_budgets` in epoch t of E, from 0."""

    def __init__(self, task: Task, a: float, b: float | None, base: str) -> None:
        super().__init__()
        self.length = (WARM_UP.get(base, 0.8) if b is None else b) * task.epochs
        counts = torch.tensor(task.exposure, dtype=torch.float32)
        self.budgets = nn.Buffer(class_budgets(counts, a), persistent=False)

    def factors(self, epoch: int) -> Tensor:
        return (min(epoch / self.length, 1.0) if self.length else 1.0) * self.budgets


class RobustLT(ClassBudgets):
    """The loss of the base method, on examples whose eps and step size are multiplied by a factor per class.

    The factor of class c in epoch t of E (from 1) is min((t - 1) / (b E), 1) ((1 - a) + a s_c / sum_k (n_k / N) s_k)
    with s_c = sqrt(log(n_max / n_c)). The warm-up thus scales the whole budget: it is 0 in the first epoch, whose
    examples are the clean images, and from epoch b E + 1 on its mean over the training images is eps. Evaluation uses
    eps for every class. Start noise lies in the ball of the class; the public code's lies in that of eps.

    a and b are those of CIFAR-10 in the public code. It has others for CIFAR-100, a 0.4 and b 0.6 with every base, and
    for Tiny-ImageNet, a 0.4 and b from 0.2 to 0.8 by base: the paper's numbers there need the options.

    There are no published settings for the profile `official`: run the base method under it.
    """

    title = "RobustLT"
    reference = "Zhang et al., CVPR 2026, arXiv:2605.13395"
    deviations: tuple[str, ...] = ("training eps and step size differ by class and grow from 0 in the warm-up",)

    class Config(ClassBudgets.Config):
        """The base method and the budgets."""

        base: Base = "at-bsl"
        """Name of the wrapped method (the paper: at-bsl and taet)."""
        a: Share = 0.3
        """Share of the budget that depends on the class counts, 0 to 1 (public code)."""
        b: Share | None = None
        """Length of the warm-up as a share of the epochs; 0: none. Default: 1.0 with taet, else 0.8 (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task, lambda: CountsRule(task, config.a, config.b, config.base))
        equal = config.a == 0 or len({*task.exposure} - {0}) == 1  # as with class-balanced batches
        changes = [*["differ by class"] * (not equal), *["grow from 0 in the warm-up"] * (config.b != 0)]
        budgets = [f"training eps and step size {' and '.join(changes)}"] if changes else []
        self.deviations = (*self.base.deviations, *budgets)
