"""Running attacks on a whole test set, unit by unit: one column per attack."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks import fgsm, pgd
from taet.attacks.autoattack import NAMES as SUITES
from taet.attacks.autoattack import Arrays, Version, plan, run_parts
from taet.attacks.ball import draw_noise, frozen, verify
from taet.attacks.counted import Counted
from taet.attacks.noise import Source
from taet.attacks.precision import exact_float32
from taet.attacks.progress import Progress, ticking
from taet.config import check_ball
from taet.data.augmentation import to_unit
from taet.data.dataset import images_sha256
from taet.errors import UserError, unknown
from taet.evaluation.result import Column, Ints
from taet.evaluation.state import Units
from taet.randomness import generator
from taet.training.checkpoint import digest, weights_digest
from taet.training.environment import version

Images = NDArray[Any]
"""uint8 (N, H, W, C) or float32 (N, C, H, W) in [0, 1]."""


@dataclass(frozen=True)
class Attack:
    """An attack's name, taken apart."""

    name: str
    kind: Literal["clean", "fgsm", "pgd", "autoattack"]
    steps: int = 0
    """Gradient steps; not used by AutoAttack."""
    version: Version = "standard"


def parse_attack(name: str) -> Attack:
    """Return what "clean", "fgsm", "pgd-N" or a version of AutoAttack means; any other name is a `UserError`."""
    fixed = (
        Attack("clean", "clean"),
        Attack("fgsm", "fgsm", steps=1),
        Attack("autoattack", "autoattack"),
        Attack("autoattack-fast", "autoattack", version="fast"),
        Attack("autoattack-10", "autoattack", version="10"),
    )
    for attack in fixed:
        if attack.name == name:
            return attack
    if re.fullmatch(r"pgd-[1-9]\d*", name):
        return Attack(name, "pgd", steps=int(name.removeprefix("pgd-")))
    if name == "pgd":
        raise UserError("attack 'pgd': got no number of steps; allowed: pgd-N, e.g. pgd-20")
    raise unknown("attack", name, ("clean", "fgsm", "pgd-20", "pgd-100", *SUITES))


def parse_attacks(names: Sequence[str]) -> list[Attack]:
    """Return what one or more names mean; none, an unknown one and one that is there twice are a `UserError`."""
    parsed = [parse_attack(name) for name in names]
    if not parsed:
        raise UserError("attacks: got none; allowed: one or more, e.g. clean pgd-20")
    if len(set(parsed)) < len(parsed):
        raise UserError(f"attacks: got {' '.join(names)}; allowed: each once")
    return parsed


def attack_split(
    model: nn.Module,
    images: Images | Tensor,
    labels: NDArray[Any] | Tensor,
    attacks: Sequence[str],
    *,
    eps: float,
    step_size: float = 1 / 255,
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str = "cpu",
    known: Sequence[Column] = (),
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Column, ...]:
    """Run every attack on all images, in float32, and return one column each.

    Args:
        model: on `device`, from images (N, C, H, W) in [0, 1] to logits (N, classes); attacked in eval mode.
        images: uint8 (N, H, W, C), grey levels 0 to 255, or floating point (N, C, H, W) in [0, 1].
        labels: integers (N,).
        attacks: names for `parse_attack`, one or more, each once.
        eps: radius of the L-infinity ball in units of the image range.
        step_size: step of PGD, same units.
        batch_size: images per batch.
        seed: seed of the random starts. PGD draws per image and attack, so its noise does not depend on the batching.
        device: where the model is.
        known: columns of the same model and images; one whose settings are those asked for is taken as it is.
        state_dir: folder that keeps each finished batch; an evaluation of the same weights, images and settings takes
            them from there.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
    """
    parsed = parse_attacks(attacks)
    check_ball("eps", eps)
    check_ball("step size", step_size)
    if batch_size < 1:
        raise UserError(f"batch size: got {batch_size}; allowed: 1 or more")
    where, (pixels, classes) = torch.device(device), as_arrays(images, labels)
    num_classes = count_classes(model, pixels, classes, where)
    bench = Bench(Counted(model), pixels, classes, eps, step_size, batch_size, seed, where)
    meter = _Meter(progress, parsed, num_classes, len(classes), correct=len(classes))
    identity = None if state_dir is None else bench.identity()
    columns = []
    with frozen(model), exact_float32(where.type):
        for number, attack in enumerate(parsed):
            units = None
            if state_dir is not None:
                units = Units(Path(state_dir), attack.name, digest([identity, attack.name, bench.settings(attack)]))
            meter.begin(number)
            run = bench.run_suite if attack.kind == "autoattack" else bench.run_batches
            column = bench.among(known, attack) or run(attack, units, meter)
            if attack.kind == "clean":
                meter.correct = int(column.correct.sum())
            columns.append(column)
    return tuple(columns)


