"""The worst case over the attacks of a card, image by image."""

from collections.abc import Sequence

import numpy as np

from taet.attacks.ball import Norm
from taet.attacks.counting_model import WORK
from taet.card.column import Column
from taet.errors import UserError

# names of the columns, by the norm of the ball
WORST_CASE: dict[Norm, str] = {"linf": "worst-case", "l2": "worst-case-l2"}


def worst_case_column(
    columns: Sequence[Column], clean: Column | None, norm: Norm, eps: float | None
) -> Column:
    """Return the worst case over the attacks within one ball as a column: see `Card.worst_case`.

    `eps` is the radius; if it is None, the attacks must have one radius, which is taken.
    """
    inside = _attacks_inside(columns, norm, eps)
    measured = inside if clean is None else [clean, *inside]
    masks = np.stack([column.correct for column in measured])
    predictions = np.stack([column.predictions for column in measured])
    # the first column that broke it; 0 if none did, and then every prediction is the label
    breaker = masks.argmin(0)
    left = dict(
        zip(
            (column.name for column in measured),
            np.logical_and.accumulate(masks),
            strict=True,
        )
    )
    attacks = [
        {"name": column.name, "norm": norm, "eps": column.eps, **column.parameters}
        for column in inside
    ]
    work = {name: sum(getattr(column, name) for column in measured) for name in WORK}
    return Column(
        name=WORST_CASE[norm],
        norm=norm,
        eps=inside[0].eps,
        bounded=True,
        parameters={"attacks": sorted(attacks, key=lambda attack: str(attack["name"]))},
        correct=np.asarray(masks.all(0)),
        predictions=predictions[breaker, np.arange(len(breaker))],
        parts={column.name: left[column.name] for column in inside},
        **work,
    )


def _attacks_inside(columns: Sequence[Column], norm: Norm, eps: float | None) -> list[Column]:
    """Return the attacks on the model itself within the ball, all of one radius."""
    inside = [
        column
        for column in columns
        if column.bounded
        and column.norm == norm
        and column.ordinary
        and column.eps is not None
        and eps in (None, column.eps)
    ]
    radii = sorted({column.eps for column in inside if column.eps is not None})
    if len(radii) != 1:
        got = f"attacks of radius {', '.join(f'{one:g}' for one in radii)}" if radii else "none"
        wanted = "" if eps is None else f" of radius {eps:g}"
        raise UserError(
            f"worst case: got {got}; allowed: bounded {norm} attacks{wanted}, all of one radius"
        )
    return inside
