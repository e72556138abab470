"""All that changes during training: model, optimiser, learning rate, average; its `state_dict` is
the checkpoint."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from taet.attacks.noise import Source
from taet.attacks.objectives import generation_weighting
from taet.distributed import global_sum, rank
from taet.errors import UserError
from taet.files import Json
from taet.losses import Loss
from taet.methods.base import Attack, Method
from taet.models import Adapter, Classifier
from taet.models.view import View
from taet.network import copied
from taet.randomness import derive_seed, generator
from taet.settings import Run, Training
from taet.training.checkpoint import (
    check_optimizer,
    check_progress,
    check_tensor,
    check_tensors,
)
from taet.training.curve import per_class

# share of the steps before averaging begins (Gowal et al., 2020, arXiv:2010.03593, public code)
EMA_WARMUP = 0.025


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters that need a gradient, or AdamW, which decays only the weights
    of layers.

    Those have two or more dimensions and "weight" in the name, such as attention's
    `in_proj_weight`; biases, gains of normalisations, class tokens and position embeddings are not
    decayed (Touvron et al., DeiT, ICML 2021, arXiv:2012.12877). AdamW: betas 0.9 and 0.999, epsilon
    1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not trained:
        raise UserError("model: got no parameter that needs a gradient; allowed: one or more")
    # The fused kernel reads each weight once; it exists on these devices only.
    fused = all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained.values()
    )
    if training.optimizer == "sgd":
        momentum, decay = training.momentum, training.weight_decay
        return torch.optim.SGD(
            trained.values(), lr=training.lr, momentum=momentum, weight_decay=decay, fused=fused
        )
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained.items():
        # also of a low-rank part, parametrizations.weight.0.a
        of_layer = parameter.ndim > 1 and "weight" in name
        (decayed if of_layer else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused)


def ema_decay(step: int, warmup: int, tau: float) -> float:
    """Decay after `step` steps: 0 within the first `warmup`, then min(tau, (1 + k) / (10 + k)), k =
    step - warmup."""
    since = step - warmup
    return 0.0 if since < 0 else min(tau, (1 + since) / (10 + since))


class WeightAverage(AveragedModel):
    """average <- d average + (1 - d) model, d = `decay`(k) after k models, for parameters and
    statistics.

    Integer tensors are copied. Unlike torch's, an update does not wait for the device.
    """

    def __init__(self, model: nn.Module, decay: Callable[[int], float], begun: bool) -> None:
        super().__init__(copied(model), use_buffers=True)
        self.decay = decay
        self.n_averaged.fill_(int(begun))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        average, current = (
            [*module.parameters(), *module.buffers()] for module in (self.module, model)
        )
        start, end = (
            [value for value in values if value.is_floating_point()]
            for values in (average, current)
        )
        torch._foreach_lerp_(start, end, 1 - self.decay(int(self.n_averaged)))
        for old, new in zip(average, current, strict=True):
            if not old.is_floating_point():
                old.copy_(new)
        self.n_averaged += 1


def weight_average(
    model: nn.Module, training: Training, steps: int, own_decay: float | None
) -> WeightAverage | None:
    """Return the average that a run of `steps` steps delivers; None if it delivers its last
    weights.

    With `ema` d is `ema_decay`, and the initial weights are the first model; with `swa` d = k / (k
    + 1), their mean; a method's `own_decay` is constant after the first model.
    """
    if training.ema:
        warmup = round(EMA_WARMUP * steps)
        return WeightAverage(
            model, lambda models: ema_decay(models - 1, warmup, training.ema), True
        )
    if own_decay is not None or training.swa < 1:
        return WeightAverage(
            model, lambda k: k / (k + 1) if own_decay is None or not k else own_decay, False
        )
    return None


class EpochSums:
    """Sums over the steps of one epoch, on the device: counts of this process, losses of whole
    batches."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        # Per class: correct training examples, all training examples, and predictions, (3, C).
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        # the loss and its parts, each weighted by the images of its batch
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def add(self, loss: Loss, labels: Tensor, total: int) -> None:
        """Add one step on a batch of `total` images; no value is read, so nothing waits for the
        device."""
        predictions, ones = loss.logits.argmax(1), torch.ones_like(labels)
        counted = ((labels, predictions == labels), (labels, ones), (predictions, ones))
        self.counts = self.counts + torch.stack(
            [per_class(*each, self.counts.shape[1]) for each in counted]
        )
        for name, value in {"total": loss.total, **loss.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double() * total
        self.images += total

    def state_dict(self) -> Json:
        return {"counts": global_sum(self.counts), "sums": self.sums, "images": self.images}

    def load_state_dict(self, state: Json) -> None:
        """Restore sums over all processes: the first process gets the counts, the others 0."""
        self.counts = int(rank() == 0) * state["counts"].to(self.counts.device)
        self.sums = {name: value.to(self.counts.device) for name, value in state["sums"].items()}
        self.images = state["images"]


class BestEpoch(NamedTuple):
    """The epoch with the highest balanced accuracy under attack on the curve."""

    score: float
    epoch: int
    """From 0."""
    weights: dict[str, Tensor]


@dataclass
class State:
    """Model, method and optimiser of a run, and its progress."""

    model: Classifier | Adapter
    method: Method
    optimizer: torch.optim.Optimizer
    run: Run = field(default_factory=Run)
    average: WeightAverage | None = None
    view: View | None = None
    """A cheaper copy of the model for the attack; it is not saved."""
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the current epoch."""
    seconds: float = 0.0
    """Spent on the current epoch."""
    training_seconds: float = 0.0
    """Without the curve."""
    last_offered_epoch: int = -1
    """The last epoch that `Method.accepts_epoch` was called for."""
    best: BestEpoch | None = None
    examples: Tensor | None = None
    """The previous epoch's adversarial examples, for the distance to the next ones."""
    rows: list[Json] = field(default_factory=list)
    """The rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        self.device = self.method.drawn_class_counts.device
        self.method.begin(self.model)
        self.sums = EpochSums(len(self.method.class_counts), self.device)
        drawn_class_counts = self.method.drawn_class_counts
        # (C,) in the last epoch; before the first one, the images of each class
        self.predicted = drawn_class_counts.clone()
        self.weighting = generation_weighting(
            self.run.threat.weighting, drawn_class_counts, self.predicted
        )

    @property
    def number(self) -> int:
        """Finished steps of the run."""
        return self.epoch * self.method.task.steps_per_epoch + self.step

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the run's precision, and forget the cast weights at the end: they are about to
        change."""
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.run.training.precision == "bf16"
        ):
            yield
        torch.clear_autocast_cache()

    def attack(self, shard: tuple[int, int], *purpose: str | int) -> Attack:
        """Return the protocol's attack with the noise for `purpose`; `shard` comes from
        `Loader.shard`."""
        source = Source(generator(self.device, self.run.seed, *purpose), *shard)
        return Attack(self.run.threat, source, **self.weighting)

    def seed_model(self, *purpose: str | int) -> None:
        """Seed the random numbers of a model, such as dropout, differently in each process."""
        torch.manual_seed(
            derive_seed(self.run.seed, "model", *purpose, *([rank()] if rank() else []))
        )

    def begin_epoch(self) -> None:
        """Enter the epoch; before its first step, give last epoch's predictions to the method and
        attack weights."""
        self.method.enter(self.epoch)
        if self.step == 0:
            self.weighting = generation_weighting(
                self.run.threat.weighting, self.method.drawn_class_counts, self.predicted
            )
            self.method.start_epoch(self.epoch, self.predicted)

    def end_epoch(self, predicted: Tensor) -> None:
        """Advance to the next epoch; `predicted` (C,) counts the predictions of the one that
        ends."""
        self.predicted = predicted.to(self.predicted.dtype)
        self.sums = EpochSums(len(predicted), self.device)
        self.epoch, self.step, self.seconds, self.training_seconds = self.epoch + 1, 0, 0.0, 0.0

    def not_finite(self) -> str:
        """Name what is not finite: a part of the loss, else the loss, else a weight; "" if
        everything is finite."""
        sums = self.sums.sums
        for name in sorted(sums, key=lambda part: part == "total"):
            if not math.isfinite(sums[name].item()):
                return "the loss" if name == "total" else f"the part {name} of the loss"
        finite = torch.stack(
            [torch.isfinite(p).all() for p in (*self.model.parameters(), *self.method.parameters())]
        )
        return "" if finite.all() else "a weight"

    def state_dict(self) -> Json:
        """Return the checkpoint: plain Python and tensors."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "asked": self.last_offered_epoch,
            # as a plain tuple: a checkpoint holds no types of ours
            "best": None if self.best is None else tuple(self.best),
            "rows": self.rows,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums.state_dict(),
            "predicted": self.predicted,
            "attack_weights": self.weighting.get("weights"),
            "examples": self.examples,
        }

    def load_state_dict(self, saved: Json) -> None:
        """Restore a `state_dict` of the same run."""
        if missing := sorted(self.state_dict().keys() - saved.keys()):
            raise UserError(
                f"lacks {missing[0]}: another version of taet wrote it; start a new run"
            )
        self._check(saved)
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sums.load_state_dict(saved["sums"])
        self.predicted.copy_(saved["predicted"])
        if "weights" in self.weighting:
            self.weighting["weights"].copy_(saved["attack_weights"])
        self.examples = None if saved["examples"] is None else saved["examples"].to(self.device)
        self.epoch, self.step = saved["epoch"], saved["step"]
        self.seconds, self.training_seconds = saved["seconds"], saved["training_seconds"]
        self.last_offered_epoch = saved["asked"]
        self.best = None if saved["best"] is None else BestEpoch(*saved["best"])
        self.rows = saved["rows"]

    def _check(self, saved: Json) -> None:
        """Refuse a checkpoint that this run cannot have written."""
        task, weights = self.method.task, self.model.state_dict()
        check_progress(saved, self.run.training.epochs, task.steps_per_epoch)
        check_tensors("model", saved["model"], weights)
        if saved["best"] is not None:
            check_tensors("best", saved["best"][2], weights)
        check_tensor("sums: counts", saved["sums"]["counts"], self.sums.counts)
        check_tensor("predicted", saved["predicted"], self.predicted)
        check_optimizer(saved["optimizer"], self.optimizer)
        per_class = self.run.training.distance_images
        if not per_class or saved["epoch"] == 0:
            if saved["examples"] is not None:
                raise UserError("examples: got some; allowed: none in this run")
            return
        count = sum(min(per_class, images) for images in task.class_counts)
        check_tensor("examples", saved["examples"], torch.zeros(count, *task.image_shape))
