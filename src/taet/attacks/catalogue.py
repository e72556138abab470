"""All attacks by name: parsing of `name:option=value,...`, and attacks of result cards."""

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from taet import registry
from taet.attacks.noise import Draws
from taet.attacks.spec import STORED, AttackSpec, Fields, MadeOn, Model, option_fields, own_fields
from taet.errors import UserError, unknown
from taet.files import file_sha256
from taet.settings import Evaluation, Threat
from taet.settings.types import Positive, allowed_text, fits, got_text, hints, read_text

SETTINGS = Evaluation()
STEPS = (20, 100)  # examples of N, for names that end in -N


@dataclass(frozen=True, kw_only=True)
class FunctionAttack(AttackSpec):
    """A custom attack that is a function, `my_attack(model, x, y, *, eps) -> x_adv`, in the
    L-infinity ball."""

    batch_independent: ClassVar[bool] = False

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        called = self.base.replace("-", "_")
        examples = registry.find("attacks", self.base).call(
            called, Tensor, model, x, y, eps=self.eps
        )
        if examples.shape != x.shape:
            raise self._refused(
                f"returned shape {tuple(examples.shape)}; allowed: images in the shape of x"
            )
        return examples.detach().to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class RecordedAttack(AttackSpec):
    """An attack of a result card that cannot be run here: a worst case, or a custom attack whose
    file is missing."""

    given: Fields

    def __post_init__(self) -> None:
        """Accept everything as it is stored."""

    @property
    def parameters(self) -> dict[str, object]:
        return dict(self.given)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        raise self._refused(
            "is known from a result card only; is it a plugin? name its folder in TAET_PLUGINS"
        )


class _Declared(NamedTuple):
    entry: registry.RegistryEntry
    kind: type[AttackSpec]
    pattern: str
    given: Fields  # fields that the name sets: the norm, and the number of steps if it has one


def kinds(custom: bool = True) -> dict[str, type[AttackSpec]]:
    """Return the specification of every name that a user may write, in the order of tables.

    -N is a number of steps.
    """
    entries = (
        entry for entry in registry.entries("attacks").values() if custom or entry.path is None
    )
    found = (offered for entry in entries for offered in _offered(entry))
    return dict(sorted(found, key=lambda item: (*_rank(*item), item[0])))


def examples() -> list[str]:
    """Return every name, with a number of steps where it needs one.

    No custom file is imported, since that may fail.
    """
    named = [[name.replace("-N", f"-{steps}") for steps in STEPS] for name in kinds(custom=False)]
    added = [entry.name for entry in registry.entries("attacks").values() if entry.path is not None]
    return [*dict.fromkeys(name for names in named for name in names), *added]


def place(name: str) -> tuple[int, int, int]:
    """Return the place of an attack in a table: by kind, fewer steps first, unknown ones last."""
    found = _known(name.partition(":")[0])
    if found is None:
        return AttackSpec.order, 0, 0
    return (*_rank(found.pattern, found.kind), found.given.get("steps", 0))


def _rank(pattern: str, kind: type[AttackSpec]) -> tuple[int, int]:
    return kind.order, [*kind.names].index(pattern) if pattern in kind.names else 0


def parse(name: str, settings: Evaluation = SETTINGS, others: Iterable[str] = ()) -> AttackSpec:
    """Return the attack that `NAME` or `NAME:option=value,...` means.

    For example pgd-20, cw-l2:c=search or pgd-l2-100:eps=0.5.

    The settings decide what the name does not; the default radius of the L-infinity ball is that of
    `Threat`. An unknown name, option or value is a `UserError`, which suggests the nearest name,
    also among `others`.
    """
    base, colon, text = name.partition(":")
    if colon and not text:
        raise UserError(
            f"attack '{name}': got no option after the colon; allowed: option=value, or no colon"
        )
    found = _find(base)
    if found is None:
        if _find(f"{base}-1") is not None:
            raise UserError(
                f"attack '{base}': got no number of steps; allowed: {base}-N, e.g. {base}-20"
            )
        raise unknown("attack", base, [*examples(), *others])
    given = {"name": name, **found.given, **_read(name, base, found.kind, text)}
    radius = settings.eps or Threat().eps
    if found.entry.path is not None:
        given["source_sha256"] = file_sha256(found.entry.path)
    return found.kind.make(given, settings, radius)


