"""Images on disk: the same numbers as in memory, and no more memory than their batches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet import evaluate
from taet.data import load
from taet.settings import Run
from taet.training import train

LIMIT = 2 << 30
"""Bytes of memory for all."""
ROOM = 4 * 10**8
"""Bytes of memory beside the libraries, for images of 4.6e8. Training alone takes 2.6e8 to 3.1e8, by processor."""


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("taet", {"training.sampling": "class-balanced", "training.distance_images": 2}),
        pytest.param("at", {"training.augment": "randaugment", "training.swa": 0.0}, marks=pytest.mark.full),
    ],
)
def test_a_run_on_images_on_disk_is_the_run_on_images_in_memory(
    method: str,
    changes: dict[str, Any],
    tiny: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Callable[[Path, Path], None],
) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    digits, arrays = load("digits-lt", max_count=20, test_max_count=8, validation=0.2).splits, {}
    for name, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        arrays |= {f"{part}_images": digits[name].images, f"{part}_labels": digits[name].labels}
    np.savez_compressed(tmp_path / "digits.npz", **arrays)
    named = {"data.name": f"npz:{tmp_path / 'digits.npz'}", "data.max_count": None, **changes}
    disk, memory = (
        train(tiny(method, {"data.storage": way, **named}), out=tmp_path / way) for way in ("disk", "memory")
    )
    assert isinstance(disk.dataset.train.images, np.memmap)
    assert not isinstance(memory.dataset.train.images, np.memmap)
    assert_same(disk.folder, memory.folder)
    cards = [evaluate(result.folder, attacks=("fgsm", "pgd-2"), batch_size=10) for result in (disk, memory)]
    assert cards[0].data["test_sha256"] == cards[1].data["test_sha256"]
    for column, expected in zip(*(card.columns for card in cards), strict=True):
        np.testing.assert_array_equal(column.predictions, expected.predictions)


BIG = """
import json, resource, sys
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from taet import protocols, train
from taet.settings import override
from taet.data import load
from taet.training.curve import monitor

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(kind)))

room, folder = int(sys.argv[1]), Path(sys.argv[2])
np.ones((64, 64), np.float32) @ np.ones((64, 64), np.float32)  # OpenBLAS takes its buffers
limit = memory("VmData") + room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

size = 3 * 32 * 32
for part, total in (("train", 149_000), ("test", 1000)):
    with open(folder / f"{part}_images.npy", "wb") as file:  # mostly holes: every hundredth image is noise
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (total, size)})
        start = file.tell()
        file.truncate(start + total * size)
        for number in range(0, total, 100):
            file.seek(start + number * size)
            file.write(np.random.default_rng(number).integers(0, 256, size, np.uint8).tobytes())
    np.save(folder / f"{part}_labels.npy", np.arange(total) % 10)

dataset = load(f"taet-npy:{folder}", validation=0.01, storage="disk")
assert all(isinstance(split.images, np.memmap) for split in dataset.splits.values())
run = override(protocols.taet("at"), {
    "model.name": "resnet8", "threat.steps": 1, "training.batch_size": 32, "training.threads": 1,
})
shown = []

def progress(done, total, label):  # twice a second: stop in the middle of the first epoch
    shown.append(done)
    if len(shown) == 2:
        raise KeyboardInterrupt

try:
    train(run, out=folder / "run", dataset=dataset, progress=progress)
except KeyboardInterrupt:
    pass
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 10))
watched = override(run, {
    "threat.eps": 0.01, "evaluation.step_size": 0.01, "training.monitor_steps": 1, "training.channels_last": False,
})
counts = monitor(model, dataset.test, watched, device=torch.device("cpu"), pause=lambda: None)
used = memory("VmHWM")
try:
    np.array(dataset.train.images)
    fits = True
except MemoryError:
    fits = False
print(json.dumps({"peak": used, "steps": sum(b > a for a, b in zip(shown, shown[1:])), "fits": fits,
                  "watched": sum(counts["clean"]["total"])}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.full
def test_a_set_of_150_000_images_is_loaded_and_trained_on_within_2_gib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is built, checksums, statistics, first steps and a point of the curve are made; arrays would not fit."""
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(ROOM), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] >= 1
    assert found["watched"] == 1000
    assert not found["fits"]
    assert found["peak"] < LIMIT  # resident, pages of the file included
