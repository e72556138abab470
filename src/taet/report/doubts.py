"""Why the number of an attack may be too high."""

from collections.abc import Sequence

from taet.attacks.pgd import ProjectedAscent
from taet.card.card import Card
from taet.card.column import Column
from taet.evaluation.flags import MASKING, raised

PGD_ALONE = frozenset(
    {
        "autoattack-far-below-pgd",
        "logit-scale",
        "adaptive-beats-plain",
        "margin-beats-cross-entropy",
    }
)
"""Flags of a loss or scale that misleads PGD but not AutoAttack, whose losses are a margin and
scale-invariant."""


def reason_for_doubt(cards: Sequence[Card], column: Column) -> str:
    """Return why a column of the cards of a row may be too high, e.g. a flag that every card
    raises; "" if nothing says so."""
    if any(card.model.get("leak") for card in cards):
        return "its epoch was chosen on the test images"
    if column.norm is None:  # clean images need no gradients
        return ""
    misleading = MASKING if isinstance(column.attack, ProjectedAscent) else MASKING - PGD_ALONE
    raised_by_all = misleading.intersection(*(raised(card) for card in cards))
    if not raised_by_all:
        return ""
    return f"gradients may mislead attacks: {', '.join(sorted(raised_by_all))}"
