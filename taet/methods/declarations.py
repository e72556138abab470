"""What several methods declare in the same way: published settings, a second stage, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping

from taet.errors import UserError
from taet.methods.base import Task


def published(
    threat: Mapping[str, object],
    training: Mapping[str, object],
    model: Mapping[str, object] | None = None,
    method: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return a method's own settings as overrides of a Run; what is not given here is what most papers share."""
    given = {
        "model": {"normalize": "none"} | dict(model or {}),
        "threat": dict(threat) | {"bn_mode": threat.get("bn_mode", "eval")},
        "training": {"batch_size": 128, "lr": 0.1, "momentum": 0.9} | dict(training),
        "method": dict(method or {}),
    }
    return {f"{part}.{name}": value for part, values in given.items() for name, value in values.items()}


def refuse_smoothing(method: str, task: Task, why: str) -> None:
    """Refuse label smoothing in a method where it has no meaning."""
    if task.outer.label_smoothing:
        raise UserError(f"{method}: got label smoothing {task.outer.label_smoothing:g}; {why}")


def second_stage(begin: float | None, task: Task, epoch: int, name: str) -> str:
    """Return `name` from a share `begin` of the epochs on, by default from the first milestone on; before: burn-in.

    A run without an epoch of that stage is refused: it would be the burn-in's method under another name.
    """
    first = min(task.milestones, default=task.epochs) if begin is None else round(begin * task.epochs)
    if first >= task.epochs:
        got = "no milestone in" if begin is None else f"{begin:.3g} of"
        raise UserError(f"method begin: got {got} {task.epochs} epochs; allowed: a share that leaves an epoch after it")
    return name if epoch >= first else "burn-in"
