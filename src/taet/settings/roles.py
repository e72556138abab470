"""What each setting decides: the one table that record, resume, compare, report and papers ask.

A field of the settings carries its role beside its bounds, `seed: Annotated[Seed, Role.REPLICATE]`;
a class may give all of its fields a role. A field without one decides the weights, so that runs
that differ in a new setting are told apart before anybody thinks of it.
"""

import enum
from collections.abc import Iterator

from pydantic import BaseModel


class Role(enum.Enum):
    """What a setting decides; its value says it in words."""

    WEIGHTS = "decides the weights"
    REPLICATE = "redraws a run: stored and shown, never names a row"
    IMAGES = "chooses images, which the cards of a table share"
    CURVE = "shapes the curve, which decides weights where it chooses the epoch or teaches a method"
    RECORD = "is recorded beside the training"
    EVALUATION = "attacks the finished model"
    COLUMNS = "lists the columns of a card, each of which stores its own attack"
    MACHINE = "belongs to the machine"


RETIRED_OF_MACHINE = ("training.capture", "training.tensorboard", "training.workers")
"""Settings of earlier versions that belonged to the machine; stored runs still have them."""


def roles_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Role]]:
    """Yield (dotted name, role) of every field of a settings class and of its parts."""
    usual = getattr(kind, "role", Role.WEIGHTS)
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from roles_of(field.annotation, f"{prefix}{name}.")
            continue
        own = [mark for mark in field.metadata if isinstance(mark, Role)]
        yield prefix + name, own[0] if own else usual
