"""The requests of an evaluation: changed settings, attacks, and bundles, which are all columns of a paper."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from taet import protocols
from taet.attacks import catalogue
from taet.attacks.spec import AttackSpec
from taet.errors import UserError, unknown
from taet.fields import hints
from taet.settings import Evaluation, Threat

DEFAULTS = Evaluation()
OF_THE_PAPER = ("step_size", "eps_l2", "step_size_l2", "cw_constant", "cw_bounded")  # settings that a bundle brings


def parse_attack(name: str, settings: Evaluation = DEFAULTS, eps: float | None = None) -> AttackSpec:
    """Return the attack that `NAME` or `NAME:option=value,...` means, as `taet.attacks.catalogue.parse` does.

    The name of a protocol refers to several attacks and raises a `UserError` here.
    """
    base = name.partition(":")[0]
    if base in protocols.COLUMNS:
        raise UserError(f"attack '{base}': got a protocol of {len(protocols.COLUMNS[base])} attacks; allowed: one")
    return catalogue.parse(name, settings, eps, others=protocols.COLUMNS)


def parse_attacks(names: Sequence[str], settings: Evaluation = DEFAULTS, eps: float | None = None) -> list[AttackSpec]:
    """Return one or more attacks; no, unknown or repeated attacks are a `UserError`."""
    parsed = [parse_attack(name, settings, eps) for name in names]
    if not parsed:
        raise UserError("attacks: got none; allowed: one or more, e.g. clean pgd-20")
    if len({attack.name for attack in parsed}) < len(parsed):
        raise UserError(f"attacks: got {' '.join(names)}; allowed: each once")
    return parsed


def attacks_of(settings: Evaluation, eps: float | None = None) -> list[AttackSpec]:
    """Return the attacks of an evaluation, with bundles replaced by their attacks; unknown ones are a `UserError`."""
    expanded = expand(settings.attacks, settings, eps)
    return parse_attacks(expanded.attacks, expanded, eps)


def changes(settings: Mapping[str, Any] | None, **given: Any) -> dict[str, Any]:
    """Return the fields of `Evaluation` that a call changes, from a mapping and from keyword arguments.

    None is a value only of a field that may be None. Any other field's name is a `UserError`.
    """
    if not (settings is None or isinstance(settings, Mapping)):
        raise UserError(f"settings: got {type(settings).__name__}; allowed: a mapping of fields of Evaluation")
    known, changed = hints(Evaluation), {} if settings is None else {**settings}
    for name in (*changed, *given):
        if name not in known:
            raise unknown("field of the settings", str(name), known)
    optional = {name for name, hint in known.items() if type(None) in typing.get_args(hint)}
    changed |= {name: value for name, value in given.items() if value is not None or name in optional}
    if (names := changed.get("attacks")) is not None:
        changed["attacks"] = (names,) if isinstance(names, str) else tuple(names)
    return changed


def settle(own: Evaluation, changed: Mapping[str, Any], eps: float) -> Evaluation:
    """Return settings with these fields changed, a bundle replaced by its attacks, and a radius, by default `eps`.

    An explicitly changed field takes precedence over the bundle.
    """
    sizes = (changed.get("eps"), own.eps, eps)
    radius = next(size for size in sizes if size is not None)
    expanded = expand(changed.get("attacks", own.attacks), own, radius)
    return expanded.replace(**{**changed, "attacks": expanded.attacks, "eps": radius})


def expand(names: Sequence[str], settings: Evaluation, eps: float | None = None) -> Evaluation:
    """Return settings with these attacks, where the name of a protocol is replaced by all columns of its paper.

    Such a bundle also sets the paper's step size, L2 ball and CW, which define its columns, except those that were set
    to values of no protocol. With another radius `eps` than the paper's, the step size is in proportion. Two protocols
    at once are a `UserError`.
    """
    bundles = [name for name in names if name in protocols.COLUMNS]
    if not bundles:
        return settings.replace(attacks=tuple(names))
    if len(bundles) > 1:
        raise UserError(f"attacks: got {' and '.join(bundles)}, whose settings differ; allowed: one protocol at a time")
    attacks = dict.fromkeys(one for name in names for one in protocols.COLUMNS.get(name, (name,)))
    theirs = protocols.start(bundles[0]).evaluation
    scale = 1 if eps is None or eps == Threat().eps else eps / Threat().eps
    theirs = theirs.replace(step_size=theirs.step_size * scale)
    known = [DEFAULTS, *(protocols.start(name).evaluation for name in protocols.COLUMNS)]
    paper = {
        name: getattr(theirs, name)
        for name in OF_THE_PAPER
        if any(getattr(settings, name) == getattr(one, name) for one in known)
    }
    return settings.replace(attacks=tuple(attacks), **paper)
