"""What a method is told of the validation split, at the end of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What a point of the curve measured on all validation images, by class: the argument of `Method.feedback`.

    Sums in float64 over the images of a class, on the method's device and over all processes, of the model as it would
    be deployed, clean (f(x)) and under the curve's attack (f(x')). Any split other than validation is refused: no
    method learns from test images.
    """

    split: str
    images: Tensor
    """Images of each class, (C,)."""
    clean: Tensor
    """How many of them are classified correctly, (C,)."""
    confusion: Tensor
    """Attacked images by their class (rows) and by the class that is predicted (columns), (C, C)."""
    clean_loss: Tensor
    """Sums of CE(f(x), y), (C,)."""
    robust_loss: Tensor
    """Sums of CE(f(x'), y), (C,)."""
    divergence: Tensor
    """Sums of KL(f(x) || f(x')), (C,)."""

    def __post_init__(self) -> None:
        if self.split != "validation":
            raise ValueError(f"feedback: got images of the {self.split} split; allowed: validation")

    @property
    def robust(self) -> Tensor:
        """How many images of each class are classified correctly under the attack, (C,)."""
        return self.confusion.diagonal()

    def rates(self, sums: Tensor) -> Tensor:
        """Return sums (C,) as means over a class's images; a class without images has the mean of the others."""
        means, present = sums / self.images.clamp(min=1), self.images > 0
        return torch.where(present, means, means.sum() / present.sum())
