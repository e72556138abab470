"""RobustLT: any method, with smaller training budgets for head classes and larger ones for tail.

Source: Zhang et al., RobustLT, CVPR 2026, arXiv:2605.13395.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from taet import methods
from taet.methods.base import Facts, Task
from taet.methods.wrapper import Base, BudgetRule, ClassBudgets
from taet.settings.types import Share

WARM_UP = {"taet": 1.0}  # share of the epochs, by base; 0.8 with others (public code)


def class_budgets(class_counts: Tensor, a: float) -> Tensor:
    """Budget of every class relative to eps, (1 - a) + a s_c / sum_k (n_k / N) s_k with s_c =
    sqrt(log(n_max / n_c)).

    class_counts n (C,) -> (C,), 1 - a for the largest class; the mean over the training images is
    1. With equal counts every class has 1; a class without images counts as one image.
    """
    counts = class_counts.to(torch.float64)
    scores = (counts.max() / counts.clamp(min=1)).log().sqrt()
    mean = (counts * scores).sum() / counts.sum()
    return (1 - a + a * scores / mean if mean > 0 else torch.ones_like(scores)).to(
        class_counts.dtype
    )


class CountsRule(BudgetRule):
    """Factors by the class counts alone: min(t / (b E), 1) times `class_budgets` in epoch t of E,
    from 0."""

    def __init__(self, task: Task, a: float, b: float | None, base: str) -> None:
        super().__init__()
        self.length = (WARM_UP.get(base, 0.8) if b is None else b) * task.epochs
        counts = torch.tensor(task.drawn_class_counts, dtype=torch.float32)
        self.budgets = nn.Buffer(class_budgets(counts, a), persistent=False)

    def factors(self, epoch: int) -> Tensor:
        return (min(epoch / self.length, 1.0) if self.length else 1.0) * self.budgets


class RobustLT(ClassBudgets):
    """The base's loss on examples whose eps and step size have a factor by class.

    In epoch t of E, counted from 1, the factor of class c is

        min((t - 1) / (b E), 1) ((1 - a) + a s_c / sum_k (n_k / N) s_k),   s_c = sqrt(log(n_max /
        n_c))

    So the warm-up scales the whole budget: it is 0 in the first epoch, whose examples are the clean
    images. From epoch b E + 1 on its mean over the training images is eps. Evaluation uses eps for
    every class.

    Differences from the public code: start noise lies in the ball of the class, and there in that
    of eps. The public code attacks with the batch's own statistics of batch normalisation, ours
    with the running ones, as the protocols do.

    a and b are those of CIFAR-10 in the public code. It has others for CIFAR-100, a 0.4 and b 0.6
    with every base, and for Tiny-ImageNet, a 0.4 and b from 0.2 to 0.8 by base. To repeat the
    paper's numbers there, set the options.

    There are no published settings for the profile `official`: run the base method under it.
    """

    title = "RobustLT"
    reference = "Zhang et al., CVPR 2026, arXiv:2605.13395"
    deviations = (
        "training eps and step size follow the class counts and grow from 0 in the warm-up",
    )

    class Config(ClassBudgets.Config):
        """The base method and the budgets."""

        base: Base = "at-bsl"
        """Name of the wrapped method (the paper: at-bsl and taet)."""
        a: Share = 0.3
        """Share of the budget that depends on the class counts, 0 to 1 (public code)."""
        b: Share | None = None
        """Length of the warm-up as a share of the epochs; 0: none. Default: 1.0 with taet, else 0.8
        (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task, lambda: CountsRule(task, config.a, config.b, config.base))

    @classmethod
    def facts(cls, config: Config) -> Facts:
        changes = []
        if config.a:
            changes.append("follow the class counts")
        if config.b != 0:
            changes.append("grow from 0 in the warm-up")
        own = f"training eps and step size {' and '.join(changes)}"
        of_base = methods.facts(config.base, config.base_settings).deviations
        deviations = (*of_base, own) if changes else of_base
        return replace(super().facts(config), deviations=deviations)
