"""Training methods, one file each."""

import inspect
from collections.abc import Mapping
from dataclasses import replace

from taet import registry
from taet.errors import UNPRINTABLE, UserError
from taet.fields import Settings, check_value
from taet.methods.base import Attack, Method, Task
from taet.settings import from_json

__all__ = ["Attack", "Method", "Task", "build", "find"]
OWN = {"loss", "label_loss", "outer_loss", "perturb", "stage_at", "head", "offset", "begin", "after_step", "admits"}
"""A plug-in that has none of these of its own would train as AT."""


def find(name: str) -> type[Method]:
    """Return the class of the method called `name`: the one `Method` that its file defines, checked."""
    cls: type[Method] = registry.class_of(name)
    where = f"{inspect.getfile(cls)}: {cls.__name__}"
    if registry.find("methods", name).path and cls.__bases__ == (Method,) and OWN.isdisjoint(vars(cls)):
        raise UserError(f"{where}: got no method loss; allowed: one or more of {', '.join(sorted(OWN))}")
    for attribute in ("title", "reference"):
        text = getattr(cls, attribute, None)
        if not isinstance(text, str) or not text or UNPRINTABLE.search(text):
            raise UserError(f"{where}: got no {attribute}; allowed: a text that can be printed, {attribute} = '...'")
    for option, field in cls.Config.model_fields.items():
        if field.is_required():
            raise UserError(f"{where}: got the option {option} without a default; every option needs one")
    return cls


def build(name: str, settings: Settings | Mapping[str, object] | None, task: Task) -> Method:
    """Return the method called `name`; `settings` is its Config, a mapping of options, or None for the defaults."""
    cls = find(name)
    if settings is None or isinstance(settings, Mapping):
        settings = from_json(cls.Config, settings or {}, "method")
    if type(settings) is not cls.Config:
        raise UserError(f"method {name}: got settings of type {type(settings).__qualname__}; allowed: its own Config")
    task = replace(task, outer=cls.outer_loss(settings, task))
    stages = tuple(cls.stage_at(settings, task, epoch) for epoch in range(task.epochs))
    check_value(f"{inspect.getfile(cls)}: stage_at", stages, tuple[str, ...])
    method = cls(settings, replace(task, head=cls.head(settings, task), stages=stages))
    if task.weighting != "none" and not method.label_attack:
        raise UserError(f"{name}: got the weighting {task.weighting}; its attack takes no class weights; allowed: none")
    return method
