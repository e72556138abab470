"""The curve of a run: clean and PGD accuracy per class over the epochs, and the best epoch so far."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from taet import metrics
from taet.attacks.ball import frozen
from taet.attacks.pgd import pgd
from taet.attacks.precision import exact_float32
from taet.data import Split
from taet.data.augmentation import to_unit
from taet.distributed import global_sum, rank, world_size
from taet.randomness import generator
from taet.training.record import Row
from taet.training.resolve import Resolved

Counts = dict[str, list[int]]


def per_class(labels: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Count the samples with `hits` (N,) per class, (C,) int64, without synchronising."""
    return torch.zeros(num_classes, dtype=torch.int64, device=labels.device).index_add_(0, labels, hits.long())


def monitor(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device,
    eps: float,
    step_size: float,
    steps: int,
    batch_size: int,
    seed: int,
    channels_last: bool,
    pause: Callable[[], None],
) -> dict[str, Counts]:
    """Return {"clean": ..., "pgd-N": ...}, each with the correct and total images per class, in float32.

    The images are moved to `device`, where the model is, batch by batch. The start noise is U(-eps, eps), the same in
    every epoch, so that only the model changes the curve. Each of P processes takes every P-th batch; `pause` is called
    before each batch, equally often in all processes.
    """
    attack, num_classes = f"pgd-{steps}", len(split.class_names)
    correct = {name: torch.zeros(num_classes, dtype=torch.int64, device=device) for name in ("clean", attack)}
    with frozen(model), exact_float32(device.type):
        batches, processes = math.ceil(len(split) / batch_size), world_size()
        for number in range(rank(), math.ceil(batches / processes) * processes, processes):
            pause()
            if number >= batches:
                continue
            rows = slice(number * batch_size, (number + 1) * batch_size)
            x = to_unit(torch.from_numpy(split.images[rows]).to(device), channels_last=channels_last)
            y = torch.from_numpy(split.labels[rows]).to(device)
            noise = generator(device, seed, "monitor", number)
            attacked = pgd(model, x, y, eps=eps, step_size=step_size, steps=steps, start="uniform", generator=noise)
            with torch.no_grad():
                for name, inputs in (("clean", x), (attack, attacked)):
                    correct[name] += per_class(y, model(inputs).argmax(1) == y, num_classes)
    total = split.class_counts.tolist()
    return {name: {"correct": global_sum(counts).tolist(), "total": total} for name, counts in correct.items()}


class TrainingCurve:
    """The points of a run's curve on one split, and the weights of the best of them if the curve may choose."""

    def __init__(self, resolved: Resolved, split: Split, device: torch.device) -> None:
        self.run, self.name, self.chooses = resolved.run, resolved.split, resolved.chooses
        self.split, self.device = split, device
        every, epochs = self.run.training.monitor_every, self.run.training.epochs
        self.epochs = {e for e in range(epochs) if every and ((e + 1) % every == 0 or e + 1 == epochs)}
        self.batches = math.ceil(len(split) / self.run.evaluation.batch_size)
        self.best_score, self.best_epoch = -math.inf, -1
        self.best_weights: dict[str, Tensor] | None = None

    def measure(self, model: nn.Module, epoch: int, pause: Callable[[], None]) -> Row:
        """Return the point of `epoch`, from 0; `pause` is called before each batch."""
        run = self.run
        counts = monitor(
            model,
            self.split,
            device=self.device,
            eps=run.threat.eps,
            step_size=run.evaluation.step_size,
            steps=run.training.monitor_steps,
            batch_size=run.evaluation.batch_size,
            seed=run.seed,
            channels_last=run.training.channels_last,
            pause=pause,
        )
        attacked = counts[f"pgd-{run.training.monitor_steps}"]
        score = metrics.balanced_accuracy(attacked["correct"], attacked["total"])
        if self.chooses and score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best_weights = {name: value.cpu() for name, value in model.state_dict().items()}
        return {"split": self.name, **counts}
