"""Class-level losses and weights, compared with loops over classes, examples and steps as in the published code.

Both sides get the same logits, features and labels, forwards and backwards, in alternating order. Their values and
gradients are compared in float64; the command ends with status 1 if they differ, or if a ratio is below its minimum.

    python benchmarks/losses.py                one thread, 128 examples, 10 and 100 classes, 512 features
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from common import alternate, arguments, ratio, record, seconds, show
from torch import Tensor, nn
from torch.nn import functional

from taet import methods
from taet.data.long_tail import long_tail_counts
from taet.losses import hierarchical_equalization, tail_margin
from taet.losses.equalization import TINY, class_losses
from taet.losses.tail_margin import tail_classes
from taet.methods import Method, Task

EXAMPLES, FEATURES, STEPS = 128, 512, 10  # a batch, the features of a ResNet-18, the steps of the attack
CLASSES = (10, 100)
ASKED = {"HEL, 100 classes": 20.0, "TAIL, 10 classes": 8.0, "TAIL, 100 classes": 8.0}
SHORT = 0.05  # seconds of a side per round, about, so that the clock's resolution and interruptions matter little
AGREEMENT = 1e-9  # largest difference over the largest value, in float64; TINY in the denominators causes 1e-10

Side = Callable[[Tensor], Tensor]
"""From logits (N, C) or features (N, D) to a scalar."""


class Pair(NamedTuple):
    """Two implementations of one value, and their input."""

    inputs: Tensor
    ours: Side
    loop: Side


# --- as published -----------------------------------------------------------------------------------------------------


def class_means_loop(logits: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Mean cross-entropy of each class, 0 without examples, class by class."""
    means = []
    for label in range(classes):
        chosen = labels == label
        if chosen.sum().item() > 0:
            means.append(functional.cross_entropy(logits[chosen], labels[chosen]))
        else:
            means.append(logits.new_zeros(()))
    return means


