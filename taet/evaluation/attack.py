"""An attack's name, taken apart: what it means, and every setting that decides its result."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from taet import protocols, registry
from taet.attacks.autoattack import Plan, plan
from taet.bounds import check_radius
from taet.config import Evaluation, Threat
from taet.errors import UserError, unknown

Kind = Literal["clean", "pgd", "cw-l2", "deepfool", "autoattack", "own"]

DEFAULTS = Evaluation()
START = ("uniform", "gaussian", "none")
OBJECTIVES = ("ce", "cw", "dlr", "kl")
TARGETS = ("least-likely", "runner-up", "random")
FACTOR = 10.0  # by which REAT's adaptive attack multiplies the logits (arXiv:2307.10205, section 5)
SEARCH_STEPS, INITIAL_CONSTANT = 9, 1e-3  # of Carlini & Wagner (S&P 2017, arXiv:1608.04644), who search over c
CW_STEPS, CW_LR = 100, 0.01  # of the TAET paper's code
DEEPFOOL_STEPS, OVERSHOOT = 50, 0.02  # of DeepFool (CVPR 2016, arXiv:1511.04599) and the TAET paper's code
CANDIDATES = 10  # classes that DeepFool looks at, of those with the largest logits; as many as its authors' code
OWN_PASSES = 100  # what an attack of one's own is guessed to take

CHAIN = ("eps", "step", "start", "restarts", "target")
MINIMAL = ("cw-l2", "deepfool")
"""Attacks that look for the smallest perturbation: they may go without a ball, and its length is worth keeping."""
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "clean": (),
    "fgsm": ("eps", "objective", "target"),
    "pgd-N": (*CHAIN, "objective"),
    "pgd-l2-N": (*CHAIN, "objective"),
    "cw-linf-N": CHAIN,
    # Of cross-entropy alone: a factor on the logits turns no sign of the margin, nor of DLR.
    "adaptive-pgd-N": (*CHAIN, "factor"),
    "adaptive-pgd-l2-N": (*CHAIN, "factor"),
    "cw-l2": ("eps", "c", "kappa", "steps", "lr", "target"),
    "deepfool": ("eps", "steps", "overshoot"),
    **dict.fromkeys(("autoattack", "autoattack-fast", "autoattack-10"), ("eps",)),
    **dict.fromkeys(("autoattack-l2", "autoattack-l2-fast", "autoattack-l2-10"), ("eps",)),
}
"""Which options a name takes; N is a number of steps."""
EXAMPLES = tuple(
    name.replace("-N", f"-{steps}") for name in FAMILIES for steps in ((20, 100) if "-N" in name else (0,))
)


@dataclass(frozen=True)
class Attack:
    """An attack with everything that decides its result, the model and the images apart."""

    name: str
    kind: Kind
    norm: Literal["linf", "l2"] | None = None
    """Norm that it is measured by; None for clean images."""
    eps: float | None = None
    """Radius of the ball in units of the image range; None for clean images and where there is no ball."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What it is given besides the ball, as the result card stores it."""
    curve: str = ""
    """The curve for which alone it is run; empty for an attack that was asked for."""

    @property
    def bounded(self) -> bool:
        """Does it have to stay in a ball?"""
        return self.eps is not None

    def settings(self) -> dict[str, Any]:
        """Name, ball and parameters: two attacks with the same settings do the same."""
        return {"name": self.name, "norm": self.norm, "eps": self.eps, **self.parameters}

    def check(self, num_classes: int) -> None:
        """Refuse an objective that so few classes do not have."""
        if self.parameters.get("objective") == "dlr" and num_classes < 3:
            raise UserError(f"attack '{self.name}': got {num_classes} classes; allowed: 3 or more for DLR")

    def plan(self, num_classes: int) -> Plan:
        """The parts of an AutoAttack."""
        return plan(num_classes, self.parameters["version"], self.norm or "linf")

    def passes(self, num_classes: int) -> int:
        """Estimated passes of an image through the model: a gradient step takes 2, the forward that decides 1.

        AutoAttack's is that of an image that no part breaks.
        """
        given = self.parameters
        if self.kind == "autoattack":
            chosen = self.plan(num_classes)
            return sum(chosen.cost(part) for part in chosen.parts)
        if self.kind == "cw-l2":
            return int(2 * given["steps"] * given.get("search_steps", 1) + 1)
        if self.kind == "deepfool":
            return int((1 + min(given["candidates"], num_classes)) * given["steps"] + 1)
        if self.kind == "pgd":
            more = given.get("restarts", 1) > 1 or "target" in given or given.get("objective") == "kl"
            return int(given.get("restarts", 1) * (2 * given["steps"] + more) + 1)
        return OWN_PASSES if self.kind == "own" else 1


