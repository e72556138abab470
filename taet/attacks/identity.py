"""The identity of an attack: when two attacks count as the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]
"""Fields of a specification by their names."""


@dataclass(frozen=True)
class Identity:
    """Two results are comparable if they have the same identity: attack and settings, without random seeds."""

    name: str
    norm: str | None
    eps: float | None
    bounded: bool
    settings: tuple[tuple[str, object], ...] = ()
    """Sorted names and hashable values of the settings."""
    members: tuple[Identity, ...] = ()
    """The attacks of a worst case, sorted by name."""
    seed: object = field(default=None, compare=False)

    @property
    def ball(self) -> tuple[str | None, float | None]:
        """Norm and radius."""
        return self.norm, self.eps

    def differences(self, other: Identity, seeds: bool = False) -> dict[str, tuple[object, object]]:
        """Return both values of every setting in which two attacks differ, sorted; random seeds only with `seeds`."""
        ours, theirs = self._values(), other._values()
        names = sorted(name for name in ours.keys() | theirs.keys() if seeds or name != "seed")
        return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}

    def _values(self) -> dict[str, object]:
        ball = {"norm": self.norm, "eps": self.eps, "bounded": self.bounded}
        return {**ball, **dict(self.settings), "attacks": self.members, "seed": self.seed}

    def apart_from(self, *names: str) -> tuple[object, ...]:
        """Return a key that two attacks share if they differ only in these settings and in their names."""
        settings = tuple((name, value) for name, value in self.settings if name not in names)
        return self.norm, *(() if "eps" in names else (self.eps, self.bounded)), settings


def identity(
    name: str, norm: str | None, eps: float | None, parameters: Fields, bounded: bool | None = None
) -> Identity:
    """Return the identity of an attack from its stored parameters, or from those of `AttackSpec.parameters`.

    "from", the longer attack that a result was taken from, is ignored.
    """
    settings = [(key, _frozen(value)) for key, value in parameters.items() if key not in ("seed", "from", "attacks")]
    members = _members(parameters.get("attacks", ()))
    return Identity(
        name,
        norm,
        eps,
        eps is not None if bounded is None else bounded,
        tuple(sorted(settings)),
        tuple(members[one] for one in sorted(members)),
        parameters.get("seed"),
    )


def _members(attacks: Sequence[Fields]) -> dict[str, Identity]:
    """Return the attacks of a worst case by name; a nested worst case is replaced by its attacks."""
    found: dict[str, Identity] = {}
    for attack in sorted(attacks, key=lambda attack: "attacks" not in attack):
        if "attacks" in attack:
            found |= _members(attack["attacks"])
        else:
            own = {key: value for key, value in attack.items() if key not in ("name", "norm", "eps")}
            found[attack["name"]] = identity(attack["name"], attack.get("norm"), attack.get("eps"), own)
    return found


def _frozen(value: object) -> object:
    """Return a value of JSON as a hashable one, without random seeds."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(entry)) for key, entry in value.items() if key != "seed"))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
