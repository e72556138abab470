"""Target classes of an image, in the order in which an attack should aim at them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taet.attacks.ball import Norm, frozen, lengths
from taet.losses.long_tail import full_precision, is_label

CANDIDATES = 100  # of MALT's public code


def nearest_classes(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, norm: Norm = "linf", candidates: int = CANDIDATES
) -> Tensor:
    """Return other classes c by d_c = (z_y - z_c) / ||grad_x (z_c - z_y)||, nearest first, (N, k), k <= `candidates`.

    d_c is the distance to the boundary of the linearised model, so the norm of the gradient is the dual one: the sum of
    absolute values in the L-infinity ball, the 2-norm in L2. Only the `candidates` likeliest other classes are ordered.
    A class whose gradient is zero, or not finite, comes last. One forward pass and k backward passes of each image.

    Source: Melamed, Yehudai, Shamir, "MALT powers up adversarial attacks", NeurIPS 2024, arXiv:2407.02240. Its
    code puts a class without gradient first.
    """
    with frozen(model), torch.enable_grad():
        leaf = full_precision(x.detach()).requires_grad_()
        logits = full_precision(model(leaf))
        likeliest = logits.detach().masked_fill(is_label(logits, y), -torch.inf)
        classes = likeliest.topk(min(candidates, logits.shape[1] - 1)).indices
        gaps = logits.gather(1, y[:, None]) - logits.gather(1, classes)
        sizes = []
        for gap in gaps.unbind(1):
            with torch.autocast(leaf.device.type, enabled=False):
                (gradient,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=True)
            sizes.append(gradient.flatten(1).abs().sum(1, dtype=torch.float64) if norm == "linf" else lengths(gradient))
    reach = gaps.detach() / torch.stack(sizes, 1)
    flat = ~(torch.stack(sizes, 1) > 0)
    order = torch.where(flat | reach.isnan(), torch.inf, reach).argsort(dim=1, stable=True)
    return classes.gather(1, order)
