"""How extra images are mixed into training batches, and the resulting class prior.

Source: wzekai99/DM-Improves-AT (Wang et al., ICML 2023, arXiv:2302.04638) for the batches; the class shares are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taet.errors import UserError
from taet.settings import Data
from taet.statistics import Floats


def class_shares(rule: str, class_counts: Sequence[int], share: float) -> Floats:
    """Shares m of the classes among extra images, (C,), which sum to 1.

    prior n_c / N; uniform 1 / C; inverse proportional to [1 / C - (1 - phi) n_c / N]+, which evens the batch out as
    far as extra images with the `share` phi of a batch, above 0 and below 1, can.
    """
    prior: Floats = np.asarray(class_counts, np.float64) / np.sum(class_counts)
    even: Floats = np.full_like(prior, 1 / len(prior))
    if rule == "prior":
        return prior
    if rule == "uniform":
        return even
    missing = (even - (1 - share) * prior).clip(min=0)
    return np.asarray(missing / missing.sum())


@dataclass(frozen=True)
class Mixture:
    """Batches of `batch` images, `extra` of which are extra ones."""

    batch: int
    extra: int
    rule: str
    """Rule of the class shares."""
    draw: tuple[float, ...]
    """m: probability of each class for an extra image, (C,)."""
    exposure: tuple[float, ...]
    """N pi: class counts of the real images as they would be if they had the prior of the batches, (C,).

    pi_c = (1 - phi) n_c / N + phi m_c
    """

    @property
    def share(self) -> float:
        """phi, the share of extra images in every batch."""
        return self.extra / self.batch


def mixture(data: Data, class_counts: Sequence[int], batch_size: int) -> Mixture | None:
    """Return the mixture of the batches for real class counts n (C,); None without extra images.

    A fraction f gives floor(f B) extra images in a batch of B. One that leaves no real or no extra image is refused.
    """
    if data.extra is None or data.extra_fraction == 0:
        return None
    extra = math.floor(data.extra_fraction * batch_size + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < extra < batch_size:
        got = f"got {data.extra_fraction:g} with a batch size of {batch_size}, which leaves no"
        raise UserError(f"data extra fraction: {got} {'extra' if extra == 0 else 'real'} image; allowed: 0, or another")
    share = extra / batch_size
    draw = class_shares(data.extra_classes, class_counts, share)
    exposure = (1 - share) * np.asarray(class_counts, np.float64) + share * sum(class_counts) * draw
    return Mixture(batch_size, extra, data.extra_classes, tuple(draw.tolist()), tuple(exposure.tolist()))
