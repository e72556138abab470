"""Growth of the seconds and the memory of a training step with batch, image size, classes, images and processes.

For each axis the exponents of seconds, peak memory and arithmetic (floating-point operations of convolutions and matrix
products) are fitted. If the exponent of seconds exceeds that of the arithmetic by more than 0.1, the command ends with
status 1. For the number of images, a step is drawing a batch, mean over an epoch, and a training step on it. Two
processes have half of the same batch each, and one core each.

    python benchmarks/scaling.py             ResNet-8 in float32
    python benchmarks/scaling.py --quick     in fewer rounds
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from common import alternate, arguments, as_in_training, ratio, record, seconds, show
from steps import Steps
from torch.multiprocessing.spawn import spawn

from taet.data import Split
from taet.data.long_tail import long_tail_counts
from taet.distributed import share
from taet.models.sync_norm import synchronised
from taet.training.environment import keep_freed_memory

BATCH, SIDE, CLASSES, ATTACK_STEPS = 64, 32, 10, 2  # where an axis does not say otherwise
SLACK = 0.1  # of an exponent: 7 % per doubling of the size
REPEATS = 2  # steps per round

Method = tuple[str, Mapping[str, Any]]
AT: Method = ("at", {})
# Terms over classes and over pairs of examples.
CLASS_LEVEL: list[Method] = [("harl", {}), ("reat", {}), ("reat", {"form": "paper"})]


class Axis(NamedTuple):
    """The sizes along an axis, the methods that are measured at each, and how their steps are made."""

    sizes: Sequence[int]
    methods: Sequence[Method]
    make: Callable[[Method, int], Steps]


def make(method: Method, *, batch_size: int = BATCH, side: int = SIDE, classes: int = CLASSES, **more: Any) -> Steps:
    """Return the steps of a method on long-tailed data; `more` are options of `Steps`."""
    name, knobs = method
    counts, shape = tuple(long_tail_counts(classes, 500, 10)), (3, side, side)
    return Steps(name, knobs, counts=counts, shape=shape, batch_size=batch_size, attack_steps=ATTACK_STEPS, **more)


AXES = {
    "batch": Axis((32, 64, 128, 256), [AT, CLASS_LEVEL[1]], lambda method, size: make(method, batch_size=size)),
    "side": Axis((16, 32, 64), [AT], lambda method, size: make(method, side=size)),
    "classes": Axis((10, 100, 1000), [AT, *CLASS_LEVEL], lambda method, size: make(method, classes=size)),
}
IMAGES = (4_096, 16_384, 65_536)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of the least-squares fit values = a sizes^b."""
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(v) for v in values]).slope


def summary(sizes: Sequence[int], rounds: Mapping[str, list[float]], flops: Sequence[float]) -> dict[str, Any]:
    """Return the median seconds of each size, their exponent, and that of the arithmetic."""
    slopes = [exponent(sizes, values) for values in zip(*(rounds[str(size)] for size in sizes), strict=True)]
    return {
        "sizes": list(sizes),
        "seconds": [float(f"{statistics.median(rounds[str(size)]):.4g}") for size in sizes],
        "exponent": round(statistics.median(slopes), 3),
        "spread": [round(min(slopes), 3), round(max(slopes), 3)],
        "n": len(slopes),
        "arithmetic": round(exponent(sizes, flops), 3),
    }


def along(axis: Axis, method: Method, rounds: int) -> dict[str, Any]:
    """Measure seconds, memory and arithmetic of a method's step at every size of an axis."""
    made = {size: axis.make(method, size) for size in axis.sizes}

    def timed(steps: Steps) -> Callable[[], float]:
        return lambda: seconds(lambda: steps.run(REPEATS)) / REPEATS

    done = alternate({str(size): timed(steps) for size, steps in made.items()}, rounds)
    megabytes = [round(steps.peak_mb(), 2) for steps in made.values()]
    row = summary(axis.sizes, done, [steps.flops() for steps in made.values()])
    return row | {"peak_mb": megabytes, "memory_exponent": round(exponent(axis.sizes, megabytes), 3)}


