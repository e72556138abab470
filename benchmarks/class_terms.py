"""The class-level terms of losses with thousands of classes, of which a batch contains few.

Class counts are generated: a power law, the quantile function of a Pareto distribution truncated at both ends, with the
published largest and smallest class and numbers of classes and images. Batches are drawn as in training, and the terms
are those of the package. Then a small network is trained on generated images of 8,142 classes with several losses.
Random numbers are seeded: the same machine gives the same results.

    python benchmarks/class_terms.py                        a few minutes of one core
    python benchmarks/class_terms.py --no-train             without the training
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet import methods, protocols, statistics, train
from taet.data import Dataset, Split
from taet.data.loader import class_balanced
from taet.files import write_json
from taet.losses import (
    balanced_softmax,
    cross_entropy,
    effective_number_weights,
    hierarchical_equalization,
    rebalancing_weights,
    tail_margin,
)
from taet.losses.long_tail import ldam_margins, log_prior
from taet.losses.tail_margin import tail_classes
from taet.methods.robust_lt import RobustLT, class_budgets
from taet.models import build
from taet.models.classifier import Classifier
from taet.randomness import generator
from taet.settings import Outer, from_json, override
from taet.training.environment import environment, resolve_device

RESULT = Path(__file__).parent / "results" / "class_terms.json"
BATCH_SIZES = (128, 1024, 8192)
DRAWN = 20
"""Batches whose make-up is averaged."""
SHAPE = (3, 8, 8)
NETWORK = "resnet8"


class About(NamedTuple):
    """The published numbers of a set's training images."""

    classes: int
    largest: int
    """Images of the largest class."""
    smallest: int
    images: int


SETS = {
    # Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019, arXiv:1904.05160.
    "imagenet-lt": About(1000, 1280, 5, 115_846),
    # github.com/visipedia/inat_comp, 2018; the largest and the smallest class: Kang et al., Decoupling Representation
    # and Classifier for Long-Tailed Recognition, ICLR 2020, arXiv:1910.09217.
    "inaturalist-2018": About(8142, 1000, 2, 437_513),
}
TRAINED = About(8142, 300, 1, 24_426)
"""The data of the short training, with a test image of every class."""


def power_law(about: About, exponent: float) -> NDArray[np.float64]:
    """Class sizes n_c = (n_max^-a + c / (C - 1) (n_min^-a - n_max^-a))^(-1/a), c = 0..C-1, not yet whole -> (C,)."""
    place = np.arange(about.classes) / (about.classes - 1)
    first, last = float(about.largest) ** -exponent, float(about.smallest) ** -exponent
    values: NDArray[np.float64] = (first + place * (last - first)) ** (-1 / exponent)
    return values


def power_law_exponent(about: About) -> float:
    """Return the exponent a at which the class sizes of `power_law` add up to the images, by bisection."""
    low, high = 1e-3, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power_law(about, middle).sum() > about.images else (low, middle)
    return high


def power_law_counts(about: About) -> NDArray[np.int64]:
    """Return whole class sizes that add up to the images: rounded down, the rest to the largest remainders, (C,)."""
    sizes = power_law(about, power_law_exponent(about))
    counts = np.floor(sizes + 1e-9).astype(np.int64)
    counts[np.argsort(counts - sizes, kind="stable")[: about.images - counts.sum()]] += 1
    return counts


