"""Random draws of an attack in an evaluation, made for each image separately."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.attacks.ball import Norm, Start, draw_noise
from taet.attacks.noise import Source
from taet.randomness import derive_seed, generator


@dataclass(frozen=True)
class Draws:
    """Random draws of an attack, made for each image separately, so that they do not depend on the batches."""

    seed: int
    purpose: str
    """Noise key of the attack: attacks with the same key draw the same numbers."""
    rows: NDArray[np.int64]
    """Place of each image in the test set, (N,)."""

    def start(self, x: Tensor, eps: float, start: Start = "uniform", norm: Norm = "linf", restart: int = 0) -> Tensor:
        """Start noise in the shape of x, as in `draw_noise`; every restart has its own."""
        purpose = f"{self.purpose} {restart}" if restart else self.purpose
        blank = torch.empty(1, *x.shape[1:])
        sources = (Source(generator("cpu", self.seed, purpose, int(row))) for row in self.rows)
        return torch.cat([draw_noise(blank, eps, start, source, norm) for source in sources]).to(x.device)

    def other_class(self, y: Tensor, num_classes: int) -> Tensor:
        """A class other than y for each image, (N,), all equally likely."""
        purpose = f"{self.purpose} target"
        steps = [
            int(torch.randint(1, num_classes, (1,), generator=generator("cpu", self.seed, purpose, int(row))))
            for row in self.rows
        ]
        return (y + torch.tensor(steps, device=y.device)) % num_classes

    def seed_torch(self) -> None:
        """Seed torch's global generators for this batch; the caller restores their state."""
        torch.manual_seed(derive_seed(self.seed, self.purpose, int(self.rows[0])))
