"""Vision transformers: an image is a sequence of patches, and the classifier uses a class token.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929; the
dimensions of `vit-small-p4` are DeiT-S's (Touvron et al., ICML 2021, arXiv:2012.12877). The network
is torchvision's, with its initialisation and without dropout; only the head is ours.
"""

from typing import Any

from torch import nn

from taet.errors import UserError
from taet.models.classifier import Classifier, Head, build_head

NAMES = {
    "vit-b16": "ViT-B/16, patches of 16 pixels, for 224 pixels, 86 million parameters (Dosovitskiy "
    "et al.)",
    "vit-small-p4": "ViT of DeiT-S's dimensions with patches of 4 pixels, for 32 pixels, 21 "
    "million parameters",
    "vit-mini-p4": "ViT of 6 layers of width 128 with patches of 4 pixels, 1.2 million parameters: "
    "for CPUs",
}
LAYOUTS = {
    "vit-b16": {
        "patch_size": 16,
        "hidden_dim": 768,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_dim": 3072,
    },
    "vit-small-p4": {
        "patch_size": 4,
        "hidden_dim": 384,
        "num_layers": 12,
        "num_heads": 6,
        "mlp_dim": 1536,
    },
    "vit-mini-p4": {
        "patch_size": 4,
        "hidden_dim": 128,
        "num_layers": 6,
        "num_heads": 4,
        "mlp_dim": 512,
    },
}
"""The dimensions of each network, under the names of torchvision's arguments."""


def build(
    name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str
) -> Classifier:
    """Return the transformer called `name`, its weights drawn from the global random state.

    Images other than squares whose side the patch divides, and a stem other than auto, are a
    `UserError`.
    """
    from torchvision.models import VisionTransformer

    layout, (channels, height, width) = LAYOUTS[name], image_shape
    patch, features = layout["patch_size"], layout["hidden_dim"]
    if stem != "auto":
        raise UserError(f"model stem: got {stem}; {name} begins with patches; allowed: auto")
    if height != width or height % patch:
        side = patch * max(1, round(min(height, width) / patch))
        allowed = f"squares of a multiple of {patch}; resize them: --data.size {side}"
        raise UserError(f"{name}: got images of {height} x {width} pixels; allowed: {allowed}")
    body: Any = VisionTransformer(height, **layout)  # type: ignore[arg-type]
    body.heads = nn.Identity()
    if channels != body.conv_proj.in_channels:
        body.conv_proj = nn.Conv2d(channels, features, patch, patch)
        # as torchvision does
        nn.init.trunc_normal_(body.conv_proj.weight, std=(channels * patch**2) ** -0.5)
        nn.init.zeros_(body.conv_proj.bias)
    return Classifier(body, build_head(head, features, num_classes), num_classes, channels)
