"""Plain cross-entropy as the label loss of a run."""

from taet.losses.label_loss import LabelLoss

NAMES = {"cross-entropy": "cross-entropy, without a correction for the class counts"}


class CrossEntropy(LabelLoss):
    """CE(z, y): see `taet.losses.cross_entropy`.

    Example:
        >>> import torch
        >>> from taet.losses import CrossEntropy
        >>> logits, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
        >>> CrossEntropy(torch.tensor([100, 10]))(logits, labels)
        tensor([0.6931])
    """
