"""Models: image classifiers in [0, 1] with `.features`, `.head` and their normalisation inside."""

from __future__ import annotations

from pathlib import Path

from taet.errors import UserError
from taet.models.classifier import Adapter, Classifier, CosineHead, Head, adapted, build_head
from taet.models.foreign import (
    Normalized,
    check_consent,
    check_logits,
    check_trust,
    consent,
    elsewhere,
    is_own,
    registered,
    taken_apart,
    trusted,
)
from taet.models.weights import pretrained
from taet.randomness import seeded

__all__ = ["Adapter", "Classifier", "CosineHead", "Head", "Normalized", "adapted", "build", "build_head"]
__all__ += ["check_consent", "check_logits", "check_trust", "consent", "is_own", "pretrained", "trusted"]


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    seed: int = 0,
    head: Head = Head(),  # noqa: B008  # a tuple, which cannot change
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Classifier | Adapter:
    """Return the model called `name`, its weights drawn from `seed`; the global random state is left as it was.

    Args:
        name: of `taet list models`, torchvision:NAME, timm:NAME, or package.module:callable, which takes nothing or
            `num_classes` and returns a Module, or is one; the current directory is importable.
        num_classes: C, width of the logits.
        image_shape: (channels, height, width); `forward` maps (N, *image_shape) in [0, 1] to logits (N, C).
        seed: of the first weights.
        head: that a method asks for. A network of another origin keeps its own last layer where that is a linear one.
        stem: cifar, imagenet, or auto: imagenet from 96 pixels on. Residual networks of this package have a choice.
        weights: a file of pretrained weights, .safetensors or of `torch.save` with tensors only; a head for another
            number of classes stays fresh. What was done is in the model's `notes`.

    Returns:
        A Classifier; or an Adapter, without features, for a custom network whose logits no linear layer gives.

    Raises:
        UserError: an unknown name, a network that cannot take the images, a file that does not fit or holds code.
    """
    model: Classifier | Adapter
    with seeded(seed, "weights"):
        if ":" not in name:
            model = registered(name, num_classes, image_shape, head, stem)
        elif stem == "auto":
            model = taken_apart(elsewhere(name, num_classes, image_shape), num_classes, image_shape, head)
        else:
            raise UserError(f"model stem: got {stem}; {name} has its own; allowed: auto")
    if weights is not None:
        model.notes = (*model.notes, pretrained(model, weights))
    return model