def equalization_loop(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """0.1 BCL + 0.1 HDL + 0.1 RCEL, class by class."""
    means = class_means_loop(logits, labels, classes)
    total = sum(means, start=logits.new_zeros(()))
    bcl = total / classes
    hdl = sum(((mean - bcl) ** 2 for mean in means), start=logits.new_zeros(())) / classes
    rcel = sum(((mean / (total + TINY)) ** 2 for mean in means), start=logits.new_zeros(()))
    return 0.1 * bcl + 0.1 * hdl + 0.1 * rcel


def tail_loop(features: Tensor, labels: Tensor, counts: Tensor, tail: Tensor) -> Tensor:
    """TAIL as in the public code: a loop over tail examples, and for each a loop over the batch."""
    log_p = features.log_softmax(1)
    root = (counts.sum() / counts).sqrt()
    total, members = features.new_zeros(()), 0
    for i in range(len(labels)):
        if not tail[labels[i]].item():
            continue
        signed = features.new_zeros(())
        for j in range(len(labels)):
            weight = root[labels[i]] + root[labels[j]]
            signed = signed - weight if labels[i].item() == labels[j].item() else signed + weight
        target = log_p[i].exp().detach().expand_as(log_p)
        total = total + signed / len(labels) * functional.kl_div(log_p, target, reduction="none").mean()
        members += 1
    return total / max(members, 1)


def weights_loop(outputs: Tensor, labels: Tensor) -> Tensor:
    """GAIRAT's weights from the logits of every step (K, N, C): loops over steps and examples."""
    steps, examples = outputs.shape[:2]
    kappa = outputs.new_zeros(examples)
    for logits in outputs:
        predictions = logits.argmax(1)
        for i in range(examples):
            if predictions[i].item() == labels[i].item():
                kappa[i] += 1
    weights = ((-1 + 5 * (1 - kappa / (steps / 2))).tanh() + 1) / 2
    return weights * examples / weights.sum()


# --- the pairs --------------------------------------------------------------------------------------------------------


def pairs(classes: int, dtype: torch.dtype) -> dict[str, Pair]:
    """Return what is compared, on logits, features and long-tailed labels with a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    counts = torch.tensor(long_tail_counts(classes, 500, 10), dtype=dtype)
    labels = torch.multinomial(counts, EXAMPLES, replacement=True, generator=draw)
    logits, features = (torch.randn(EXAMPLES, n, generator=draw).to(dtype) for n in (classes, FEATURES))
    outputs = torch.randn(STEPS, EXAMPLES, classes, generator=draw).to(dtype)
    outputs += 2 * functional.one_hot(labels, classes)  # so that a part of the steps is classified correctly
    tail = tail_classes(counts)
    task = Task(tuple(int(n) for n in counts), (3, 32, 32), epochs=2, steps_per_epoch=1, milestones=(1,))
    gairat = methods.build("gairat", None, task)
    gairat.enter(1)

    def weighted_loop(logits: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (weights_loop(outputs, labels) * losses).mean()

    return {
        "HEL": Pair(
            logits,
            lambda z: hierarchical_equalization(z, labels).total,
            lambda z: equalization_loop(z, labels, classes),
        ),
        "class means": Pair(
            logits,
            lambda z: class_losses(z, labels)[0].mean(),
            lambda z: torch.stack(class_means_loop(z, labels, classes)).mean(),
        ),
        "TAIL": Pair(
            features,
            lambda h: tail_margin(h, labels, counts, tail=tail),
            lambda h: tail_loop(h, labels, counts, tail),
        ),
        "GAIRAT weights": Pair(logits, partial(weighted, gairat, outputs, labels), weighted_loop),
    }


def weighted(gairat: Method, outputs: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """GAIRAT's counting, weights and loss, with an attack whose steps see these logits (K, N, C)."""

    def attack(_: object, x: Tensor, __: Tensor, observe: Callable[[int, Tensor], None]) -> Tensor:
        for step, seen in enumerate(outputs):
            observe(step, seen)
        return x

    attack.threat = SimpleNamespace(steps=len(outputs))  # type: ignore[attr-defined]
    adversarial = gairat.perturb(nn.Identity(), logits, labels, attack)  # type: ignore[arg-type]
    return gairat.loss(nn.Identity(), logits, labels, adversarial).total


def gradient(side: Side, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and its gradient."""
    inputs = inputs.clone().requires_grad_()
    value = side(inputs)
    return value.detach(), torch.autograd.grad(value, inputs)[0]


def difference(pair: Pair) -> float:
    """Return the largest relative difference of values and gradients."""
    found, expected = gradient(pair.ours, pair.inputs), gradient(pair.loop, pair.inputs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def measure(pair: Pair, rounds: int) -> dict[str, Any]:
    """Measure forwards and backwards, ours and the loop in turn."""

    def side(work: Side) -> Callable[[], float]:
        once = min(seconds(lambda: gradient(work, pair.inputs)) for _ in range(3))
        repeats = max(1, round(SHORT / once))
        return lambda: seconds(lambda: [gradient(work, pair.inputs) for _ in range(repeats)]) / repeats

    done = alternate({"ours": side(pair.ours), "other": side(pair.loop)}, rounds)
    return ratio(done["ours"], done["other"])


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    arguments(parser, out="losses.json", rounds=11, threads=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()
    ratios: dict[str, Mapping[str, Any]] = {}
    for classes in CLASSES:
        exact = pairs(classes, torch.float64)
        for name, pair in pairs(classes, torch.float32).items():
            key = f"{name}, {classes} classes"
            ratios[key] = measure(pair, given.rounds) | {"difference": difference(exact[name])}
    sizes = {"examples": EXAMPLES, "features": FEATURES, "steps": STEPS, "threads": given.threads}
    show(record(given.out, "cpu", ratios, load, asked=ASKED, **sizes))
    differing = [name for name, row in ratios.items() if not row["difference"] <= AGREEMENT]
    slow = [name for name, least in ASKED.items() if ratios[name]["ratio"] < least]
    for what, names in (("values differ", differing), ("slower than the minimum", slow)):
        if names:
            print(f"{what}: {'; '.join(names)}")
    return int(bool(differing or slow))


if __name__ == "__main__":
    sys.exit(main())
