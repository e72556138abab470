"""Losses that compare two predictions."""

from __future__ import annotations

from torch import Tensor

from taet.losses.long_tail import full_precision


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) = sum_c p_c (log p_c - log q_c) with p = softmax(target_logits), q = softmax(logits).

    Both arguments are (N, C), the result is (N,), at least 0. The gradient flows through both; detach the target to
    hold it fixed. Source: Zhang et al., TRADES, ICML 2019, arXiv:1901.08573, equation 5.
    """
    log_p = full_precision(target_logits).log_softmax(1)
    log_q = full_precision(logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
