"""Wide residual networks WRN-d-k: three groups of (d - 4) / 6 pre-activation blocks, k times as wide as 16, 32, 64.

Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv:1605.07146, without dropout. The public code
of TRADES and what descends from it hold a further `sub_block1` that no image passes and no gradient reaches: left out.
"""

from __future__ import annotations

from taet.models.classifier import Classifier
from taet.models.heads import Head
from taet.models.preact_resnet import PreActBlock
from taet.models.resnet import ResidualLayout, is_large, residual_network

NAMES = {
    "wrn-28-10": "Wide ResNet, 28 layers, 10 times as wide, 36.5 million parameters (ADT)",
    "wrn-34-10": "Wide ResNet, 34 layers, 10 times as wide, 46.2 million parameters (AT-BSL, TRADES, RoBal)",
}
STEM, WIDTHS = 16, (16, 32, 64)  # of the stem, and of the groups before they are widened (table 1)


def wide_layout(depth: int, widening: int) -> ResidualLayout:
    """Return the dimensions of WRN-depth-widening; depth is 4 + 6 n."""
    widths = tuple(widening * width for width in WIDTHS)
    return ResidualLayout(widths, ((depth - 4) // 6,) * len(widths), PreActBlock, stem=STEM)


def build(name: str, num_classes: int, image_shape: tuple[int, int, int], head: Head, stem: str) -> Classifier:
    """Return the network called `name` with He initialisation from the global random state."""
    _, depth, widening = name.split("-")
    layout = wide_layout(int(depth), int(widening))
    return residual_network(layout, num_classes, image_shape[0], head, large=is_large(stem, image_shape))
