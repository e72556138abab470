"""Models: image classifiers in [0, 1] with `.features`, `.head` and their normalisation inside."""

from taet.models.classifier import Adapter, Classifier, CosineHead, Head, build_head
from taet.models.foreign import build, split_head
from taet.models.normalization import Normalized
from taet.models.trust import trusted
from taet.models.weight_files.loading import pretrained

__all__ = [
    "Adapter",
    "Classifier",
    "CosineHead",
    "Head",
    "Normalized",
    "build",
    "build_head",
    "pretrained",
    "split_head",
    "trusted",
]
