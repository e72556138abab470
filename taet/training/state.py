"""All that changes during training: model, optimiser, learning rate, average; its `state_dict` is the checkpoint."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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
from taet.randomness import derive_seed, generator
from taet.settings import Run, Training
from taet.training.curve import per_class
from taet.training.resolve import milestone_epochs

PLAIN = ("epoch", "step", "seconds", "training_seconds", "asked", "best", "rows")  # saved unchanged
EMA_WARMUP = 0.025  # share of the steps before averaging begins (Gowal et al., 2020, arXiv:2010.03593, public code)
ONE_CYCLE_RISE = 0.3  # default fraction of the steps over which it rises
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000  # first and last rate, relative to the highest


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters that need a gradient, or AdamW, which decays only the weights of layers.

    Those have two or more dimensions and "weight" in the name, such as attention's `in_proj_weight`; biases, gains
    of normalisations, class tokens and position embeddings are not decayed (Touvron et al., DeiT, ICML 2021,
    arXiv:2012.12877). AdamW: betas 0.9 and 0.999, epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise UserError("model: got no parameter that needs a gradient; allowed: one or more")
    # The fused kernel reads each weight once; it exists on these devices only.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained.values())
    if training.optimizer == "sgd":
        momentum, decay = training.momentum, training.weight_decay
        return torch.optim.SGD(trained.values(), lr=training.lr, momentum=momentum, weight_decay=decay, fused=fused)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained.items():
        of_layer = parameter.ndim > 1 and "weight" in name  # also of a low-rank part, parametrizations.weight.0.a
        (decayed if of_layer else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused)


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0, of `steps` in an epoch) in `epoch` (from 0).

    Over the first W = warmup * epochs the rate rises linearly, up to `lr` at the last of their steps. After that,
    `steps`: divided by ten at every milestone that has passed; `cosine`: half of 1 + cos(pi u), u the completed
    fraction of the remaining steps (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, without restarts).

    `one-cycle` rises from lr / 25 to lr and falls to lr / 250,000, each by half a cosine (Smith and Topin,
    arXiv:1708.07120, as torch's OneCycleLR has it; the momentum stays).
    """
    training = run.training
    done, total = epoch * steps + step, training.epochs * steps
    if training.decay == "one-cycle":
        peak, last = max((training.warmup or ONE_CYCLE_RISE) * total - 1, 0), total - 1
        if done <= peak:
            begin, end, share = ONE_CYCLE_START, 1.0, done / peak if peak else 1.0
        else:
            begin, end, share = 1.0, ONE_CYCLE_END, (done - peak) / (last - peak)
        return training.lr * (end + (begin - end) * (1 + math.cos(math.pi * share)) / 2)
    rise = round(training.warmup * total)
    if done < rise:
        return training.lr * (done + 1) / rise
    if training.decay == "cosine":
        share = (done - rise) / (total - rise)
        return training.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(training.lr * 0.1**passed)


def ema_decay(step: int, warmup: int, tau: float) -> float:
    """Decay after `step` steps: 0 within the first `warmup`, then min(tau, (1 + k) / (10 + k)), k = step - warmup."""
    since = step - warmup
    return 0.0 if since < 0 else min(tau, (1 + since) / (10 + since))


class WeightAverage(AveragedModel):
    """average <- d average + (1 - d) model, d = `decay`(k) after k models, for parameters and statistics.

    Integer tensors are copied. Unlike torch's, an update does not wait for the device.
    """

    def __init__(self, model: nn.Module, decay: Callable[[int], float], begun: bool) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.n_averaged.fill_(int(begun))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        average, current = ([*module.parameters(), *module.buffers()] for module in (self.module, model))
        start, end = ([value for value in values if value.is_floating_point()] for values in (average, current))
        torch._foreach_lerp_(start, end, 1 - self.decay(int(self.n_averaged)))
        for old, new in zip(average, current, strict=True):
            if not old.is_floating_point():
                old.copy_(new)
        self.n_averaged += 1


def weight_average(model: nn.Module, training: Training, steps: int, own_decay: float | None) -> WeightAverage | None:
    """Return the average that a run of `steps` steps delivers; None if it delivers its last weights.

    With `ema` d is `ema_decay`, and the initial weights are the first model; with `swa` d = k / (k + 1), their mean; a
    method's `own_decay` is constant after the first model.
    """
    if training.ema:
        warmup = round(EMA_WARMUP * steps)
        return WeightAverage(model, lambda models: ema_decay(models - 1, warmup, training.ema), True)
    if own_decay is not None or training.swa < 1:
        return WeightAverage(model, lambda k: k / (k + 1) if own_decay is None or not k else own_decay, False)
    return None


