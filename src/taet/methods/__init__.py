"""Training methods, one file each."""

import inspect
from collections.abc import Mapping
from dataclasses import replace

from taet import registry
from taet.errors import UNPRINTABLE, UserError
from taet.methods.base import Attack, Facts, Method, Task
from taet.settings.schema import from_json
from taet.settings.types import Settings, check_value

__all__ = ["Attack", "Facts", "Method", "Task", "build", "facts", "find"]
MethodSettings = Settings | Mapping[str, object] | None
"""Settings of a method: its Config, a mapping of options, or None for the defaults."""
OWN = {
    "loss",
    "label_loss",
    "own_outer",
    "perturb",
    "stage_at",
    "head",
    "offset",
    "begin",
    "after_step",
    "accepts_epoch",
}
"""A plug-in that has none of these of its own would train as AT."""
RENAMED = {"outer_loss": "own_outer = 'focal'", "admits": "accepts_epoch"}
"""Hooks of earlier versions, which would be ignored in a plug-in."""


def find(name: str) -> type[Method]:
    """Return the class of the method called `name`: the one `Method` that its file defines,
    checked.

    Example:
        >>> import taet
        >>> taet.methods.find("at-bsl").title
        'AT-BSL'
    """
    cls: type[Method] = registry.class_of(name)
    where = f"{inspect.getfile(cls)}: {cls.__name__}"
    for old, new in RENAMED.items():
        if old in vars(cls):
            raise UserError(f"{where}: got {old}, which has left; allowed: {new}")
    if (
        registry.find("methods", name).path
        and cls.__bases__ == (Method,)
        and OWN.isdisjoint(vars(cls))
    ):
        raise UserError(
            f"{where}: got no method loss; allowed: one or more of {', '.join(sorted(OWN))}"
        )
    for attribute in ("title", "reference"):
        text = getattr(cls, attribute, None)
        if not isinstance(text, str) or not text or UNPRINTABLE.search(text):
            raise UserError(
                f"{where}: got no {attribute}; allowed: a text that can be printed, {attribute} = "
                "'...'"
            )
    for option, field in cls.Config.model_fields.items():
        if field.is_required():
            raise UserError(
                f"{where}: got the option {option} without a default; every option needs one"
            )
    return cls


def _config(name: str, cls: type[Method], settings: MethodSettings) -> Settings:
    """Return the settings as the Config of the method."""
    if settings is None or isinstance(settings, Mapping):
        return from_json(cls.Config, settings or {}, "method")
    if type(settings) is not cls.Config:
        raise UserError(
            f"method {name}: got settings of type {type(settings).__qualname__}; allowed: its own "
            "Config"
        )
    return settings


def facts(name: str, settings: MethodSettings) -> Facts:
    """Return the facts of the method called `name` with these settings, without building it.

    Example:
        >>> import taet
        >>> taet.methods.facts("n-fgsm", {}).single_step
        True
    """
    cls = find(name)
    return cls.facts(_config(name, cls, settings))


def build(name: str, settings: MethodSettings, task: Task) -> Method:
    """Return the method called `name` with these settings for a task.

    Example:
        >>> import taet
        >>> task = taet.methods.Task((100, 10), (3, 32, 32), epochs=30, steps_per_epoch=1)
        >>> method = taet.methods.build("trades", {"beta": 3.0}, task)
        >>> method.config.beta
        3.0
    """
    cls = find(name)
    settings = _config(name, cls, settings)
    own_outer = cls.facts(settings).own_outer
    if own_outer is not None and task.outer.name == "cross-entropy":
        task = replace(task, outer=task.outer.replace(name=own_outer))
    stages = tuple(cls.stage_at(settings, task, epoch) for epoch in range(task.epochs))
    check_value(f"{inspect.getfile(cls)}: stage_at", stages, tuple[str, ...])
    method = cls(settings, replace(task, head=cls.head(settings, task), stages=stages))
    if task.weighting != "none" and not method.label_attack:
        raise UserError(
            f"{name}: got the weighting {task.weighting}; its attack takes no class weights; "
            "allowed: none"
        )
    return method
