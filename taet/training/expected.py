"""The expected duration of a training, measured by steps on copies."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import replace

import torch

from taet.data.loader import Batch
from taet.models.view import make_view
from taet.training.fit import surroundings
from taet.training.optimizer import build_optimizer
from taet.training.prepare import TrainingPlan
from taet.training.state import State
from taet.training.step import enough_images, training_step


def expected_seconds(plan: TrainingPlan, state: State) -> float:
    """Return the estimated duration of the whole run, measured by a step of every stage."""
    with surroundings(plan), contextlib.closing(plan.loader.epoch(0)) as batches:
        batch = next(batches)
        return plan.work.seconds(state.method.task.stages, lambda epoch: _pace(plan, state, epoch, batch))


def _pace(plan: TrainingPlan, state: State, epoch: int, batch: Batch) -> float:
    """Seconds of one pass of one image in a step of `epoch`: of the second step, as the first includes setup."""
    model, method = copy.deepcopy((state.model, state.method))
    optimizer = build_optimizer(model, plan.run.training)
    dtype = torch.bfloat16 if plan.run.training.precision == "bf16" else None
    view = None if state.view is None else make_view(model, plan.dataset.image_shape, dtype)
    at = replace(state, model=model, method=method, optimizer=optimizer, view=view, graphs=None, epoch=epoch, step=0)
    at.begin_epoch()
    place = plan.loader.place(0)
    for number in range(2):
        begun = time.monotonic()
        with enough_images(at):
            loss = training_step(at, batch, at.attack(place, "expected", epoch, number))
        loss.total.item()  # waits for the device
    return (time.monotonic() - begun) * plan.loader.per_epoch / place[1] / plan.work.training[epoch]
