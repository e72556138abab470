"""A forgotten or a wrong normalisation of images is found on a few of them."""

import pytest
import torch
from torch import Tensor, nn

from taet.models import Normalized
from taet.models.class_order import Reordered
from taet.models.normalization import IMAGENET, Statistics
from taet.models.normalization_trial import suggest_normalization

HALF = ([0.5] * 3, [0.5] * 3)


class Levels(nn.Module):
    """Right on images that are normalised by these statistics: classes differ in their level."""

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        means, stds = (torch.tensor(values).view(3, 1) for values in statistics)
        self.levels = ((torch.tensor([0.2, 0.4, 0.6, 0.8]) - means) / stds).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((1, 2, 3))[:, None] - self.levels).square()


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(40) % 4


@pytest.fixture
def images(labels: Tensor) -> Tensor:
    levels = 0.2 * (1 + labels.view(-1, 1, 1, 1))
    return levels + 0.02 * torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("statistics", "name"), [(IMAGENET, "imagenet"), (HALF, "0.5,0.5,0.5")])
def test_a_forgotten_normalisation_is_named(
    statistics: Statistics, name: str, images: Tensor, labels: Tensor
) -> None:
    line = suggest_normalization(Levels(statistics), images, labels)
    assert line is not None
    assert "of 40 clean images are right; with --normalize" in line
    assert f"--normalize {name}" in line
    assert line.endswith(": 100.0 %")


def test_a_normalisation_that_the_network_was_not_made_for_is_named(
    images: Tensor, labels: Tensor
) -> None:
    network = Normalized(Levels(([0.0] * 3, [1.0] * 3)), IMAGENET)
    line = suggest_normalization(network, images, labels)
    assert line is not None
    assert "--normalize none: 100.0 %" in line


def test_the_right_normalisation_is_left_alone(images: Tensor, labels: Tensor) -> None:
    assert suggest_normalization(Normalized(Levels(IMAGENET), IMAGENET), images, labels) is None


def test_the_order_of_the_outputs_is_kept(images: Tensor, labels: Tensor) -> None:
    network = Reordered(Levels(IMAGENET), [3, 2, 1, 0])
    line = suggest_normalization(network, images, 3 - labels)
    assert line is not None
    assert line.endswith("--normalize imagenet: 100.0 %")


def test_a_network_that_knows_nothing_gets_no_advice(images: Tensor, labels: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    shuffled = labels[torch.randperm(40)]
    assert suggest_normalization(network, images, shuffled) is None
