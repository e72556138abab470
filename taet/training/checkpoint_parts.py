"""The state of a training run as named parts; a checkpoint holds one entry per part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol


class Stateful(Protocol):
    """A module, an optimiser, or anything else that gives and takes its state."""

    def state_dict(self) -> object:
        """Return plain Python and tensors."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Take what `state_dict` returned."""
        ...


class Part(NamedTuple):
    """How a part of the state is saved, as plain Python and tensors, and taken back."""

    save: Callable[[], object]
    load: Callable[[Any], object]


def of(part: Stateful | None) -> Part:
    """Return the part of an object with `state_dict` and `load_state_dict`; without one, the state is None."""
    if part is None:
        return Part(lambda: None, lambda _: None)
    return Part(part.state_dict, part.load_state_dict)


def field(owner: object, name: str) -> Part:
    """Return the part of one attribute of plain Python values."""
    return Part(partial(getattr, owner, name), partial(setattr, owner, name))


def each(parts: Mapping[str, Stateful]) -> Part:
    """Return the part of several named objects."""

    def load(states: Mapping[str, object]) -> None:
        for name, state in states.items():
            parts[name].load_state_dict(state)

    return Part(lambda: {name: part.state_dict() for name, part in parts.items()}, load)
