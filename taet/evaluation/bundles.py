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

PAPER_SETTINGS = ("step_size", "eps_l2", "step_size_l2", "cw_constant", "cw_bounded")  # they define its columns
WHOLE = 1.0  # radius of the ball that contains every image: no classifier is robust in it
SCALES = ("adaptive-pgd-20:factor=0.01", "adaptive-pgd-20:factor=0.1", "pgd-20", "adaptive-pgd-20")


def _radius_curve(eps: float) -> Iterator[str]:
    """Yield the names of PGD-20 with radii from eps / 4 to 8 eps, and with the radius 1, the whole range of images."""
    multiples = (eps * factor for factor in (1 / 4, 1 / 2, 1, 2, 4, 8))
    for radius in sorted({*(multiple for multiple in multiples if multiple < WHOLE), WHOLE}):
        text = f"{WHOLE:g}" if radius == WHOLE else size(radius, 6, within=1e-9)
        yield "pgd-20" if radius == eps else f"pgd-20:eps={text}"


CURVES: dict[str, tuple[CurveName, Callable[[float], Iterable[str]]]] = {
    "curve-steps": ("steps", lambda _: [f"pgd-{steps}" for steps in (1, 2, 5, 10, 20, 50, 100)]),  # REAT, figures 4a, 8
    "curve-eps": ("eps", _radius_curve),
    "curve-logit-scale": ("logit-scale", lambda _: [*SCALES, "adaptive-pgd-20:factor=100"]),
}
"""By name, the setting that varies on a curve, and a function from eps to the names of its attacks, the points."""


def parse_attack(name: str, settings: Evaluation = catalogue.SETTINGS) -> AttackSpec:
    """Return the attack called `NAME`, `NAME:option=value,...` or, with examples made on another run, `ATTACK@RUN`."""
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
    singles = [name for name in settings.attacks if name not in CURVES]
    attacks = [parse_attack(name, settings) for name in singles]
    if len({attack.name for attack in attacks}) < len(attacks):
        raise UserError(f"attacks: got {' '.join(settings.attacks)}; allowed: each once")
    points: dict[str, AttackSpec] = {}
    for curve, names in (CURVES[name] for name in settings.attacks if name in CURVES):
        for name in names(settings.eps or Threat().eps):
            points.setdefault(name, replace(parse_attack(name, settings), curve=curve))
    return [*attacks, *(point for name, point in points.items() if name not in singles)]


def expand(settings: Evaluation, steps: Mapping[str, float] = {}, usual: Evaluation = catalogue.SETTINGS) -> Evaluation:
    """Return settings in which the name of a protocol among the attacks is replaced by all columns of its paper.

    Step sizes, L2 ball and CW become those of the paper, which define its columns, unless they are not those of `usual`
    and so were set. A step is in proportion to the radius. `steps`: the step sizes if the attacks name no protocol.
    """
    papers = [name for name in settings.attacks if name in protocols.COLUMNS]
    if not papers:
        return override(settings, steps)
    if len(papers) > 1:
        raise UserError(f"attacks: got {' and '.join(papers)}, whose settings differ; allowed: one protocol at a time")
    run, eps = protocols.start(papers[0]), settings.eps or Threat().eps
    scaled = override(run.evaluation, protocols.steps_in(eps, settings.eps_l2, run.evaluation, eps, run))
    unset = [name for name in PAPER_SETTINGS if getattr(settings, name) == getattr(usual, name)]
    paper = {name: getattr(scaled, name) for name in unset}
    attacks = dict.fromkeys(each for name in settings.attacks for each in protocols.COLUMNS.get(name, (name,)))
    return override(settings, {**steps, **paper, "attacks": tuple(attacks)})


def settle(own: Evaluation, changes: Mapping[str, Any], eps: float, usual: Run) -> Evaluation:
    """Return settings with these fields changed, a paper's name replaced by its attacks, and a radius, default `eps`.

    A step size that is not changed is scaled with the radius (`protocols.steps_in`). A changed field takes precedence
    over that of a paper. `usual` is the run of the protocol.

    Raises:
        UserError: an unknown field or a wrong value, or a chosen step whose sum cannot reach the radius.
    """
    # None means no change, except for the constant of CW: None searches for it.
    changed = {name: value for name, value in changes.items() if value is not None or name == "cw_constant"}
    if isinstance(names := changed.get("attacks", own.attacks), str):
        names = (names,)
    old_eps = own.eps or eps
    settings = override(own, {"eps": old_eps, **changed, "attacks": tuple(names)})  # refuses unknown fields and values
    steps = protocols.steps_in(settings.eps or old_eps, settings.eps_l2, own, old_eps, usual)
    settings = expand(settings, steps, usual.evaluation)
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


def of_run(run: Run, changes: Mapping[str, object] = {}) -> Evaluation:
    """Return the settings with which a run is evaluated, with these fields changed as `settle` does."""
    return settle(run.evaluation, changes, run.threat.eps, protocols.start(run.protocol, run.method))


def curves(card: Card) -> dict[str, dict[float, Column]]:
    """Return the curves on a card by the setting that varies, in ascending order; empty with fewer than three points.

    The points of a curve differ only in the varied setting, and over eps also in the step size, proportional to eps:
    a point with other settings than the last one is left out. Clean images are the point at eps 0.
    """
    found, known = dict[str, dict[float, Column]](), {column.name: column for column in card.columns}
    for curve, names in CURVES.values():
        varied = "factor" if curve == "logit-scale" else curve
        points = [known[name] for name in names(card.threat["eps"]) if name in known]
        points = [point for point in points if fixed(point, curve) == fixed(points[-1], curve)]
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