def along_images(sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure the seconds of drawing a batch, mean over an epoch, and of a step, by number of training images."""
    steps = make(AT)
    names = tuple(f"class {label}" for label in range(CLASSES))

    def timed(size: int) -> Callable[[], float]:
        images = np.random.default_rng(0).integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
        split = Split(images, np.arange(size) % CLASSES, names, np.arange(size))
        loader = as_in_training(split, BATCH)

        def epoch() -> None:
            with closing(loader.epoch(0)) as batches:
                for batch in batches:
                    steps.batch = batch

        return lambda: seconds(epoch) / len(loader) + seconds(steps.run)

    done = alternate({str(size): timed(size) for size in sizes}, rounds)
    return summary(sizes, done, [1.0] * len(sizes))


# --- processes --------------------------------------------------------------------------------------------------------


def member(number: int, processes: int, method: Method, folder: str) -> None:
    """Run one of the processes: train on its share of a batch, and write the seconds of a step."""
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=processes)
    steps = make(method, batch_size=2 * BATCH, share=share(2 * BATCH, number, processes))
    with synchronised(steps.model):
        steps.run()
        dist.barrier()
        taken = seconds(lambda: steps.run(REPEATS)) / REPEATS
    Path(folder, str(number)).write_text(str(taken))
    dist.barrier()  # a process that ends early makes the other one fail
    dist.destroy_process_group()


def together(processes: int, method: Method) -> float:
    """Return the seconds of a step that is divided among `processes`, of the slowest process."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(member, (processes, method, folder), processes)  # type: ignore[no-untyped-call]
        return max(float(Path(folder, str(number)).read_text()) for number in range(processes))


def along_processes(method: Method, rounds: int) -> dict[str, Any]:
    """Measure how many times as fast two processes are as one, with the same batch."""
    done = alternate({str(n): lambda n=n: together(n, method) for n in (1, 2)}, rounds)  # type: ignore[misc]
    return ratio(done["2"], done["1"])


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    arguments(parser, out="scaling.json", threads=1)
    parser.add_argument("--quick", action="store_true", help="three rounds, and one of the processes")
    given = parser.parse_args()
    rounds = 3 if given.quick else given.rounds
    torch.set_num_threads(given.threads)
    keep_freed_memory(torch.device("cpu"))
    load = os.getloadavg()
    rows: dict[str, dict[str, Any]] = {}
    for what, axis in AXES.items():
        for method in axis.methods:
            rows[f"{what}, {spelled(method)}"] = along(axis, method, rounds)
    rows["images, at"] = along_images(IMAGES, rounds)
    ratios = {
        f"two processes, {spelled(method)}": along_processes(method, 1 if given.quick else rounds)
        for method in (AT, CLASS_LEVEL[1])
    }
    sizes = {"batch_size": BATCH, "side": SIDE, "classes": CLASSES, "attack_steps": ATTACK_STEPS}
    show(record(given.out, "cpu", ratios, load, exponents=rows, slack=SLACK, threads=given.threads, **sizes))
    print(f"{'exponent of':32} {'seconds':>8} {'arithmetic':>11} {'memory':>8}")
    for name, row in rows.items():
        memory = row.get("memory_exponent", "")
        print(f"{name:32} {row['exponent']:8.2f} {row['arithmetic']:11.2f} {memory:>8}")
    faster = [name for name, row in rows.items() if row["exponent"] > row["arithmetic"] + SLACK]
    if faster:
        print(f"seconds grow faster than the arithmetic: {'; '.join(faster)}")
    return int(bool(faster))


def spelled(method: Method) -> str:
    """Return a method with its settings in words."""
    name, knobs = method
    return " ".join([name, *(f"{knob}={value}" for knob, value in knobs.items())])


if __name__ == "__main__":
    sys.exit(main())
