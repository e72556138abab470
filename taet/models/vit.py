"""Vision transformers: an image is a sequence of patches, and the classifier uses a class token.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929; the dimensions of `vit-small-p4`
are DeiT-S's (Touvron et al., ICML 2021, arXiv:2012.12877). The network is torchvision's, with its initialisation and
without dropout; only the head is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from taet.errors import UserError
from taet.models.classifier import Classifier, Head, build_head

NAMES = {
    "vit-b16": "ViT-B/16, patches of 16 pixels, for 224 pixels, 86 million parameters (Dosovitskiy et al.)",
    "vit-small-p4": "ViT of DeiT-S's dimensions with patches of 4 pixels, for 32 pixels, 21 million parameters",
    "vit-mini-p4": "ViT of 6 layers of width 128 with patches of 4 pixels, 1.2 million parameters: for CPUs",
}


class TransformerLayout(NamedTuple):
    """The dimensions of a transformer: pixels of a patch's side, width of a token, layers, heads and inner width."""

    patch: int
    width: int
    depth: int
    heads: int
    inner: int


LAYOUTS = {
    "vit-b16": TransformerLayout(16, 768, 12, 12, 3072),
    "vit-small-p4": TransformerLayout(4, 384, 12, 6, 1536),
    "vit-mini-p4": TransformerLayout(4, 128, 6, 4, 512),
}


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str) -> Classifier:
    """Return the transformer called `name`, its weights drawn from the global random state.

    Images other than squares whose side the patch divides, and a stem other than auto, are a `UserError`.
    """
    from torchvision.models import VisionTransformer

    layout, (channels, height, width) = LAYOUTS[name], image_shape
    if stem != "auto":
        raise UserError(f"model stem: got {stem}; {name} begins with patches; allowed: auto")
    if height != width or height % layout.patch:
        side = layout.patch * max(1, round(min(height, width) / layout.patch))
        allowed = f"squares of a multiple of {layout.patch}; resize them: --data.size {side}"
        raise UserError(f"{name}: got images of {height} x {width} pixels; allowed: {allowed}")
    body: Any = VisionTransformer(height, layout.patch, layout.depth, layout.heads, layout.width, layout.inner)
    body.heads = nn.Identity()
    if channels != body.conv_proj.in_channels:
        body.conv_proj = nn.Conv2d(channels, layout.width, layout.patch, layout.patch)
        nn.init.trunc_normal_(body.conv_proj.weight, std=(channels * layout.patch**2) ** -0.5)  # as torchvision does
        nn.init.zeros_(body.conv_proj.bias)
    return Classifier(body, build_head(head, layout.width, num_classes), num_classes, channels)
