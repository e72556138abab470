"""The options of an attack: a dataclass that knows its names and its cost, and how it runs on a
batch of images."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self, get_type_hints

import numpy as np
from torch import Tensor

from taet.attacks.arithmetic import SearchPrecision
from taet.attacks.ball import RADII, Norm, frozen, verify
from taet.attacks.inputs import Model as Model
from taet.attacks.inputs import ready
from taet.attacks.noise import Draws
from taet.errors import UserError
from taet.settings import Evaluation
from taet.settings.types import NonNegative, check_value, hints

NAMES = {"clean": "no attack: the images as they are; 1 pass"}

Fields = Mapping[str, Any]  # values of the fields of a specification, by name


class MadeOn(NamedTuple):
    """The model that adversarial examples were made on, if that is not the evaluated model."""

    name: str
    weights_sha256: str


class Option(NamedTuple):
    """Annotates a field whose option has another name than the field."""

    name: str | None
    """None: it has no option, e.g. a number of steps that is part of the attack's name."""


FIXED = Option(name=None)
OF_THE_CALL = ("eps", "norm", "checked", "noise")
"""Arguments of an attack's function that are no options of its own."""


@dataclass(frozen=True, kw_only=True)
class AttackSpec(ABC):
    """An attack with everything that determines its result, except the model and the images.

    Every attack declares a subclass in its file. The dataclass fields are the options that users
    write after a colon (`pgd-20:restarts=5`), with bounds as in `Count`; `make` sets the fields
    that a name does not set.
    """

    # Names that users may write, with their norms; `-N` at the end is a number of steps, the field
    # `steps`.
    names: ClassVar[Mapping[str, Norm | None]] = {}
    order: ClassVar[int] = 100  # place of its columns in a table, smallest first
    # one step from the image itself: with sound gradients, many steps break more
    one_step: ClassVar[bool] = False
    # minimises the perturbation: eps may be None, and the card stores distances
    minimal: ClassVar[bool] = False
    random: ClassVar[bool] = True  # draws random numbers, so that its result depends on the seed
    # the result of an image does not depend on the others of its batch
    batch_independent: ClassVar[bool] = True
    # mean share of `passes` that an image takes; median over the cards of results/
    usual_share: ClassVar[float] = 1.0
    # uses no gradient: with sound gradients, other attacks break more
    gradient_free: ClassVar[bool] = False
    # for an attack that only bounds the accuracy: its gap to the reference, in words
    bound: ClassVar[str] = ""
    not_transferable: ClassVar[str] = ""  # why its examples cannot be transferred to another model
    # whose options are fields of the specification, if it is declared with `of=`
    function: ClassVar[Callable[..., Tensor] | None] = None
    unstored: ClassVar[Fields] = {"precision": "float32"}  # values that a card does not store

    name: str  # as the user wrote it, with its options
    norm: Norm | None = None  # of the ball and of distances; None for clean images
    eps: NonNegative | None = None
    """Radius of the ball, in image units, e.g. 8/255; none: unbounded, if the attack minimises the
    perturbation."""
    seed: int | None = None  # None for an attack that draws no random numbers
    precision: SearchPrecision = "float32"
    """Arithmetic of the attack's own passes: float32, bf16, or tf32 on NVIDIA GPUs. The model
    decides in float32."""
    source_sha256: str | None = None  # of the file of a custom attack, which identifies its version
    # the model that the examples are made on, if it is not the evaluated model
    made_on: MadeOn | None = None
    # curve that it is a point of; empty for an attack that a user named
    curve: str = field(default="", compare=False)

    def __init_subclass__(cls, of: Callable[..., Tensor] | None = None, **settings: Any) -> None:
        """Give the class a field for each option of the function `of`.

        Type, bounds and default are those of its signature, unless the class declares the field.
        """
        super().__init_subclass__(**settings)
        if of is None:
            return
        cls.function = staticmethod(of)
        declared = vars(cls).get("__annotations__", {})
        of_function = get_type_hints(of, include_extras=True)
        options = {}
        for name, parameter in inspect.signature(of).parameters.items():
            is_option = parameter.kind is parameter.KEYWORD_ONLY and name not in OF_THE_CALL
            if is_option and name in declared:
                options[name] = declared[name]
            elif is_option:
                options[name] = of_function[name]
                setattr(cls, name, parameter.default)
        cls.__annotations__ = {**options, **declared}

    def __post_init__(self) -> None:
        label = f"attack '{self.name}'"
        for name, hint in hints(type(self)).items():
            check_value(name.replace("_", " "), getattr(self, name), hint, label)
        if self.eps is None and self.norm is not None and not self.minimal:
            raise self._refused("got no eps; allowed: a number, since this attack needs a ball")
        if self.eps is not None:
            check_value(f"{label}: eps", self.eps, RADII[self.norm or "linf"])

    def _refused(self, text: str) -> UserError:
        return UserError(f"attack '{self.name}': {text}")

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        """Return the attack with the fields `given` by its name and options.

        Defaults are from the settings. `radius` is the default radius of the L-infinity ball.
        """
        radii = {"linf": radius, "l2": settings.eps_l2}
        defaults: dict[str, Any] = {
            "eps": None if cls.minimal else radii.get(given["norm"]),
            "seed": settings.seed if cls.random else None,
        }
        if may_round(cls):
            defaults["precision"] = settings.search_precision
        return cls(**{**defaults, **given})

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Attack a batch outside an evaluation, with the checks of `pgd` and of the result."""
        with ready(model, x, y) as (checked, images, labels), frozen(checked):
            draws = Draws(self.seed or 0, self.base, np.arange(len(images)))
            x_adv = self.run(checked, images.clone(), labels.clone(), draws)
            verify(self.name, x_adv, images, self.eps, self.norm or "linf")
            return x_adv

    @abstractmethod
    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Return adversarial images of x (N, C, H, W) in [0, 1] with labels y (N,).

        The caller has checked both.
        """

    def passes(self, num_classes: int) -> int:
        """Return the estimated passes of one image, forward or backward.

        The forward pass that decides is one of them.
        """
        return 100

    @property
    def typed(self) -> str:
        """The name as the user wrote it, without the model that the examples are made on."""
        return (
            self.name if self.made_on is None else self.name.removesuffix(f"@{self.made_on.name}")
        )

    @property
    def base(self) -> str:
        """The name without options.

        It seeds the random numbers, so that more restarts extend the same draws.
        """
        return self.typed.partition(":")[0]

    @property
    def radius(self) -> float:
        """Radius of the ball; 0 without one."""
        return self.eps or 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The fields that not every attack has, by name: the options of the attack's function."""
        return {name: getattr(self, name) for name in own_fields(type(self))}

    @property
    def parameters(self) -> dict[str, object]:
        """All fields except name, norm and eps, as a result card stores them.

        `catalogue.stored` reads them.
        """
        fields = {**dataclasses.asdict(self), "source": self.made_on and self.made_on._asdict()}
        found = {name: fields[name] for name in (*own_fields(type(self)), *STORED, "source")}
        return {
            name: value
            for name, value in found.items()
            if value is not None and value != self.unstored.get(name)
        }

    def to_json(self) -> dict[str, object]:
        """Return name, norm, eps and parameters as plain values."""
        return {"name": self.name, "norm": self.norm, "eps": self.eps, **self.parameters}

    def on(self, name: str, weights_sha256: str) -> Self:
        """Return the attack on other models, with examples made on the model `name`."""
        return dataclasses.replace(
            self, name=f"{self.name}@{name}", made_on=MadeOn(name, weights_sha256)
        )


