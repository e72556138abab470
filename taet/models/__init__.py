"""Models: image classifiers in [0, 1] with `.features`, `.head` and their normalisation inside."""

from __future__ import annotations

from taet import registry
from taet.models.classifier import Adapter, Classifier, adapted
from taet.models.heads import CosineHead, Head
from taet.randomness import seeded

__all__ = ["Adapter", "Classifier", "CosineHead", "Head", "adapted", "build"]


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 0,
    head: Head = Head(),  # noqa: B008  # a tuple, which cannot change
) -> Classifier:
    """Return the model called `name` with fresh weights drawn from `seed`; the global random state is left as it was.

    image_shape is (channels, height, width); `forward` maps (N, *image_shape) in [0, 1] to logits (N, num_classes).
    """
    entry = registry.find("models", name)
    with seeded(seed, "weights"):
        model: Classifier = entry.load().build(name, num_classes, image_shape, head)
    return model
