"""TAIL: REAT's regulariser of the features of tail classes.

Source: Li et al., Alleviating the Effect of Data Imbalance on Adversarial Training (REAT),
arXiv:2307.10205.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from taet.distributed import global_sum
from taet.errors import unknown
from taet.losses.long_tail import check_labels, full_precision, out_of_range, positive_counts
from taet.metrics.accuracies import class_ranks

Form = Literal["official", "paper", "per-pair"]


def tail_classes(class_counts: Tensor, form: Form = "official") -> Tensor:
    """Return the mask of the tail classes, (C,) bool.

    Classes are ranked by their training counts, largest first, ties by label. Counted from 1, the
    paper uses the ranks ceil(2C/3)..C (10 classes: the last four). Its public
    code, and so the forms official and per-pair, uses 2 floor(C/3) + 2..C (10 classes: the last
    three; 3 classes: none). The counts are read on the CPU; in a training loop compute the mask
    once.
    """
    classes = len(class_counts)
    first = -(-2 * classes // 3) - 1 if form == "paper" else 2 * (classes // 3) + 1  # rank, from 0
    return torch.as_tensor(class_ranks(class_counts.tolist()) >= first, device=class_counts.device)


def tail_margin(
    features: Tensor,
    labels: Tensor,
    class_counts: Tensor,
    form: Form = "official",
    tail: Tensor | None = None,
) -> Tensor:
    """REAT's TAIL regulariser, a divergence between features of tail examples and of all examples.

    With p = softmax(h) over the D features, q = p held fixed (no gradient flows through it), T the
    examples i of tail classes (see `tail_classes`), B the number of examples j in the batch, w_ij =
    sqrt(N / n_{y_i}) + sqrt(N / n_{y_j}), and s_ij = -1 for equal labels, 1 otherwise:

    official   1/|T| sum_{i in T} [1/B sum_j s_ij w_ij] [1/(B D) sum_j KL(q_i || p_j)]
    per-pair   1/|T| sum_{i in T} 1/B sum_j s_ij w_ij KL(q_i || p_j)
    paper      1/|T| sum_{i in T} 1/B sum_j -s_ij w_ij KL(p_j || p_i)

    `official` is what the public code computes: a mean over all pairs and features in place of each
    pair's divergence, which leaves about 1/D of `per-pair`. Both hold the tail's features fixed and
    pull those of other classes *towards* them; `official` pulls those of its own class as well, or
    pushes all away in a batch where the w_ij of its own class outweigh the others. `paper` is
    equation 3: it pushes them apart, and gradients flow through both.

    features (N, D), labels (N,), class_counts (C,) -> scalar, 0 in a batch without a tail example.
    `tail` (C,) bool is `tail_classes(class_counts, form)`; a training loop computes it once. Raises
    UserError for another `form`. On several processes i and j run over the global batch. Source:
    REAT, arXiv:2307.10205, section 4.2 (equation 3) and public code.

    Example:
        >>> import torch
        >>> from taet.losses import tail_margin
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
        >>> labels, class_counts = torch.tensor([0, 1, 2, 3]), torch.tensor([50, 30, 15, 5])
        >>> tail_margin(features, labels, class_counts)
        tensor(0.0773)
    """
    if form not in get_args(Form):
        raise unknown("tail margin", form, get_args(Form))
    check_labels(features, labels)
    class_counts = torch.as_tensor(class_counts, device=features.device)
    tail = tail_classes(class_counts, form) if tail is None else tail
    log_p = full_precision(features).log_softmax(1)
    fixed = log_p if form == "paper" else log_p.detach()
    p, ones = fixed.exp(), torch.ones_like(log_p[:, :1])
    # KL(p_i || p_j) = <a_i, b_j> with a = (-p, sum p log p) and b = (log p, 1): a sum over pairs is
    # one over examples.
    a, b = torch.cat([-p, (p * fixed).sum(1, keepdim=True)], 1), torch.cat([log_p, ones], 1)
    counts = positive_counts(class_counts.to(log_p.dtype))
    root = (counts.sum() / counts).sqrt()
    try:
        number = torch.zeros_like(root).index_add(0, labels, ones.squeeze(1))
    except IndexError:
        raise out_of_range(labels, len(counts)) from None
    number = global_sum(number)  # of each class in the batch
    batch, members = number.sum(), (tail * number).sum()
    with torch.autocast(features.device.type, enabled=False):  # it would multiply in half precision
        if form == "official":
            # sum_j s_ij w_ij, by the class of i
            signed = root * batch + root @ number - 4 * root * number
            left, right = global_sum(torch.stack([(tail * signed)[labels] @ a, b.sum(0)]))
            total = left @ right / (batch * features.shape[1])
        else:
            sides = torch.cat([a, b] if form == "per-pair" else [-b, a], 1)  # factors of i and of j
            sums = global_sum(
                sides.new_zeros(len(root), sides.shape[1]).index_add(0, labels, sides)
            )
            of_i, of_j = sums.chunk(2, 1)  # of the examples of each class
            # sum_j s_ij w_ij of_j, by the class of i
            pull = root[:, None] * (of_j.sum(0) - 4 * of_j) + root @ of_j
            total = (tail * (of_i * pull).sum(1)).sum()
    return total / (batch * members.clamp(min=1))
