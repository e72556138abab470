"""Hierarchical equalization loss (HEL): the class-wise loss of HARL and TAET.

Source: TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions, CVPR 2025,
arXiv:2503.01924.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from taet.distributed import global_sum
from taet.errors import UserError, unknown
from taet.losses.long_tail import cross_entropy

Absent = Literal["zero", "skip", "ema"]

# The public code of TAET keeps both divisions finite with this; a class without a sample then
# counts as loss 0.
TINY = 1e-10


class Loss(NamedTuple):
    """A training loss with several terms.

    total is the scalar to minimise, parts its terms by name, logits (N, C) those of the examples
    trained on.

    Example:
        >>> import torch
        >>> from taet.losses import hierarchical_equalization
        >>> loss = hierarchical_equalization(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
        >>> loss.logits.shape, sorted(loss.parts)
        (torch.Size([4, 2]), ['bcl', 'hdl', 'rcel'])
    """

    total: Tensor
    parts: dict[str, Tensor]
    logits: Tensor

    def __repr__(self) -> str:
        terms = ", ".join(
            f"{name} {term.item():.4g}"
            for name, term in {"total": self.total, **self.parts}.items()
        )
        return f"Loss({terms}, logits {tuple(self.logits.shape)})"


def class_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each class and its number of samples, over the global batch.

    logits (N, C), labels (N,) -> (C,), (C,). The mean of a class without a sample is 0.
    """
    losses = cross_entropy(logits, labels)
    zeros = losses.new_zeros(logits.shape[1])
    # One reduction for both sums: under several processes this is a single all-reduce.
    sums, counts = global_sum(
        torch.stack(
            [
                zeros.index_add(0, labels, losses),
                zeros.index_add(0, labels, torch.ones_like(losses)),
            ]
        )
    )
    return sums / (counts + TINY), counts


def hierarchical_equalization(
    logits: Tensor,
    labels: Tensor,
    alpha: float = 0.1,
    beta: float = 0.1,
    gamma: float = 0.1,
    absent: Absent = "zero",
    running: Tensor | None = None,
) -> Loss:
    """Hierarchical equalization loss (HEL) of TAET, alpha BCL + beta HDL + gamma RCEL.

    The three parts use the mean cross-entropy L_c of each class c in the batch:

    BCL  = mean_c L_c                  balanced cross-class loss
    HDL  = mean_c (L_c - BCL)^2        hierarchical deviation loss
    RCEL = sum_c (L_c / sum_k L_k)^2   rare-class emphasis loss, in [1/C, 1] unless every L_c is 0

    logits (N, C), labels (N,) int64 -> `Loss` with a scalar total; its parts are without the
    factors. `absent` decides what happens to a class without a sample in the batch: "zero" counts
    it as loss 0 (the public code), "skip" leaves it out of the means, "ema" uses `running` (C,), a
    running mean of its past losses, without gradient. Raises UserError for another `absent`, for
    "ema" without `running`, and for labels that `cross_entropy` refuses. On several processes the
    class means are those of the global batch. Source: TAET, CVPR 2025, arXiv:2503.01924, section
    4.1 (HARL); the constants are those of its appendix A.1 and its public code.

    Example:
        >>> import torch
        >>> from taet.losses import hierarchical_equalization
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> logits = logits.requires_grad_()
        >>> loss = hierarchical_equalization(logits, torch.tensor([0, 1, 2]))
        >>> loss
        Loss(total 0.1195, bcl 0.6299, hdl 0.1261, rcel 0.4393, logits (3, 3))
        >>> loss.total.backward()
    """
    if absent not in get_args(Absent):
        raise unknown("absent", absent, get_args(Absent))
    means, counts = class_losses(logits, labels)
    present = counts > 0
    weights = torch.ones_like(means)
    if absent == "skip":
        weights = present.to(means.dtype)
    elif absent == "ema":
        if running is None:
            raise UserError(
                "running: got none with absent ema; allowed: the running mean loss of every class, "
                "(C,)"
            )
        means = torch.where(present, means, running.to(means.dtype).detach())
    number = weights.sum()
    bcl = (weights * means).sum() / number
    hdl = (weights * (means - bcl).square()).sum() / number
    rcel = (means / (means.sum() + TINY)).square().sum()
    return Loss(
        alpha * bcl + beta * hdl + gamma * rcel, {"bcl": bcl, "hdl": hdl, "rcel": rcel}, logits
    )
