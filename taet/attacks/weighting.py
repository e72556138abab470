"""Class weights in the objective of a training attack: AE generation in REAT's terms.

With sign steps and BN in eval mode a positive weight per label changes no adversarial example: samples are independent
and a sign is invariant to a factor. There RW, RWS, ENR and RBL give the examples of plain PGD, except for signs that
rounding flips, of which bf16 has many. BRW shifts the logits and does change the examples.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from taet.losses import effective_number_weights, rebalancing_weights
from taet.losses.long_tail import sum_to_classes


class Weighting(NamedTuple):
    """Factor of the objective by label (C,), and class counts (C,) whose logarithm is added to its logits."""

    weights: Tensor | None = None
    prior: Tensor | None = None


def generation_weighting(name: str, class_counts: Tensor, predicted_counts: Tensor) -> Weighting:
    """Return the weighting with a name; class_counts n and predicted_counts m are (C,), float.

    rw: w = 1/n; rws: w = 1/sqrt(n); enr: w = (1-b)/(1-b^n), b = (N-1)/N, N = sum n; rbl: REAT's weights from the
    predictions m of the previous epoch; all with sum C. brw: log n is added to the logits. A class without images
    counts as one image. Source: Li et al., REAT, arXiv:2307.10205, table 2; it has no code for rw, rws, enr and brw,
    whose definitions here are ours.
    """
    counts = class_counts.clamp(min=1)
    if name == "rw":
        return Weighting(sum_to_classes(1 / counts))
    if name == "rws":
        return Weighting(sum_to_classes(counts.rsqrt()))
    if name == "enr":
        total = float(counts.sum())
        return Weighting(effective_number_weights(counts, (total - 1) / total))
    if name == "rbl":
        return Weighting(rebalancing_weights(counts, predicted_counts))
    return Weighting(prior=counts) if name == "brw" else Weighting()