def as_arrays(images: Images | Tensor, labels: NDArray[Any] | Tensor) -> tuple[Images, Ints]:
    """Return images and labels as arrays of the two forms that are allowed; any other is a `UserError`."""
    pixels = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    classes = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if pixels.ndim != 4 or len(pixels) == 0:
        raise UserError(f"images: got shape {pixels.shape}; allowed: uint8 (N, H, W, C) or float (N, C, H, W)")
    if pixels.dtype == np.uint8:
        if pixels.shape[3] not in (1, 3):
            raise UserError(f"images: got uint8 {pixels.shape}; allowed: (N, H, W, C) with 1 or 3 channels")
    elif pixels.dtype.kind == "f":
        if not ((pixels >= 0) & (pixels <= 1)).all():
            hint = " (divide by 255)" if 1 < pixels.max() <= 255 else ", without NaN"
            raise UserError(f"images: got {pixels.min():g} to {pixels.max():g}; allowed: floats from 0 to 1{hint}")
        pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    else:
        raise UserError(f"images: got {pixels.dtype}; allowed: uint8 0 to 255, or floats from 0 to 1")
    if classes.dtype.kind not in "iu" or classes.shape != (len(pixels),):
        raise UserError(f"labels: got {classes.dtype} {classes.shape}; allowed: integers ({len(pixels)},)")
    if classes.min() < 0:
        raise UserError(f"labels: got {classes.min()}; allowed: 0 or more")
    return pixels, classes.astype(np.int64)


def as_unit(pixels: Images) -> Tensor:
    """Return images as float32 (N, C, H, W) in [0, 1], contiguous."""
    tensor = torch.from_numpy(pixels)
    return to_unit(tensor) if tensor.dtype == torch.uint8 else tensor


def count_classes(model: nn.Module, images: Images, labels: Ints, device: torch.device) -> int:
    """Return how many logits the model gives, tried on two images, so that a wrong model is refused before the work."""
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in model.parameters()):
        raise UserError("model: got weights that are not float32; allowed: float32 (call model.float())")
    x = as_unit(images[:2]).to(device)
    try:
        with torch.no_grad(), frozen(model), exact_float32(device.type):
            width = Counted(model)(x).shape[1]
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"model: fails on images of shape {tuple(x.shape)} ({reason})") from error
    if labels.max() >= width:
        raise UserError(f"labels: got up to {labels.max()}; allowed: 0 to {width - 1}, one per logit of the model")
    return int(width)


