"""A small network and its test images, on which every attack finds something to do."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet.evaluation import ResultCard
from taet.evaluation.runner import Runner

EPS = 0.1
Task = tuple[nn.Module, np.ndarray, np.ndarray]
Evaluated = Callable[..., ResultCard]
Change = Callable[[nn.Module, Tensor], Tensor]


class Changed(nn.Module):
    """A model that is called by a function."""

    def __init__(self, change: Change, model: nn.Module) -> None:
        super().__init__()
        self.change, self.model = change, model

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model, x)


def unit(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) as a model takes them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255


@pytest.fixture(scope="session")
def task() -> Task:
    """A network trained on noisy copies of one pattern per class, and 22 uint8 test images of 4
    classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(22) % 4
    patterns = generator.uniform(80, 176, (4, 8, 8, 3))
    images = np.clip(patterns[labels] + generator.normal(0, 50, (22, 8, 8, 3)), 0, 255).astype(
        np.uint8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
        )
        x, y = unit(images), torch.from_numpy(labels)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval(), images, labels


@pytest.fixture
def evaluated(task: Task, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """Return a function that evaluates the network with settings for its size; Square has 30
    queries."""
    # the name is also a function
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 30)

    def run(*attacks: str, **change: Any) -> ResultCard:
        model, images, labels = task
        settings: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "batch_size": 8, **change}
        return taet.evaluate(
            settings.pop("model", model), images, labels, attacks=attacks, **settings
        )

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were really run, in their order."""
    names: list[str] = []
    real = Runner.attack
    monkeypatch.setattr(
        Runner,
        "attack",
        lambda self, one, **rest: (names.append(one.name), real(self, one, **rest))[1],
    )
    return names