class EpochSums:
    """Sums over the steps of one epoch, on the device: counts of this process, losses of whole batches."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        # Per class: correct training examples, all training examples, and predictions, (3, C).
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}  # the loss and its parts, each weighted by the images of its batch
        self.images = 0

    def add(self, loss: Loss, labels: Tensor, total: int) -> None:
        """Add one step on a batch of `total` images; no value is read, so nothing waits for the device."""
        predictions, ones = loss.logits.argmax(1), torch.ones_like(labels)
        counted = ((labels, predictions == labels), (labels, ones), (predictions, ones))
        self.counts = self.counts + torch.stack([per_class(*each, self.counts.shape[1]) for each in counted])
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


@dataclass
class State:
    """Model, method and optimiser of a run, and its progress.

    `view`, a cheaper copy of the model for the attack, is not saved. `epoch` counts finished epochs; `step` and
    `seconds` belong to the current one, and `training_seconds` excludes the curve. `asked` is the last epoch that
    `Method.admits` was called for. `best` has the highest score, its epoch, from 0, and the weights. `examples` are the
    previous epoch's adversarial examples, for the distance to the next ones; `rows` are the rows of metrics.jsonl.
    """

    model: Classifier | Adapter
    method: Method
    optimizer: torch.optim.Optimizer
    run: Run = field(default_factory=Run)
    average: WeightAverage | None = None
    view: View | None = None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    asked: int = -1
    best: tuple[float, int, dict[str, Tensor]] | None = None
    examples: Tensor | None = None
    rows: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = self.method.exposure.device
        self.method.begin(self.model)
        self.sums = EpochSums(len(self.method.class_counts), self.device)
        exposure = self.method.exposure
        self.predicted = exposure.clone()  # (C,) in the last epoch; before the first one, the images of each class
        self.weighting = generation_weighting(self.run.threat.weighting, exposure, self.predicted)

    @property
    def number(self) -> int:
        """Finished steps of the run."""
        return self.epoch * self.method.task.steps_per_epoch + self.step

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the run's precision, and forget the cast weights at the end: they are about to change."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.run.training.precision == "bf16"):
            yield
        torch.clear_autocast_cache()

    def attack(self, place: tuple[int, int], *purpose: str | int) -> Attack:
        """Return the protocol's attack with the noise for `purpose`; `place` comes from `Loader.place`."""
        source = Source(generator(self.device, self.run.seed, *purpose), *place)
        return Attack(self.run.threat, source, **self.weighting)

    def seed_model(self, *purpose: str | int) -> None:
        """Seed the random numbers of a model, such as dropout, differently in each process."""
        torch.manual_seed(derive_seed(self.run.seed, "model", *purpose, *([rank()] if rank() else [])))

    def begin_epoch(self) -> None:
        """Enter the epoch; before its first step, give last epoch's predictions to the method and attack weights."""
        self.method.enter(self.epoch)
        if self.step == 0:
            self.weighting = generation_weighting(self.run.threat.weighting, self.method.exposure, self.predicted)
            self.method.start_epoch(self.epoch, self.predicted)

    def end_epoch(self, predicted: Tensor) -> None:
        """Advance to the next epoch; `predicted` (C,) counts the predictions of the one that ends."""
        self.predicted = predicted.to(self.predicted.dtype)
        self.sums = EpochSums(len(predicted), self.device)
        self.epoch, self.step, self.seconds, self.training_seconds = self.epoch + 1, 0, 0.0, 0.0

    def not_finite(self) -> str:
        """Name what is not finite: a part of the loss, else the loss, else a weight; "" if everything is finite."""
        sums = self.sums.sums
        for name in sorted(sums, key=lambda part: part == "total"):
            if not math.isfinite(sums[name].item()):
                return "the loss" if name == "total" else f"the part {name} of the loss"
        finite = torch.stack([torch.isfinite(p).all() for p in (*self.model.parameters(), *self.method.parameters())])
        return "" if finite.all() else "a weight"

    def state_dict(self) -> Json:
        """Return the checkpoint: plain Python and tensors."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
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
            raise UserError(f"lacks {missing[0]}: another version of taet wrote it; start a new run")
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
        for name in PLAIN:
            setattr(self, name, saved[name])
