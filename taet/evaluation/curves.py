"""Curves of an evaluation: attacks that differ in one setting, each a column of the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from taet.attacks.adaptive_pgd import AdaptivePgd
from taet.attacks.pgd import Pgd
from taet.attacks.spec import AttackSpec
from taet.errors import unknown
from taet.evaluation.bundles import parse_attack
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.formatting import size
from taet.settings import Evaluation

STEPS = (1, 2, 5, 10, 20, 50, 100)
CHAIN = 20  # steps of the PGD whose radius or logit scale is varied
BALLS = (1 / 4, 1 / 2, 1, 2, 4, 8)  # times eps
WHOLE = 1.0  # this ball contains every image: no classifier is robust in it
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # below 1 for masking by large logits, above 1 for masking by small ones


@dataclass(frozen=True)
class AttackCurve:
    """One curve, its points in ascending order."""

    name: str
    attack: str
    """Name of the attack whose setting is varied."""
    points: tuple[tuple[float, Column], ...]


def curve_attacks(names: Sequence[str], settings: Evaluation, eps: float) -> list[AttackSpec]:
    """Return the attacks of these curves, each labelled with the first curve that needs it.

    On the curve over eps the step size is proportional to the radius, so that every attack can cross its ball.
    """
    radius = settings.eps if settings.eps is not None else eps
    wanted: dict[str, list[str]] = {
        "steps": [f"pgd-{steps}" for steps in STEPS],  # REAT, figures 4a and 8
        "eps": [_ball(ball, radius) for ball in sorted({*(b * radius for b in BALLS if b * radius < WHOLE), WHOLE})],
        "logit-scale": [_scale(factor) for factor in FACTORS],
    }
    attacks: dict[str, AttackSpec] = {}
    for name in names:
        if name not in wanted:
            raise unknown("curve", name, wanted)
        for attack in wanted[name]:
            attacks.setdefault(attack, replace(parse_attack(attack, settings, eps), curve=name))
    return list(attacks.values())


def curves(card: ResultCard) -> tuple[AttackCurve, ...]:
    """Return every curve that has at least three points on a card; clean images are the point at eps 0.

    The points of a curve differ only in the varied setting, and over eps also in the step size, proportional to eps. If
    a card has several such sets of columns, the one measured for the curve is used, else the largest.
    """
    chain = f"pgd-{CHAIN}"
    found = (("steps", "PGD", "steps"), ("eps", chain, "eps"), ("logit-scale", chain, "factor"))
    all_curves = (AttackCurve(name, attack, _points(card, name, varied)) for name, attack, varied in found)
    return tuple(curve for curve in all_curves if len(curve.points) >= 3)


def _points(card: ResultCard, curve: str, varied: str) -> tuple[tuple[float, Column], ...]:
    """Return comparable columns, ordered by the varied setting; if two have the same value, the first is kept."""
    groups: dict[Any, list[Column]] = {}
    for column in card.columns:
        if (fixed := _fixed(column, varied)) is not None:
            groups.setdefault(fixed, []).append(column)
    chosen = max(groups.values(), key=lambda group: (sum(one.curve == curve for one in group), len(group)), default=[])
    if varied == "eps":
        chosen = [*(column for column in card.columns if column.norm is None), *chosen]
    # Clean images are at radius 0, PGD without a factor is at factor 1.
    places = {float(getattr(column.attack, varied, 1) or 0): column for column in reversed(chosen)}
    return tuple(sorted(places.items()))


def _fixed(column: Column, varied: str) -> Any:
    """Return the settings that all points of a curve share; None if the column cannot be a point of the curve."""
    attack, kinds = column.attack, (Pgd, AdaptivePgd) if varied == "factor" else (Pgd,)
    if not isinstance(attack, kinds) or attack.norm != "linf" or attack.made_on is not None:
        return None
    if not attack.options <= {varied} or (varied != "steps" and attack.steps != CHAIN):
        return None
    if varied == "eps":
        return column.identity.apart_from("eps", "step_size"), round(attack.step_size / (attack.radius or 1), 9)
    return column.identity.apart_from(varied)


def _ball(ball: float, radius: float) -> str:
    if ball == radius:
        return f"pgd-{CHAIN}"
    return f"pgd-{CHAIN}:eps={f'{WHOLE:g}' if ball == WHOLE else size(ball, 6, within=1e-9)}"


def _scale(factor: float) -> str:
    if factor == 1:
        return f"pgd-{CHAIN}"
    return f"adaptive-pgd-{CHAIN}" + ("" if factor == 10 else f":factor={factor:g}")
