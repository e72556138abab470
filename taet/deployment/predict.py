"""Predictions of a finished run for new images, and whether each survives an attack."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from taet.attacks.clean import Clean
from taet.attacks.counted import Counted
from taet.attacks.draws import Draws
from taet.attacks.spec import AttackSpec
from taet.deployment.predictions import NO_CLASS, Predictions, joined
from taet.deployment.reading import ImageSource, find
from taet.errors import UserError
from taet.evaluation.bundles import parse_attack
from taet.evaluation.runner import Runner
from taet.progress import Progress
from taet.training.environment import resolve_device
from taet.training.finished import load_model

BATCH_SIZE = 250


def predict(
    run_dir: str | os.PathLike[str],
    images: ImageSource,
    *,
    attack: str | None = None,
    weights: str = "model",
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    progress: Progress | None = None,
    model: nn.Module | None = None,
) -> Predictions:
    """Return the predicted class of every image by the model of a finished run; the run's data are not needed.

    Images are read as in training and resized to the run's height and width (bilinear, antialiased, by the run's
    `data.fit`); grey and colour are converted to match the run's images. Up to float32 rounding, a prediction does
    not depend on the other images or their order.

    Args:
        run_dir: a finished run.
        images: files and folders (searched through, hidden files left out), or an array uint8 (N, H, W, C), C 1 or 3.
        attack: an attack, such as pgd-20 or pgd-20:restarts=5, with the run's ball and settings; `survives`
            says whether the predicted class (no label is known) survives it; this proves only that one attack failed.
        weights: which of the run's weights: model, model-last or model-best.
        batch_size: images that are in memory, and passed to the model, at a time.
        device: auto, cpu, cuda or cuda:N.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: a run that is not finished, an unknown attack or one without a ball, no image. An unreadable file
            does not raise: `errors` has the reason.
    """
    parts = batches(
        run_dir,
        images,
        attack=attack,
        weights=weights,
        batch_size=batch_size,
        device=device,
        progress=progress,
        model=model,
    )
    return joined(list(parts))


def batches(
    run_dir: str | os.PathLike[str],
    images: ImageSource,
    *,
    attack: str | None = None,
    weights: str = "model",
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    progress: Progress | None = None,
    model: nn.Module | None = None,
) -> Iterator[Predictions]:
    """Yield the result of `predict` batch by batch, so that an interruption loses no finished batch."""
    if batch_size < 1:
        raise UserError(f"batch size: got {batch_size}; allowed: 1 or more")
    if attack is not None:
        in_ball(parse_attack(attack))  # report a mistake before anything is loaded
    source, where = find(images), resolve_device(device)
    run, network, record = load_model(Path(run_dir), weights, model=model)
    channels, height, width = record.data.image_shape
    classes = record.data.class_names
    spec = None
    if attack is not None:
        spec = in_ball(parse_attack(attack, run.evaluation, run.threat.eps))
        spec.check_classes(len(classes))
    cost = 1 + (0 if spec is None else spec.passes(len(classes)))
    counted, done = Counted(network.to(where)), 0

    def report(inside: float, _: float, label: str) -> None:
        if progress is not None:
            progress(done * cost + inside, len(source.names) * cost, label)

    for rows in (slice(start, start + batch_size) for start in range(0, len(source.names), batch_size)):
        names, found = source.names[rows], source.read(rows, (channels, height, width), record.fit)
        readable = [number for number, image in enumerate(found) if not isinstance(image, str)]
        labels = np.full(len(found), NO_CLASS, np.int64)
        probabilities = np.full((len(found), len(classes)), np.nan, np.float32)
        survives = None if spec is None else np.zeros(len(found), np.bool_)
        if readable:
            pixels = np.stack([image for image in found if not isinstance(image, str)])
            runner = _PixelRunner(
                counted, pixels, labels[readable], len(classes), batch_size, run.evaluation.seed, where
            )
            labels[readable], probabilities[readable] = _classes(runner)
            if spec is not None and survives is not None:
                survives[readable] = _survive(replace(runner, labels=labels[readable]), spec, report)
        done += len(found)
        report(0, 0, f"{done} of {len(source.names)} images")
        errors = tuple(image if isinstance(image, str) else "" for image in found)
        yield Predictions(names, labels, classes, probabilities, survives, errors, attack or "")


def in_ball(attack: AttackSpec) -> AttackSpec:
    """Refuse clean images and unbounded attacks, for which survival is not defined."""
    if not attack.bounded:
        advice = "" if attack.norm is None else f", or {attack.name} with a radius of its own, such as eps=0.5"
        raise UserError(f"attack: got {attack.name}, which has no ball; allowed: e.g. pgd-20, autoattack{advice}")
    return attack


class _PixelRunner(Runner):
    """Images outside a test set: random numbers are seeded by the pixels of each image."""

    def draws(self, attack: AttackSpec, rows: NDArray[np.int64]) -> Draws:
        digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in self.images[rows]]
        keys = (np.frombuffer(b"".join(digests), ">u8") >> 1).astype(np.int64)  # 63 bits per image
        return replace(super().draws(attack, rows), rows=keys)


def _classes(runner: Runner) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Predicted classes (N,) and probabilities (N, C) of the clean images, as in an evaluation's clean column."""
    with runner.still():
        clean = runner.attack(Clean(), np.arange(len(runner.labels)), None, None, lambda *_: None)
    assert clean.scores is not None
    return clean.predictions, clean.scores


def _survive(runner: Runner, attack: AttackSpec, report: Progress) -> NDArray[np.bool_]:
    """Whether the class of each image is still `runner.labels` under the attack, (N,)."""
    size = runner.batch_size if attack.batch_independent else 1
    with runner.still():
        result = replace(runner, batch_size=size).attack(
            attack, np.arange(len(runner.labels)), runner.labels, None, report
        )
    mask: NDArray[np.bool_] = result.predictions == runner.labels
    return mask
