"""Class budgets: any method, with a training budget for each class by a published rule.

Source: RobustLT (Zhang et al., CVPR 2026, arXiv:2605.13395), DAFA (Lee et al., ICLR 2024), CFA (Wei
et al., CVPR 2023).
"""

from dataclasses import replace
from typing import Annotated, Literal

from taet.methods.base import Facts, Task
from taet.methods.cfa import BEGIN, CfaRule
from taet.methods.dafa import WARM_UP, DafaRule, InnerShare
from taet.methods.robust_lt import CountsRule
from taet.methods.wrapper import Base, BudgetRule, ClassBudgets
from taet.settings.types import NonNegative, OnlyWith, PartialShare, Positive, Share


class ClassBudget(ClassBudgets):
    """The base's loss on examples whose eps and step size have a factor by class.

    counts   rarer classes have larger budgets, from the class counts alone: as robust-lt
    dafa     harder classes have larger budgets, and weigh more in label terms: as dafa
    cfa      harder classes have smaller budgets: as cfa, without its weights of the divergence

    The rules contradict each other. The same base under each of them, and without any, is the
    comparison of budgets alone; `robust-lt`, `dafa` and `cfa` are the same rules with the base and
    all else of their papers.
    """

    title = "class budgets"
    reference = (
        "Zhang et al., CVPR 2026, arXiv:2605.13395; Lee et al., ICLR 2024; Wei et al., CVPR 2023"
    )
    deviations = ("training eps and step size, and with dafa label weights, differ by class",)

    class Config(ClassBudgets.Config):
        """The rule with its constants, and the base method."""

        rule: Literal["counts", "dafa", "cfa"] = "counts"
        """How the budget of a class is found."""
        base: Base = "at"
        """Name of the wrapped method."""
        a: Annotated[Share, OnlyWith(rule="counts")] = 0.3
        """counts: share of the budget that depends on the class counts (RobustLT)."""
        b: Annotated[Share | None, OnlyWith(rule="counts")] = None
        """counts: warm-up as a share of the epochs. Default: 1.0 with taet, 0.8 with others
        (RobustLT)."""
        lam: Annotated[NonNegative | None, OnlyWith(rule="dafa")] = None
        """dafa: factor of the differences between classes. Default: 1; 1.5 from 100 classes on."""
        floor: Annotated[InnerShare, OnlyWith(rule="dafa")] = 0.25
        """dafa: smallest weight of a class (our choice)."""
        warm_up: Annotated[InnerShare, OnlyWith(rule="dafa")] = WARM_UP
        """dafa: share of the epochs before the weights begin: 70 of 110 (DAFA)."""
        lambda_1: Annotated[Positive, OnlyWith(rule="cfa")] = 0.5
        """cfa: budget of a class without robustness, as a share of eps (CFA)."""
        begin: Annotated[PartialShare, OnlyWith(rule="cfa")] = BEGIN
        """cfa: share of the epochs before the first class-wise budgets: 10 of 200 (CFA)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task, lambda: _rule(config, task))

    @classmethod
    def facts(cls, config: Config) -> Facts:
        facts = super().facts(config)
        return replace(facts, title=facts.title.replace(cls.title, f"{cls.title} ({config.rule})"))


def _rule(config: ClassBudget.Config, task: Task) -> BudgetRule:
    if config.rule == "counts":
        return CountsRule(task, config.a, config.b, config.base)
    if config.rule == "cfa":
        return CfaRule(task, config.lambda_1, 1.0, config.begin)
    return DafaRule(task, config.lam, config.floor, config.warm_up)
