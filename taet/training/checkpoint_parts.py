"""What a checkpoint holds: an entry for each part of the state, which `Trainer.parts` lists, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from taet.shapes import check_shape


class Stateful(Protocol):
    """A module, an optimiser, or any other object with `state_dict` and `load_state_dict`."""

    def state_dict(self) -> object:
        """Return plain Python and tensors."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Restore the state that `state_dict` returned."""
        ...


class Part(NamedTuple):
    """How a part of the state is saved, as plain Python and tensors, and restored."""

    save: Callable[[], object]
    load: Callable[[Any], object]


def of(part: Stateful | None) -> Part:
    """Return the part of an object with `state_dict` and `load_state_dict`; for None, the state is None."""
    if part is None:
        return Part(lambda: None, lambda _: None)
    return Part(part.state_dict, part.load_state_dict)


def attribute(owner: object, name: str, check: Callable[[Any], None]) -> Part:
    """Return the part of one attribute; `check` raises an exception for a value that does not fit."""

    def load(value: Any) -> None:
        check(value)
        setattr(owner, name, value)

    return Part(partial(getattr, owner, name), load)


def field(owner: object, name: str, shape: Any) -> Part:
    """Return the part of one attribute of plain Python values with a `shape` as in `taet.shapes`."""
    return attribute(owner, name, lambda value: check_shape(name, value, shape))


def weights(owner: object, name: str, model: nn.Module) -> Part:
    """Return the part of an attribute that is None or the weights of a model like `model`."""

    def check(values: object) -> None:
        if values is not None:
            check_form(name, values, model.state_dict())

    return attribute(owner, name, check)


def in_place(name: str, own: Tensor | None) -> Part:
    """Return the part of a tensor that is restored in place; for None, the state is None."""

    def load(value: Tensor) -> None:
        if own is not None:
            check_form(name, value, own)
            own.copy_(value)

    return Part(lambda: own, load)


def optimizer(own: torch.optim.Optimizer) -> Part:
    """Return the part of an optimiser; a state of another optimiser, or with other settings, raises a ValueError."""

    def load(state: dict[str, Any]) -> None:
        for held, group in zip(own.param_groups, state["param_groups"], strict=True):
            for name in held.keys() - {"params", "lr"}:  # the rate is set before each step
                if name in group and group[name] != held[name]:  # a version of torch may add names
                    raise ValueError(f"{name} is {group[name]!r:.100}, not {held[name]!r}")
        own.load_state_dict(state)
        for parameter, entries in own.state.items():
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.ndim:
                    check_form(name, value, parameter)

    return Part(own.state_dict, load)


def check_form(name: str, saved: object, own: object) -> None:
    """Refuse saved tensors whose shape or type differs from `own`, and mappings with other names."""
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            raise ValueError(f"{name} has other parts than this run")
        for key, value in own.items():
            check_form(f"{name} {key}", saved[key], value)
        return
    wanted = (own.shape, own.dtype) if isinstance(own, Tensor) else None
    if wanted is not None and (not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != wanted):
        raise ValueError(f"{name} has another shape or type than in this run")


def each(parts: Mapping[str, Stateful]) -> Part:
    """Return the part that combines several named objects."""

    def load(states: Mapping[str, object]) -> None:
        for name, state in states.items():
            parts[name].load_state_dict(state)

    return Part(lambda: {name: part.state_dict() for name, part in parts.items()}, load)
