"""The declaration of an attack: its options, threat model, cost, and how it runs on a batch of images."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, Self

import numpy as np
from torch import Tensor

from taet.attacks.ball import Norm, frozen, verify
from taet.attacks.draws import Draws
from taet.attacks.identity import Fields as Fields
from taet.attacks.identity import Identity, identity
from taet.attacks.inputs import Model as Model
from taet.attacks.inputs import ready
from taet.attacks.precision import SearchPrecision
from taet.errors import UserError
from taet.fields import NonNegative, check_radius, check_value, hints
from taet.settings import Evaluation


class MadeOn(NamedTuple):
    """The model that adversarial examples were made on, if that is not the evaluated model."""

    name: str
    weights_sha256: str


class Option(NamedTuple):
    """Annotation of a field: the name of its option, if it differs from the field's name."""

    name: str


FIXED = Option("")
"""Mark of a field without an option, e.g. a number of steps that is part of the name."""


@dataclass(frozen=True, kw_only=True)
class AttackSpec(ABC):
    """An attack with everything that determines its result, except the model and the images.

    Every attack declares a subclass in its file. The dataclass fields are the options that users write after a colon
    (`pgd-20:restarts=5`), with bounds as in `Count`; `make` sets the fields that a name does not set.
    Equal specifications give the same result on the same model and images.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {}
    """Names that users may write, with their norms; `-N` at the end is a number of steps, the field `steps`."""
    order: ClassVar[int] = 100
    """Place of its columns in a table, smallest first."""
    one_step: ClassVar[bool] = False
    """Whether it takes a single step from the image itself, so that sound attacks of many steps break more images."""
    minimal: ClassVar[bool] = False
    """Whether it minimises the perturbation: eps may be None, and the card stores distances."""
    random: ClassVar[bool] = True
    """Whether it draws random numbers, so that its result depends on the seed."""
    batch_independent: ClassVar[bool] = True
    """Whether the result of an image does not depend on the other images of its batch."""
    skips_misclassified: ClassVar[bool] = False
    """Whether it does not run on images that are misclassified without an attack."""
    gradient_free: ClassVar[bool] = False
    """Whether it uses no gradient, so that sound attacks which do break more images."""
    bound: ClassVar[str] = ""
    """For an attack that only bounds the accuracy: what is known about its gap to the reference, in words."""
    not_transferable: ClassVar[str] = ""
    """Reason why its examples cannot be transferred to another model; empty if they can."""
    stored_first: ClassVar[tuple[str, ...]] = ()
    """Fields that a card stores before the others."""
    unstored: ClassVar[Mapping[str, object]] = {}
    """Values that a card does not store, by their fields."""

    name: str
    """The name as the user wrote it, with its options."""
    norm: Norm | None = None
    """Norm of the ball and of distances; None for clean images."""
    eps: NonNegative | None = None
    """Radius of the ball in units of the image range, e.g. 8/255 or 0.031; none: unbounded, if the attack minimises
    the perturbation."""
    seed: int | None = None
    """Seed of the random numbers; None for an attack that draws none."""
    precision: SearchPrecision = "float32"
    """Arithmetic of the attack's own passes: float32, bf16, or tf32 on NVIDIA GPUs. The model itself decides in float32
    whether an image is broken."""
    source_sha256: str | None = None
    """SHA-256 of the file of a custom attack, which identifies its version."""
    made_on: MadeOn | None = None
    """The model that the examples are made on, if it is not the evaluated model."""
    curve: str = field(default="", compare=False)
    """The curve that this attack is run for; empty for an attack that a user named."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            check_value(name.replace("_", " "), getattr(self, name), hint, f"attack '{self.name}'")
        if self.eps is None and self.norm is not None and not self.minimal:
            raise self._refused("got no eps; allowed: a number, since this attack needs a ball")
        if self.eps is not None:
            check_radius(f"attack '{self.name}': eps", self.eps, self.norm or "linf")

    def _refused(self, text: str) -> UserError:
        return UserError(f"attack '{self.name}': {text}")

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        """Return the attack of a name, with defaults from the settings.

        Args:
            given: fields set by options or by the name, among them `name`, `norm` and `steps`.
            settings: defaults of the other fields.
            radius: default radius of the L-infinity ball.
        """
        balls = {"linf": radius, "l2": settings.eps_l2}
        eps = None if cls.minimal else balls.get(given["norm"])
        search: Fields = {"precision": settings.search_precision} if may_round(cls) else {}
        return cls(**{"eps": eps, "seed": settings.seed if cls.random else None, **search, **given})

    def __call__(self, model: Model, x: Tensor, y: Tensor, *, rows: Sequence[int] | None = None) -> Tensor:
        """Attack a batch outside an evaluation: check the inputs, `run`, and check the result.

        `rows` are the places of the images in their data set, which seed their random draws, by default 0 to N - 1; the
        other arguments and errors are those of `pgd`.
        """
        with ready(model, x, y) as (answers, images, labels), frozen(answers):
            draws = Draws(self.seed or 0, self.noise_key, np.arange(len(images)) if rows is None else np.array(rows))
            x_adv = self.run(answers, images.clone(), labels.clone(), draws)
            verify(self.name, x_adv, images, self.eps, self.norm or "linf")
            return x_adv

    @abstractmethod
    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Return adversarial images of x (N, C, H, W) in [0, 1] with labels y (N,), which the caller has checked."""

    def passes(self, num_classes: int) -> int:
        """Return the estimated passes of one image, forward or backward, including the forward pass that decides."""
        return 100

    def check_classes(self, num_classes: int) -> None:
        """Raise a `UserError` if the attack does not work with so few classes."""
        return

    @property
    def ascent_steps(self) -> int:
        """Steps of gradient ascent in a ball; 0 for any other kind of attack."""
        return 0

    @property
    def on_margin(self) -> bool:
        """Whether it ascends the margin of the logits, whose direction does not depend on their scale."""
        return False

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
    def parameters(self) -> dict[str, object]:
        """All fields except name, norm and eps, as a result card stores them; `catalogue.stored` reads them."""
        fields = {**dataclasses.asdict(self), "source": self.made_on and self.made_on._asdict()}
        names = (*self.stored_first, *own_fields(type(self)), "seed", "source_sha256", "precision", "source")
        silent = {"precision": "float32", **self.unstored}
        found = {name: fields.get(name) for name in names}
        return {name: value for name, value in found.items() if value is not None and value != silent.get(name)}

    @cached_property
    def identity(self) -> Identity:
        """The identity, which is equal for equal attacks."""
        return identity(self.name, self.norm, self.eps, self.parameters, self.bounded)

    def to_json(self) -> dict[str, object]:
        """Return name, norm, eps and parameters as plain values."""
        return {"name": self.name, "norm": self.norm, "eps": self.eps, **self.parameters}

    def on(self, name: str, weights_sha256: str) -> Self:
        """Return the attack on other models, with examples made on the model `name`."""
        return dataclasses.replace(self, name=f"{self.name}@{name}", made_on=MadeOn(name, weights_sha256))


def own_fields(kind: type[AttackSpec]) -> tuple[str, ...]:
    """Return the names of the fields that not every attack has."""
    every = {one.name for one in dataclasses.fields(AttackSpec)}
    return tuple(one.name for one in dataclasses.fields(kind) if one.name not in every)


def may_round(kind: type[AttackSpec]) -> bool:
    """Return whether the passes of an attack may be computed in another precision than float32.

    False for an attack that ends with the first or the nearest success: successes on a rounded model lie at its own
    decision boundary, and the model itself rejects many of them.
    """
    return None not in kind.names.values() and not kind.minimal and not kind.gradient_free


def option_fields(kind: type[AttackSpec]) -> dict[str, str]:
    """Return the fields that users may set, by the names of their options."""
    found: dict[str, str] = {}
    common = [*([] if None in kind.names.values() else ["eps"]), *(["precision"] if may_round(kind) else [])]
    for name in (*common, *own_fields(kind)):
        marks = (mark.name for mark in getattr(hints(kind)[name], "__metadata__", ()) if isinstance(mark, Option))
        if option := next(marks, name):
            found[option] = name
    return found