@dataclass(frozen=True)
class Bench:
    """A model, the test images that it is attacked on, and the settings that all attacks share."""

    model: Counted
    images: Images
    labels: Ints
    eps: float
    step_size: float
    batch_size: int
    seed: int
    device: torch.device

    def settings(self, attack: Attack) -> dict[str, Any]:
        """Everything that decides an attack's result, the images and the model apart."""
        return {"eps": self.eps, "batch_size": self.batch_size, **self.parameters(attack)}

    def parameters(self, attack: Attack) -> dict[str, Any]:
        """What the attack is given besides the ball."""
        if attack.kind == "clean":
            return {}
        if attack.kind == "fgsm":
            return {"steps": 1, "step_size": self.eps, "start": "none"}
        if attack.kind == "autoattack":
            return {"version": attack.version, "seed": self.seed}
        return {
            "steps": attack.steps,
            "step_size": self.step_size,
            "start": "uniform",
            "restarts": 1,
            "seed": self.seed,
        }

    def among(self, columns: Sequence[Column], attack: Attack) -> Column | None:
        """Return the column that holds this attack with these settings, if there is one."""
        eps, wanted = None if attack.kind == "clean" else self.eps, self.parameters(attack).items()
        same = (c for c in columns if c.name == attack.name and c.eps == eps and wanted <= c.parameters.items())
        return next(same, None)

    def identity(self) -> str:
        """Hash of the model's layers and weights, the images, the labels, and the software that decides a flag."""
        network = self.model.model
        software = [self.device.type, version("torch"), version("pyautoattack")]
        return digest([repr(network), weights_digest(network), images_sha256(self.images, self.labels), software])

    def batch(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the images `rows` as the model takes them, and their labels, on the model's device."""
        return as_unit(self.images[rows]).to(self.device), torch.from_numpy(self.labels[rows]).to(self.device)

    def start_noise(self, purpose: str, x: Tensor, rows: Ints) -> Tensor:
        """Draw U(-eps, eps) in the shape of x, for each image by itself, so that it does not depend on the batching."""
        blank = torch.empty(1, *x.shape[1:])
        draws = [Source(generator("cpu", self.seed, purpose, int(row))) for row in rows]
        return torch.cat([draw_noise(blank, self.eps, "uniform", draw) for draw in draws]).to(x.device)

    def perturb(self, attack: Attack, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the predictions (N,) on the images `rows` under an attack of ours, and the images attacked."""
        x, y = self.batch(rows)
        x_adv = x
        if attack.kind == "fgsm":
            x_adv = fgsm(self.model, x, y, eps=self.eps)
        elif attack.kind == "pgd":
            noise = self.start_noise(attack.name, x, rows)
            x_adv = pgd(self.model, x, y, eps=self.eps, steps=attack.steps, step_size=self.step_size, start_noise=noise)
        verify(attack.name, x_adv, x, self.eps)
        with torch.no_grad():
            logits = self.model(x_adv)
        if not bool(logits.isfinite().all()):
            raise UserError(f"model output: not finite under '{attack.name}' on images {rows[0]} to {rows[-1]}")
        return logits.max(1).indices, x_adv

    def run_batches(self, attack: Attack, units: Units | None, progress: Progress) -> Column:
        """Run an attack of ours, or none, on all images."""
        count, passes = len(self.labels), _passes(attack)
        predictions = np.empty(count, dtype=np.int64)
        seconds, forwards, backwards = 0.0, 0, 0
        for start in range(0, count, self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, count))

            def report(inside: float, start: int = start) -> None:
                progress(start * passes + inside, count * passes, attack.name)

            report(0)
            unit = None if units is None else units.get(str(start))
            if unit is None or unit["predictions"].shape != rows.shape:
                with ticking(self.model, len(rows) * passes, report):
                    unit = self._run_unit(attack, rows)
                if units is not None:
                    units.put(str(start), unit)
            predictions[rows] = unit["predictions"]
            seconds += float(unit["seconds"])
            forwards += int(unit["forwards"])
            backwards += int(unit["backwards"])
        progress(count * passes, count * passes, attack.name)
        correct = predictions == self.labels
        return self._column(attack, correct, predictions, seconds, forwards, backwards)

    def run_suite(self, attack: Attack, units: Units | None, progress: Progress) -> Column:
        """Run a version of AutoAttack on all images."""
        outcome = run_parts(
            self.model.model,
            as_unit(self.images),
            torch.from_numpy(self.labels),
            eps=self.eps,
            version=attack.version,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            keep_examples=False,
            state=units,
            progress=lambda done, total, label: progress(done, total, f"{attack.name}: {label}"),
        )
        parts = {name: mask.numpy() for name, mask in outcome.parts.items()}
        column = self._column(
            attack,
            outcome.correct.numpy(),
            outcome.predictions.numpy(),
            outcome.seconds,
            outcome.forwards,
            outcome.backwards,
            parts,
        )
        chosen = outcome.plan
        column.parameters.update(parts=list(chosen.parts), iterations=chosen.iterations)
        if {"apgd-t", "fab-t"} & set(chosen.parts):
            column.parameters["target_classes"] = chosen.target_classes
        if "square" in chosen.parts:
            column.parameters["queries"] = chosen.queries
        if chosen.note:
            column.parameters["note"] = chosen.note
        return column

    def _run_unit(self, attack: Attack, rows: Ints) -> Arrays:
        began, forwards, backwards = time.perf_counter(), self.model.forwards, self.model.backwards
        predictions = self.perturb(attack, rows)[0].cpu().numpy()
        return {
            "predictions": predictions,
            "seconds": np.asarray(time.perf_counter() - began),
            "forwards": np.asarray(self.model.forwards - forwards),
            "backwards": np.asarray(self.model.backwards - backwards),
        }

    def _column(
        self,
        attack: Attack,
        correct: NDArray[np.bool_],
        predictions: Ints,
        seconds: float,
        forwards: int,
        backwards: int,
        parts: dict[str, NDArray[np.bool_]] | None = None,
    ) -> Column:
        clean = attack.kind == "clean"
        return Column(
            name=attack.name,
            norm=None if clean else "linf",
            eps=None if clean else self.eps,
            bounded=not clean,
            parameters=self.parameters(attack),
            correct=correct,
            predictions=predictions,
            parts=parts or {},
            seconds=seconds,
            forwards=forwards,
            backwards=backwards,
        )


@dataclass
class _Meter:
    """Adds the attack under way to those before and after it, all in passes of an image through the model."""

    report: Progress | None
    attacks: list[Attack]
    num_classes: int
    count: int
    correct: int
    """Images that AutoAttack will have to break: all, until the clean ones are known."""
    number: int = 0
    before: float = 0
    here: float = 0

    def begin(self, number: int) -> None:
        self.number, self.before, self.here = number, self.before + self.here, 0

    def __call__(self, done: float, total: float, label: str) -> None:
        self.here = done
        if self.report is not None:
            later = sum(self._expected(attack) for attack in self.attacks[self.number + 1 :])
            self.report(self.before + done, self.before + total + later, label)

    def _expected(self, attack: Attack) -> int:
        if attack.kind != "autoattack":
            return self.count * _passes(attack)
        chosen = plan(self.num_classes, attack.version)
        return self.correct * sum(chosen.cost(part) for part in chosen.parts)


def _passes(attack: Attack) -> int:
    """Passes per image: forward and backward in each step, and the forward that decides."""
    return 2 * attack.steps + 1
