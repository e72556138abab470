"""The attacks of an evaluation, by name.

A name is that of one attack, of all columns of a paper, or of a curve; ATTACK@RUN takes the
examples that were made on another run.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taet import protocols
from taet.attacks import catalogue
from taet.attacks.pgd import ProjectedAscent
from taet.attacks.spec import AttackSpec
from taet.card.card import Card
from taet.card.column import Column, CurveName
from taet.errors import UserError
from taet.formatting import format_radius
from taet.run.folder import RunFolder
from taet.settings import Evaluation, Run, Threat, override
from taet.settings.step_sizes import reaches, step_sizes_for

# settings that define the columns of a paper
PAPER_SETTINGS = ("step_size", "eps_l2", "step_size_l2", "cw_constant", "cw_bounded")
WHOLE = 1.0  # radius of the ball that contains every image: no classifier is robust in it
SCALES = ("adaptive-pgd-20:factor=0.01", "adaptive-pgd-20:factor=0.1", "pgd-20", "adaptive-pgd-20")


def _radius_curve(eps: float) -> Iterator[str]:
    """Yield the names of PGD-20 with radii from eps / 4 to 8 eps, and with radius 1.

    Radius 1 is the whole range of images.
    """
    radii = {WHOLE}
    for factor in (1 / 4, 1 / 2, 1, 2, 4, 8):
        if eps * factor < WHOLE:
            radii.add(eps * factor)
    for radius in sorted(radii):
        text = f"{WHOLE:g}" if radius == WHOLE else format_radius(radius, 6, within=1e-9)
        yield "pgd-20" if radius == eps else f"pgd-20:eps={text}"


CURVES: dict[str, tuple[CurveName, Callable[[float], Iterable[str]]]] = {
    # REAT, figures 4a, 8
    "curve-steps": ("steps", lambda _: [f"pgd-{steps}" for steps in (1, 2, 5, 10, 20, 50, 100)]),
    "curve-eps": ("eps", _radius_curve),
    "curve-logit-scale": ("logit-scale", lambda _: [*SCALES, "adaptive-pgd-20:factor=100"]),
}
"""By name, the setting that varies on a curve, and a function from eps to the names of its attacks,
the points."""


def parse_attack(name: str, settings: Evaluation = catalogue.SETTINGS) -> AttackSpec:
    """Return the attack of a name.

    The name is `NAME`, `NAME:option=value,...` or, with examples made on another run, `ATTACK@RUN`.
    """
    text, at, folder = name.partition("@")
    base = text.partition(":")[0]
    if base in protocols.COLUMNS or base in CURVES:
        raise UserError(f"attack '{base}': got a name of several attacks; allowed: one")
    attack = catalogue.parse(text, settings, others=(*protocols.COLUMNS, *CURVES))
    if not at:
        return attack
    if attack.not_transferable:
        allowed = "an attack that changes every image, e.g. fgsm, pgd-20, cw-linf-100"
        raise UserError(
            f"attack '{name}': got {attack.name}, {attack.not_transferable}; allowed: {allowed}"
        )
    source = RunFolder(Path(folder))
    sha256 = source.weights_about().weights_sha256 if source.is_run and source.is_done else ""
    if not sha256:
        raise UserError(
            f"attack '{name}': got '{folder}'; allowed: the folder of a finished run of this "
            "version"
        )
    # another run may have this name
    return attack.on(f"{source.path.resolve().name}-{sha256[:8]}", sha256)


def attacks_of(settings: Evaluation) -> list[AttackSpec]:
    """Return the attacks of an evaluation, the points of curves last.

    Unknown and repeated attacks are a `UserError`.
    """
    settings = expand_protocol_names(settings)
    singles = [name for name in settings.attacks if name not in CURVES]
    attacks = [parse_attack(name, settings) for name in singles]
    if len({attack.name for attack in attacks}) < len(attacks):
        raise UserError(f"attacks: got {' '.join(settings.attacks)}; allowed: each once")
    eps = settings.eps or Threat().eps
    points: dict[str, AttackSpec] = {}
    for name in settings.attacks:
        if name in CURVES:
            curve, points_of = CURVES[name]
            for point in points_of(eps):
                points.setdefault(point, replace(parse_attack(point, settings), curve=curve))
    return attacks + [attack for point, attack in points.items() if point not in singles]


def expand_protocol_names(
    settings: Evaluation,
    step_sizes: Mapping[str, float] = {},
    usual: Evaluation = catalogue.SETTINGS,
) -> Evaluation:
    """Return settings in which the name of a protocol is replaced by all attacks of its paper.

    Step sizes, L2 ball and CW become those of the paper, which define its columns, unless they are
    not those of `usual` and so were set. A step is in proportion to the radius. `step_sizes`: those
    of attacks that name no protocol.
    """
    papers = [name for name in settings.attacks if name in protocols.COLUMNS]
    if not papers:
        return override(settings, step_sizes)
    if len(papers) > 1:
        raise UserError(
            f"attacks: got {' and '.join(papers)}, whose settings differ; allowed: one protocol at "
            "a time"
        )
    protocol = protocols.start(papers[0])
    eps = settings.eps or Threat().eps
    paper = protocol.evaluation
    paper = override(paper, step_sizes_for(eps, settings.eps_l2, paper, eps, protocol))
    unset = [name for name in PAPER_SETTINGS if getattr(settings, name) == getattr(usual, name)]
    of_paper = {name: getattr(paper, name) for name in unset}
    attacks: list[str] = []
    for name in settings.attacks:
        attacks += protocols.COLUMNS.get(name, (name,))
    each_once = tuple(dict.fromkeys(attacks))
    return override(settings, {**step_sizes, **of_paper, "attacks": each_once})


def resolve_evaluation(
    own: Evaluation, changes: Mapping[str, Any], eps: float, usual: Run
) -> Evaluation:
    """Return settings with these fields changed, by default with radius `eps`.

    A paper's name among the attacks is replaced by its attacks. A step size that is not changed is
    scaled with the radius (`step_sizes_for`). A changed field takes precedence over that of a
    paper. `usual` is the run of the protocol.

    Raises:
        UserError: an unknown field or a wrong value, or a chosen step whose sum cannot reach the
            radius.
    """
    # None means no change, except for the constant of CW: None searches for it.
    changed = {
        name: value for name, value in changes.items() if value is not None or name == "cw_constant"
    }
    names = changed.get("attacks", own.attacks)
    if isinstance(names, str):
        names = (names,)
    old_eps = own.eps or eps
    # refuses unknown fields and values
    settings = override(own, {"eps": old_eps, **changed, "attacks": tuple(names)})
    new_eps = settings.eps or old_eps
    step_sizes = step_sizes_for(new_eps, settings.eps_l2, own, old_eps, usual)
    settings = expand_protocol_names(settings, step_sizes, usual.evaluation)
    settings = override(settings, {**changed, "attacks": settings.attacks})
    for attack in attacks_of(settings):
        own_step = "step_size_l2" if attack.norm == "l2" else "step_size"
        chosen = own_step in changed or re.search("[:,]step=", attack.typed)
        if chosen and not attack.curve and isinstance(attack, ProjectedAscent):
            _check_reach(attack)
    return settings


def _check_reach(attack: ProjectedAscent) -> None:
    """Raise a `UserError` if the steps of an attack do not add up to its radius."""
    if not reaches(attack.radius, attack.steps, attack.step_size):
        sum_of = f"{attack.steps} steps of {format_radius(attack.step_size)}"
        allowed = f"steps that add up to its radius {format_radius(attack.radius)} or more"
        raise UserError(f"attack '{attack.name}': got {sum_of}; allowed: {allowed}")


def of_run(run: Run, changes: Mapping[str, object] = {}) -> Evaluation:
    """Return the settings with which a run is evaluated, changed as `resolve_evaluation` does."""
    usual = protocols.start(run.protocol, run.method)
    return resolve_evaluation(run.evaluation, changes, run.threat.eps, usual)


# settings of an attack that differ between the points of a curve, by curve
VARIED: dict[str, tuple[str, ...]] = {
    "steps": ("steps",),
    "eps": ("eps", "step_size"),
    "logit-scale": ("factor",),
}


def curves(card: Card) -> dict[str, dict[float, Column]]:
    """Return the curves on a card by the setting that varies, in ascending order.

    A curve of fewer than three points is empty. The points of a curve differ only in the varied
    setting, and over eps also in the step size, proportional to eps: a point with other settings
    than the last one is left out. Clean images are the point at eps 0.
    """
    curves: dict[str, dict[float, Column]] = {}
    columns = {column.name: column for column in card.columns}
    for curve, points_of in CURVES.values():
        points = [columns[name] for name in points_of(card.threat["eps"]) if name in columns]
        if points:
            shared = fixed(points[-1], curve)
            points = [point for point in points if fixed(point, curve) == shared]
        if curve == "eps" and card.clean is not None:
            points.insert(0, card.clean)
        by_value = {_varied_value(point, curve): point for point in points}
        curves[curve] = dict(sorted(by_value.items())) if len(by_value) >= 3 else {}
    return curves


def _varied_value(column: Column, curve: str) -> float:
    """Return the value of the setting that varies on a curve.

    Clean images are at radius 0, PGD without a factor is at factor 1.
    """
    varied = VARIED[curve][0]
    return float(getattr(column.attack, varied, 1) or 0)


def fixed(column: Column, curve: str) -> object:
    """Return the settings that all points of a curve share."""
    varied = VARIED[curve]
    shared = [pair for pair in column.identity.settings if pair[0] not in varied]
    step_of_radius = getattr(column.attack, "step_size", 0.0) / (column.eps or 1.0)
    return shared, round(step_of_radius, 9)
