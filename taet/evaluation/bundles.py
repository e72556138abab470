"""The attacks of an evaluation by name: one attack, all columns of a paper, a curve, or examples of another run."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taet import protocols
from taet.attacks import catalogue
from taet.attacks.pgd import ProjectedAscent
from taet.attacks.spec import AttackSpec
from taet.errors import UserError
from taet.evaluation.card import Card
from taet.evaluation.column import Column, CurveName
from taet.formatting import size
from taet.settings import Evaluation, Run, Threat, override
from taet.training.folder import RunFolder

OF_THE_PAPER = ("step_size", "eps_l2", "step_size_l2", "cw_constant", "cw_bounded")  # settings that a paper brings
WHOLE = 1.0  # radius of the ball that contains every image: no classifier is robust in it
SCALES = ("adaptive-pgd-20:factor=0.01", "adaptive-pgd-20:factor=0.1", "pgd-20", "adaptive-pgd-20")


def _balls(eps: float) -> Iterator[str]:
    """Yield PGD-20 in balls from a quarter of eps to 8 eps, and in the whole range of images."""
    for ball in sorted({*(eps * factor for factor in (1 / 4, 1 / 2, 1, 2, 4, 8) if eps * factor < WHOLE), WHOLE}):
        text = f"{WHOLE:g}" if ball == WHOLE else size(ball, 6, within=1e-9)
        yield "pgd-20" if ball == eps else f"pgd-20:eps={text}"


CURVES: dict[str, tuple[CurveName, Callable[[float], Iterable[str]]]] = {
    "curve-steps": ("steps", lambda _: [f"pgd-{steps}" for steps in (1, 2, 5, 10, 20, 50, 100)]),  # REAT, figures 4a, 8
    "curve-eps": ("eps", _balls),
    "curve-logit-scale": ("logit-scale", lambda _: [*SCALES, "adaptive-pgd-20:factor=100"]),
}
"""Names of several attacks that differ in one setting, as functions of eps; each is marked as a point of the curve."""


def parse_attack(name: str, settings: Evaluation = catalogue.SETTINGS) -> AttackSpec:
    """Return the attack that `NAME`, `NAME:option=value,...` or, made on another run, `ATTACK@RUN` means."""
    text, at, folder = name.partition("@")
    base = text.partition(":")[0]
    if base in protocols.COLUMNS or base in CURVES:
        raise UserError(f"attack '{base}': got a name of several attacks; allowed: one")
    attack = catalogue.parse(text, settings, others=(*protocols.COLUMNS, *CURVES))
    if not at:
        return attack
    if attack.not_transferable:
        allowed = "an attack that changes every image, e.g. fgsm, pgd-20, cw-linf-100"
        raise UserError(f"attack '{name}': got {attack.name}, {attack.not_transferable}; allowed: {allowed}")
    source = RunFolder(Path(folder))
    sha256 = source.weights_about().weights_sha256 if source.is_run and source.is_done else ""
    if not sha256:
        raise UserError(f"attack '{name}': got '{folder}'; allowed: the folder of a finished run of this version")
    return attack.on(f"{source.path.resolve().name}-{sha256[:8]}", sha256)  # another run may have this name


def attacks_of(settings: Evaluation) -> list[AttackSpec]:
    """Return the attacks of an evaluation, the points of curves last; unknown and repeated ones are a `UserError`."""
    settings = expand(settings)
    asked = [name for name in settings.attacks if name not in CURVES]
    found = [parse_attack(name, settings) for name in asked]
    if len({attack.name for attack in found}) < len(found):
        raise UserError(f"attacks: got {' '.join(settings.attacks)}; allowed: each once")
    points: dict[str, AttackSpec] = {}
    for curve, names in (CURVES[name] for name in settings.attacks if name in CURVES):
        for name in names(settings.eps or Threat().eps):
            points.setdefault(name, replace(parse_attack(name, settings), curve=curve))
    return [*found, *(point for name, point in points.items() if name not in asked)]


def expand(settings: Evaluation, steps: Mapping[str, float] = {}) -> Evaluation:
    """Return settings whose name of a protocol among the attacks is replaced by all columns of its paper.

    It also sets the paper's step sizes, L2 ball and CW, which define its columns, except those that were set to values
    of no protocol. With another radius than the paper's, a step is in proportion. `steps`: step sizes without a paper.
    """
    papers = [name for name in settings.attacks if name in protocols.COLUMNS]
    if not papers:
        return override(settings, steps)
    if len(papers) > 1:
        raise UserError(f"attacks: got {' and '.join(papers)}, whose settings differ; allowed: one protocol at a time")
    usual, eps = protocols.start(papers[0]), settings.eps or Threat().eps
    theirs = override(usual.evaluation, protocols.steps_in(eps, settings.eps_l2, usual.evaluation, eps, usual))
    known = [catalogue.SETTINGS, *(protocols.start(name).evaluation for name in protocols.COLUMNS)]
    paper = {
        name: getattr(theirs, name)
        for name in OF_THE_PAPER
        if any(getattr(settings, name) == getattr(one, name) for one in known)
    }
    attacks = dict.fromkeys(one for name in settings.attacks for one in protocols.COLUMNS.get(name, (name,)))
    return override(settings, {**steps, **paper, "attacks": tuple(attacks)})


def settle(own: Evaluation, changes: Mapping[str, Any], eps: float, usual: Run) -> Evaluation:
    """Return settings with these fields changed, a paper's name replaced by its attacks, and a radius, default `eps`.

    A step that is not changed follows the radius (`protocols.steps_in`). A changed field takes precedence over those of
    a paper.

    Raises:
        UserError: an unknown field or a wrong value, or a chosen step whose sum cannot reach the radius.
    """
    # None is no change, but for the constant of CW, which is then searched.
    changed = {name: value for name, value in changes.items() if value is not None or name == "cw_constant"}
    if isinstance(names := changed.get("attacks", own.attacks), str):
        names = (names,)
    before = own.eps or eps
    asked = override(own, {"eps": before, **changed, "attacks": tuple(names)})  # refuses unknown fields and values
    steps = protocols.steps_in(asked.eps or before, asked.eps_l2, own, before, usual)
    settings = expand(asked, steps)
    settings = override(settings, {**changed, "attacks": settings.attacks})
    for attack in attacks_of(settings):
        own_step = "step_size_l2" if attack.norm == "l2" else "step_size"
        chosen = own_step in changed or re.search("[:,]step=", attack.typed)
        if not chosen or attack.curve or not isinstance(attack, ProjectedAscent):
            continue
        if attack.steps * attack.step_size < attack.radius * (1 - 1e-9):
            sum_of = f"{attack.steps} steps of {size(attack.step_size)}"
            allowed = f"steps that add up to its radius {size(attack.radius)} or more"
            raise UserError(f"attack '{attack.name}': got {sum_of}; allowed: {allowed}")
    return settings


def of_run(run: Run) -> Evaluation:
    """Return the settings by which a run is evaluated."""
    return settle(run.evaluation, {}, run.threat.eps, protocols.start(run.protocol, run.method))


def curves(card: Card) -> dict[str, dict[float, Column]]:
    """Return the curves on a card by the setting that varies, in ascending order; empty with fewer than three points.

    The points of a curve differ only in the varied setting, and over eps also in the step size, proportional to eps:
    one that was attacked with other settings than the last is left out. Clean images are the point at eps 0.
    """
    found, known = dict[str, dict[float, Column]](), {column.name: column for column in card.columns}
    for curve, names in CURVES.values():
        varied = "factor" if curve == "logit-scale" else curve
        points = [known[name] for name in names(card.threat["eps"]) if name in known]
        points = [one for one in points if fixed(one, curve) == fixed(points[-1], curve)]
        if curve == "eps" and card.clean is not None:
            points.insert(0, card.clean)
        # Clean images are at radius 0, PGD without a factor is at factor 1.
        places = {float(getattr(column.attack, varied, 1) or 0): column for column in points}
        found[curve] = dict(sorted(places.items())) if len(places) >= 3 else {}
    return found


def fixed(column: Column, curve: str) -> object:
    """Return the settings that all points of a curve share."""
    varied = {"steps": ("steps",), "eps": ("eps", "step_size"), "logit-scale": ("factor",)}[curve]
    step, radius = getattr(column.attack, "step_size", 0.0), column.eps or 1.0
    return [pair for pair in column.identity.settings if pair[0] not in varied], round(step / radius, 9)
