"""Objectives that attacks maximise: functions of logits (N, C) and labels (N,) with one value per
sample, (N,)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from taet.attacks.ball import Norm, frozen, lengths
from taet.losses import effective_number_weights, rebalancing_weights
from taet.losses.consistency import kl_divergence
from taet.losses.long_tail import (
    check_labels,
    cross_entropy,
    full_precision,
    is_label,
    sum_to_classes,
)

Objective = Callable[[Tensor, Tensor], Tensor]


def fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Return whether the largest logit is not that of y, or is if `targeted`, (N,)."""
    predictions = logits.max(1).indices
    return predictions == y if targeted else predictions != y


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin max_{k != y} z_k - z_y, above 0 where another class wins: (N, C) with C of 2 or more,
    (N,) -> (N,).

    Minimised with the target class as y, it is the paper's targeted objective. Source: Carlini,
    Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644,
    function f_6.
    """
    logits = full_precision(logits)
    check_labels(logits, y)
    others = logits.masked_fill(is_label(logits, y), -torch.inf).max(1).values
    return others - logits.gather(1, y[:, None]).squeeze(1)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin of the probabilities, max_{k != y} p_k - p_y with p = softmax(z), in (-1, 1): (N, C),
    (N,) -> (N,).

    It saturates where the logits are large: prefer `margin` if they are scaled. Source: the PMA
    attack, CVPR 2025.
    """
    return margin(full_precision(logits).softmax(1), y)


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "cw": margin, "pm": probability_margin}
ObjectiveName = Literal["ce", "cw", "pm"]


def scaled(objective: Objective, factor: float) -> Objective:
    """Return the objective of factor times the logits: (z, y) -> objective(factor z, y).

    A factor of 10 gives the adaptive attack on models with small logits, whose softmax is so flat
    that all wrong classes contribute equally. The margin keeps its direction. Source: Li et al.,
    REAT, arXiv:2307.10205, 2023.
    """
    return lambda logits, y: objective(factor * logits, y)


def natural_divergence(model: Callable[[Tensor], Tensor], x: Tensor) -> Objective:
    """Return the objective KL(f(x) || f(x')) of TRADES, which uses no labels.

    f(x) is computed once for all steps.

    The model must not change before the last step. Source: Zhang et al., TRADES, ICML 2019,
    arXiv:1901.08573.
    """
    with torch.no_grad():
        natural = model(x)
    return lambda logits, _: kl_divergence(natural, logits)


def nearest_classes(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    norm: Norm = "linf",
    candidates: int = 100,
) -> Tensor:
    """Return the k likeliest other classes by ascending d_c = (z_y - z_c) / ||grad_x (z_c - z_y)||,
    (N, k).

    d_c is the distance to the boundary of the linearised model in `norm`, so the gradient has the
    dual norm. A class whose gradient is zero, or not finite, comes last. k = `candidates`, each
    with one backward pass.

    Source: Melamed, Yehudai, Shamir, "MALT powers up adversarial attacks", NeurIPS 2024,
    arXiv:2407.02240. Its code puts a class without gradient first.
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
            sizes.append(
                gradient.flatten(1).abs().sum(1, dtype=torch.float64)
                if norm == "linf"
                else lengths(gradient)
            )
    size = torch.stack(sizes, 1)
    reach = gaps.detach() / size
    order = torch.where(~(size > 0) | reach.isnan(), torch.inf, reach).argsort(dim=1, stable=True)
    return classes.gather(1, order)


def generation_weighting(
    name: str, class_counts: Tensor, predicted_counts: Tensor
) -> dict[str, Tensor]:
    """Return what re-balances a training attack: `weights` of its objective by label, or a `prior`
    of its logits, (C,).

    rw: w = 1/n; rws: w = 1/sqrt(n); enr: w = (1-b)/(1-b^n), b = (N-1)/N, N = sum n; rbl: REAT's
    weights from the predictions m of the previous epoch; all with sum C. brw: log n is added to the
    logits. n is at least 1; class_counts n and predicted_counts m are (C,), float. With sign steps
    and BN in eval mode a positive weight per label changes no adversarial example, except for signs
    that rounding flips: all but brw give those of plain PGD. Source: Li et al., REAT,
    arXiv:2307.10205, table 2; without code for rw, rws, enr, brw, whose definitions are ours.
    """
    counts = class_counts.clamp(min=1)
    if name in ("rw", "rws"):
        return {"weights": sum_to_classes(1 / counts if name == "rw" else counts.rsqrt())}
    if name == "enr":
        total = float(counts.sum())
        return {"weights": effective_number_weights(counts, (total - 1) / total)}
    if name == "rbl":
        return {"weights": rebalancing_weights(counts, predicted_counts)}
    return {"prior": counts} if name == "brw" else {}
