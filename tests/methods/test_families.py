"""One training step of every method on a family of models, and of plain training on all: finite,
and weights move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from taet.data.loader import Batch
from taet.models import Adapter, Classifier, Head, resnet, vit
from taet.models.foreign import external, split_head
from taet.models.resnet import BasicBlock, Bottleneck, PreActBlock, ResidualLayout
from tests.methods.conftest import METHODS, Case, built, same, state_of, trained_step

CLASSES, SHAPE = 10, (1, 8, 8)


class Own(nn.Module):
    """A user's network: dropout, a linear layer at its end, and what `end` does with its logits."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout(0.2), nn.Flatten()
        )
        self.last, self.end = nn.Linear(288, CLASSES), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.last(self.body(x)))


def residual(head: Head, block: Any = BasicBlock, large: bool = False, **options: Any) -> Any:
    layout = {"widths": (4, 8), "blocks": (1, 1), "block": block, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.LAYOUTS, "tiny", ResidualLayout(**layout))
        return resnet.build("tiny", CLASSES, SHAPE, head, "imagenet" if large else "cifar")


def transformer(head: Head) -> Classifier:
    layout = {"patch_size": 4, "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.LAYOUTS, "tiny", layout)
        return vit.build("tiny", CLASSES, SHAPE, head, "auto")


FAMILIES: dict[str, Callable[[Head], Any]] = {
    "basic": residual,
    "large": lambda head: residual(head, large=True),
    "bottleneck": lambda head: residual(head, Bottleneck),
    "preactivation": lambda head: residual(head, PreActBlock),
    "wide": lambda head: residual(
        head, PreActBlock, widths=(16, 32, 64), blocks=(1, 1, 1), stem=16
    ),
    "transformer": transformer,
    "torchvision": lambda head: split_head(
        external("torchvision:shufflenet_v2_x0_5", CLASSES, SHAPE), CLASSES, SHAPE, head
    ),
    "own": lambda head: split_head(Own(nn.Identity()), CLASSES, SHAPE, head),
    "whole": lambda head: split_head(Own(nn.Tanh()), CLASSES, SHAPE, head),
}


def takes(name: str, family: str) -> bool:
    """With a network that is used whole, a method that reads features or needs its own head is
    refused."""
    method = built(name)
    return family != "whole" or not (method.uses_features or method.task.head.kind == "cosine")


PAIRS = [(name, family) for name in METHODS for family in FAMILIES if takes(name, family)]
USUAL = {(name, [*FAMILIES][place % 8]) for place, name in enumerate(METHODS)} | {
    ("at", family) for family in FAMILIES
}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        pytest.param(*pair, marks=() if pair in USUAL else pytest.mark.full, id="-".join(pair))
        for pair in PAIRS
    ],
)
def test_a_step_is_finite_and_moves_the_weights(
    name: str, family: str, stages: Callable[[str], list[Case]], batch: Batch
) -> None:
    method = stages(name)[-1].build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family](method.task.head)
        assert isinstance(model, Adapter if family == "whole" else Classifier)
        before = state_of(model)
        loss = trained_step(method, model, batch, precision="bf16", awp=0.01)
    assert torch.isfinite(loss.total)
    assert loss.logits.shape == (len(batch.y), CLASSES)
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert same({key: before[key]}, {key: parameter}) == (
            key.startswith("head.") and not method.uses_labels
        ), key
