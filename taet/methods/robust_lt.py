"""RobustLT: any method, with a smaller training budget for head classes and a larger one for tail classes.

Source: Zhang et al., RobustLT, CVPR 2026, arXiv:2605.13395.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from taet import config as configs
from taet import methods
from taet.bounds import Rule, Share
from taet.errors import UserError, unknown
from taet.methods.base import Adversarial, Attack, Loss, Method, Step, Task
from taet.models.heads import Head


def class_budgets(class_counts: Tensor, a: float) -> Tensor:
    """Budget of every class relative to eps, (1 - a) + a s_c / sum_k (n_k / N) s_k with s_c = sqrt(log(n_max / n_c)).

    class_counts n (C,) -> (C,), 1 - a for the largest class; the mean over the training images is 1. With equal counts
    every class has 1; a class without images counts as one image.
    """
    counts = class_counts.to(torch.float64)
    scores = (counts.max() / counts.clamp(min=1)).log().sqrt()
    mean = (counts * scores).sum() / counts.sum()
    return (1 - a + a * scores / mean if mean > 0 else torch.ones_like(scores)).to(class_counts.dtype)


def base_settings(name: str, knobs: Sequence[str]) -> Any:
    """Return the Config of the method called `name` from options written as on the command line, "tail-weight=2"."""
    kind, where = methods.find(name).Config, f"robust-lt: option of {name}"
    names = [field.name for field in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for knob in knobs:
        field, equals, text = (part.strip() for part in knob.partition("="))
        field = field.replace("-", "_")
        if not names:
            raise UserError(f"{where}: got '{knob}'; allowed: none, {name} has no options")
        if field not in names:
            spelled = [known.replace("_", "-") for known in names]
            raise UserError(f"{where}: {unknown('name', field.replace('_', '-'), spelled)}")
        if not equals:
            raise UserError(f"{where}: got '{knob}'; allowed: {knob}=value")
        if field in values:
            raise UserError(f"{where}: got {field.replace('_', '-')} more than once; allowed: each once")
        values[field] = _value(text)
    try:
        return configs.from_json(kind, values)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('method ')}") from None


@functools.cache
def _base(config: RobustLT.Config) -> tuple[type[Method], Any]:
    """The class of the base method and its Config."""
    return methods.find(config.base), base_settings(config.base, config.knobs)


def _value(text: str) -> Any:
    """Value of an option given as text: true or false, a number, numbers separated by blanks, or the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(re.sub(r"(?<=\d)\s+(?=[-+.\d])", ", ", text))
    except (ValueError, SyntaxError, TypeError):
        return text


class RobustLT(Method):
    """The loss of the base method, on examples whose eps and step size are multiplied by a factor per class.

    The factor of class c in epoch t of E (from 1) is min((t - 1) / (b E), 1) times that of `class_budgets`. The warm-up
    thus scales the whole budget: it is 0 in the first epoch, whose examples are the clean images, and from epoch
    b E + 1 on its mean over the training images is eps. Evaluation uses eps for every class.

    There are no published settings for the profile `official`: run the base method under it.
    """

    title = "RobustLT"
    reference = "Zhang et al., CVPR 2026, arXiv:2605.13395"
    deviations: tuple[str, ...] = ("training eps and step size differ by class and grow from 0 in the warm-up",)

    @dataclass(frozen=True)
    class Config(Method.Config):
        """The base method and the budgets."""

        base: Annotated[str, Rule(lambda name: name != "robust-lt", "any other method")] = "at-bsl"
        """Name of the wrapped method (the paper: at-bsl and taet)."""
        a: Share = 0.3
        """Share of the budget that depends on the class counts, 0 to 1 (paper)."""
        b: Share | None = None
        """Length of the warm-up as a share of the epochs; 0: none. Default: 1.0 with taet, 0.8 with others (paper)."""
        knobs: tuple[str, ...] = ()
        """Options of the base method, as on the command line without --method: name=value, e.g. tail-weight=2."""

    base: Method
    budgets: Tensor
    factor: Tensor

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if set(task.stages) == {"clean"}:
            raise UserError(f"method base: got {config.base}, which attacks in no epoch; allowed: one that does")
        self.base = base = methods.build(config.base, _base(config)[1], task)
        self.title = f"{RobustLT.title} + {base.title}"
        self.reference = f"{RobustLT.reference}; {base.reference}"
        self.deviations = (*base.deviations, *RobustLT.deviations)
        self.label_attack = base.label_attack
        self.uses_features = base.uses_features
        self.optimizers = base.optimizers
        self.register_buffer("budgets", class_budgets(self.class_counts, config.a), persistent=False)
        self.register_buffer("factor", self.budgets.clone())

    @staticmethod
    def head(config: Config, task: Task) -> Head:
        base, settings = _base(config)
        return base.head(settings, task)

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        base, settings = _base(config)
        return base.stage_at(settings, task, epoch)

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        return self.base.warnings(class_counts, batch_size)

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        self.base.start_epoch(epoch, predicted_counts)
        self.factor.copy_(self.warm_up(epoch) * self.budgets)

    def warm_up(self, epoch: int) -> float:
        """Share of the budget in `epoch`, from 0."""
        length = (self.base.budget_warm_up if self.config.b is None else self.config.b) * self.task.epochs
        return min(epoch / length, 1.0) if length else 1.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        return self.base.perturb(model, x, y, attack.scaled(self.factor[y]))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        return self.base.loss(model, x, y, adversarial)

    def after_step(self, model: nn.Module, step: Step) -> None:
        self.base.after_step(model, step._replace(attack=step.attack.scaled(self.factor[step.y])))

    def offset(self) -> Tensor:
        return self.base.offset()
