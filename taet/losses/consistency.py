"""Losses that compare two predictions, of one example or of two."""

from __future__ import annotations

from torch import Tensor

from taet.losses.long_tail import cross_entropy, full_precision, is_label


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) = sum_c p_c (log p_c - log q_c) with p = softmax(target_logits), q = softmax(logits).

    Both arguments are (N, C), the result is (N,), at least 0. The gradient flows through both; detach the target to
    hold it fixed. Source: Zhang et al., TRADES, ICML 2019, arXiv:1901.08573, equation 5.
    """
    log_p = full_precision(target_logits).log_softmax(1)
    log_q = full_precision(logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def runner_up_penalty(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1.0001 - max_{c != y} q_c + 1e-12) with q = softmax(logits): small where no wrong class is likely.

    logits (N, C), C at least 2 -> (N,), between -1e-4 and 9.22. What MART adds to the cross-entropy. Source: Wang et
    al., MART, ICLR 2020; the constants, which keep it finite, are those of its public code.
    """
    q = full_precision(logits).softmax(1)
    runner_up = q.masked_fill(is_label(q, labels), -1).max(1).values
    return -(1.0001 - runner_up + 1e-12).log()


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Boosted cross-entropy, CE_i - log(1.0001 - max_{c != y_i} q_ic + 1e-12) with q = softmax(logits) -> (N,).

    It raises the label and lowers the likeliest wrong class. Source: Wang et al., Improving Adversarial Robustness
    Requires Revisiting Misclassified Examples (MART), ICLR 2020; the constants are those of its public
    code.
    """
    return cross_entropy(logits, labels) + runner_up_penalty(logits, labels)


def misclassification_kl(target_logits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """MART's divergence, larger where the target is unsure of the label: KL(p || q) (1.0000001 - p_y) -> (N,).

    p = softmax(target_logits) of the clean images, q = softmax(logits) + 1e-12 of the attacked ones, both (N, C). The
    gradient flows through p, its weight and q. Source: Wang et al., MART, ICLR 2020; the constants are
    those of its public code.
    """
    log_p = full_precision(target_logits).log_softmax(1)
    log_q = (full_precision(logits).softmax(1) + 1e-12).log()
    p = log_p.exp()
    p_label = p.gather(1, labels[:, None]).squeeze(1)
    return (p * (log_p - log_q)).sum(1) * (1.0000001 - p_label)
