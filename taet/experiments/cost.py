"""Measured costs of training: the parts of the TAET paper's cost model, memory, and every method relative to AT."""

from __future__ import annotations

import math
import os
import typing
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from pydantic import model_validator

from taet import methods, registry
from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.errors import UserError
from taet.experiments.cost_model import ADVERSARIAL, CLEAN, TWO_STAGE, CostModel, Measurement, image_megabytes
from taet.experiments.steps import MethodSteps, Workload
from taet.fields import Count, Processes, Settings, Whole
from taet.losses import cross_entropy
from taet.methods.base import Adversarial
from taet.progress import Progress
from taet.settings import Threat, Training
from taet.statistics import Floats
from taet.training.environment import environment, on_threads, resolve_device

REPEATS = 5  # of short work, a pass or a clean step, so that clock resolution and interruptions matter little
REPORTED = ("batch_size", "precision", "steps", "epochs", "clean_epochs", "rounds")  # settings of the measurement
TimedMethod: TypeAlias = tuple[str, Mapping[str, Any]]
"""A method's name and its settings."""


class Timing(Settings):
    """How it is trained and how often it is measured."""

    batch_size: Count = Training.default("batch_size")
    """Images per step."""
    precision: typing.Literal["auto", "bf16", "float32"] = Training.default("precision")
    """Arithmetic of training under autocast. auto: the faster on this machine."""
    steps: Count = Threat.default("steps")
    """PGD steps of the attack in training: kappa."""
    curve: tuple[Count, ...] = (5, 10, 20, 30, 40)
    """Other numbers of PGD steps whose epoch is timed."""
    epochs: Count = Training.default("epochs")
    """Epochs of a run."""
    clean_epochs: Whole = 40
    """Those of them that TAET trains on clean images: T_ce."""
    rounds: Count = 5
    """Times that everything is measured; ratios are taken within a round."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Processes | None = None
    """CPU threads. Not given: torch's choice."""

    @model_validator(mode="after")
    def _within_the_epochs(self) -> Self:
        if self.clean_epochs > self.epochs:
            raise UserError(f"clean epochs: got {self.clean_epochs}; allowed: 0 to {self.epochs}, the epochs")
        return self

    @property
    def clean_share(self) -> float:
        """T_ce over the epochs."""
        return self.clean_epochs / self.epochs


def everything() -> list[TimedMethod]:
    """Return every method with its defaults, and with each other value of its setting `variant`."""
    pairs: list[TimedMethod] = []
    for name in registry.entries("methods"):
        hints = typing.get_type_hints(methods.find(name).Config)
        pairs += [(name, {}), *((name, {"variant": other}) for other in typing.get_args(hints.get("variant"))[1:])]
    return pairs


def _spread(values: Floats) -> Measurement:
    """Return median, least and largest of measured values to four digits, the precision of the clock."""
    median, low, high = (float(f"{value:.4g}") for value in (np.median(values), values.min(), values.max()))
    return {"median": median, "spread": [low, high]}


def _round(
    clean: MethodSteps, adversarial: MethodSteps, two_stage: MethodSteps, batch: Batch, curve: Iterable[int]
) -> dict[str, float]:
    """Measure every part once, in seconds of a batch; parts that are compared are measured consecutively."""
    attacked = adversarial.attacked
    autocast = torch.autocast(clean.device.type, torch.bfloat16, enabled=clean.bf16)

    def forward() -> None:
        clean.model.train()
        with autocast:
            clean.method.loss(clean.model, batch.x, batch.y, Adversarial(batch.x))

    def attack_forward() -> None:
        with frozen(attacked), autocast:
            cross_entropy(attacked(batch.x.detach().requires_grad_()), batch.y)

    def attack() -> None:
        with frozen(attacked), autocast:
            adversarial.attack()(attacked, batch.x, batch.y)

    return {
        "F": clean.timed(forward, REPEATS),
        "F + B": clean.timed(lambda: clean.step(batch), REPEATS),
        "F'": clean.timed(attack_forward, REPEATS),
        "F' + B_adv": clean.timed(attack) / adversarial.attack_steps,
        "AT": adversarial.seconds(batch),
        "TAET": two_stage.seconds(batch),
        **{f"AT {n}": clean.timed(partial(adversarial.step, batch, steps=n)) for n in curve},
    }


