"""Profile of a training step by operation: of the plain loop, and of the trainer.

Both are profiled after some warm-up steps, without loading images. On a GPU the profile also shows whether a step waits
for the device: if it contains a synchronisation or a copy to the host, the command ends with status 1.

    python benchmarks/profiles.py                        ResNet-18
    python benchmarks/profiles.py --model resnet8
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plain
import torch
import training
from common import arguments, record, wait
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from taet.data import Dataset
from taet.losses import Loss
from taet.settings import Run
from taet.training.environment import resolve_device
from taet.training.trainer import Trainer

WARM_UP = {"cpu": 1, "cuda": 8}  # steps before; on a GPU the first steps are not yet replayed
ROWS = 12
KINDS = {  # of operations and kernels, by parts of their names; the first match counts
    "convolutions": ("conv", "implicit", "xmma", "wgrad", "dgrad"),
    "batch normalisation": ("batch_norm", "bn_", "batchnorm"),
    "products of matrices": ("::mm", "addmm", "gemm"),
    "optimiser": ("sgd", "multi_tensor"),
}
OTHERS = "element by element, and the rest"
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


class Profile(NamedTuple):
    """The operations of one step, the longest first, with calls and own milliseconds; and those that waited."""

    rows: list[dict[str, Any]]
    waits: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="network (resnet18)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (128)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--precision", choices=training.OURS, default="bf16", help="of ours (bf16)")
    arguments(parser, out="profiles-MODEL.json", rounds=None)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, load = resolve_device(given.device), os.getloadavg()
    data = training.dataset(given.batch_size * (1 + WARM_UP[device.type]))
    run = training.settings(given, given.precision, epochs=1)
    # The plain loop first: the trainer sets the memory allocator of the process.
    profiles = {"plain": of_plain(run, data, device), given.precision: of_ours(run, data)}
    result = record(
        given.out.with_name(given.out.name.replace("MODEL", given.model)),
        device,
        {},
        load,
        model=given.model,
        batch_size=given.batch_size,
        threads=given.threads,
        sides={name: summary(found) for name, found in profiles.items()},
    )
    for name, side in result["sides"].items():
        print(f"{name}\n{text(side)}\n")
    return int(bool(result["sides"][given.precision]["waits"]))


def of_plain(run: Run, data: Dataset, device: torch.device) -> Profile:
    """Profile the plain loop's last step."""
    model = training.network(run, data).to(device)
    optimizer = torch.optim.SGD(model.parameters(), run.training.lr, momentum=0.9, weight_decay=5e-4)
    *first, last = ((x.to(device), y.to(device)) for x, y in plain.loader(data.train, run.training.batch_size, 0))

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        plain.update(model, optimizer, plain.perturb(model, x, y, run.threat), y)

    for batch in first:
        step(*batch)
    return profiled(lambda: step(*last), device)


def of_ours(run: Run, data: Dataset) -> Profile:
    """Profile the trainer's last step of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Profiled(run, Path(folder), model=None, dataset=data, progress=None)
        trainer.fit()
    return trainer.profile


class Profiled(Trainer):
    """The trainer, which profiles the last step of its epoch."""

    def _step(self, *given: Any, **named: Any) -> Loss:
        if self.step < len(self.loader) - 1:
            return super()._step(*given, **named)
        done: list[Loss] = []
        self.profile = profiled(lambda: done.append(super(Profiled, self)._step(*given, **named)), self.device)
        return done[0]


def profiled(work: Callable[[], object], device: torch.device) -> Profile:
    """Profile `work`: on the CPU its operations, on a GPU its kernels."""
    on_gpu = device.type == "cuda"
    wait(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        work()
    events = found.key_averages()
    place = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = [
        {"op": str(event.key)[:60], "calls": event.count, "ms": round(own / 1000, 3)}
        for event in events
        if event.device_type == place
        and (own := event.self_device_time_total if on_gpu else event.self_cpu_time_total) > 0
    ]
    waits = [event.key for event in events if any(name in event.key for name in WAITS)]
    return Profile(sorted(rows, key=lambda row: -row["ms"]), waits)


def kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of time of each kind of operation."""
    times = dict.fromkeys([*KINDS, OTHERS], 0.0)
    for row in rows:
        name = row["op"].lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHERS)
        times[kind] += row["ms"]
    return {kind: round(time / sum(times.values()), 4) for kind, time in times.items()}


def summary(found: Profile) -> dict[str, Any]:
    """Return the longest operations, the shares of all kinds, and the operations that waited."""
    return {
        "ms": round(sum(row["ms"] for row in found.rows), 1),
        "operations": found.rows[:ROWS],
        "kinds": kinds(found.rows),
        "waits": found.waits,
    }


def text(side: Mapping[str, Any]) -> str:
    """Return a profile as text."""
    rows: Sequence[Mapping[str, Any]] = side["operations"]
    lines = [f"{'operation':60}{'calls':>7}{'ms':>10}{'share':>8}"]
    lines += [f"{row['op']:60}{row['calls']:7}{row['ms']:10.1f}{100 * row['ms'] / side['ms']:7.1f}%" for row in rows]
    left = side["ms"] - sum(row["ms"] for row in rows)
    lines += [f"{'all others':67}{left:10.1f}{100 * left / side['ms']:7.1f}%", f"{'together':67}{side['ms']:10.1f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
