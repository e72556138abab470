"""Plain cross-entropy as the label loss of a run."""

from taet.losses.label_loss import LabelLoss

NAMES = {"cross-entropy": "cross-entropy, without a correction for the class counts"}


class CrossEntropy(LabelLoss):
    """CE(z, y): see `taet.losses.cross_entropy`."""
