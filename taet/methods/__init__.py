"""Training methods, one file each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from taet import registry
from taet.errors import PLUGIN, UNPRINTABLE, UserError, custom_code, located
from taet.fields import Settings, hints, is_readable
from taet.methods.base import Adversarial, Attack, Loss, Method, Task
from taet.models.heads import Head
from taet.settings import Outer, from_json

__all__ = ["Attack", "Method", "Task", "build", "find"]


def _is_loss(made: Any, _method: Method, _model: Any, x: Tensor, *_: Any) -> bool:
    if not (isinstance(made, Loss) and isinstance(made.parts, Mapping)):
        return False
    total, logits = made.total, made.logits
    return (
        all(isinstance(one, Tensor) for one in (total, logits, *made.parts.values()))
        and total.ndim == 0
        and total.is_floating_point()
        and (total.requires_grad or not torch.is_grad_enabled())
        and logits.ndim == 2
        and len(logits) == len(x)
    )


RETURNS: dict[str, tuple[Callable[..., bool], str]] = {
    "__init__": (
        lambda _, method, *__: {"config", "task"} <= vars(method).keys(),
        "None, after a call of super().__init__(config, task)",
    ),
    "outer_loss": (lambda made, *_: isinstance(made, Outer), "an Outer"),
    "head": (lambda made, *_: isinstance(made, Head), "a Head"),
    "stage_at": (lambda made, *_: isinstance(made, str), "a text"),
    "warnings": (lambda made, *_: isinstance(made, tuple), "a tuple of texts"),
    "start_epoch": (lambda *_: True, ""),
    "perturb": (lambda made, *_: isinstance(made, Adversarial) and isinstance(made.x, Tensor), "an Adversarial"),
    "loss": (
        _is_loss,
        "a Loss(total, parts, logits) of tensors: total a real scalar that depends on the weights, logits (N, C)",
    ),
    "after_step": (lambda *_: True, ""),
    "feedback": (lambda *_: True, ""),
    "admits": (lambda made, *_: isinstance(made, bool), "a bool"),
    "offset": (lambda made, *_: isinstance(made, Tensor), "a tensor (C,)"),
}
"""What the hooks of a custom method return."""


def find(name: str) -> type[Method]:
    """Return the class of the method called `name`: the one `Method` that its file defines, which must be whole."""
    module = registry.find("methods", name).load()
    classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    found = [c for c in classes if issubclass(c, Method)]
    if len(found) != 1:
        raise UserError(f"{module.__file__}: got {len(found)} methods; allowed: one class that extends Method")
    where = f"{module.__file__}: {found[0].__name__}"
    _check_class(found[0], where)
    if module.__name__.startswith(PLUGIN):
        _check_custom(found[0], where)
        registry.guard(found[0], RETURNS, where)
    return found[0]


def _check_class(cls: type[Method], where: str) -> None:
    """Refuse a class that lacks what every method has to say."""
    if cls.loss is Method.loss:
        raise UserError(f"{where}: got no method loss; allowed: loss(self, model, x, y, adversarial)")
    for name in ("title", "reference"):
        text = getattr(cls, name, None)
        if not isinstance(text, str) or not text or UNPRINTABLE.search(text):
            raise UserError(f"{where}: got no {name}; allowed: a text that can be printed, {name} = '...'")
    for name in ("outer_loss", "head", "stage_at"):
        if not isinstance(inspect.getattr_static(cls, name), staticmethod):
            raise UserError(f"{where}: got {name} without @staticmethod; allowed: {name}(config, task, ...)")
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, Settings)):
        raise UserError(f"{where}: got a Config that is no Settings; allowed: class Config(Method.Config)")
    for name, field in cls.Config.model_fields.items():
        if field.is_required():
            raise UserError(f"{where}: got the option {name} without a default; every option needs one")


def _check_custom(cls: type[Method], where: str) -> None:
    """Refuse declarations of the wrong type, and options that no command line can set."""
    declared = {"official": Mapping, "deviations": tuple, "label_attack": bool, "uses_features": bool}
    for name, kind in declared.items():
        if not isinstance(getattr(cls, name), kind):
            raise UserError(f"{where}: {name}: got a {type(getattr(cls, name)).__name__}; allowed: {kind.__name__}")
    with located(where), custom_code(f"{where}: Config"):
        cls.Config()
    for name, hint in hints(cls.Config).items():
        if not is_readable(hint):
            raise UserError(
                f"{where}: the option {name}: got the type {hint!r}; "
                "allowed: int, float, str, bool, Literal, tuples of them, and None"
            )


def build(name: str, settings: Any, task: Task) -> Method:
    """Return the method called `name`; `settings` is its Config, a mapping of options, or None for the defaults."""
    cls = find(name)
    if settings is None or isinstance(settings, Mapping):
        settings = from_json(cls.Config, settings or {}, "method")
    if type(settings) is not cls.Config:
        raise UserError(f"method {name}: got settings of type {type(settings).__qualname__}; allowed: its own Config")
    if task.weighting != "none" and not cls.label_attack:
        raise UserError(f"{name}: got the weighting {task.weighting}; its attack raises no loss on labels: only none")
    if task.outer.drw and not task.milestones:
        raise UserError("outer drw: got a schedule without a milestone; allowed: one at which it can begin")
    task = replace(task, outer=cls.outer_loss(settings, task))
    stages = tuple(cls.stage_at(settings, task, epoch) for epoch in range(task.epochs))
    method = cls(settings, replace(task, head=cls.head(settings, task), stages=stages))
    if method.average_decay and not method.needs_feedback:
        raise UserError(f"{name}: got an average_decay without needs_feedback; allowed: both, or neither")
    return method
