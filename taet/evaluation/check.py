"""What can be said about a model before hours are spent on attacking it."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet import metrics
from taet.attacks.counted import Counted
from taet.config import Evaluation
from taet.errors import UserError
from taet.evaluation.attack import Attack, expand, parse_attacks
from taet.evaluation.diagnostics import REPEAT_DIFFERENCE
from taet.evaluation.model_guard import restored
from taet.evaluation.runner import Images, as_arrays, make_runner
from taet.evaluation.trial import SUM_TOLERANCE, Trial, answer, attempt, input_gradient, nonfinite, sample, told
from taet.models.foreign import NORMALIZATIONS, Normalized, Statistics
from taet.randomness import generator
from taet.training.environment import environment

LEVEL = 0.05  # of the tests whether another normalisation is better, all of them together
TIMED = 3  # repetitions of what is timed, of which the fastest counts


@dataclass(frozen=True)
class Finding:
    """One thing that was tried, and what to do where it is not as an evaluation needs it."""

    subject: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else '! '} {self.subject:14}{self.text}"


@dataclass(frozen=True)
class Cost:
    """What one attack is expected to take on all images."""

    attack: str
    passes: int
    """Passes of an image through the model, forward or backward."""
    images: int
    """Images that are attacked: AutoAttack takes those that are classified correctly."""
    seconds: float
    """At most: an attack that is done with an image early takes less."""


@dataclass(frozen=True)
class Check:
    """What was found about a model."""

    model: str
    parameters: int
    num_classes: int
    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    images: int
    """Test images in all."""
    tried: int
    """Test images that the findings are about."""
    device: str
    accuracy: float
    """Share of the images tried that are classified correctly."""
    accuracies: dict[str, float]
    """The same with each input normalisation that was tried; "none" is the network on images in [0, 1]."""
    forward_speed: float
    """Images a second."""
    gradient_speed: float
    """Images a second, forward and backward."""
    findings: tuple[Finding, ...]
    costs: tuple[Cost, ...]

    @property
    def ok(self) -> bool:
        """Is nothing in the way of an evaluation?"""
        return all(finding.ok for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        fields = {"ok": self.ok, **dataclasses.asdict(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def __repr__(self) -> str:
        rows = [("attack", "passes", "images", "at most")]
        rows += [(cost.attack, f"{cost.passes}", f"{cost.images}", _clock(cost.seconds)) for cost in self.costs]
        rows += [("all", "", "", _clock(sum(cost.seconds for cost in self.costs)))]
        width = max(len(row[0]) for row in rows)
        return "\n".join(
            [
                f"{self.model}: {self.parameters:,} parameters, {self.num_classes} logits for images of "
                f"{' x '.join(map(str, self.image_shape))}; tried on {self.tried} of {self.images} test images",
                *map(str, self.findings),
                f"{self.forward_speed:.0f} images a second forward, {self.gradient_speed:.0f} forward and backward; "
                f"{self.device}",
                *(f"{name:{width}}{passes:>9}{images:>9}{clock:>19}" for name, passes, images, clock in rows),
            ]
        )


def check(
    model: nn.Module,
    images: Images | Tensor,
    labels: NDArray[Any] | Tensor,
    *,
    attacks: Sequence[str] = Evaluation.attacks,
    class_names: Sequence[str] | None = None,
    batch_size: int = Evaluation.batch_size,
    name: str | None = None,
) -> Check:
    """Try a model on a batch of test images and say what would spoil an evaluation, and how long one would take.

    It is tried in eval mode and exact float32, where it is; its state, modes and the random state are given back.

    Args:
        model: from images (N, C, H, W) in [0, 1] to logits (N, classes).
        images: all test images, uint8 (N, H, W, C) or floating point (N, C, H, W) in [0, 1]; a batch is drawn of them.
        labels: integers (N,), 0 to classes - 1.
        attacks: names of the attacks whose time is estimated, or of a protocol.
        class_names: names of the classes, which must be as many as there are logits.
        batch_size: images per batch, which are tried and timed.
        name: how the model is called in the answer; its class, if not given.

    Raises:
        UserError: images or labels as `taet.evaluate` refuses them; a model that cannot be evaluated at all: it fails,
            gives anything but finite logits (N, classes), or lets no gradient through to the image.
    """
    parsed = parse_attacks(expand(attacks, Evaluation()).attacks)
    pixels, classes = as_arrays(images, labels)
    training = model.training
    with restored(model) as changes:
        tried = make_runner(model, pixels, classes, batch_size=batch_size)
        width = tried.num_classes
        if class_names is not None and len(class_names) != width:
            raise UserError(f"model output: got {width} logits; allowed: {len(class_names)}, one per class")
        with tried.still():
            trial = _try(tried.model, *tried.batch(sample(classes, batch_size, tried.seed)))
            correct = _right(trial.logits, trial.y)
            speeds = _speeds(trial)
            accuracies, normalisation = _normalisation(trial, correct)
            findings = (
                _classes(width, classes, class_names),
                normalisation,
                _guessing(trial, correct),
                _logits(trial),
                _range(trial),
                _gradients(trial),
                _repetition(trial),
                _batch(trial),
                _precision(trial),
                _mode(changes(), training),
            )
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
        accuracies=accuracies,
        forward_speed=speeds[0],
        gradient_speed=speeds[1],
        findings=findings,
        costs=tuple(_cost(attack, width, len(classes), right, speeds) for attack in parsed),
    )


# -- the trial ---------------------------------------------------------------------------------------------------------


def _try(model: Counted, x: Tensor, y: Tensor) -> Trial:
    """Ask for the logits and their gradient; what no attack could work with is a `UserError`."""
    trial = attempt(model, x, y)
    if wrong := int(nonfinite(trial.logits).sum()):
        raise UserError(f"model output: not finite on {wrong} of {len(x)} clean test images")
    return trial


def _right(logits: Tensor, y: Tensor) -> NDArray[np.bool_]:
    return np.asarray((logits.max(1).indices == y).cpu())


# -- findings ----------------------------------------------------------------------------------------------------------


def _classes(width: int, labels: NDArray[np.int64], class_names: Sequence[str] | None) -> Finding:
    used = int(labels.max()) + 1
    if class_names is None and used < width:
        text = f"{width} logits, but labels 0 to {used - 1} only; is the head that of another data set?"
        return Finding("classes", False, text)
    return Finding("classes", True, f"{width} logits, one per class")


def _normalisation(trial: Trial, correct: NDArray[np.bool_]) -> tuple[dict[str, float], Finding]:
    """Compare the accuracy as it is with that of the network behind each of the usual normalisations.

    Another one is called better where McNemar's test says so at the level divided by the number of comparisons.
    """
    model = trial.model.model
    network = model.network if isinstance(model, Normalized) else model
    ways = _normalisations(trial.x.shape[1])
    masks = {
        name: _right(answer(Counted(_wrapped(network, how, trial.x.device)), trial.x), trial.y)
        for name, how in ways.items()
    }
    accuracies = {name: float(mask.mean()) for name, mask in masks.items()}
    best = max(accuracies, key=lambda name: accuracies[name])
    gained, lost = int((masks[best] & ~correct).sum()), int((correct & ~masks[best]).sum())
    given = f"{100 * correct.mean():.1f} % correct as given"
    others = ", ".join(f"{name} {100 * value:.1f}" for name, value in accuracies.items())
    if gained <= lost or metrics.mcnemar(gained, lost) * len(ways) >= LEVEL:
        return accuracies, Finding("normalisation", True, f"{given}; no other is better ({others})")
    reason = "it takes images in [0, 1] as they are" if best == "none" else "it expects such input"
    advice = f"{100 * accuracies[best]:.1f} % with --normalize {_flag(best, ways[best])}: {reason}"
    return accuracies, Finding("normalisation", False, f"{given}, {advice} ({others})")


def _normalisations(channels: int) -> dict[str, Statistics | None]:
    """The usual ways to scale an image in [0, 1] for a network, as means and deviations."""
    named = {name: statistics for name, statistics in NORMALIZATIONS.items() if len(statistics.mean) == channels}
    scales = {"-1 to 1": (0.5, 0.5), "0 to 255": (0.0, 1 / 255)}  # mean, deviation
    spread = {name: Statistics((mean,) * channels, (std,) * channels) for name, (mean, std) in scales.items()}
    return {"none": None, **named, **spread}


def _wrapped(network: nn.Module, statistics: Statistics | None, device: torch.device) -> nn.Module:
    if statistics is None:
        return network
    return Normalized(network, statistics).to(device)


def _flag(name: str, statistics: Statistics | None) -> str:
    """How a normalisation is written after --normalize."""
    if statistics is None or name in NORMALIZATIONS:
        return name
    return "/".join(",".join(f"{value:.6g}" for value in part) for part in statistics)


def _guessing(trial: Trial, correct: NDArray[np.bool_]) -> Finding:
    """Tell a model that has learned these classes from one that answers at random or always the same."""
    classes = trial.logits.shape[1]
    counts = metrics.class_counts(correct, trial.y.cpu().numpy(), classes)
    balanced, (low, _) = metrics.balanced_accuracy(*counts), metrics.balanced_interval(*counts)
    chance = 1 / int((counts[1] > 0).sum())
    text = f"balanced accuracy {100 * balanced:.1f} %, chance is {100 * chance:.1f} %"
    if low > chance:
        return Finding("accuracy", True, text)
    return Finding("accuracy", False, f"{text}: are the weights, the order of the classes and the image size right?")


def _logits(trial: Trial) -> Finding:
    values = trial.logits
    if bool((values >= 0).all()):
        if bool(trial.distributions.all()):
            text = "probabilities: cross-entropy takes a second softmax of them, which flattens its gradients; "
            return Finding("logits", False, text + "return what goes into the softmax")
        if bool((values <= 1).all()):
            text = "all between 0 and 1, as after a sigmoid, which flattens the gradients; return what goes into it"
            return Finding("logits", False, text)
    if bool(((values.exp().sum(1) - 1).abs() <= SUM_TOLERANCE).all()):
        return Finding("logits", True, "log-probabilities, which every attack takes as it takes logits")
    return Finding("logits", True, f"from {values.min():.3g} to {values.max():.3g}")


def _range(trial: Trial) -> Finding:
    noise = torch.rand(trial.x[:1].shape, generator=generator("cpu", 0, "check", "noise")).to(trial.x.device)
    corners = {"black": torch.zeros_like(noise), "white": torch.ones_like(noise), "random": noise}
    # Two of each, since a layer may need more than one image.
    wrong = [
        name for name, x in corners.items() if not bool(answer(trial.model, x.repeat(2, 1, 1, 1)).isfinite().all())
    ]
    if wrong:
        text = f"not finite on {' and '.join(wrong)} images, where an attack may lead; is something divided by zero?"
        return Finding("range", False, text)
    return Finding("range", True, "finite on test images and on black, white and random ones")


def _gradients(trial: Trial) -> Finding:
    if wrong := int(trial.nonfinite.sum()):
        text = (
            f"not finite on {wrong} of {len(trial.y)} images: no attack can follow them; look for a root or norm at 0"
        )
        return Finding("gradients", False, text)
    if zero := int(trial.zero_gradients.sum()):
        right = int(trial.correct.sum())
        text = f"exactly zero on {zero} of {right} images that are correct: PGD cannot move them; "
        return Finding("gradients", False, text + "are the logits too large, or is a step not differentiable?")
    return Finding("gradients", True, "finite, and none is zero where the answer is correct")


def _repetition(trial: Trial) -> Finding:
    moved = trial.repeat_difference()
    if moved > REPEAT_DIFFERENCE:
        text = (
            f"the same images get other answers when asked again (by {moved:.2g} of unit length): every number would "
        )
        return Finding("determinism", False, text + "be one draw; attack the mean of many (EOT)")
    return Finding("determinism", True, "the same images get the same answers" + _roughly(moved))


def _batch(trial: Trial) -> Finding:
    moved = trial.batch_difference()
    if moved > REPEAT_DIFFERENCE:
        text = (
            f"the answer to an image depends on the others (by {moved:.2g} of unit length), as with batch statistics "
        )
        return Finding("batch", False, text + "in eval mode: numbers would depend on the batch size")
    return Finding("batch", True, "the answer to an image does not depend on the others" + _roughly(moved))


def _roughly(moved: float) -> str:
    return f", to {moved:.0e} of unit length" if moved else ""


def _precision(trial: Trial) -> Finding:
    pair = trial.x[:2]
    with told("model: fails on two images ({reason})"), torch.no_grad():
        dtype = trial.model.model(pair).dtype
    if dtype != torch.float32:
        text = f"answers in {dtype}: differences that decide an attack are rounded away; return float32"
        return Finding("precision", False, text)
    return Finding("precision", True, "float32")


def _mode(changed: list[str], training: bool) -> Finding:
    if changed:
        names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        text = (
            f"{len(changed)} tensors of its state change in eval mode ({names}): later answers would not be those of "
        )
        return Finding("eval mode", False, text + "the model that was given; let nothing be updated then")
    was = "; it came in training mode, which is set aside" if training else ""
    return Finding("eval mode", True, f"its state stays as it is{was}")


# -- time --------------------------------------------------------------------------------------------------------------


def _speeds(trial: Trial) -> tuple[float, float]:
    """Images a second, forward alone, and forward and backward."""
    forward = _seconds(lambda: answer(trial.model, trial.x))
    both = _seconds(lambda: input_gradient(trial.model, trial.x, trial.y))
    return len(trial.x) / forward, len(trial.x) / both


def _seconds(work: Callable[[], Tensor]) -> float:
    """The fastest of a few repetitions; the trial was the warm-up."""

    def once() -> float:
        began = time.perf_counter()
        work().sum().item()  # waits for the device
        return time.perf_counter() - began

    return min(once() for _ in range(TIMED))


def _expected(trial: Trial, correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> int:
    """How many of all images may be classified correctly, by the accuracy of each class among those tried."""
    classes = trial.logits.shape[1]
    recalls = metrics.per_class_accuracy(*metrics.class_counts(correct, trial.y.cpu().numpy(), classes))
    known = np.where(np.isnan(recalls), correct.mean(), recalls)
    return round(float(known @ np.bincount(labels, minlength=classes)))


def _cost(attack: Attack, width: int, images: int, right: int, speeds: tuple[float, float]) -> Cost:
    """The time of an attack, of whose passes every second one is a backward one, the last a forward one."""
    passes = attack.passes(width)
    met = right if attack.kind == "autoattack" else images
    forward, both = 1 / speeds[0], 1 / speeds[1]
    pairs, single = divmod(passes, 2)
    return Cost(attack.name, passes, met, met * (pairs * both + single * forward))


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
