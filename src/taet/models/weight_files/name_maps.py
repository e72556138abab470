"""The names that parameters of our residual networks have in public code."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from taet.models.normalization import CIFAR10, CIFAR100, Statistics
from taet.models.resnet import (
    BasicBlock,
    Bottleneck,
    PreActBlock,
    RawShortcutBlock,
    ResidualBlock,
    ResidualBody,
    ResidualLayout,
    SamePaddingBlock,
    SamePaddingWideBlock,
    SwishBlock,
    SwishWideBlock,
)


class Naming(NamedTuple):
    """How public code names the parts of a residual network."""

    whose: str
    """The code, and work of this field that has the same names."""
    block: str
    """Names of the blocks, with their {stage}, from `first_stage`, and their {number} from 0."""
    parts: Mapping[str, str] = {}
    """Parts of a block, ours -> theirs; the other names are equal."""
    stem: str = "conv1"
    """The first convolution."""
    norm: str = "bn1"
    """The normalisation after the first convolution, or after the last block."""
    head: str = "linear"
    first_stage: int = 1
    unused: tuple[str, ...] = ()
    """First parts of the names of tensors that no image passes."""
    normalizes: bool = False
    """Whether the code normalises images by the statistics of CIFAR, which a file may lack."""


RESNET = Naming(
    "pytorch-cifar (kuangliu); AT-BSL, MART, DAFA, GAIRAT, LAS-AT, WAT, RobustBench",
    "layer{stage}.{number}.",
)
TORCHVISION = Naming(
    "torchvision",
    "layer{stage}.{number}.",
    {"shortcut": "downsample"},
    head="fc",
)
PREACT = Naming(
    "Rice et al.; AWP, CFA, RobustBench",
    "layer{stage}.{number}.",
    {"shortcut": "shortcut.0"},
    norm="bn",
)
NFGSM = PREACT._replace(whose="N-FGSM")
WIDE = Naming(
    "TRADES; MART, AT-BSL, ADT, AWP, RobustBench",
    "block{stage}.layer.{number}.",
    {"shortcut": "convShortcut"},
    head="fc",
    unused=("sub_block1",),
)
DM_WIDE = Naming(
    "DeepMind (DMWideResNet); Gowal et al., Rebuffi et al., Wang et al.",
    "layer.{stage}.block.{number}.",
    {"bn1": "batchnorm_0", "conv1": "conv_0", "bn2": "batchnorm_1", "conv2": "conv_1"},
    stem="init_conv",
    norm="batchnorm",
    head="logits",
    first_stage=0,
    normalizes=True,
)
DM_PREACT = Naming(
    "DeepMind (DMPreActResNet); Gowal et al., Rebuffi et al.",
    "layer_{stage}.{number}.",
    {"bn1": "batchnorm_0", "conv1": "conv_2d_1", "bn2": "batchnorm_1", "conv2": "conv_2d_2"},
    stem="conv_2d",
    norm="batchnorm",
    head="logits",
    first_stage=0,
    normalizes=True,
)

NAMINGS: dict[type[ResidualBlock], tuple[Naming, ...]] = {
    BasicBlock: (RESNET, TORCHVISION),
    Bottleneck: (RESNET, TORCHVISION),
    PreActBlock: (PREACT, WIDE),
    RawShortcutBlock: (NFGSM,),
    SamePaddingWideBlock: (DM_WIDE,),
    SwishWideBlock: (DM_WIDE,),
    SamePaddingBlock: (DM_PREACT,),
    SwishBlock: (DM_PREACT,),
}
"""The names in public code of networks that compute the same function as ours of these blocks."""
LIKE_TORCHVISION = 4  # stages of a network that pools after its first layer under these names


def known_statistics(naming: Naming, num_classes: int) -> Statistics | None:
    """Return the normalisation of images that the code of `naming` has, whatever the file holds."""
    if not naming.normalizes:
        return None
    return {10: CIFAR10, 100: CIFAR100}.get(num_classes)


def namings_of(body: ResidualBody) -> Iterator[tuple[Naming, dict[str, str]]]:
    """Yield each naming of a network's body, with a name of ours for each name of theirs."""
    layout = body.layout
    for naming in NAMINGS.get(layout.block, ()):
        if naming is TORCHVISION and len(layout.blocks) == LIKE_TORCHVISION and not is_large(body):
            continue
        yield naming, dict(_names(body, naming))


def is_large(body: ResidualBody) -> bool:
    """Whether the body has the first layers for large images."""
    kernel: Tensor = body.get_parameter("0.weight")
    return kernel.shape[-1] > 3


def _names(body: ResidualBody, naming: Naming) -> Iterator[tuple[str, str]]:
    """Yield a name of theirs and one of ours for every tensor of the body."""
    block_names = iter(_block_names(body.layout, naming))
    for position, part in body.named_children():
        if isinstance(part, ResidualBlock):
            theirs = next(block_names)
            for name in part.state_dict():
                ours, _, rest = name.partition(".")
                yield f"{theirs}{naming.parts.get(ours, ours)}.{rest}", f"{position}.{name}"
        else:
            module = naming.stem if position == "0" else naming.norm
            for name in part.state_dict():
                yield f"{module}.{name}", f"{position}.{name}"


def _block_names(layout: ResidualLayout, naming: Naming) -> Iterator[str]:
    for stage, count in enumerate(layout.blocks, naming.first_stage):
        for number in range(count):
            yield naming.block.format(stage=stage, number=number)