def parse_attack(name: str, settings: Evaluation = DEFAULTS, eps: float | None = None) -> Attack:
    """Return what `NAME` or `NAME:option=value,...` means.

    Args:
        name: one of `taet list attacks`, with N as a number, e.g. pgd-20, cw-l2:c=search, pgd-l2-100:eps=0.5,step=0.1.
        settings: what the name itself does not say.
        eps: radius of the L-infinity ball, where neither the name nor the settings say it; not given: that of `Threat`.

    Raises:
        UserError: an unknown name or option with its nearest match, a value that an option does not take.
    """
    base, colon, options = name.partition(":")
    if colon and not options:
        raise UserError(f"attack '{name}': got no option after the colon; allowed: option=value, or no colon")
    family, steps = _family(base)
    given = _options(name, family, options)
    radius = settings.eps if settings.eps is not None else Threat().eps if eps is None else eps
    if family == "clean":
        return Attack(name, "clean")
    if family.startswith("autoattack"):
        version = base.removeprefix("autoattack").removeprefix("-l2").removeprefix("-") or "standard"
        two = base.startswith("autoattack-l2")
        default = settings.eps_l2 if two else radius
        parameters = {"version": version, "seed": settings.seed}
        return Attack(name, "autoattack", "l2" if two else "linf", given.get("eps", default), parameters)
    if family == "deepfool":
        steps, overshoot = given.get("steps", DEEPFOOL_STEPS), given.get("overshoot", OVERSHOOT)
        parameters = {"steps": steps, "overshoot": overshoot, "candidates": CANDIDATES}
        return Attack(name, "deepfool", "l2", given.get("eps"), parameters)
    if family == "cw-l2":
        return _cw(name, given, settings)
    if family in FAMILIES:
        return _chain(name, family, steps, given, settings, radius)
    source = hashlib.sha256(_own_files()[base].read_bytes()).hexdigest()
    return Attack(name, "own", "linf", given.get("eps", radius), {"seed": settings.seed, "source_sha256": source})


def parse_attacks(
    names: Sequence[str],
    settings: Evaluation = DEFAULTS,
    eps: float | None = None,  # frozen
) -> list[Attack]:
    """Return what one or more names mean; none, an unknown one and one that is there twice are a `UserError`."""
    parsed = [parse_attack(name, settings, eps) for name in names]
    if not parsed:
        raise UserError("attacks: got none; allowed: one or more, e.g. clean pgd-20")
    if len({attack.name for attack in parsed}) < len(parsed):
        raise UserError(f"attacks: got {' '.join(names)}; allowed: each once")
    return parsed


def check_attacks(settings: Evaluation) -> None:
    """Refuse settings whose attacks, or protocol's columns, are not understood."""
    expanded = expand(settings.attacks, settings)
    parse_attacks(expanded.attacks, expanded)


def expand(names: Sequence[str], settings: Evaluation, eps: float | None = None) -> Evaluation:
    """Return settings with these attacks, where the name of a protocol stands for all columns of its paper.

    Such a bundle brings the paper's steps, L2 ball and CW along, since its columns mean nothing without them; in a ball
    of another radius `eps` than the paper's the step is in proportion. Two protocols at once are a `UserError`.
    """
    bundles = [name for name in names if name in protocols.COLUMNS]
    if len(bundles) > 1:
        raise UserError(f"attacks: got {' and '.join(bundles)}, whose settings differ; allowed: one protocol at a time")
    listed = [one for name in names for one in protocols.COLUMNS.get(name, (name,))]
    attacks = tuple(dict.fromkeys(listed)) if bundles else tuple(listed)
    if not bundles:
        return replace(settings, attacks=attacks)
    theirs = protocols.start(bundles[0], "at").evaluation
    fields = ("eps_l2", "step_size_l2", "cw_constant", "cw_bounded")
    step_size = theirs.step_size * (1 if eps is None or eps == Threat().eps else eps / Threat().eps)
    return replace(settings, attacks=attacks, step_size=step_size, **{name: getattr(theirs, name) for name in fields})


def _family(base: str) -> tuple[str, int]:
    """Return the family of a name and its number of steps, 0 where it has none."""
    if base in FAMILIES and not base.endswith("-N"):
        return base, 0
    found = re.fullmatch(r"(.+)-([1-9]\d*)", base)
    if found and f"{found[1]}-N" in FAMILIES:
        return f"{found[1]}-N", int(found[2])
    if base in protocols.COLUMNS:
        raise UserError(f"attack '{base}': a protocol, which stands for {len(protocols.COLUMNS[base])}; allowed: one")
    if f"{base}-N" in FAMILIES:
        raise UserError(f"attack '{base}': got no number of steps; allowed: {base}-N, e.g. {base}-20")
    if base not in _own_files():
        raise unknown("attack", base, [*EXAMPLES, *protocols.COLUMNS, *_own_files()])
    return base, 0


def _own_files() -> dict[str, Path]:
    """The file of every attack of the user's own, by name."""
    return {entry.name: entry.path for entry in registry.entries("attacks").values() if entry.path is not None}


