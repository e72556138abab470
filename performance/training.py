"""Throughput of adversarial training beside other loops: same network, images, batches, attack and
schedule.

Ours is the trainer as `taet train` runs it, in bfloat16 and in float32; the others are those of
plain.py. Each side has its own process, since settings of the memory allocator hold for a process;
only one works at a time. A round is an epoch of --steps batches on every side, in alternating
order.

    python performance/training.py                                     ResNet-18
    python performance/training.py --model resnet8 --steps 8           a small network
    python performance/training.py --device cuda --steps 40 --rounds 7
    python performance/training.py --sides bf16 plain-2-workers torchattacks --out peers.json

Other sides: `competent`, the competent loop of plain.py, where the processor has bfloat16
instructions, and `competent-malloc`, the same with the C library told to keep freed memory, as ours
does; `plain-2-workers`, the plain loop with two processes that prepare images; `torchattacks`, the
loop with the PGD of torchattacks 3 (Kim, arXiv:2010.01950), which must be installed. On a GPU
convolutions in float32 are exact in ours, TF32 in the others.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import plain
import torch
from common import alternate, answer, arguments, asked, processes, ratio, record, seconds, show
from torch import Tensor, nn

from taet import models, protocols
from taet.data import Dataset
from taet.machine import keep_freed_memory, peak_memory_mb, resolve_device
from taet.run.folder import RunFolder
from taet.settings import Run, Threat, override
from taet.training.loop import TrainingMonitor, train_epoch
from taet.training.prepare import prepare

OURS = ("bf16", "float32")
OTHERS = ("competent", "competent-malloc", "plain", "plain-2-workers", "torchattacks")
CLASSES = 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="network (resnet18)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (128)")
    parser.add_argument("--steps", type=int, default=1, help="per round and side (1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=[*OURS, *OTHERS],
        default=[*OURS, *OTHERS[:3]],
        help="what to measure",
    )
    arguments(parser, "training-MODEL.json")
    parser.add_argument("--side", choices=[*OURS, *OTHERS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        measure(given.side, given)
        return 0
    load = os.getloadavg()
    with processes(given.sides) as sides:
        rounds = alternate(sides, given.rounds)
    result = record(
        given.out.with_name(given.out.name.replace("MODEL", given.model)),
        given.device,
        {
            f"{ours} against {other}": ratio(
                *([one["seconds"] for one in rounds[name]] for name in (ours, other))
            )
            for ours in OURS
            for other in OTHERS
            if ours in rounds and other in rounds
        },
        load,
        model=given.model,
        batch_size=given.batch_size,
        steps_per_round=given.steps,
        threads=given.threads,
        sides={
            name: summary(done, given.batch_size * given.steps) for name, done in rounds.items()
        },
    )
    show(result)
    for name, side in result["sides"].items():
        print(
            f"{name:32} {side['images_per_second']:8.1f} images a second, mean loss "
            f"{side['loss']:.3f}"
        )
    return 0


def summary(rounds: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Return median images per second, losses and peak memory of a side's rounds."""
    losses = [one["loss"] for one in rounds]
    return {
        "images_per_second": round(images / statistics.median(one["seconds"] for one in rounds), 2),
        "loss": round(statistics.mean(losses), 4),
        "losses": [round(loss, 4) for loss in losses],
        "peak_memory_mb": max(round(one["peak_memory_mb"], 1) for one in rounds),
    }


def dataset(images: int) -> Dataset:
    """Return colour images of noise around a pixel value of their class; the few test images are
    not used."""
    labels = np.arange(images) % CLASSES
    noise = np.random.default_rng(0).integers(0, 96, (images, 32, 32, 3), np.uint8)
    drawn = noise + (16 * labels).astype(np.uint8)[:, None, None, None]
    return Dataset.from_arrays(drawn, labels, drawn[:CLASSES], labels[:CLASSES], name="generated")


def settings(given: argparse.Namespace, precision: str, epochs: int) -> Run:
    """Return the protocol's settings with a low, constant learning rate, so that losses stay
    finite."""
    return override(
        protocols.taet("at"),
        {
            "model.name": given.model,
            "training.batch_size": given.batch_size,
            "training.epochs": epochs,
            "training.lr": 0.01,
            "training.milestones": (),
            "training.monitor_every": 0,
            "training.save_minutes": 1e4,  # nothing is kept
            "training.precision": precision,
            "training.device": given.device,
            "training.threads": given.threads,
        },
    )


def measure(side: str, given: argparse.Namespace) -> None:
    """Run the rounds of one side on request."""
    data = dataset(given.batch_size * given.steps)
    if side in OURS:
        with tempfile.TemporaryDirectory() as folder:
            run = settings(given, side, epochs=1 + given.rounds)
            measured(run, RunFolder(Path(folder)), data)
    else:
        other(side, settings(given, "float32", epochs=1 + given.rounds), data)


def measured(run: Run, folder: RunFolder, data: Dataset) -> list[float]:
    """Train epoch by epoch on request, without a curve and checkpoints, and report the seconds;
    return the losses."""
    plan, state = prepare(run, dataset=data)
    monitor, losses = TrainingMonitor(plan, state, folder), list[float]()
    keep_freed_memory(plan.device)
    with plan.surroundings():
        while state.epoch < run.training.epochs:
            asked()
            took = seconds(lambda: train_epoch(plan, state, monitor), plan.device)
            losses.append(state.sums.sums["total"].item() / state.sums.images)
            peak = peak_memory_mb(plan.device)
            answer({"seconds": took, "loss": losses[-1], "peak_memory_mb": peak})
            state.end_epoch(state.sums.counts[2])
    return losses


def other(side: str, run: Run, data: Dataset) -> None:
    """Run the rounds of another loop."""
    training, device = run.training, resolve_device(run.training.device)
    assert training.threads is not None
    torch.set_num_threads(training.threads)
    torch.manual_seed(run.seed)
    model = network(run, data).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        training.lr,
        training.momentum,
        weight_decay=training.weight_decay,
        fused=side.startswith("competent"),
    )
    losses: list[float] = []
    if side.startswith("competent"):
        if side.endswith("malloc"):
            keep_freed_memory(device)
        model.to(memory_format=torch.channels_last)
        images = torch.from_numpy(data.train.images).to(device)
        labels, size = torch.from_numpy(data.train.labels).to(device), training.batch_size
        epoch = partial(plain.competent, model, optimizer, images, labels, size, run.threat)
    else:
        batches = plain.loader(
            data.train, training.batch_size, workers=2 if side == "plain-2-workers" else 0
        )
        attack = attack_of(side, model, run.threat)
        epoch = partial(plain.train, model, optimizer, batches, attack, device)
    while True:
        asked()
        took = seconds(lambda: losses.append(epoch()), device)
        answer({"seconds": took, "loss": losses[-1], "peak_memory_mb": peak_memory_mb(device)})


def network(run: Run, data: Dataset) -> nn.Module:
    """Return the network that the trainer builds, with the same weights."""
    model = models.build(run.model.name, data.num_classes, data.image_shape, seed=run.seed)
    assert isinstance(model, models.Classifier)
    model.normalize_by(*data.train.channel_statistics())
    return model


def attack_of(side: str, model: nn.Module, threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the attack of another loop: (x, y) -> x_adv."""
    if side != "torchattacks":
        return lambda x, y: plain.perturb(model, x, y, threat)
    import torchattacks  # type: ignore[import-not-found,unused-ignore]

    made: Callable[[Tensor, Tensor], Tensor] = torchattacks.PGD(
        model, threat.eps, threat.step_size, threat.steps
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
