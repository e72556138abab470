"""Memory and speed of training on a generated set of images, kept on disk or in memory, and whether both agree.

On disk: the file is written, its checksum and channel statistics are computed, batches are drawn while the file is not
in the page cache, and a small network is trained on some of the images and monitored on others. All this runs in a
process with limited memory (RLIMIT_DATA), which fails with a MemoryError beyond the limit. In memory: the same without
a limit, and with it, which must fail. Each way has its own process. The process without a limit also draws batches from
disk and from memory in turn, and takes medians. The command ends with status 1 if checksums or trained weights differ,
if the limit was exceeded, or if it was not needed.

    python benchmarks/streaming.py                         100,000 colour images of 96 x 96 pixels, 2 GiB; Linux
    python benchmarks/streaming.py --images 1000000 --side 64 --cache /scratch
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import as_in_training
from numpy.typing import NDArray

from taet import protocols, train
from taet.data import Dataset, Split
from taet.data.image_store import Stored, gather
from taet.files import write_json
from taet.settings import override
from taet.training.checkpoint import weights_digest
from taet.training.environment import environment, resolve_device

RESULT = Path(__file__).parent / "results" / "streaming.json"
BATCH = 128
CLASSES = 10
TEST = 2_000
RUN = {
    "model.name": "resnet8",
    "threat.steps": 1,
    "training.epochs": 1,
    "training.batch_size": BATCH,
    "training.monitor_steps": 1,
    "training.device": "cpu",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="in all (100000)")
    parser.add_argument("--side", type=int, default=96, help="pixels (96)")
    parser.add_argument("--limit", type=float, default=2.0, help="GiB of memory for the process that streams (2)")
    parser.add_argument("--batches", type=int, default=200, help=f"of {BATCH} images, whose time is taken (200)")
    parser.add_argument("--rounds", type=int, default=5, help="times that both ways draw them (5)")
    parser.add_argument("--trained", type=int, default=2_560, help="images of the short training (2560)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--cache", type=Path, help="folder on the disk that is measured (that of temporary files)")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result (results/streaming.json)")
    parser.add_argument("--way", choices=["disk", "memory"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(measure(given)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.cache) as cache:
        disk, memory = (run_way(way, limited, cache) for way, limited in (("disk", True), ("memory", False)))
        refused = run_way("memory", True, cache)
    assert disk is not None
    assert memory is not None
    result = {
        "images": given.images,
        "shape": [given.side, given.side, 3],
        "bytes": given.images * given.side**2 * 3,
        "limit": round(given.limit * 2**30),
        "disk": disk,
        "memory": memory,
        "memory_within_limit": refused is not None,
        "same": all(disk[name] == memory[name] for name in ("sha256", "statistics", "weights")),
        "threads": given.threads,
        "load": os.getloadavg(),
        "command": f"python benchmarks/{Path(__file__).name}",  # the folder of the cache changes no figure
        "environment": environment(resolve_device("cpu")),
    }
    print(json.dumps(result, indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, result)
    return int(
        not result["same"] or result["memory_within_limit"] or max(disk["peak_mb"].values()) > given.limit * 1074
    )


def run_way(way: str, limited: bool, cache: str) -> dict[str, Any] | None:
    """Measure one way in its own process; None if its memory was not enough."""
    limit = [] if limited else ["--limit", "inf"]
    command = [sys.executable, *sys.argv, "--way", way, *limit]
    done = subprocess.run(command, env={**os.environ, "TAET_CACHE": cache}, capture_output=True, text=True, check=False)
    if "MemoryError" in done.stderr:
        return None
    if done.returncode != 0:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def generated(given: argparse.Namespace) -> Iterator[NDArray[np.uint8]]:
    """Yield images of noise around a pixel value of their class; making them is faster than writing them."""
    noise = np.random.default_rng(0).integers(0, 96, (64, given.side, given.side, 3), np.uint8)
    return (noise[number % 64] + np.uint8(16 * (number % CLASSES)) for number in range(given.images))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train with the images kept as `given.way` says; return seconds, images per second and peak memory."""
    if math.isfinite(given.limit):
        resource.setrlimit(resource.RLIMIT_DATA, (round(given.limit * 2**30),) * 2)
    torch.set_num_threads(given.threads)
    seconds: dict[str, float] = {}
    speed: dict[str, Any]
    peaks = {"import": peak_mb()}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 3)
        peaks[name] = peak_mb()

    with phase("build"):
        shape = (given.images, given.side, given.side, 3)
        images = gather(generated(given), shape, key=f"{shape}", storage=given.way)
    order = np.random.default_rng(0).permutation(given.images)
    names = tuple(f"class {label}" for label in range(CLASSES))
    whole = Split(images, np.arange(given.images) % CLASSES, names, np.arange(given.images))
    data = Dataset("generated", whole.choose(order[TEST:]), None, whole.choose(order[:TEST]))
    with phase("checksum"):
        sha256 = data.train.sha256
    with phase("statistics"):
        moments = data.train.channel_statistics()
    drawn = given.batches * BATCH
    if isinstance(images, Stored):
        forget(images.path)
        with phase("first batches"):
            speed = {"cold": round(drawn / draw(data.train, given.batches))}
    else:
        stored = gather((), shape, key=f"{shape}", storage="disk")  # built by the process before
        ways = [replace(whole, images=stored).choose(order[TEST:]), data.train]
        rounds = [[draw(way, given.batches) for way in ways] for _ in range(given.rounds)]
        disk, memory = (statistics.median(times) for times in zip(*rounds, strict=True))
        ratios = [on_disk / in_memory for on_disk, in_memory in rounds]
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        speed = {"disk": round(drawn / disk), "memory": round(drawn / memory)}
        speed |= {"ratio": round(statistics.median(ratios), 3), "spread": spread}
    with phase("training"):
        run = override(protocols.taet("at"), RUN | {"training.threads": given.threads})
        few = Dataset("generated", data.train.choose(np.arange(given.trained)), None, data.test)
        with tempfile.TemporaryDirectory() as out:
            done = train(run, dataset=few, out=Path(out) / "run")
    return {
        "seconds": seconds,
        "peak_mb": peaks,
        "images_per_second": {**speed, "training": done.history[0]["images_per_second"]},
        "sha256": sha256,
        "statistics": moments,
        "weights": weights_digest(done.model),
    }


def draw(split: Split, batches: int) -> float:
    """Return the seconds that batches take as training draws them, cropped and mirrored."""
    loader = as_in_training(split, BATCH)
    began = time.perf_counter()
    with closing(loader.epoch(0)) as epoch:
        for _ in islice(epoch, batches):
            pass
    return time.perf_counter() - began


def forget(path: Path) -> None:
    """Remove a file from the page cache, as far as the system allows."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb() -> float:
    """Return the peak resident memory, including pages of files, in 10^6 bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
