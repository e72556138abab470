"""The attacks of an evaluation, by name.

A name is that of one attack, of all columns of a paper, or of a curve; ATTACK@RUN takes the
examples that were made on another run.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taet import protocols
from taet.attacks import catalogue
from taet.attacks.pgd import WHOLE_RANGE, ProjectedAscent
from taet.attacks.spec import AttackSpec
from taet.card.card import Card
from taet.card.column import Column, CurveName
from taet.errors import UserError
from taet.formatting import format_radius, read_number
from taet.run.folder import RunFolder
from taet.settings import Evaluation, Run, Threat, override
from taet.settings.step_sizes import reaches, step_sizes_for

# settings that define the columns of a paper
PAPER_SETTINGS = ("step_size", "eps_l2", "step_size_l2", "cw_constant", "cw_bounded")
SCALES = ("adaptive-pgd-20:factor=0.01", "adaptive-pgd-20:factor=0.1", "pgd-20", "adaptive-pgd-20")


def _radius_curve(eps: float) -> Iterator[str]:
    """Yield the names of PGD-20 with radii from eps / 4 to 8 eps, and with radius 1.

    Radius 1 is the whole range of images.
    """
    radii = {WHOLE_RANGE}  # a ball of all images, in which no classifier is robust
    for factor in (1 / 4, 1 / 2, 1, 2, 4, 8):
        if eps * factor < WHOLE_RANGE:
            radii.add(eps * factor)
    for radius in sorted(radii):
        text = "1" if radius == WHOLE_RANGE else format_radius(radius, 6, within=1e-9)
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

    Example:
        >>> from taet.evaluation import parse_attack
        >>> attack = parse_attack("pgd-20:restarts=2")
        >>> attack.name, attack.norm, attack.passes(num_classes=10)
        ('pgd-20:restarts=2', 'linf', 83)
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
    for curve, points_of in CURVES.values():
        names = points_of(card.threat["eps"])
        found = [_point(card.columns, name) for name in names]
        points = [column for column in found if column is not None]
        if points:
            reference = _reference(points)
            points = [point for point in points if _is_same_curve(point, reference, curve)]
        if curve == "eps" and card.clean is not None:
            points.insert(0, card.clean)
        by_value = {_varied_value(point, curve): point for point in points}
        curves[curve] = dict(sorted(by_value.items())) if len(by_value) >= 3 else {}
    return curves


def _point(columns: Sequence[Column], name: str) -> Column | None:
    """Return the column of a point of a curve; None if it was not measured.

    Older cards write a radius such as 2.5/255 with six digits.
    """
    by_name = {column.name: column for column in columns}
    base, _, radius = name.partition(":eps=")
    if name in by_name or not radius:
        return by_name.get(name)
    for column in columns:
        its_base, _, its_radius = column.name.partition(":eps=")
        has_other_options = "," in its_radius
        if its_base != base or has_other_options or column.eps is None:
            continue
        if math.isclose(column.eps, read_number(radius), rel_tol=1e-5):
            return column
    return None


def _reference(points: Sequence[Column]) -> Column:
    """Return the point with whose settings the others must agree: the last one whose step is not
    cut off at the whole range of pixels."""
    return next((point for point in reversed(points) if not _has_whole_steps(point)), points[-1])


def _has_whole_steps(point: Column) -> bool:
    return getattr(point.attack, "step_size", 0.0) == WHOLE_RANGE


def _is_same_curve(point: Column, reference: Column, curve: str) -> bool:
    """Return whether two points differ in nothing but what varies on the curve."""
    settings, step_of_radius = _shared(point, curve)
    wanted, wanted_step = _shared(reference, curve)
    return settings == wanted and (_has_whole_steps(point) or step_of_radius == wanted_step)


def _varied_value(column: Column, curve: str) -> float:
    """Return the value of the setting that varies on a curve.

    Clean images are at radius 0, PGD without a factor is at factor 1.
    """
    varied = VARIED[curve][0]
    return float(getattr(column.attack, varied, 1) or 0)


def fixed(points: Iterable[Column], curve: str) -> object:
    """Return the settings that all points of a curve share."""
    return _shared(_reference([*points]), curve)


def _shared(point: Column, curve: str) -> tuple[list[Any], float]:
    """Return the settings of a point but for the varied ones, and its step in proportion to its
    radius."""
    varied = VARIED[curve]
    settings = [pair for pair in point.identity.settings if pair[0] not in varied]
    step_of_radius = getattr(point.attack, "step_size", 0.0) / (point.eps or 1.0)
    return settings, round(step_of_radius, 9)