def _chain(name: str, family: str, steps: int, given: Mapping[str, Any], settings: Evaluation, radius: float) -> Attack:
    """An attack that ascends in a ball: FGSM, PGD, CW in the L-infinity ball, and PGD on scaled logits."""
    two = "-l2-" in family
    usual, step = (settings.eps_l2, settings.step_size_l2) if two else (radius, settings.step_size)
    eps = given.get("eps", usual)
    if family == "fgsm":
        parameters = {"steps": 1, "step_size": eps, "start": "none"}
    else:
        parameters = {
            "steps": steps,
            # In proportion to the ball, so that as many steps cross a ball of another size.
            "step_size": given.get("step", step if eps == usual else step * eps / usual),
            "start": given.get("start", "uniform"),
            "restarts": given.get("restarts", 1),
            "seed": settings.seed,
        }
    if parameters["start"] == "none" and parameters.get("restarts", 1) > 1:
        raise UserError(f"attack '{name}': got several restarts from one start; allowed: start=uniform")
    objective = "cw" if "cw-linf" in family else given.get("objective", "ce")
    if objective != "ce":
        parameters["objective"] = objective
    if family.startswith("adaptive"):
        parameters["factor"] = given.get("factor", FACTOR)
    if objective == "kl" and parameters["start"] == "none":
        raise UserError(f"attack '{name}': got no start noise with the objective kl, which has no gradient there")
    if "target" in given:
        if objective == "kl":
            raise UserError(f"attack '{name}': got a target with the objective kl, which sees no label")
        if parameters.get("restarts", 1) > 1:
            raise UserError(f"attack '{name}': got several restarts with a target; allowed: one or the other")
        parameters |= _target(given["target"], settings)
    return Attack(name, "pgd", "l2" if two else "linf", eps, parameters)


def _cw(name: str, given: Mapping[str, Any], settings: Evaluation) -> Attack:
    constant = given.get("c", settings.cw_constant)
    parameters: dict[str, Any] = {
        "c": "search" if constant is None else constant,
        "kappa": given.get("kappa", 0.0),
        "steps": given.get("steps", CW_STEPS),
        "lr": given.get("lr", CW_LR),
    }
    if constant is None:
        parameters |= {"search_steps": SEARCH_STEPS, "initial_c": INITIAL_CONSTANT}
    if "target" in given:
        parameters |= _target(given["target"], settings)
    return Attack(name, "cw-l2", "l2", given.get("eps", settings.eps_l2 if settings.cw_bounded else None), parameters)


def _target(target: str, settings: Evaluation) -> dict[str, Any]:
    return {"target": target, "seed": settings.seed} if target == "random" else {"target": target}


# --- options ---------------------------------------------------------------------------------------------------------


def _options(name: str, family: str, text: str) -> dict[str, Any]:
    """Read `option=value,...`; each at most once."""
    allowed = FAMILIES.get(family, ("eps",))
    given: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        option, equals, value = part.partition("=")
        if option not in allowed:
            raise unknown(f"option of '{name.partition(':')[0]}'", option, allowed or ("none",))
        if not equals or not value or option in given:
            raise UserError(f"attack '{name}': got '{part}'; allowed: option=value, each option once")
        try:
            given[option] = READERS[option](value)
        except ValueError:
            raise UserError(f"attack '{name}': {option} got '{value}'; allowed: {FORMS[option]}") from None
    if "eps" in given and family not in MINIMAL:
        if given["eps"] is None:
            raise UserError(f"attack '{name}': eps got 'none'; allowed: a number, since this attack needs a ball")
        check_radius(f"attack '{name}': eps", given["eps"], "l2" if family in FAMILIES and "-l2" in family else "linf")
    return given


def _number(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    if slash and float(denominator) == 0:
        raise ValueError(text)
    return float(numerator) / (float(denominator) if slash else 1)


def _above_zero(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _zero_or_more(text: str) -> float:
    return 0.0 if _number(text) == 0 else _above_zero(text)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return read


READERS: Mapping[str, Callable[[str], Any]] = {
    "eps": lambda text: None if text == "none" else _above_zero(text),
    "step": _above_zero,
    "start": _one_of(START),
    "restarts": _count,
    "objective": _one_of(OBJECTIVES),
    "target": _one_of(TARGETS),
    "factor": _above_zero,
    "c": lambda text: None if text == "search" else _above_zero(text),
    "kappa": _zero_or_more,
    "steps": _count,
    "lr": _above_zero,
    "overshoot": _zero_or_more,
}
FORMS: Mapping[str, str] = {
    "eps": "a number above 0, e.g. 8/255; none for an attack that may go without a ball",
    "start": ", ".join(START),
    "objective": ", ".join(OBJECTIVES),
    "target": ", ".join(TARGETS),
    "c": "a number above 0, or search",
    **dict.fromkeys(("restarts", "steps"), "a whole number of 1 or more"),
    **dict.fromkeys(("step", "factor", "lr"), "a number above 0"),
    **dict.fromkeys(("kappa", "overshoot"), "a number of 0 or more"),
}