def _model_costs(at: Mapping[str, Floats], timing: Timing, epoch_steps: int) -> Measurement:
    """Return the parts, and ratios within rounds, of the seconds `at` by part, (rounds,) each."""
    clean, attack, adversarial, share = at["F + B"], at["F' + B_adv"], at["AT"], timing.clean_share
    model = CostModel(attack / clean, timing.steps)
    parts = {
        "forward": at["F"],
        "backward": clean - at["F"],
        "attack_forward": at["F'"],
        "attack_backward": attack - at["F'"],
        "gamma": model.gamma,
        "rho": model.rho,
        "eta": model.eta(share),
        "printed_eta": model.printed_eta(share),
    }
    table = sorted({*range(0, timing.epochs + 1, max(timing.epochs // 10, 1)), timing.clean_epochs})
    curve = [
        {
            "steps": n,
            "epoch_seconds": _spread(epoch_steps * at[f"AT {n}"]),
            "ratio": _spread(at[f"AT {n}"] / adversarial),
            "predicted_over_measured": _spread((clean + n * attack) / at[f"AT {n}"]),
        }
        for n in timing.curve
    ]
    return {
        "model": {name: _spread(values) for name, values in parts.items()},
        "measured_eta": _spread(at["TAET"] / adversarial),
        "predicted_over_measured": _spread(model.eta(share) / (at["TAET"] / adversarial)),
        "by_clean_epochs": [{"clean_epochs": n, "eta": _spread(model.eta(n / timing.epochs))} for n in table],
        "curve": curve,
    }


def _memory(clean: MethodSteps, adversarial: MethodSteps, batch: Batch, clean_share: float) -> dict[str, float]:
    """Return the peak memory of a clean and of an adversarial step in 10^6 bytes, M_delta and xi."""
    (held, low), (_, high) = clean.memory(batch), adversarial.memory(batch)
    own = {"held_mb": held, "clean_mb": low, "adversarial_mb": high}
    derived = {"extra_mb": high - low, "xi_mb": clean_share * (high - low), "images_mb": image_megabytes(batch.x.shape)}
    return {name: round(value, 2) for name, value in {**own, **derived}.items()}


def _method_cost(steps: MethodSteps, base: MethodSteps, batch: Batch, timing: Timing, epoch_steps: int) -> Measurement:
    """Return passes and seconds of a method, each measured right before those of PGD adversarial training."""
    (forwards, backwards), unit = steps.passes(), sum(base.passes())
    steps.seconds(batch)  # once for the caches
    pairs = np.array([(steps.seconds(batch), base.seconds(batch)) for _ in range(timing.rounds)])
    ratios = np.ones(len(pairs)) if steps is base else pairs[:, 0] / pairs[:, 1]
    return {
        "forwards": round(forwards, 2),
        "backwards": round(backwards, 2),
        "passes_ratio": round((forwards + backwards) / unit, 3),
        "seconds_ratio": round(float(np.median(ratios)), 3),
        "spread": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        "epoch_seconds": _spread(epoch_steps * pairs[:, 0])["median"],
    }


def measure(
    workload: Workload = Workload(),  # noqa: B008  # which cannot change, as the next one
    timing: Timing = Timing(),  # noqa: B008
    wanted: Iterable[TimedMethod] = (),
    *,
    progress: Progress | None = None,
) -> Measurement:
    """Measure the cost model, memory and methods, given as (name, settings): training steps as runs make them.

    Images are random and on the device, so that an epoch is its training steps, without data loading and evaluation.
    Passes are counted with the attack on the model itself. Seconds are measured `rounds` times in this process, after
    one round that fills caches, on a GPU without CUDA graphs; the two times of a ratio are measured consecutively. A
    measured number is {"median", "spread": [least, largest]} over rounds.

    Returns:
        The settings, and "model": F, B, F' and B_adv in seconds of a batch, gamma, rho, eta of `CostModel`;
        "measured_eta": TAET relative to adversarial training; "by_clean_epochs": eta for other T_ce; "curve": epochs by
        steps of the attack; "memory", in 10^6 bytes; "costs": of every method, mean over a run.

    Raises:
        UserError: an unknown model, method or device; images that the model cannot take.
    """
    wanted, report = list(wanted), progress or (lambda *_: None)
    total, images = timing.rounds + 1 + len(wanted), sum(workload.class_counts)
    epoch_steps, device = math.ceil(images / timing.batch_size), resolve_device(timing.device)
    build = partial(MethodSteps, workload=workload, epochs=timing.epochs, attack_steps=timing.steps, device=device)
    with on_threads(timing.threads):
        clean = build(CLEAN, precision=timing.precision)
        precision = "bf16" if clean.bf16 else "float32"
        build = partial(build, precision=precision)
        adversarial, two_stage = build(ADVERSARIAL), build(TWO_STAGE, {"clean_share": timing.clean_share})
        batch, rounds, costs = workload.batch(timing.batch_size, device), [], []
        for number in range(timing.rounds + 1):
            report(number, total, f"round {number} of {timing.rounds}" if number else "first round, for the caches")
            rounds.append(_round(clean, adversarial, two_stage, batch, timing.curve))
        seconds = {part: np.array([found[part] for found in rounds[1:]]) for part in rounds[0]}
        for number, (name, settings) in enumerate(wanted, timing.rounds + 1):
            report(number, total, name)
            steps = adversarial if name == ADVERSARIAL and not settings else build(name, settings)
            cost = _method_cost(steps, adversarial, batch, timing, epoch_steps)
            costs.append({"name": name, "settings": dict(settings), **cost})
        found = {
            "network": workload.model,
            "image_shape": list(workload.image_shape),
            "classes": len(workload.class_counts),
            "images": images,
            **{name: getattr(timing, name) for name in REPORTED},
            "precision": precision,
            "threads": torch.get_num_threads(),
            **_model_costs(seconds, timing, epoch_steps),
            "memory": _memory(clean, adversarial, batch, timing.clean_share),
            "costs": costs,
            "environment": environment(device),
            "load": os.getloadavg(),
        }
    report(total, total, "done")
    return found
