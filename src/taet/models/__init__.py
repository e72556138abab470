"""Models: image classifiers in [0, 1] with `.features`, `.head` and their normalisation inside."""

from taet.models.classifier import Adapter, Classifier, CosineHead, Head, adapted, build_head
from taet.models.foreign import build, check_logits, split_head
from taet.models.normalization import Normalized
from taet.models.trust import check_consent, check_trust, consent, is_own, trusted
from taet.models.weight_files.loading import pretrained

__all__ = [
    "Adapter",
    "Classifier",
    "CosineHead",
    "Head",
    "Normalized",
    "adapted",
    "build",
    "build_head",
]
__all__ += [
    "check_consent",
    "check_logits",
    "check_trust",
    "consent",
    "is_own",
    "pretrained",
    "split_head",
    "trusted",
]
