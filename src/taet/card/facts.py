"""Facts about the outputs and gradients of a model on a sample of images, as cards store them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from taet.errors import UserError
from taet.files import Json
from taet.settings.types import NonNegative, StoredCount, check_value, hints

# of REAT's adaptive attack, which showed that RoBal masks gradients; here the gap after scaling
LOGIT_FACTOR = 10.0
MASKED = -50.0  # relative to the largest logit: one that far below decides nothing


@dataclass(frozen=True)
class ModelFacts:
    """Outputs of a model on a sample of images.

    A fact that was not measured, as in cards of older versions, is 0. A difference is the largest
    L2 distance between two outputs for one image, each scaled to unit length. `x_correct` counts
    the images that an attack x leaves correct, `only_x_correct` those of them that its reference
    breaks: the scaled PGD, for which it is the plain one.
    """

    batch_size: StoredCount
    images: Annotated[StoredCount, Field(ge=1)]
    clean_correct: StoredCount
    distributions: StoredCount
    """Images with all logits in [0, 1], if they sum to 1 or the largest of any image is near 1."""
    zero_gradients: StoredCount
    """Correctly classified images where the gradient of the cross-entropy is exactly zero."""
    nonfinite_gradients: StoredCount = 0
    """Images with a logit or gradient that is not finite, clean or at an iterate of PGD."""

    repeat_difference: NonNegative = 0.0
    """Difference when the model is called again."""
    later_difference: NonNegative = 0.0
    """Difference after the model was called on other images."""
    batch_difference: NonNegative = 0.0
    """Difference when the image is in another batch."""

    pgd_correct: StoredCount = 0
    """Under PGD-20 on the cross-entropy, with step eps / 8 and a uniform start."""
    scaled_pgd_correct: StoredCount = 0
    """The same, with the logits times `logit_factor` in the objective."""
    only_pgd_correct: StoredCount = 0
    only_scaled_pgd_correct: StoredCount = 0
    logit_gap: NonNegative = 0.0
    """Median gap between the two largest logits; 0 if not finite."""
    gradient_difference: NonNegative = 0.0
    """Difference when a gradient is computed as well."""

    sites: StoredCount = 0
    """Kinds of operations that stop or distort the gradient (`taet.attacks.differentiable`)."""
    replaced: StoredCount = 0
    """How many of them were replaced; if none, the next four fields are 0."""
    straight_pgd_correct: StoredCount = 0
    """As `scaled_pgd_correct`, with the identity as derivative of replaced operations."""
    only_straight_pgd_correct: StoredCount = 0
    smooth_pgd_correct: StoredCount = 0
    """The same on the margin, with smooth operations as replacements."""
    only_smooth_pgd_correct: StoredCount = 0

    @property
    def logit_factor(self) -> float:
        """Factor of the logits in the scaled objective.

        It scales `logit_gap` to 10, and is 10 if that is 0.
        """
        return LOGIT_FACTOR / self.logit_gap if self.logit_gap > 0 else LOGIT_FACTOR


def facts_of_probe(stored: Json, batch_size: int) -> ModelFacts | None:
    """Return the facts that a card stores of its probe; None if it has none, as where nothing was
    attacked. Fields of other versions are left out, a wrong value is a `UserError`."""
    types = hints(ModelFacts)
    known = {name: value for name, value in stored.items() if name in types}
    if not known:
        return None
    for name, value in known.items():
        check_value(f"probe {name}", value, types[name])
        images = known.get("images", value)
        if "correct" in name and value > images:
            raise UserError(f"probe {name}: got {value}; allowed: at most {images}, its images")
    return ModelFacts(**{**known, "batch_size": batch_size})
