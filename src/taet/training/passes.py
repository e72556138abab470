"""The passes of a training, counted over real steps: the cost that is the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taet import models
from taet.data import DataFacts
from taet.data.loader import Batch
from taet.errors import UserError
from taet.models import Classifier
from taet.settings import Run, override
from taet.training.checks import resolve
from taet.training.state import State, build_optimizer
from taet.training.step import training_step

IMAGES = 2  # of a batch that is counted
STEPS = 20  # that are counted: LAS-AT trains its strategy at every 20th
EPOCHS = 1000  # of a run that is counted: a stage of a thousandth of the epochs is there
LARGEST_BUDGET = 100_000.0


class Budget(NamedTuple):
    """The number of epochs for a budget, and the passes of an image that they spend."""

    epochs: int
    passes: float


class PassCounter:
    """Counts the images that pass forward and backward through a network while `counting` it."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0

    @property
    def passes(self) -> float:
        """Forward and backward passes of an image, divided by two."""
        return (self.forward + self.backward) / 2

    @contextmanager
    def counting(self, network: nn.Module) -> Iterator[None]:
        """Count the passes through `network` within this context."""

        def count_backward(gradient: Tensor) -> None:
            self.backward += len(gradient)

        def count_forward(_: nn.Module, __: object, output: Tensor) -> None:
            self.forward += len(output)
            if output.requires_grad:
                output.register_hook(count_backward)  # type: ignore[no-untyped-call]

        with network.register_forward_hook(count_forward):
            yield


def count_passes(run: Run, facts: DataFacts) -> dict[str, float]:
    """Return the passes of a training image per epoch, by stage of the method.

        (forward passes + backward passes) / 2 of the trained network, of one image, mean over 20
        steps of each stage, of the method as it is set; a pass through the body alone counts.

    So a step of AT with two attack steps has three. The steps are real ones on a small network.
    """
    run = override(run, {"model.name": "resnet8", "model.weights": None, "model.tune": "all"})
    resolved = resolve(run, facts)
    shape, classes = facts.image_shape, len(facts.class_counts)
    passes: dict[str, float] = {}
    stages = resolved.method.task.stages
    for stage in dict.fromkeys(stages):
        method = resolve(run, facts).method
        model = models.build("resnet8", classes, shape, head=method.task.head)
        assert isinstance(model, Classifier)
        state = State(model, method, build_optimizer(model, run.training), resolved.run)
        state = replace(state, epoch=stages.index(stage))
        state.begin_epoch()
        passes[stage] = _mean_passes(state, model.body, shape, classes)
    return passes


def _mean_passes(state: State, body: nn.Module, shape: tuple[int, int, int], classes: int) -> float:
    """Return the passes of an image in a step, mean over `STEPS` steps on random images."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, *shape, generator=draws)
    labels = torch.randint(classes, (IMAGES,), generator=draws)
    batch = Batch(torch.arange(IMAGES), images, labels)
    counter = PassCounter()
    with counter.counting(body):
        for step in range(STEPS):
            state.step = step
            attack = state.attack((0, IMAGES), "passes", state.epoch, step)
            training_step(state, batch, attack)
    return counter.passes / (IMAGES * STEPS)


def run_passes(run: Run, facts: DataFacts, by_stage: dict[str, float]) -> float:
    """Return the passes of a training image over all epochs of a run.

    `by_stage` is what `count_passes` returns.
    """
    return sum(by_stage[stage] for stage in resolve(run, facts).method.task.stages)


def epochs_for_passes(run: Run, facts: DataFacts, budget: float) -> Budget:
    """Return the number of epochs whose passes are nearest to `budget`, and these passes.

    Of two numbers that are equally near, it is the smaller.

    Raises:
        UserError: a budget that is not above 0 or above 100,000.
    """
    if not 0 < budget <= LARGEST_BUDGET:
        raise UserError(f"passes: got {budget:g}; allowed: above 0, up to {LARGEST_BUDGET:g}")
    by_stage = count_passes(override(run, {"training.epochs": EPOCHS}), facts)
    fewest = max(1, int(budget / max(by_stage.values())) - 1)
    most = max(fewest, int(budget / min(by_stage.values())) + 1)

    found = []
    for epochs in range(fewest, most + 1):
        longer = override(run, {"training.epochs": epochs})
        found.append(Budget(epochs, run_passes(longer, facts, by_stage)))
    return min(found, key=lambda one: (abs(one.passes - budget), one.epochs))
