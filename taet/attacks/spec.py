"""What an attack declares about itself: its options, its threat model, its cost, and how it is run on a batch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.draws import Draws
from taet.bounds import NonNegative, check_fields, check_radius, hints
from taet.config import Evaluation
from taet.errors import UserError

Model = Callable[[Tensor], Tensor]
Fields = Mapping[str, Any]
"""Fields of a specification by their names."""


class MadeOn(NamedTuple):
    """The model that adversarial examples were made on, where another model is tried on them."""

    name: str
    weights_sha256: str


class Option(NamedTuple):
    """Mark of a field in `Annotated`: the name of its option, where that is not the name of the field."""

    name: str


FIXED = Option("")
"""Mark of a field that users do not set by an option, such as the number of steps, which the name says."""


@dataclass(frozen=True, kw_only=True)
class AttackSpec(ABC):
    """An attack and everything that decides its result, except the model and the images.

    A subclass is declared in the file of its attack. Its dataclass fields are the options that users write after a
    colon (`pgd-20:restarts=5`), with bounds as in `Annotated[int, Ge(1)]`; what a name does not say comes from `make`.
    Two specifications are equal if they do the same with the same seed.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {}
    """Names that users may write, with their norms; `-N` at the end is a number, which becomes the field `steps`."""
    order: ClassVar[int] = 100
    """Place of its columns in a table, smallest first."""
    minimal: ClassVar[bool] = False
    """Whether it looks for the smallest perturbation: the ball may be missing, and distances are kept."""
    random: ClassVar[bool] = True
    """Whether it draws random numbers, so that its result depends on the seed."""
    batch_independent: ClassVar[bool] = True
    """Whether the result of an image does not depend on the other images of its batch."""
    skips_misclassified: ClassVar[bool] = False
    """Whether it costs nothing on images that are misclassified without an attack."""
    not_transferable: ClassVar[str] = ""
    """Why its examples cannot be tried on another model; empty where they can."""

    name: str
    """As the user wrote it, with its options."""
    norm: Norm | None = None
    """Norm of the ball and of distances; None for clean images."""
    eps: NonNegative | None = None
    """Radius of the ball in units of the image range, e.g. 8/255 or 0.031; none: unbounded, if the attack minimises
    the perturbation."""
    seed: int | None = None
    """Seed of the random numbers; None for an attack that draws none."""
    source_sha256: str | None = None
    """SHA-256 of the file of a custom attack: with another text it is another attack."""
    made_on: MadeOn | None = None
    """The model that the examples are made on, where it is not the one that is evaluated."""
    curve: str = field(default="", compare=False)
    """The curve that alone needs this attack; empty for an attack that was asked for."""

    def __post_init__(self) -> None:
        check_fields(self, f"attack '{self.name}'")
        if self.eps is None and self.norm is not None and not self.minimal:
            raise self._refused("got no eps; allowed: a number, since this attack needs a ball")
        if self.eps is not None:
            check_radius(f"attack '{self.name}': eps", self.eps, self.norm or "linf")

    def _refused(self, text: str) -> UserError:
        return UserError(f"attack '{self.name}': {text}")

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        """Return the attack that a user asks for.

        Args:
            given: fields that the user has set, and those that the name decides: `name`, `norm`, `steps`.
            settings: where the other fields come from.
            radius: of the L-infinity ball.
        """
        balls = {"linf": radius, "l2": settings.eps_l2}
        eps = None if cls.minimal else balls.get(given["norm"])
        return cls(**{"eps": eps, "seed": settings.seed if cls.random else None, **given})

    @abstractmethod
    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Return adversarial images for x (N, C, H, W) in [0, 1] with labels y (N,); random numbers from `draws`."""

    def passes(self, num_classes: int) -> int:
        """Estimated passes of one image through the model, forward or backward."""
        return 100

    def check_classes(self, num_classes: int) -> None:
        """Raise a `UserError` if the attack does not work with so few classes."""
        return

    @property
    def ascent_steps(self) -> int:
        """Steps of gradient ascent in a ball; 0 for any other kind of attack."""
        return 0

    @property
    def bounded(self) -> bool:
        """Whether the attack has to stay in a ball."""
        return self.eps is not None

    @property
    def typed(self) -> str:
        """The name as the user wrote it, without the model that the examples are made on."""
        return self.name if self.made_on is None else self.name.removesuffix(f"@{self.made_on.name}")

    @property
    def base(self) -> str:
        """The name without options."""
        return self.typed.partition(":")[0]

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that the user wrote."""
        return frozenset(part.partition("=")[0] for part in self.typed.partition(":")[2].split(",") if part)

    @property
    def radius(self) -> float:
        """Radius of the ball; 0 without one."""
        return 0.0 if self.eps is None else self.eps

    @property
    def noise_key(self) -> str:
        """Purpose that seeds the random numbers. It is independent of options: more restarts extend the same draws."""
        return self.base

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but name, norm and eps, as a result card stores it; `catalogue.stored` is the inverse."""
        return self._stored(*own_fields(type(self)), "seed")

    def _stored(self, *names: str) -> dict[str, Any]:
        """Return these fields in this order, without those that are None."""
        values = {name: getattr(self, name) for name in (*names, "source_sha256")}
        if self.made_on is not None:
            values["source"] = self.made_on._asdict()
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return name, norm, eps and parameters as plain values."""
        return {"name": self.name, "norm": self.norm, "eps": self.eps, **self.parameters}

    def on(self, name: str, weights_sha256: str) -> Self:
        """Return the attack as a column of other models has it, with examples made on the model `name`."""
        return dataclasses.replace(self, name=f"{self.name}@{name}", made_on=MadeOn(name, weights_sha256))


def own_fields(kind: type[AttackSpec]) -> tuple[str, ...]:
    """Return the names of the fields that a specification has beyond those of every attack."""
    every = {one.name for one in dataclasses.fields(AttackSpec)}
    return tuple(one.name for one in dataclasses.fields(kind) if one.name not in every)


def option_fields(kind: type[AttackSpec]) -> dict[str, str]:
    """Return the fields that users may set, by the names of their options."""
    ball = () if None in kind.names.values() else ("eps",)
    return {option: name for name in (*ball, *own_fields(kind)) if (option := _option(name, hints(kind)[name]))}


def _option(name: str, hint: Any) -> str:
    """Return how users write a field; nothing where they do not."""
    marks = (mark.name for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Option))
    return next(marks, name)
