"""Objectives that attacks maximise: functions of logits (N, C) and labels (N,) with one value per sample, (N,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from taet.attacks.ball import Norm
from taet.attacks.draws import Draws
from taet.attacks.targets import CANDIDATES, nearest_classes
from taet.errors import UserError
from taet.fields import got_text
from taet.losses.consistency import kl_divergence
from taet.losses.long_tail import check_labels, cross_entropy, full_precision, is_label, out_of_range

Objective = Callable[[Tensor, Tensor], Tensor]


def fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Return whether the largest logit is not that of y or, if `targeted`, is that of y: (N, C), (N,) -> (N,)."""
    predictions = logits.max(1).indices
    return predictions == y if targeted else predictions != y


def check_classes(what: str, logits: Tensor) -> None:
    """Raise a `UserError` for logits with fewer than two classes."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UserError(f"{what}: got logits of shape {tuple(logits.shape)}; allowed: (N, C) with C of 2 or more")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin max_{k != y} z_k - z_y, above 0 where another class wins: (N, C) with C of 2 or more, (N,) -> (N,).

    Minimised with the target class as y, it is the targeted objective of the same paper. Source: Carlini,
    Wagner, "Towards evaluating the robustness of neural networks", S&P 2017, arXiv:1608.04644, function f_6.

    Raises:
        UserError: a single class; labels as in `taet.losses.cross_entropy`.
    """
    check_classes("margin", logits)
    logits = full_precision(logits)
    check_labels(logits, y)
    others = logits.masked_fill(is_label(logits, y), -torch.inf).max(1).values
    try:
        return others - logits.gather(1, y[:, None]).squeeze(1)
    except RuntimeError:
        if logits.is_cpu and ((y < 0) | (y >= logits.shape[1])).any():
            raise out_of_range(y, logits.shape[1]) from None
        raise


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{k != y} z_k - z_y) / (z_(1) - z_(3)), z sorted from the largest: -> (N,).

    It is invariant to a shift of the logits and to a positive factor. The denominator is at least 1e-12, as in the
    public code. Source: Croce, Hein, AutoAttack, ICML 2020, arXiv:2003.01690, section 4.

    Raises:
        UserError: fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(f"objective dlr: got {logits.shape[1]} classes; allowed: 3 or more (use cw)")
    largest = full_precision(logits).topk(3).values
    return margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin of the probabilities, max_{k != y} p_k - p_y with p = softmax(z), in (-1, 1): (N, C), (N,) -> (N,).

    It saturates where the logits are large, so on a model with scaled logits prefer `margin`. Source: the PMA attack,
    CVPR 2025.

    Raises:
        UserError: as `margin`.
    """
    check_classes("probability margin", logits)
    return margin(full_precision(logits).softmax(1), y)


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "cw": margin, "dlr": dlr, "pm": probability_margin}
"""Objectives by their names; "kl" is `natural_divergence`, which needs the model and the images."""

LabelObjectiveName = Literal["ce", "cw", "dlr", "pm"]
ObjectiveName = Literal[LabelObjectiveName, "kl"]
Target = Literal["least-likely", "runner-up", "nearest", "random"]


def scaled(objective: Objective, factor: float) -> Objective:
    """Return the objective of factor times the logits: (z, y) -> objective(factor z, y).

    A factor of 10 gives the adaptive attack on models with small logits, whose softmax is so flat that all wrong
    classes contribute equally. It changes cross-entropy and KL; margin and DLR keep their directions. Source: Li et
    al., REAT, arXiv:2307.10205, 2023.
    """
    return lambda logits, y: objective(factor * logits, y)


def towards(objective: Objective) -> Objective:
    """Return the objective times -1, whose ascent leads to the class that y names."""
    return lambda logits, y: -objective(logits, y)


def natural_divergence(model: Callable[[Tensor], Tensor], x: Tensor) -> Objective:
    """Return the objective KL(f(x) || f(x')) of TRADES, which uses no labels; f(x) is computed once for all steps.

    The model must not change until the last step, as inside `frozen`. Source: Zhang et al., TRADES, ICML
    2019, arXiv:1901.08573.
    """
    with torch.no_grad():
        natural = model(x)
    return lambda logits, _: kl_divergence(natural, logits)


def named_objective(name: ObjectiveName, model: Callable[[Tensor], Tensor], x: Tensor) -> Objective:
    """Return the objective with a name; "kl" needs one forward pass of the images x."""
    return natural_divergence(model, x) if name == "kl" else OBJECTIVES[name]


def check_objective(attack: str, name: ObjectiveName, num_classes: int) -> None:
    """Raise a `UserError` for an objective that needs more classes than there are."""
    if name == "dlr" and num_classes < 3:
        raise UserError(f"attack '{attack}': got {num_classes} classes; allowed: 3 or more for DLR")


def check_callable(objectives: Sequence[object]) -> None:
    """Raise a `UserError` for an objective that is no function."""
    for one in objectives:
        if not callable(one):
            hint = (
                f"; did you mean taet.attacks.objectives.OBJECTIVES[{one!r}]?"
                if isinstance(one, str) and one in OBJECTIVES
                else ""
            )
            allowed = "a function from (logits, labels) to one value per image"
            raise UserError(f"objective: got {got_text(one)}; allowed: {allowed}{hint}")


def target_classes(
    target: Target, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, draws: Draws, norm: Norm = "linf"
) -> Tensor:
    """Return a target class other than y for each image, (N,): by the clean logits and their gradients, or at random.

    The least likely class is the target of Kurakin, Goodfellow, Bengio, ICLR 2017, arXiv:1611.01236. A random class is
    the average case of Carlini, Wagner, S&P 2017, arXiv:1608.04644; the runner-up is close to their best case, and the
    nearest class (`nearest_classes`) closer.
    """
    if target == "nearest":
        return nearest_classes(model, x, y, norm)[:, 0]
    with torch.no_grad():
        logits = model(x)
    if target == "random":
        return draws.other_class(y, logits.shape[1])
    own = is_label(logits, y)
    if target == "least-likely":
        return logits.masked_fill(own, torch.inf).argmin(1)
    return logits.masked_fill(own, -torch.inf).argmax(1)


def target_passes(target: Target | None, num_classes: int) -> int:
    """Return the passes of an image that `target_classes` takes."""
    if target is None:
        return 0
    return 1 + (min(CANDIDATES, num_classes - 1) if target == "nearest" else 0)