def batches(labels: Tensor, size: int, sampling: str) -> list[Tensor]:
    """Return the labels of the first full batches of an epoch, (B,) each, in the order of `taet.data.loader.Loader`."""
    draws = generator("cpu", 0, "order", 0)
    shuffled = sampling == "shuffled"
    order = torch.randperm(len(labels), generator=draws) if shuffled else class_balanced(labels, draws)
    number = min(DRAWN, len(labels) // size)
    return list(labels[order[: number * size]].view(number, size))


def make_up(drawn: list[Tensor], counts: Tensor) -> dict[str, Any]:
    """Return the mean number of classes in a batch, of tail examples, and of their partners of the same class."""
    tail = tail_classes(counts)
    present, members, partners = [], [], []
    for labels in drawn:
        number = labels.bincount(minlength=len(counts))
        present.append(int((number > 0).sum()))
        members.append(int(number[tail].sum()))
        partners.append(int((number * (number - 1))[tail].sum()) / max(members[-1], 1))
    return {
        "batches": len(drawn),
        "classes": round(float(np.mean(present)), 1),
        "least": min(present),
        "most": max(present),
        "tail_examples": round(float(np.mean(members)), 2),
        "partners_of_a_tail_example": round(float(np.mean(partners)), 4),
    }


def kept_by(function: Callable[[], Tensor], *inputs: Tensor) -> tuple[Tensor, int]:
    """Return the result of a function, and the bytes that autograd keeps for it, without the inputs."""
    held = {value.untyped_storage().data_ptr() for value in inputs}
    kept: dict[int, Tensor] = {}  # by address, and held, so that none is used again

    def pack(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in held:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = function()
    return result, sum(value.untyped_storage().nbytes() for value in kept.values())


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, float, int]:
    """Return the gradient of a scalar function, its value, and the bytes that are kept for it."""
    at = at.detach().requires_grad_()
    value, kept = kept_by(lambda: function(at), at)
    (slope,) = torch.autograd.grad(value, at)
    return slope, float(value.detach()), kept


def image_weights(loss: Tensor, plain: Tensor) -> NDArray[np.float64]:
    """Return the weight of each image relative to the mean cross-entropy, (N,), from both gradients of logits (N, C).

    Exact for a loss that is a function of the cross-entropies of the images: its gradient is that of theirs, weighted.
    """
    weights: NDArray[np.float64] = ((loss * plain).sum(1) / plain.square().sum(1)).double().numpy()
    return weights


def equalization(logits: Tensor, labels: Tensor, running: Tensor) -> dict[str, Any]:
    """Compare HEL with the mean cross-entropy, for each way to count absent classes; `running` (C,) is that of ema."""
    plain, value, _ = gradient(lambda z: cross_entropy(z, labels).mean(), logits)
    found: dict[str, Any] = {"cross_entropy": value}
    for absent in ("zero", "skip", "ema"):
        parts: dict[str, float] = {}

        def loss(z: Tensor, absent: Any = absent, parts: dict[str, float] = parts) -> Tensor:
            total, terms, _ = hierarchical_equalization(z, labels, absent=absent, running=running)
            parts.update({name: float(term.detach()) for name, term in terms.items()})
            return total

        slope, total, kept = gradient(loss, logits)
        weights = image_weights(slope, plain)
        found[absent] = {
            "loss": total,
            **parts,
            "gradient": float(slope.norm() / plain.norm()),
            "weight": {"mean": weights.mean(), "least": weights.min(), "most": weights.max()},
            "against": float((weights < 0).mean()),
            "kept_bytes": kept,
        }
    return found


def tail_terms(model: Classifier, features: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Any]:
    """Compare the forms of TAIL with REAT's label loss: value, and ratio of the gradients of the features."""
    plain, _, _ = gradient(lambda h: balanced_softmax(model.classify(h), labels, counts).mean(), features)
    found = {}
    for form in ("official", "per-pair", "paper"):
        slope, value, kept = gradient(lambda h, form=form: tail_margin(h, labels, counts, form), features)  # type: ignore[misc]
        found[form] = {"loss": value, "gradient": float(slope.norm() / plain.norm()), "kept_bytes": kept}
    return found


def in_batches(about: About, counts: Tensor) -> Iterator[dict[str, Any]]:
    """Return the terms on batches of each size, for a fresh network and for one that knows the class sizes."""
    labels = torch.repeat_interleave(torch.arange(about.classes), counts)
    model = build(NETWORK, about.classes, SHAPE).eval()
    assert isinstance(model, Classifier)
    for size in BATCH_SIZES:
        shuffled, balanced = (batches(labels, size, sampling) for sampling in ("shuffled", "class-balanced"))
        batch = shuffled[0]
        with torch.no_grad():
            features = model.features(torch.rand(size, *SHAPE, generator=generator("cpu", 0, "images")))
            logits = model.classify(features)
        yield {
            "batch_size": size,
            "shuffled": make_up(shuffled, counts),
            "class_balanced": make_up(balanced, counts),
            "were_all_classes_alike": about.classes * (1 - (1 - 1 / about.classes) ** size),
            "equalization": {
                "fresh": equalization(logits, batch, torch.full((about.classes,), math.log(about.classes))),
                "prior": equalization(log_prior(counts).expand(size, -1), batch, -log_prior(counts)),
            },
            "tail": tail_terms(model, features, batch, counts.float()),
            "class_balanced_effective_images": effective_images(
                effective_number_weights(counts, Outer.default("beta")), shuffled
            ),
        }


def effective_images(weights: Tensor, drawn: list[Tensor]) -> float:
    """Mean share (sum w)^2 / (B sum w^2) of a batch that its weighted mean is as good as, in (0, 1]."""
    shares = [float(w.sum() ** 2 / (len(w) * w.square().sum())) for w in (weights[labels] for labels in drawn)]
    return float(np.mean(shares))


def priors(counts: Tensor) -> dict[str, Any]:
    """Return constants that follow from the class counts, the largest and the smallest over classes."""
    named = {
        "log_prior": log_prior(counts),
        "ldam_margin": ldam_margins(counts),
        "class_balanced_weight": effective_number_weights(counts, Outer.default("beta")),
        "robust_lt_budget": class_budgets(counts.float(), RobustLT.Config.default("a")),
    }
    return {name: {"least": float(values.min()), "most": float(values.max())} for name, values in named.items()}


def rebalanced(counts: Tensor) -> Iterator[dict[str, Any]]:
    """Return REAT's weights of the attack if only the largest classes are predicted, in proportion to their sizes."""
    for predicted in sorted({1, 100, 1000, len(counts)}):
        shares = torch.where(torch.arange(len(counts)) < predicted, counts.double(), 0.0)
        weights = rebalancing_weights(counts.double(), shares / shares.sum() * counts.sum())
        yield {
            "predicted_classes": predicted,
            "weight_of_a_predicted_class": {
                "least": float(weights[:predicted].min()),
                "most": float(weights[:predicted].max()),
            },
            "weight_of_another": float(weights[-1]) if predicted < len(counts) else None,
            "mean_over_images": float((weights * counts).sum() / counts.sum()),
        }


def epoch_of(counts: Tensor) -> dict[str, Any]:
    """Return the effect of class-balanced sampling on an epoch."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    drawn = class_balanced(labels, generator("cpu", 0, "order", 0)).bincount(minlength=len(labels))
    return {
        "images_seen": float((drawn > 0).double().mean()),
        "times_for_an_image_of_the_largest_class": float(drawn[labels == 0].double().mean()),
        "times_for_an_image_of_the_smallest_classes": float(drawn[counts[labels] == counts.min()].double().mean()),
    }


def generated(about: About) -> Dataset:
    """Images around a random pattern of each class, so that all classes can be distinguished."""
    draws = np.random.default_rng(0)
    height, width = SHAPE[1:]
    patterns = draws.integers(64, 192, (about.classes, height, width, SHAPE[0]))
    names = tuple(map(str, range(about.classes)))

    def split(labels: NDArray[np.int64]) -> Split:
        noise = draws.integers(-24, 25, (len(labels), height, width, SHAPE[0]))
        images = (patterns[labels] + noise).clip(0, 255).astype(np.uint8)
        return Split(images, labels, names, np.arange(len(labels)))

    every = np.arange(about.classes)
    return Dataset("generated", split(np.repeat(every, power_law_counts(about))), None, split(every), mirror=False)


RUN: dict[str, Any] = {
    "model.name": NETWORK,
    "threat.eps": 2 / 255,
    "threat.step_size": 2 / 255,
    "threat.steps": 1,
    "training.epochs": 3,
    "training.batch_size": BATCH_SIZES[0],
    "training.milestones": (),
    "training.augment": "none",
    "training.precision": "float32",
    "training.monitor_steps": 1,
    "training.monitor_every": 3,
    "training.device": "cpu",
    "training.threads": 1,
}
EVENED = round(TRAINED.classes / BATCH_SIZES[0], 1)
"""C / B: with it a mean over all classes weighs an image that is alone in its class as a mean over the batch does."""
TRAININGS: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (  # method, its knobs, settings of the run
    ("at", {}, {}),
    ("at", {}, {"training.lr": 0.01}),
    ("at-bsl", {}, {}),
    ("reat", {}, {}),
    ("harl", {"absent": "zero"}, {}),
    ("harl", {"absent": "skip"}, {}),
    ("harl", {"absent": "ema"}, {}),
    ("harl", {"absent": "skip", "alpha": 1.0}, {}),
    ("harl", {"absent": "ema", "alpha": EVENED}, {}),
)


def trained(data: Dataset, method: str, knobs: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Train for a few epochs; return loss and adversarial training accuracy of each, and the test accuracy."""
    own = from_json(methods.find(method).Config, dict(knobs))
    run = override(protocols.taet(method), {**RUN, **changes, "settings": own})
    with tempfile.TemporaryDirectory() as out:
        done = train(run, dataset=data, out=Path(out) / "run")
    counts = [(row["train"]["correct"], row["train"]["total"]) for row in done.history]
    last = done.history[-1]["monitor"]
    return {
        "method": method,
        "knobs": dict(knobs),
        "settings": dict(changes),
        "loss": [row["loss"]["total"] for row in done.history],
        "training_accuracy": [statistics.accuracy(*row) for row in counts],
        "test_accuracy": {name: statistics.balanced_accuracy(**last[name]) for name in ("clean", "pgd-1")},
    }


def measure(name: str) -> dict[str, Any]:
    """Return all terms for the class sizes of one set."""
    about = SETS[name]
    counts = torch.from_numpy(power_law_counts(about))
    return {
        **about._asdict(),
        "exponent": power_law_exponent(about),
        "median": float(counts.double().median()),
        "batches": list(in_batches(about, counts)),
        "priors": priors(counts),
        "rebalancing": list(rebalanced(counts)),
        "class_balanced_epoch": epoch_of(counts),
    }


def rounded(value: Any) -> Any:
    """Round numbers to five digits, at any depth."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-train", action="store_true", help="the terms alone")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result (results/class_terms.json)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"sets": {name: measure(name) for name in SETS}, "network": NETWORK}
    if not given.no_train:
        data = generated(TRAINED)
        about = {**TRAINED._asdict(), "shape": SHAPE, "epochs": RUN["training.epochs"], "batch_size": BATCH_SIZES[0]}
        result |= {"generated": about, "training": [trained(data, *row) for row in TRAININGS]}
    result |= {"command": f"python benchmarks/{Path(__file__).name}", "environment": environment(resolve_device("cpu"))}
    print(json.dumps(rounded(result), indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, rounded(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
