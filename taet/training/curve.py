"""The curve of a run: accuracy per class over the epochs, feedback for methods, and flags of single-step training."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taet import protocols
from taet.attacks.ball import frozen
from taet.attacks.counted import SearchPrecision, arithmetic
from taet.attacks.pgd import pgd
from taet.data import Split
from taet.data.augmentation import as_tensor, to_unit
from taet.data.long_tail import even_sample
from taet.distributed import global_sum, rank, world_size
from taet.formatting import percent
from taet.losses import cross_entropy, kl_divergence
from taet.losses.long_tail import is_label
from taet.methods.base import Seen
from taet.randomness import generator
from taet.settings import from_json
from taet.training.record import CurvePoint, Epoch
from taet.training.resolve import Resolved, watched_epochs

IMAGES = 1000  # measured at a point of a curve that does not affect the weights
LOST_BELOW = 0.5  # share of the best earlier robustness; below it, robustness counts as lost
GAP = 0.15  # FGSM minus PGD accuracy: 43 of 186 public runs of FastAT_Benchmark have it, all known to collapse
FLAGS = ("catastrophic-overfitting", "robustness-lost")


def per_class(labels: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Count the samples with `hits` (N,) per class, (C,) int64, without synchronising the device."""
    return torch.zeros(num_classes, dtype=torch.int64, device=labels.device).index_add_(0, labels, hits.long())


class TrainingCurve:
    """The points of a run's curve on one split, the same images at every point."""

    def __init__(self, resolved: Resolved, split: Split, device: torch.device) -> None:
        self.run, self.name, self.method, self.device = resolved.run, resolved.split, resolved.method, device
        learns = resolved.method.needs_feedback
        if not learns and self.run.training.selection == "last" and len(split) > IMAGES:
            split = split.choose(even_sample(split.labels, IMAGES, self.run.seed))
        self.split = split
        self.epochs = set(watched_epochs(self.run, learns))

    def measure(self, model: Any, pause: Callable[[], None]) -> tuple[CurvePoint, Seen | None]:
        """Return the point of the curve for `model`, and the feedback for a method that learns from it, else None.

        The start noise is U(-eps, eps), the same in every epoch, so that only the model changes the curve. Each of P
        processes takes every P-th batch; `pause` is called before each, equally often in all processes.
        """
        run, method, split, device = self.run, self.method, self.split, self.device
        steps, batch_size, num_classes = run.training.monitor_steps, run.evaluation.batch_size, len(split.class_names)
        name, eps = f"pgd-{steps}", run.threat.eps
        precision: SearchPrecision = "bf16" if run.training.precision == "bf16" else "float32"
        attack = functools.partial(pgd, model, eps=eps, checked=True)
        usual, own = protocols.start(run.protocol, run.method), run.evaluation
        step_size = protocols.steps_in(eps, own.eps_l2, own, own.eps or eps, usual)["step_size"]
        # One step of the protocol's attack is a single-step method too, unless the method has its own.
        single = method.single_step or (run.threat.steps == 1 and not method.own_attack)
        names = ("clean", *(["fgsm"] if single else []), name)
        correct = torch.zeros(len(names), num_classes, dtype=torch.int64, device=device)
        sums = torch.zeros(num_classes, 2, dtype=torch.float64, device=device)  # of clean loss and divergence
        with frozen(model), arithmetic(device.type):
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
                    x_pgd = attack(x, y, steps=steps, step_size=step_size, start_noise=noise)
                    x_fgsm = [attack(x, y, steps=1, step_size=eps, start="none")] if single else []
                with torch.no_grad():
                    logits = [model(images) for images in (x, *x_fgsm, x_pgd)]
                    if method.needs_feedback:
                        clean, robust = logits[0].double(), logits[-1].double()
                        losses = torch.stack([cross_entropy(clean, y), kl_divergence(clean, robust)], 1)
                        # A matrix product, because the order of sums in index_add_ varies on a GPU.
                        sums += is_label(clean, y).double().T @ losses
                correct += torch.stack([per_class(y, each.argmax(1) == y, num_classes) for each in logits])
        total = split.class_counts.tolist()
        correct = global_sum(correct)
        counts = {name: {"correct": hits.tolist(), "total": total} for name, hits in zip(names, correct, strict=True)}
        point = from_json(CurvePoint, {"split": self.name, **counts})
        if not method.needs_feedback:
            return point, None
        images = torch.from_numpy(split.class_counts).to(device).double()
        return point, Seen(images, *correct[[0, -1]].double(), *global_sum(sums).unbind(1))


def training_flags(epochs: Sequence[Epoch]) -> Mapping[str, str]:
    """Return the text of every flag that the curve of a single-step run raises; other runs raise none.

    Where PGD accuracy is at most half of its earlier maximum, and FGSM's 15 points higher, the network resists single
    steps only (Wong et al., ICLR 2020, arXiv:2001.03994). Accuracy by chance is no robustness.
    """
    watched = [(epoch.epoch, epoch.monitor) for epoch in epochs if epoch.monitor and "fgsm" in epoch.monitor.counts]
    pgd_accuracy = [point.attacked.balanced_accuracy for _, point in watched]
    fgsm_accuracy = [point.counts["fgsm"].balanced_accuracy for _, point in watched]
    chance = 1 / len(watched[0][1].attacked.total) if watched else 0.0
    best = [0.0, *itertools.accumulate(pgd_accuracy, max)]  # before each point
    lost = (n for n, robust in enumerate(pgd_accuracy) if best[n] > chance and robust <= LOST_BELOW * best[n])
    flag, first = FLAGS[0], next((n for n in lost if fgsm_accuracy[n] - pgd_accuracy[n] >= GAP), None)
    if first is None and best[-1] > chance:  # lost for good: since the last point above half of the best
        flag, first = FLAGS[1], 1 + max(n for n, robust in enumerate(pgd_accuracy) if robust > LOST_BELOW * best[-1])
    if first is None or first == len(watched):
        return {}
    epoch, point = watched[first]
    fell = f"In epoch {epoch} balanced accuracy under {point.attack} fell to {percent(pgd_accuracy[first])} %"
    fell += f", from up to {percent(best[first])} % before"
    why = f", while FGSM leaves {percent(fgsm_accuracy[first])} %: the network resists only single-step attacks"
    remedy = "; take an earlier epoch (--selection best-validation), a smaller eps or stronger noise, or several steps."
    return {flag: fell + (why if flag == FLAGS[0] else "") + remedy}
