"""The base of methods that wrap another one and give each class a training budget by a rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import SerializeAsAny, ValidationInfo, field_validator
from torch import Tensor, nn

from taet import methods, registry
from taet.errors import UserError, prefix_errors
from taet.methods.base import Adversarial, Attack, ClassFeedback, Facts, Loss, Method, Step, Task
from taet.models.classifier import Head
from taet.settings import Run
from taet.settings.schema import from_json
from taet.settings.types import Rule, Settings


def _wraps_no_other(name: str) -> bool:
    """Whether the method `name` is no wrapper itself; an unknown one is refused when it is
    built."""
    return name not in registry.entries("methods") or not issubclass(
        methods.find(name), ClassBudgets
    )


Base = Annotated[str, Rule(_wraps_no_other, "a method that wraps no other")]
"""Name of a method that can be wrapped."""


class BudgetRule(nn.Module):
    """Computes the factors of the classes from the run so far; its sums are float64 buffers, so
    they are saved."""

    weighs_labels: ClassVar[bool] = False
    """Whether the factors are also class weights of the label terms of the loss."""

    def observe(self, epoch: int, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of attacked training images: logits (N, C) before the step, labels (N,)."""

    def factors(self, epoch: int) -> Tensor | None:
        """Return the factors (C,) from the start of `epoch` on; None: unchanged."""
        raise NotImplementedError


class ClassBudgets(Method):
    """The base's loss on examples whose eps and step size have a factor by class.

    Everything else is the base's. Evaluation and the curve use eps for every class.
    """

    class Config(Method.Config):
        """The base method."""

        retired = MappingProxyType({"knobs": ()})
        base: Base = Run.default("method")
        """Name of the wrapped method."""
        base_settings: SerializeAsAny[Settings] | None = None
        """Settings of the base method. Default: its own defaults."""

        @field_validator("base_settings", mode="before")
        @classmethod
        def _of_base(cls, value: object, info: ValidationInfo) -> object:
            """Build the base's own Config from its settings as JSON."""
            if not isinstance(value, Mapping) or "base" not in info.data:
                return value
            with prefix_errors(f"method base {info.data['base']}"):
                return from_json(methods.find(info.data["base"]).Config, value, "method")

    def __init__(self, config: Config, task: Task, rule: Callable[[], BudgetRule]) -> None:
        super().__init__(config, task)
        if set(task.stages) == {"clean"}:
            raise UserError(
                f"method base: got {config.base}, which attacks in no epoch; allowed: one that does"
            )
        self.base = base = methods.build(config.base, config.base_settings, task)
        self.rule = rule()  # last, so that an error of the base is raised first
        self.epoch = 0
        base.outer.by_class = self.rule.weighs_labels
        self.factor = nn.Buffer(torch.ones_like(self.class_counts))

    @staticmethod
    def head(config: Config, task: Task) -> Head:
        base = methods.find(config.base)
        return base.head(config.base_settings or base.Config(), task)

    @classmethod
    def facts(cls, config: Any) -> Facts:
        base = methods.facts(config.base, config.base_settings)
        return replace(
            base,
            title=f"{cls.title} + {base.title}",
            reference=f"{cls.reference}; {base.reference}",
            deviations=(*base.deviations, *cls.deviations),
        )

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        base = methods.find(config.base)
        return base.stage_at(config.base_settings or base.Config(), task, epoch)

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        texts = self.base.warnings(class_counts, batch_size)
        return tuple(text.replace("--method.", "--method.base-settings.") for text in texts)

    def enter(self, epoch: int) -> None:
        super().enter(epoch)
        self.epoch = epoch
        self._weigh_labels()

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        self.base.start_epoch(epoch, predicted_counts)
        factors = self.rule.factors(epoch)
        if factors is not None:
            self.factor.copy_(factors)
        self._weigh_labels()

    def _weigh_labels(self) -> None:
        """Hand the factors to the outer loss, which does not save them."""
        if self.rule.weighs_labels:
            self.base.outer.factor.copy_(self.factor)

    def begin(self, model: nn.Module) -> None:
        self.base.begin(model)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        return self.base.perturb(model, x, y, attack.scaled(self.factor[y]))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        return self.base.loss(model, x, y, adversarial)

    def after_step(self, model: nn.Module, step: Step) -> None:
        self.base.after_step(model, step._replace(attack=step.attack.scaled(self.factor[step.y])))
        if self.stage != "clean":
            self.rule.observe(self.epoch, step.loss.logits, step.y)

    def feedback(self, epoch: int, seen: ClassFeedback) -> None:
        self.base.feedback(epoch, seen)

    def accepts_epoch(self, epoch: int, seen: ClassFeedback) -> bool:
        return self.base.accepts_epoch(epoch, seen)

    def offset(self) -> Tensor:
        return self.base.offset()