def _offered(entry: registry.RegistryEntry) -> Iterator[tuple[str, type[AttackSpec]]]:
    """Yield the names that an entry's file declares, with their specifications."""
    module = entry.load()
    own = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    )
    declared = [kind for kind in own if issubclass(kind, AttackSpec) and kind.names]
    for kind in declared:
        if (
            "__dataclass_fields__" not in vars(kind)
            or inspect.isabstract(kind)
            or not isinstance(kind.names, Mapping)
        ):
            allowed = "@dataclass(frozen=True, kw_only=True) with a mapping names and a method run"
            raise UserError(
                f"{entry.path}: {kind.__name__}: got no such dataclass; allowed: {allowed}"
            )
    yield from ((name, kind) for kind in declared for name in kind.names)
    if not declared:
        yield entry.name, FunctionAttack


def _find(base: str) -> _Declared | None:
    """Return the declaration of the attack called `base`, or None; two are a `UserError`."""
    found = None
    for entry in registry.entries("attacks").values():
        if base != entry.name and not base.startswith(f"{entry.name}-"):
            continue  # other custom files are not imported
        for pattern, kind in _offered(entry):
            stem = pattern.removesuffix("-N")
            match = re.fullmatch(
                re.escape(stem) + ("()" if stem == pattern else r"-([1-9][0-9]{0,9})"), base
            )
            if match is None:
                continue
            if found is not None and found.entry.module != entry.module:
                raise UserError(
                    f"{entry.path or found.entry.path}: the attack '{base}' exists already; rename "
                    "yours"
                )
            steps = {"steps": int(match[1])} if match[1] else {}
            found = _Declared(
                entry, kind, pattern, {"norm": kind.names.get(pattern, "linf"), **steps}
            )
    return found


def _known(base: str) -> _Declared | None:
    """Return what `_find` returns, but None for a custom file that cannot be imported."""
    with contextlib.suppress(UserError):
        return _find(base)
    return None


def _read(name: str, base: str, kind: type[AttackSpec], text: str) -> dict[str, object]:
    """Return the fields that `option=value,...` sets; each option may be given once."""
    fields, given = option_fields(kind), dict[str, object]()
    for part in text.split(",") if text else ():
        option, equals, value = part.partition("=")
        if option not in fields:
            raise unknown(f"option of '{base}'", option, fields or ("none",))
        field = fields[option]
        if not equals or not value or field in given:
            raise UserError(
                f"attack '{name}': got '{part}'; allowed: option=value, each option once"
            )
        radius = Positive | None if kind.minimal else Positive
        hint = radius if field == "eps" else hints(kind)[field]
        given[field] = read_text(value, hint)
        if not fits(given[field], hint):
            allowed = allowed_text(hint) + (", e.g. 8/255" if field == "eps" else "")
            raise UserError(f"attack '{name}': {option} got '{value}'; allowed: {allowed}")
    return given


def stored(name: str, norm: str | None, eps: float | None, parameters: Fields) -> AttackSpec:
    """Return the attack that a card stores; one that is unknown here is a `RecordedAttack`.

    Settings that an attack of this package cannot have, or that contradict its name, are a
    `UserError`.
    """
    source = parameters.get("source")
    made_on = None if source is None else MadeOn(source["name"], source["weights_sha256"])
    base, _, text = (name if made_on is None else name.removesuffix(f"@{made_on.name}")).partition(
        ":"
    )
    common: Fields = {"name": name, "norm": norm, "eps": eps, "made_on": made_on}
    found = _known(base)
    if found is not None:
        given = {
            **common,
            **{
                key: parameters[key]
                for key in parameters.keys() & {*own_fields(found.kind), *STORED}
            },
        }
        try:
            for field, value in {**found.given, **_read(name, base, found.kind, text)}.items():
                if given.get(field, value) != value:
                    allowed = f"{got_text(value)}, as its name says"
                    raise UserError(
                        f"attack '{name}': got {field} {got_text(given[field])}; allowed: {allowed}"
                    )
            return found.kind(**given)
        except UserError:
            if found.entry.path is None:
                raise
        except TypeError:  # settings of another version of the attack
            pass
    return RecordedAttack(**common, given=parameters)
