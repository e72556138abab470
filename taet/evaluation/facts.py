"""Facts about a model's outputs on a sample of images, to which the rules of the diagnostics apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from taet.errors import located
from taet.evaluation.column import AtLeastZero, Record, Tally

UnitDistance = Annotated[float, Field(ge=0, le=2.001)]
"""A distance between two vectors of unit length, rounded."""
AtLeastOne = Annotated[int, Field(ge=1)]

LOGIT_FACTOR = 10.0
"""Factor of REAT's adaptive attack, which showed that RoBal masks gradients; here the gap after scaling the logits."""


class ModelFacts(Record):
    """Outputs of a model on a sample of images, as `taet.evaluation.probe` and `taet check` measure them.

    A difference is the largest L2 distance between two outputs for one image, each scaled to unit length. A fact that
    was not measured, as in cards of older versions, is 0.
    """

    batch_size: AtLeastOne
    images: AtLeastOne
    clean_correct: Tally
    distributions: Tally
    """Images whose logits are at least 0 and sum to 1."""
    zero_gradients: Tally
    """Correctly classified images at which the gradient of the cross-entropy is exactly zero."""
    nonfinite_gradients: Tally = 0
    """Images with a logit or gradient that is not finite, at the image or at an iterate of PGD."""
    repeat_difference: UnitDistance = 0.0
    """Difference when the model is called again."""
    later_difference: UnitDistance = 0.0
    """Difference after the model was called on other images."""
    batch_difference: UnitDistance = 0.0
    """Difference when the image is in another batch."""
    pgd_correct: Tally = 0
    """Images that PGD-20 on the cross-entropy (step eps / 8, uniform start) leaves correct."""
    scaled_pgd_correct: Tally = 0
    """The same, with the logits times 10 / `logit_gap` in the objective."""
    only_pgd_correct: Tally = 0
    """Images that only the first of these attacks leaves correct; the next field: only the second."""
    only_scaled_pgd_correct: Tally = 0
    logit_gap: AtLeastZero = 0.0
    """Median gap between the two largest logits; 0 if not finite: then, as in older cards, the factor is 10."""
    gradient_difference: UnitDistance = 0.0
    """Difference when a gradient is computed as well."""
    sites: Tally = 0
    """Kinds of operations that stop or distort the gradient (`taet.attacks.differentiable`)."""
    replaced: Tally = 0
    """How many of them were replaced; if none, the next four fields are 0."""
    straight_pgd_correct: Tally = 0
    """As `scaled_pgd_correct`, with the identity as the derivative of the replaced operations."""
    only_straight_pgd_correct: Tally = 0
    """Images that this attack leaves correct and PGD-20 does not."""
    smooth_pgd_correct: Tally = 0
    """The same on the margin, with smooth operations as replacements."""
    only_smooth_pgd_correct: Tally = 0

    @property
    def logit_factor(self) -> float:
        """Factor of the logits in the scaled objective: it scales `logit_gap` to 10, and is 10 if that is 0."""
        return LOGIT_FACTOR / self.logit_gap if self.logit_gap > 0 else LOGIT_FACTOR


def probed(probe: Mapping[str, Any], batch_size: int) -> ModelFacts | None:
    """Return the facts that the probe of an evaluation measured; None if nothing was attacked.

    A missing or impossible fact raises a `UserError`.
    """
    if not probe:
        return None
    with located("probe"):
        return ModelFacts(**{**probe, "batch_size": batch_size})


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """Facts that `taet audit` measures on a sample of images, in addition to the card and its probe."""

    images: int
    reaches: bool = True
    """Whether the gradient of the logits reaches the image without replaced operations."""
    classes: Tally = 0
    logits: Tally = 0
    """Logits of an image; if a class has several, the largest counts, and the next three fields were measured."""
    raw_correct: Tally = 0
    """Images that PGD-20 on the cross-entropy of all logits leaves correct."""
    merged_correct: Tally = 0
    """The same for the margin of the largest logits of each class."""
    only_merged_correct: Tally = 0
    """Images that the attack on merged logits leaves correct and the other does not."""
    draws: Tally = 0
    """Random draws of a randomised model per gradient, which attacks average; 0 for a deterministic model."""
    judged: Tally = 0
    """Number of draws whose mean probabilities decide whether an image is correct."""
    one_correct: Tally = 0
    """Images that PGD-20 on the margin, with a draw for each step, leaves correct."""
    mean_correct: Tally = 0
    """The same with the mean gradient of all draws (EOT)."""
    only_mean_correct: Tally = 0
    """Images that the attack on the mean leaves correct and the other does not."""
