"""Cards compared: whether two describe the same network, and how much better one method is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taet.card.card import Card
from taet.card.facts import MASKED
from taet.errors import UserError, shortened
from taet.metrics.paired import Difference, difference

# relative difference of one model's logits in two evaluations; rounding alone gives about 1e-6
LOGIT_TOLERANCE = 1e-3
# least size to which the tolerance is relative: smaller gradients are mostly rounding
SMALLEST = 0.01


def same_answers(one: Card, other: Card) -> bool:
    """Return whether the outputs on the first images agree.

    Networks of equal weights may differ in their code. Logits are compared relative to the largest
    of their image, down to `MASKED`, and gradient norms separately. Cards of older versions have no
    outputs, and agree.
    """
    first, second = _answers(one), _answers(other)
    if first.shape != second.shape:
        return False
    if first.ndim < 2:
        return True
    logits_agree = _close(_relative_logits(first), _relative_logits(second))
    return logits_agree and _close(first[:, -1], second[:, -1])


def _answers(card: Card) -> NDArray[np.float64]:
    """Return the outputs on the first images, (images, C + 1): logits, then a gradient norm."""
    return np.array(card.model.get("answers", ()), np.float64)


def _relative_logits(answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logits minus the largest of their image, at least `MASKED`."""
    logits = answers[:, :-1]
    largest = logits.max(1, keepdims=True, initial=-np.inf)
    return np.maximum(logits - largest, MASKED)


def _close(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Return whether no pair of numbers differs by more than the tolerance, relative to the
    largest."""
    largest = float(np.nanmax(np.abs([first, second]), initial=0))
    limit = LOGIT_TOLERANCE * max(largest, SMALLEST)
    return np.allclose(first, second, rtol=0, atol=limit, equal_nan=True)


def compare_runs(
    first: Sequence[Card], second: Sequence[Card], column: str, comparisons: int = 1
) -> Difference:
    """Return the difference in balanced accuracy under one attack between two methods.

    Each method has one card per seed: the i-th card of `first` is paired with the i-th of `second`,
    as runs with the same seed. `comparisons` differences share the error of their intervals (see
    `taet.metrics.paired.difference`).

    Raises:
        UserError: different numbers of cards, other test images, or other settings of the attack,
            its random seed aside.
    """
    if len(first) != len(second) or not first:
        raise UserError(
            f"comparison: got {len(first)} and {len(second)} cards; allowed: the same number on "
            "both sides"
        )
    cards = [*first, *second]
    columns = [card.column(column) for card in cards]
    images = cards[0].data["test_sha256"]
    for card, measured in zip(cards, columns, strict=True):
        if card.data["test_sha256"] != images:
            got = f"{shortened(repr(images))} and {shortened(repr(card.data['test_sha256']))}"
            raise UserError(f"comparison: got test images {got}; allowed: the same images")
        for name, (one, two) in columns[0].identity.differences(measured.identity).items():
            got = f"{name} {shortened(repr(one))} and {shortened(repr(two))}"
            raise UserError(
                f"comparison: '{column}' was measured with {got}; allowed: the same settings"
            )
    masks = [measured.correct for measured in columns]
    first_masks, second_masks = masks[: len(first)], masks[len(first) :]
    return difference(
        first_masks, second_masks, cards[0].labels, cards[0].num_classes, comparisons=comparisons
    )
