"""A quick check of a model before an evaluation: problems that would invalidate it, and its duration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet import statistics
from taet.attacks.ball import finite
from taet.attacks.counted import Counted
from taet.attacks.inputs import SUM_TOLERANCE
from taet.attacks.spec import AttackSpec
from taet.data.long_tail import even_sample
from taet.errors import UserError
from taet.evaluation.bundles import attacks_of
from taet.evaluation.column import Json
from taet.evaluation.diagnostics import REPEAT_DIFFERENCE, problems
from taet.evaluation.image_arrays import TestImages, as_arrays
from taet.evaluation.model_guard import restored
from taet.evaluation.packing import plain
from taet.evaluation.runner import make_runner
from taet.evaluation.trial import Trial, answer, attempt, input_gradient, user_errors
from taet.formatting import aligned, clock, listed, percent
from taet.models.foreign import NORMALIZATIONS, Normalized, Statistics
from taet.randomness import generator
from taet.settings import Evaluation
from taet.statistics import Ints, Mask
from taet.training.environment import environment

RANDOMISED = "not applicable: the model is randomised"
LEVEL = 0.05  # of all tests together whether another normalisation is better
TIMED = 3  # repetitions of each timing, of which the fastest counts


@dataclass(frozen=True)
class Finding:
    """One property of a model that was tested."""

    subject: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else '! '} {self.subject:14}{self.text}"


@dataclass(frozen=True)
class AttackCost:
    """Expected cost of one attack on all images."""

    attack: str
    passes: int
    """Forward and backward passes of one image through the model."""
    images: int
    """Images that are attacked: for AutoAttack those that are classified correctly."""
    seconds: float
    """Upper bound: an attack that stops early on an image takes less."""


@dataclass(frozen=True)
class Check:
    """The findings about a model."""

    model: str
    parameters: int
    num_classes: int
    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    images: int
    """Number of test images."""
    tried: int
    """Number of test images that were tried."""
    device: str
    accuracy: float
    """Share of the tried images that are classified correctly."""
    accuracies: dict[str, float]
    """The same with each usual input normalisation; "none" means images in [0, 1]."""
    forward_speed: float
    """Images per second, forward."""
    gradient_speed: float
    """Images per second, forward and backward."""
    findings: tuple[Finding, ...]
    costs: tuple[AttackCost, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return all(finding.ok for finding in self.findings)

    def to_json(self) -> Json:
        """Return everything as plain JSON."""
        return {"ok": self.ok, **plain(asdict(self))}

    def __repr__(self) -> str:
        rows = [("attack", "passes", "images", "at most")]
        rows += [(cost.attack, f"{cost.passes}", f"{cost.images}", clock(cost.seconds)) for cost in self.costs]
        rows += [("all", "", "", clock(sum(cost.seconds for cost in self.costs)))]
        return "\n".join(
            [
                f"{self.model}: {self.parameters:,} parameters, {self.num_classes} logits for images of "
                f"{' x '.join(map(str, self.image_shape))}; tried on {self.tried} of {self.images} test images",
                *map(str, self.findings),
                f"{self.forward_speed:.0f} images per second forward, {self.gradient_speed:.0f} forward and backward; "
                f"{self.device}",
                *aligned(rows),
            ]
        )


def check(
    model: nn.Module,
    images: TestImages | Tensor,
    labels: NDArray[np.integer] | Tensor,
    *,
    attacks: Sequence[str] = Evaluation.default("attacks"),
    class_names: Sequence[str] | None = None,
    batch_size: int = Evaluation.default("batch_size"),
    name: str | None = None,
) -> Check:
    """Test a model on a batch of images; report problems that would invalidate an evaluation, and its duration.

    The model is tested in eval mode and exact float32 on its device. Its state, its modes and the random state are
    restored afterwards.

    Args:
        model: from images (N, C, H, W) in [0, 1] to logits (N, classes).
        images: all test images, uint8 (N, H, W, C) or floating point (N, C, H, W) in [0, 1]; a batch of them is used.
        labels: integers (N,), 0 to classes - 1.
        attacks: names of attacks, or of a protocol, whose time is estimated.
        class_names: names of the classes, one per logit.
        batch_size: number of images that are tried and timed.
        name: name of the model in the result; by default its class.

    Raises:
        UserError: images or labels that `taet.evaluate` refuses, or a model that cannot be evaluated: it fails, returns
            anything but finite logits (N, classes), or has no gradient with respect to the image.
    """
    parsed = attacks_of(Evaluation(attacks=tuple(attacks)))
    pixels, classes = as_arrays(images, labels)
    came = "; it was in training mode and is tested in eval mode" if model.training else ""
    with restored(model) as changes:
        tried = make_runner(model, pixels, classes, batch_size=batch_size)
        width = tried.num_classes
        if class_names is not None and len(class_names) != width:
            raise UserError(f"model output: got {width} logits; allowed: {len(class_names)}, one per class")
        with tried.still():
            trial = attempt(tried.model, *tried.batch(even_sample(classes, batch_size, tried.seed)))
            if wrong := int((~finite(trial.logits)).sum()):
                raise UserError(f"model output: not finite on {wrong} of {len(trial.y)} clean test images")
            correct = trial.correct.cpu().numpy()
            speeds = _speeds(trial)
            normalisations = _normalisations(trial, correct)
            highest = int(classes.max()) if class_names is None else width - 1
            tested = _findings(trial, correct, normalisations, highest, came, changes)
    right = _expected(trial, correct, classes)
    return Check(
        model=name or type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_classes=width,
        image_shape=(trial.x.shape[1], trial.x.shape[2], trial.x.shape[3]),
        images=len(classes),
        tried=len(trial.y),
        device=environment(tried.device)["device"],
        accuracy=float(correct.mean()),
        accuracies=normalisations[0],
        forward_speed=speeds[0],
        gradient_speed=speeds[1],
        findings=tested,
        costs=tuple(_cost(attack, width, len(classes), right, speeds) for attack in parsed),
    )


def _findings(
    trial: Trial,
    correct: Mask,
    normalisations: tuple[dict[str, float], str],
    highest: int,
    came: str,
    changes: Callable[[], list[str]],
) -> tuple[Finding, ...]:
    """Return one finding for each subject; dependence on the batch cannot be tested if the outputs vary anyway.

    `highest` is the highest label, `came` a remark on the mode of the model, and `changes` names its changed tensors.
    """
    (accuracies, better), logits, width = normalisations, trial.logits, trial.logits.shape[1]
    facts = trial.facts()
    random = facts.repeat_difference > REPEAT_DIFFERENCE
    each = ", ".join(f"{name} {percent(value)}" for name, value in accuracies.items())
    given = f"{100 * float(correct.mean()):.1f} % correct as given"
    counts = statistics.class_counts(correct, trial.y.cpu().numpy(), width)
    chance, lowest = 100 / int((counts[1] > 0).sum()), 100 * statistics.balanced_interval(*counts)[0]
    balanced = f"balanced accuracy {100 * statistics.balanced_accuracy(*counts):.1f} %, chance is {chance:.1f} %"
    sound = {
        "classes": f"{width} logits, one per class",
        "normalisation": f"{given}; no other normalisation is better ({each})",
        "accuracy": balanced,
        "logits": _kind(logits),
        "range": "finite on test images and on black, white and random ones",
        "gradients": "finite, and not zero for any correctly classified image",
        "determinism": "the same images give the same outputs",
        "batch": RANDOMISED if random else "the output for an image does not depend on the other images",
        "precision": "float32",
        "eval mode": f"its state does not change{came}",
    }
    wrong = problems(facts)
    if highest + 1 < width:
        wrong["classes"] = f"{width} logits, but labels 0 to {highest} only; does the head belong to another data set?"
    if better:
        best = f"{100 * max(accuracies.values()):.1f} % with --normalize {better}"
        wrong["normalisation"] = f"{given}, {best} ({each}); normalise the images like this"
    if lowest <= chance:
        wrong["accuracy"] = f"{balanced}; are the weights, the order of the classes and the image size right?"
    if "logits" not in wrong and bool(((logits >= 0) & (logits <= 1)).all()):
        shrunk = "all between 0 and 1, as after a sigmoid, which shrinks the gradients"
        wrong["logits"] = f"{shrunk}; return the input of the sigmoid"
    if nonfinite_on := _nonfinite_on(trial):
        cause = "look for a division by zero"
        wrong["range"] = f"not finite on {nonfinite_on} images, which an attack may produce; {cause}"
    with user_errors("model: fails on two images ({reason})"), torch.no_grad():
        dtype = trial.model.model(trial.x[:2]).dtype
    if dtype != torch.float32:
        wrong["precision"] = f"outputs are {dtype}: rounding hides differences that decide an attack; return float32"
    if changed := listed(changes(), most=3):  # after every other test
        later = "later outputs are those of a different model; do not update state in eval mode"
        wrong["eval mode"] = f"its state changes in eval mode ({changed}): {later}"
    return tuple(Finding(subject, subject not in wrong, wrong.get(subject, text)) for subject, text in sound.items())


def _normalisations(trial: Trial, correct: Mask) -> tuple[dict[str, float], str]:
    """Return the accuracy with each of the usual normalisations, and the value of --normalize for a better one, or ''.

    One is better if McNemar's test says so at `LEVEL` divided by the number of comparisons.
    """
    model = trial.model.model
    network = model.network if isinstance(model, Normalized) else model
    ways = _usual(trial.x.shape[1])
    masks = {}
    for name, how in ways.items():
        normalised = network if how is None else Normalized(network, how).to(trial.x.device)
        masks[name] = (answer(Counted(normalised), trial.x).max(1).indices == trial.y).cpu().numpy()
    accuracies = {name: float(mask.mean()) for name, mask in masks.items()}
    best = max(accuracies, key=lambda name: accuracies[name])
    gained, lost = int((masks[best] & ~correct).sum()), int((correct & ~masks[best]).sum())
    better = gained > lost and statistics.mcnemar(gained, lost) * len(ways) < LEVEL
    return accuracies, _option(best, ways[best]) if better else ""


def _usual(channels: int) -> dict[str, Statistics | None]:
    """Return the usual input normalisations of networks, as means and standard deviations."""
    return {
        "none": None,
        **{name: statistics for name, statistics in NORMALIZATIONS.items() if len(statistics.mean) == channels},
        "-1 to 1": Statistics((0.5,) * channels, (0.5,) * channels),
        "0 to 255": Statistics((0.0,) * channels, (1 / 255,) * channels),
    }


def _option(name: str, statistics: Statistics | None) -> str:
    """Return a normalisation as the value of --normalize."""
    if statistics is None or name in NORMALIZATIONS:
        return name
    return "/".join(",".join(f"{value:.6g}" for value in part) for part in statistics)


def _kind(logits: Tensor) -> str:
    if bool(((logits.exp().sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        return "log-probabilities, which attacks treat like logits"
    return f"from {logits.min():.3g} to {logits.max():.3g}"


def _nonfinite_on(trial: Trial) -> str:
    noise = torch.rand(trial.x[:1].shape, generator=generator("cpu", 0, "check", "noise")).to(trial.x.device)
    corners = {"black": torch.zeros_like(noise), "white": torch.ones_like(noise), "random": noise}
    # Two of each, since a layer may need more than one image.
    answers = {name: answer(trial.model, x.repeat(2, 1, 1, 1)) for name, x in corners.items()}
    return listed(name for name, logits in answers.items() if not bool(logits.isfinite().all()))


def _speeds(trial: Trial) -> tuple[float, float]:
    """Return images per second, forward only, and forward and backward: those of the fastest repetition."""

    def seconds(work: Callable[[], Tensor]) -> float:  # the trial before was the warm-up
        began = time.perf_counter()
        work().sum().item()  # waits for the device
        return time.perf_counter() - began

    forward = min(seconds(lambda: answer(trial.model, trial.x)) for _ in range(TIMED))
    both = min(seconds(lambda: input_gradient(trial.model, trial.x, trial.y)) for _ in range(TIMED))
    return len(trial.x) / forward, len(trial.x) / both


def _expected(trial: Trial, correct: Mask, labels: Ints) -> int:
    """Estimate how many images are classified correctly, from the accuracy of each class on the tried images."""
    classes = trial.logits.shape[1]
    recalls = statistics.per_class_accuracy(*statistics.class_counts(correct, trial.y.cpu().numpy(), classes))
    known = np.where(np.isnan(recalls), correct.mean(), recalls)
    return round(float(known @ np.bincount(labels, minlength=classes)))


def _cost(attack: AttackSpec, width: int, images: int, right: int, speeds: tuple[float, float]) -> AttackCost:
    """Estimate the time of an attack whose passes alternate forward and backward and end with a forward one."""
    passes = attack.passes(width)
    attacked = right if attack.skips_misclassified else images
    forward, both = 1 / speeds[0], 1 / speeds[1]
    pairs, single = divmod(passes, 2)
    return AttackCost(attack.name, passes, attacked, attacked * (pairs * both + single * forward))