# what a card stores of every attack, beside its own fields
STORED = ("seed", "source_sha256", "precision")


def own_fields(kind: type[AttackSpec]) -> tuple[str, ...]:
    """Return the names of the fields that not every attack has."""
    every = {one.name for one in dataclasses.fields(AttackSpec)}
    return tuple(one.name for one in dataclasses.fields(kind) if one.name not in every)


def may_round(kind: type[AttackSpec]) -> bool:
    """Return whether the passes of an attack may be computed in another precision than float32.

    Not for an attack that stops at the first or nearest success: it would stop at the boundary of
    the rounded model.
    """
    return None not in kind.names.values() and not kind.minimal and not kind.gradient_free


def option_fields(kind: type[AttackSpec]) -> dict[str, str]:
    """Return the fields that users may set, by the names of their options."""
    found: dict[str, str] = {}
    common = [
        *([] if None in kind.names.values() else ["eps"]),
        *(["precision"] if may_round(kind) else []),
    ]
    for name in (*common, *own_fields(kind)):
        option: str | None = name
        for mark in getattr(hints(kind)[name], "__metadata__", ()):
            if isinstance(mark, Option):
                option = mark.name
        if option is not None:
            found[option] = name
    return found


@dataclass(frozen=True, kw_only=True)
class Clean(AttackSpec):
    """No attack: the images as they are. Every evaluation begins with this column."""

    names: ClassVar[Mapping[str, Norm | None]] = {"clean": None}
    order: ClassVar[int] = 0
    random: ClassVar[bool] = False
    not_transferable: ClassVar[str] = "which makes no examples"

    name: str = "clean"

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        return x

    def passes(self, num_classes: int) -> int:
        return 1
