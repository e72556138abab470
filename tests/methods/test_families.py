"""One training step of every method on every family of models: the loss is finite and the weights move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from taet import methods, registry
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods import Task
from taet.methods.base import Attack
from taet.models import Adapter, Classifier, Head
from taet.models.foreign import elsewhere, taken_apart
from taet.models.resnet import Bottleneck, PreActBlock, ResidualLayout, residual_network, wide_layout
from taet.models.vit import TransformerLayout, vision_transformer
from taet.settings import Run, Threat, Training
from taet.training.state import State
from taet.training.step import training_step

METHODS = sorted(registry.entries("methods"))
CLASSES, SHAPE = 10, (1, 8, 8)
THREAT = Threat(eps=8 / 255, step_size=4 / 255, steps=2, start="uniform")

Case = Any  # of conftest.py


class Own(nn.Module):
    """A user's network: dropout, a linear layer at its end, and what `end` does with its logits."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout(0.2), nn.Flatten())
        self.last, self.end = nn.Linear(288, CLASSES), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.last(self.body(x)))


def basic(head: Head) -> Classifier:
    return residual_network(ResidualLayout((4, 8), (1, 1)), CLASSES, 1, head)


def large(head: Head) -> Classifier:
    return residual_network(ResidualLayout((4, 8), (1, 1)), CLASSES, 1, head, large=True)


def bottleneck(head: Head) -> Classifier:
    return residual_network(ResidualLayout((4, 8), (1, 1), Bottleneck), CLASSES, 1, head)


def preactivation(head: Head) -> Classifier:
    return residual_network(ResidualLayout((4, 8), (1, 1), PreActBlock), CLASSES, 1, head)


def wide(head: Head) -> Classifier:
    return residual_network(wide_layout(10, 1), CLASSES, 1, head)


def transformer(head: Head) -> Classifier:
    return vision_transformer(TransformerLayout(patch=4, width=16, depth=2, heads=2, inner=32), CLASSES, SHAPE, head)


def torchvision(head: Head) -> Classifier | Adapter:
    return taken_apart(elsewhere("torchvision:shufflenet_v2_x0_5", CLASSES, SHAPE), CLASSES, SHAPE, head)


def own(head: Head) -> Classifier | Adapter:
    return taken_apart(Own(nn.Identity()), CLASSES, SHAPE, head)


def whole(head: Head) -> Classifier | Adapter:
    return taken_apart(Own(nn.Tanh()), CLASSES, SHAPE, head)


FAMILIES = [basic, large, bottleneck, preactivation, wide, transformer, torchvision, own, whole]


def needs_parts(name: str) -> bool:
    """Does the method read features or need its own head? With a network that is used whole it is refused."""
    method = methods.build(name, None, Task((3, 2), SHAPE, epochs=10, steps_per_epoch=1, milestones=(8,)))
    return method.uses_features or method.task.head.kind == "cosine"


PAIRS = [(name, family) for name in METHODS for family in FAMILIES if family is not whole or not needs_parts(name)]
# In make test: every family with plain training, and every method with one family.
USUAL = [(name, FAMILIES[place % len(FAMILIES[:-1])]) for place, name in enumerate(METHODS)]


def parameter(name: str, family: Callable[[Head], nn.Module]) -> Any:
    usual = name == "at" or (name, family) in USUAL
    return pytest.param(name, family, id=f"{name}-{family.__name__}", marks=() if usual else pytest.mark.full)


@pytest.mark.parametrize(("name", "family"), [parameter(*pair) for pair in PAIRS])
def test_a_step_is_finite_and_moves_the_weights(
    name: str, family: Callable[[Head], nn.Module], stages: Callable[[str], list[Case]], batch: Batch
) -> None:
    method = stages(name)[-1].build()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family(method.task.head)
        assert isinstance(model, Adapter if family is whole else Classifier)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attack = Attack(THREAT, Source(torch.Generator().manual_seed(0)))
        loss = training_step(
            State(model, method, optimizer, run=Run(training=Training(precision="bf16", awp=0.01))), batch, attack
        )
    assert torch.isfinite(loss.total)
    assert loss.logits.shape == (len(batch.y), CLASSES)
    after = dict(model.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after.values())
    still = [key for key, value in before.items() if torch.equal(value, after[key])]
    assert not still
