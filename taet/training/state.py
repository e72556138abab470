"""All that moves during a training; its `state_dict` is the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from taet.attacks.noise import Source
from taet.attacks.objectives import Weighting, generation_weighting
from taet.distributed import rank
from taet.errors import UserError
from taet.fields import NonNegative, Record, Whole
from taet.methods.base import Attack, Method
from taet.models import Adapter, Classifier
from taet.models.view import View
from taet.randomness import derive_seed, generator
from taet.settings import Run, epoch_at, from_json
from taet.training.epoch_sums import EpochSums
from taet.training.folder import NO_METRICS, MetricsMark
from taet.training.graphs import Graphs
from taet.training.optimizer import load_optimizer


class Position(Record):
    """The numbers of a state."""

    epoch: Whole
    """Finished epochs."""
    step: Whole
    """Finished steps of the current epoch."""
    seconds: NonNegative
    """Of the current epoch."""
    training_seconds: NonNegative
    """Without the curve."""
    metrics_bytes: Whole
    metrics_sha256: str
    best_epoch: int | None
    """From 0; None before the first point of a curve that selects."""
    best_score: float | None


@dataclass
class State:
    """Model, method and optimiser of a run, and where it stands.

    `view` and `graphs` are derived from them, and are not saved: a cheaper copy of the model for the attack, and the
    recorded steps.
    """

    model: Classifier | Adapter
    method: Method
    optimizer: torch.optim.Optimizer
    run: Run = field(default_factory=Run)
    average: AveragedModel | None = None
    view: View | None = None
    graphs: Graphs | None = None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    mark: MetricsMark = NO_METRICS
    best_epoch: int | None = None
    best_score: float | None = None
    best_weights: dict[str, Tensor] | None = None
    examples: Tensor | None = None
    """Adversarial examples of the last epoch, to which those of the next one are compared."""

    def __post_init__(self) -> None:
        self.device = self.method.exposure.device
        self.sums = EpochSums.empty(len(self.method.class_counts), self.device)
        self.predicted = self.method.exposure.clone()
        """Predictions of each class in the last epoch, (C,); before the first one, the images of each class."""
        self.weighting: Weighting = generation_weighting(
            self.run.threat.weighting, self.method.exposure, self.predicted
        )
        """Class weights of the attack's objective, written in place."""

    # What a step needs

    @property
    def number(self) -> int:
        """Finished steps of the run."""
        return self.epoch * self.method.task.steps_per_epoch + self.step

    @property
    def awp(self) -> float:
        """Relative length of the weight perturbation in this epoch."""
        training = self.run.training
        return training.awp if self.epoch >= epoch_at(training.awp_start, training.epochs) else 0.0

    @property
    def kind(self) -> Hashable:
        """What decides the branches that Python takes in a step."""
        return tuple(module.stage for module in self.method.modules() if isinstance(module, Method)), self.awp

    def autocast(self) -> torch.autocast:
        """Return the context of the run's precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.run.training.precision == "bf16")

    def attacked(self) -> torch.nn.Module:
        """Return the network that the attack of a step runs on: the view with the current weights, if there is one."""
        if self.view is None or self.method.stage == "clean":
            return self.model
        self.view.refresh()
        return self.view.module

    def attack(self, place: tuple[int, int], *purpose: str | int) -> Attack:
        """Return the protocol's attack with the noise for `purpose`.

        `place`: the position of its first image in the batch of all processes, and the size of that batch.
        """
        source = Source(generator(self.device, self.run.seed, *purpose), *place)
        return Attack(self.run.threat, source, None, *self.weighting)

    def seed_model(self, *purpose: str | int) -> None:
        """Seed the random numbers of a custom model, such as dropout, differently in each process."""
        torch.manual_seed(derive_seed(self.run.seed, "model", *purpose, *([rank()] if rank() else [])))

    def tensors(self) -> list[Tensor]:
        """Return every tensor that a step changes."""
        own = [
            value for entry in self.optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)
        ]
        modules = (self.model, self.method)
        return [*(t for module in modules for t in (*module.parameters(), *module.buffers())), *own]

    # Epochs

    def begin_epoch(self) -> None:
        """Enter the epoch; at its first step the method and the attack's weights learn the last one's predictions."""
        self.method.enter(self.epoch)
        if self.step == 0:
            exposure = self.method.exposure
            weights, _ = generation_weighting(self.run.threat.weighting, exposure, self.predicted.to(exposure.dtype))
            if weights is not None and self.weighting.weights is not None:
                self.weighting.weights.copy_(weights)
            self.method.start_epoch(self.epoch, self.predicted)

    def end_epoch(self, predicted: Tensor) -> None:
        """Go on to the next epoch; predicted (C,) counts the predictions of this one."""
        self.predicted = predicted.to(self.predicted.dtype)
        self.sums = EpochSums.empty(len(predicted), self.device)
        self.epoch, self.step, self.seconds, self.training_seconds = self.epoch + 1, 0, 0.0, 0.0

    def keep_best(self, score: float, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of this epoch if its score is the highest so far."""
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_epoch = score, self.epoch
            self.best_weights = {name: value.cpu() for name, value in weights.items()}

    def not_finite(self) -> str:
        """Return the name of a loss, or of a part of it rather than the sum, that is not finite; "" if all are."""
        sums = self.sums.sums
        for name in sorted(sums, key=lambda part: part == "total"):
            if not math.isfinite(sums[name].item()):
                return "the loss" if name == "total" else f"the part {name} of the loss"
        finite = all(torch.isfinite(p).all() for p in (*self.model.parameters(), *self.method.parameters()))
        return "" if finite else "a weight"

    # The checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return plain Python and tensors."""
        position = Position(
            epoch=self.epoch,
            step=self.step,
            seconds=self.seconds,
            training_seconds=self.training_seconds,
            metrics_bytes=self.mark.length,
            metrics_sha256=self.mark.sha256,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
        )
        return {
            "position": position.model_dump(),
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method_optimizers": {name: one.state_dict() for name, one in self.method.optimizers.items()},
            "sums": self.sums.state_dict(),
            "predicted": self.predicted,
            "attack_weights": self.weighting.weights,
            "best_weights": self.best_weights,
            "examples": self.examples,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; one that does not fit this run raises an error that names the part."""
        own = self.state_dict()
        if missing := sorted(own.keys() - saved.keys()):
            raise UserError(f"lacks {missing[0]}: another version of taet wrote it; start a new run")
        if saved["best_weights"] is not None:
            own["best_weights"] = own["model"]
        free = ("position", "optimizer", "method_optimizers", "sums", "examples")
        check_form("", *({name: values[name] for name in own if name not in free} for values in (saved, own)))
        at = from_json(Position, saved["position"], "position")
        if at.epoch > self.run.training.epochs or at.step > self.method.task.steps_per_epoch:
            raise UserError(f"position: got epoch {at.epoch}, step {at.step}; allowed: those of this run")
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        load_optimizer(self.optimizer, saved["optimizer"])
        for name, one in self.method.optimizers.items():
            one.load_state_dict(saved["method_optimizers"][name])
        self.sums.load_state_dict(saved["sums"])
        self.predicted.copy_(saved["predicted"])
        if self.weighting.weights is not None:
            self.weighting.weights.copy_(saved["attack_weights"])
        self.best_weights, found = saved["best_weights"], saved["examples"]
        self.examples = None if found is None else found.to(self.device)
        self.epoch, self.step, self.best_epoch, self.best_score = at.epoch, at.step, at.best_epoch, at.best_score
        self.seconds, self.training_seconds = at.seconds, at.training_seconds
        self.mark = MetricsMark(at.metrics_bytes, at.metrics_sha256)


def check_form(what: str, saved: object, own: object) -> None:
    """Refuse saved tensors whose shape or type differs from `own`, and mappings with other names."""
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            raise UserError(f"{what} has other parts than in this run".strip())
        for name, value in own.items():
            check_form(f"{what} {name}".strip(), saved[name], value)
    elif isinstance(own, Tensor):
        if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (own.shape, own.dtype):
            raise UserError(f"{what} has another shape or type than in this run")
    elif saved is not None:
        raise UserError(f"{what} is not a part of this run")
