"""Losses that compare two predictions: of the clean and the attacked image, or of the label and
another class."""

from torch import Tensor

from taet.losses.long_tail import cross_entropy, full_precision, is_label


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence between two predictions, as in TRADES.

    KL(p || q) = sum_c p_c (log p_c - log q_c),   p = softmax(target_logits),  q = softmax(logits)

    target_logits (N, C), logits (N, C) -> (N,), at least 0. The gradient flows through both
    arguments; detach the target to hold it fixed. Source: Zhang et al., TRADES, ICML 2019,
    arXiv:1901.08573, equation 5.

    Example:
        >>> import torch
        >>> from taet.losses import kl_divergence
        >>> clean = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> attacked = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> kl_divergence(clean, attacked)
        tensor([0.0989, 0.0000])
    """
    log_p = full_precision(target_logits).log_softmax(1)
    log_q = full_precision(logits).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def runner_up_penalty(logits: Tensor, labels: Tensor) -> Tensor:
    """MART's penalty on the most likely wrong class.

        -log(1.0001 - max_{c != y} q_c + 1e-12),   q = softmax(logits)

    logits (N, C) with C at least 2, labels (N,) -> (N,), between -1e-4 and 9.22. Source: Wang et
    al., MART, ICLR 2020; the constants, which keep it finite, are those of its public code.
    """
    q = full_precision(logits).softmax(1)
    runner_up = q.masked_fill(is_label(q, labels), -1).max(1).values
    return -(1.0001 - runner_up + 1e-12).log()


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Boosted cross-entropy of MART: it raises the label and lowers the most likely wrong class.

    BCE_i = CE_i - log(1.0001 - max_{c != y_i} q_ic + 1e-12),   q = softmax(logits)

    logits (N, C) with C at least 2, labels (N,) -> (N,), at least -1e-4. Source: Wang et al.,
    Improving Adversarial Robustness Requires Revisiting Misclassified Examples (MART), ICLR 2020;
    the constants are those of its public code.

    Example:
        >>> import torch
        >>> from taet.losses import boosted_cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> boosted_cross_entropy(logits, torch.tensor([0, 2]))
        tensor([0.3520, 2.4095])
    """
    return cross_entropy(logits, labels) + runner_up_penalty(logits, labels)


def misclassification_kl(target_logits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """MART's divergence, which counts more where the clean prediction is unsure of the label.

    KL(p || q) (1.0000001 - p_y),   p = softmax(target_logits),  q = softmax(logits) + 1e-12

    target_logits (N, C) of the clean images, logits (N, C) of the attacked ones, labels (N,) ->
    (N,). The gradient flows through p, its weight and q. Source: Wang et al., MART, ICLR 2020; the
    constants are those of its public code.
    """
    log_p = full_precision(target_logits).log_softmax(1)
    log_q = (full_precision(logits).softmax(1) + 1e-12).log()
    p = log_p.exp()
    p_label = p.gather(1, labels[:, None]).squeeze(1)
    return (p * (log_p - log_q)).sum(1) * (1.0000001 - p_label)
