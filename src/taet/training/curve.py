"""The curve of a run: accuracy per class over the epochs, feedback for methods, and flags of
single-step training."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from taet import protocols
from taet.attacks.arithmetic import SearchPrecision, arithmetic
from taet.attacks.ball import frozen
from taet.attacks.pgd import pgd
from taet.data import Split
from taet.data.augmentation import as_tensor, to_unit
from taet.data.long_tail import even_sample
from taet.distributed import global_sum, rank, world_size
from taet.flags import FlagList, SentenceValues
from taet.formatting import percent
from taet.losses import cross_entropy, kl_divergence
from taet.losses.long_tail import is_label
from taet.methods.base import ClassFeedback
from taet.randomness import generator
from taet.run.record import CurvePoint, Epoch
from taet.settings.schema import from_json
from taet.settings.step_sizes import step_sizes_for
from taet.training.checks import Resolved, monitored_epochs

IMAGES = 1000  # measured at a point of a curve that does not affect the weights
LOST_BELOW = 0.5  # share of the best earlier robustness; below it, robustness counts as lost
# FGSM minus PGD accuracy: 43 of 186 public runs of FastAT_Benchmark have it, all known to collapse
GAP = 0.15


def per_class(labels: Tensor, hits: Tensor, num_classes: int) -> Tensor:
    """Count the samples with `hits` (N,) per class, (C,) int64, without synchronising the
    device."""
    return torch.zeros(num_classes, dtype=torch.int64, device=labels.device).index_add_(
        0, labels, hits.long()
    )


class TrainingCurve:
    """The points of a run's curve on one split, the same images at every point."""

    def __init__(self, resolved: Resolved, split: Split, device: torch.device) -> None:
        self.run = resolved.run
        self.name = resolved.split
        self.method = resolved.method
        self.device = device
        learns = resolved.method.needs_feedback
        if not learns and self.run.training.selection == "last" and len(split) > IMAGES:
            split = split.choose(even_sample(split.labels, IMAGES, self.run.seed))
        self.split = split
        self.epochs = set(monitored_epochs(self.run, learns))

    @property
    def is_single_step(self) -> bool:
        """Whether the training attacks with one step: the method's own, or the protocol's."""
        threat_is_used = not self.method.own_attack
        return self.method.single_step or (threat_is_used and self.run.threat.steps == 1)

    def measure(
        self, model: Any, between_batches: Callable[[], None]
    ) -> tuple[CurvePoint, ClassFeedback | None]:
        """Return the point of the curve for `model`, and the feedback for a method that learns.

        Each of P processes takes every P-th batch; `between_batches` is called before each, equally
        often in all processes.
        """
        num_classes = len(self.split.class_names)
        batches = math.ceil(len(self.split) / self.run.evaluation.batch_size)
        rounds = math.ceil(batches / world_size())
        names = ["clean", f"pgd-{self.run.training.monitor_steps}"]
        if self.is_single_step:
            names.insert(1, "fgsm")
        correct = torch.zeros(len(names), num_classes, dtype=torch.int64, device=self.device)
        # of clean loss and divergence
        sums = torch.zeros(num_classes, 2, dtype=torch.float64, device=self.device)
        with frozen(model), arithmetic(self.device.type):
            for number in range(rank(), rounds * world_size(), world_size()):
                between_batches()
                if number >= batches:
                    continue
                x, y = self._batch(number)
                examples = self._examples(model, x, y, number)
                with torch.no_grad():
                    logits = [model(images) for images in examples]
                    if self.method.needs_feedback:
                        sums += _loss_sums(logits[0], logits[-1], y)
                hits = [per_class(y, each.argmax(1) == y, num_classes) for each in logits]
                correct += torch.stack(hits)
        correct = global_sum(correct)
        point = self._point(dict(zip(names, correct, strict=True)))
        if not self.method.needs_feedback:
            return point, None
        images = torch.from_numpy(self.split.class_counts).to(self.device).double()
        clean_and_robust = correct[[0, -1]].double()
        return point, ClassFeedback(images, *clean_and_robust, *global_sum(sums).unbind(1))

    def _batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return images in [0, 1] and labels of a batch on the device."""
        batch_size = self.run.evaluation.batch_size
        rows = slice(number * batch_size, (number + 1) * batch_size)
        images = as_tensor(self.split.images[rows]).to(self.device)
        labels = torch.from_numpy(self.split.labels[rows]).to(self.device)
        return to_unit(images, channels_last=self.run.training.channels_last), labels

    def _examples(self, model: Any, x: Tensor, y: Tensor, number: int) -> list[Tensor]:
        """Return the images of a batch as they are, for a single-step run under FGSM, and under
        PGD.

        The start noise is U(-eps, eps), the same in every epoch, so that only the model changes the
        curve.
        """
        run, eps = self.run, self.run.threat.eps
        precision: SearchPrecision = "bf16" if run.training.precision == "bf16" else "float32"
        attack = functools.partial(pgd, model, x, y, eps=eps, checked=True)
        examples = [x]
        with arithmetic(self.device.type, precision):
            if self.is_single_step:
                examples.append(attack(steps=1, step_size=eps, start="none"))
            noise = generator(self.device, run.seed, "monitor", number)
            steps = run.training.monitor_steps
            examples.append(attack(steps=steps, step_size=self._step_size(), start_noise=noise))
        return examples

    def _step_size(self) -> float:
        """Return the step size of the run's evaluation, in proportion to the radius of its
        training."""
        run, evaluation = self.run, self.run.evaluation
        eps = run.threat.eps
        protocol = protocols.start(run.protocol, run.method)
        sizes = step_sizes_for(eps, evaluation.eps_l2, evaluation, evaluation.eps or eps, protocol)
        return sizes["step_size"]

    def _point(self, correct: Mapping[str, Tensor]) -> CurvePoint:
        """Return the point of the curve with these correct images of each class, (C,), by name."""
        total = self.split.class_counts.tolist()
        counts = {}
        for name, hits in correct.items():
            counts[name] = {"correct": hits.tolist(), "total": total}
        return from_json(CurvePoint, {"split": self.name, **counts})


def _loss_sums(clean: Tensor, robust: Tensor, labels: Tensor) -> Tensor:
    """Return the sums over each class of clean loss and divergence, (C, 2), from logits (N, C)."""
    clean, robust = clean.double(), robust.double()
    losses = torch.stack([cross_entropy(clean, labels), kl_divergence(clean, robust)], 1)
    # A matrix product, because the order of sums in index_add_ varies on a GPU.
    return is_label(clean, labels).double().T @ losses


class SingleStepCurve(NamedTuple):
    """The balanced accuracies of a single-step run at its points, in the order of the epochs."""

    epochs: Sequence[int]
    pgd: Sequence[float]
    fgsm: Sequence[float]
    attack: str
    """The name of PGD."""
    chance: float
    """Accuracy by chance, which is no robustness."""

    @classmethod
    def of(cls, epochs: Sequence[Epoch]) -> Self | None:
        """Return the curve of a run; None if FGSM was not measured: it is no single-step run."""
        points = {
            epoch.epoch: epoch.monitor
            for epoch in epochs
            if epoch.monitor and "fgsm" in epoch.monitor.counts
        }
        if not points:
            return None
        first = next(iter(points.values()))
        return cls(
            epochs=[*points],
            pgd=[point.attacked.balanced_accuracy for point in points.values()],
            fgsm=[point.counts["fgsm"].balanced_accuracy for point in points.values()],
            attack=first.attack,
            chance=1 / len(first.attacked.total),
        )

    @property
    def best_before(self) -> list[float]:
        """The best PGD accuracy before each point, and at the end that of all points."""
        return [0.0, *itertools.accumulate(self.pgd, max)]

    def values_at(self, point: int) -> SentenceValues:
        """Return what the sentence of a flag says about a point."""
        return {
            "epoch": self.epochs[point],
            "attack": self.attack,
            "pgd": percent(self.pgd[point]),
            "best": percent(self.best_before[point]),
            "fgsm": percent(self.fgsm[point]),
        }


FLAGS = FlagList()
"""The flags of a run's curve: single-step training that lost its robustness."""
FELL = (
    "In epoch {epoch} balanced accuracy under {attack} fell to {pgd} %, from up to {best} % before"
)
REMEDY = (
    "take an earlier epoch (--selection best-validation), a smaller eps or stronger noise, or "
    "several steps"
)


