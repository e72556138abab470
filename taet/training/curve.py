"""The curve of a run: clean and PGD accuracy per class over the epochs, and what a method may learn from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.attacks.counted import SearchPrecision, arithmetic, exact_float32
from taet.attacks.pgd import pgd
from taet.data import Split
from taet.data.augmentation import as_tensor, to_unit
from taet.data.long_tail import even_sample
from taet.distributed import global_sum, rank, world_size
from taet.losses import cross_entropy, kl_divergence
from taet.losses.long_tail import is_label
from taet.methods.base import Seen
from taet.randomness import generator
from taet.settings import Run, from_json
from taet.training.record import CurvePoint
from taet.training.resolve import Resolved, watched_epochs, watched_images


def per_class(labels: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Count the samples with `hits` (N,) per class, (C,) int64, without synchronising the device."""
    return torch.zeros(num_classes, dtype=torch.int64, device=labels.device).index_add_(0, labels, hits.long())


class FeedbackSums:
    """Sums over the images of each class in this process; `seen` adds up those of all processes."""

    def __init__(self, class_counts: Tensor) -> None:
        self.images = class_counts.double()
        self.sums = self.images.new_zeros(len(class_counts), 4 + len(class_counts))

    @torch.no_grad()
    def add(self, labels: Tensor, clean: Tensor, attacked: Tensor) -> None:
        """Add a batch: labels (N,), logits of its images and of the attacked ones (N, C)."""
        clean, attacked = clean.double(), attacked.double()
        found = [
            clean.argmax(1) == labels,
            cross_entropy(clean, labels),
            cross_entropy(attacked, labels),
            kl_divergence(clean, attacked),
        ]
        values = torch.cat([torch.stack(found, 1), is_label(attacked, attacked.argmax(1))], 1)
        # A matrix product, because the order of sums in index_add_ varies on a GPU.
        self.sums += is_label(attacked, labels).double().T @ values

    def seen(self, split: str) -> Seen:
        """Return the sums over all processes."""
        together = global_sum(self.sums)
        clean, clean_loss, robust_loss, divergence = together[:, :4].unbind(1)
        return Seen(split, self.images, clean, together[:, 4:], clean_loss, robust_loss, divergence)


def monitor(
    model: Any,
    split: Split,
    run: Run,
    *,
    device: torch.device,
    pause: Callable[[], None],
    fgsm: bool = False,
    sums: FeedbackSums | None = None,
) -> dict[str, dict[str, list[int]]]:
    """Return {"clean": ..., "pgd-N": ...}, each with the correct and total images per class, in float32.

    The start noise is U(-eps, eps), the same in every epoch, so that only the model changes the curve. With `fgsm`
    there is a third entry, one step of eps from the clean image. Each of P processes takes every P-th batch; `pause`
    comes before each, equally often in all processes. `sums` collects further values that a method learns from.
    """
    steps, batch_size, num_classes = run.training.monitor_steps, run.evaluation.batch_size, len(split.class_names)
    attack, eps = f"pgd-{steps}", run.threat.eps
    precision: SearchPrecision = "bf16" if run.training.precision == "bf16" else "float32"
    ascend = functools.partial(pgd, model, eps=eps, checked=True)
    names = ("clean", *(["fgsm"] if fgsm else []), attack)
    correct = {name: torch.zeros(num_classes, dtype=torch.int64, device=device) for name in names}
    with frozen(model), exact_float32(device.type):
        batches, processes = math.ceil(len(split) / batch_size), world_size()
        for number in range(rank(), math.ceil(batches / processes) * processes, processes):
            pause()
            if number >= batches:
                continue
            rows = slice(number * batch_size, (number + 1) * batch_size)
            x = to_unit(as_tensor(split.images[rows]).to(device), channels_last=run.training.channels_last)
            y = torch.from_numpy(split.labels[rows]).to(device)
            noise = generator(device, run.seed, "monitor", number)
            with arithmetic(device.type, precision):
                attacked = ascend(x, y, steps=steps, step_size=run.evaluation.step_size, start_noise=noise)
                single = ascend(x, y, steps=1, step_size=eps, start="none") if fgsm else None
            with torch.no_grad():
                logits = {"clean": model(x), attack: model(attacked)}
                logits |= {} if single is None else {"fgsm": model(single)}
                for name, found in logits.items():
                    correct[name] += per_class(y, found.argmax(1) == y, num_classes)
                if sums is not None:
                    sums.add(y, logits["clean"], logits[attack])
    total = split.class_counts.tolist()
    return {name: {"correct": global_sum(counts).tolist(), "total": total} for name, counts in correct.items()}


class TrainingCurve:
    """The points of a run's curve on one split, the same images at every point."""

    def __init__(self, resolved: Resolved, split: Split, device: torch.device) -> None:
        self.run, self.name, self.method, self.device = resolved.run, resolved.split, resolved.method, device
        learns = resolved.method.needs_feedback
        most = watched_images(self.run, learns)
        if most is not None and most < len(split):
            split = split.choose(even_sample(split.labels, most, self.run.seed))
        self.split = split
        self.epochs = set(watched_epochs(self.run, learns))

    def measure(self, model: nn.Module, pause: Callable[[], None]) -> tuple[CurvePoint, Seen | None]:
        """Return the point of `model`, and what a method that learns from it sees; `pause` comes before each batch."""
        split, method, sums = self.split, self.method, None
        if method.needs_feedback:
            sums = FeedbackSums(torch.from_numpy(split.class_counts).to(self.device))
        # One step of the protocol's attack is a single-step method too, unless no epoch attacks.
        fgsm = method.single_step or (self.run.threat.steps == 1 and set(method.task.stages) != {"clean"})
        counts = monitor(model, split, self.run, device=self.device, pause=pause, fgsm=fgsm, sums=sums)
        return from_json(CurvePoint, {"split": self.name, **counts}), None if sums is None else sums.seen(self.name)
