"""`taet doctor`: check whether this machine can train, and how fast, or whether run folders are whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from taet import models
from taet.attacks import pgd
from taet.cli import flags
from taet.evaluation.verification import verify
from taet.training.environment import PACKAGES, environment, resolve_device

DESCRIPTION = """Print the installed versions, the device that a run would use, the speed of attacks on it, and the data
files found.

With run folders: read every file in them, verify all checksums and that the files belong together, and print a line for
each. Files of older versions have no checksum: they are read, and reported as unverified. Exit status 2 if a file is
damaged or belongs to another run."""
EXAMPLES = ("taet doctor", "taet doctor --json", "taet doctor runs/x", "taet doctor runs/*")
DATA_FILES = (
    *("cifar10.npz", "cifar-10-batches-py", "cifar100.npz", "cifar-100-python", "FashionMNIST/raw"),
    *("dermamnist.npz", "ham10000_32.npz", "tiny-imagenet-200", "gtsrb"),
)


@dataclass(frozen=True)
class DoctorOptions:
    """What is checked, and how the result is printed."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders to verify. Default: check this machine instead."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Check this machine, or run folders, and print the result; return 2 if a file of a run is damaged."""
    parsed = flags.parse(DoctorOptions, arguments, "taet doctor", DESCRIPTION, EXAMPLES)
    if parsed.runs:
        return _verify(parsed.runs, as_json=parsed.json)
    found = examine()
    if parsed.json:
        print(json.dumps(found, indent=1))
        return 0
    speeds = found["pgd_10_images_per_second"]
    slow, fast = sorted(speeds, key=speeds.__getitem__)
    files = ", ".join(found["data"]) or "no known file"
    rows = [
        *((name, version or f"MISSING: pip install {name}") for name, version in found["versions"].items()),
        ("device", f"{found['device']}, threads: {found['threads']}"),
        *(("PGD-10", f"{speed:.0f} images a second, ResNet-8, 32 x 32, {name}") for name, speed in speeds.items()),
        ("precision", f"{slow} is slower than {fast} on this {'GPU' if 'cuda' in found['device'] else 'processor'}"),
        ("data root", f"{found['data_root'] or 'TAET_DATA is not set'}: {files}"),
        ("disk", f"{found['disk_free_gb']:.1f} GB free here"),
        *(("problem", problem) for problem in found["problems"]),
    ]
    print("\n".join(f"{name:12} {text}" for name, text in rows))
    if not found["problems"]:
        print("no problem found")
    return 0


def _verify(runs: tuple[Path, ...], *, as_json: bool) -> int:
    """Print what is found in every file of the runs."""
    found = {str(path): verify(path) for path in runs}
    if as_json:
        print(
            json.dumps({run: [finding._asdict() for finding in findings] for run, findings in found.items()}, indent=1)
        )
    else:
        for run, findings in found.items():
            for file, problem, unverified in findings:
                state = f"WRONG: {problem}" if problem else f"on trust: {unverified}" if unverified else "verified"
                print(f"{run}: {file:20} {state}")
    return 2 if any(finding.problem for findings in found.values() for finding in findings) else 0


def examine() -> dict[str, Any]:
    """Return what `taet doctor` prints."""
    device = resolve_device("auto")
    about = environment(device)
    speeds = {name: attack_speed(device, name == "bf16") for name in ("bf16", "float32")}
    root = os.environ.get("TAET_DATA")
    free = shutil.disk_usage(".").free / 1e9
    problems = [f"{name} is not installed" for name in PACKAGES if about["versions"][name] is None]
    if free < 1:
        problems.append(f"only {free:.2f} GB of disk are free here; a run of ResNet-18 takes about 0.2 GB")
    return {
        "versions": about["versions"],
        "commit": about["commit"],
        "device": about["device"],
        "threads": torch.get_num_threads(),
        "pgd_10_images_per_second": speeds,
        "data_root": root,
        "data": [name for name in DATA_FILES if root and (Path(root) / name).exists()],
        "disk_free_gb": free,
        "problems": problems,
    }


def attack_speed(device: torch.device, bf16: bool) -> float:
    """Return the images per second of PGD-10 on a batch of 128: the best of three trials after a warm-up."""
    model = models.build("resnet8", 10).to(device).to(memory_format=torch.channels_last)
    x = torch.rand(128, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(128, device=device) % 10
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            attacked = pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, start="none")
        attacked.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return len(x) / best