@FLAGS.flag(
    "catastrophic-overfitting",
    "training",
    f"{FELL}, while FGSM leaves {{fgsm}} %: the network resists only single-step attacks",
    REMEDY,
)
def _catastrophic_overfitting(curve: SingleStepCurve) -> SentenceValues | None:
    point = _overfitted_at(curve)
    return None if point is None else curve.values_at(point)


@FLAGS.flag("robustness-lost", "training", FELL, REMEDY)
def _robustness_lost(curve: SingleStepCurve) -> SentenceValues | None:
    if _overfitted_at(curve) is not None:
        return None
    point = _lost_since(curve)
    return None if point is None else curve.values_at(point)


def training_flags(epochs: Sequence[Epoch]) -> Mapping[str, str]:
    """Return the text of the flag that the curve of a single-step run raises, if any, by its name.

    Where PGD accuracy is at most half of its earlier maximum, and FGSM's 15 points higher, the
    network resists single steps only (Wong et al., ICLR 2020, arXiv:2001.03994). Accuracy by chance
    is no robustness. Other runs raise none.
    """
    curve = SingleStepCurve.of(epochs)
    return {} if curve is None else FLAGS.raised("training", curve)


def _overfitted_at(curve: SingleStepCurve) -> int | None:
    """Return the first point that lost half of the best PGD accuracy before, but not of FGSM's."""
    best_before = curve.best_before
    for point, robust in enumerate(curve.pgd):
        best = best_before[point]
        lost = best > curve.chance and robust <= LOST_BELOW * best
        if lost and curve.fgsm[point] - robust >= GAP:
            return point
    return None


def _lost_since(curve: SingleStepCurve) -> int | None:
    """Return the point since which half of the best PGD accuracy is lost for good, if it is."""
    best = curve.best_before[-1]
    if best <= curve.chance:
        return None
    kept = [point for point, accuracy in enumerate(curve.pgd) if accuracy > LOST_BELOW * best]
    first = kept[-1] + 1
    return first if first < len(curve.pgd) else None
