"""`taet check`: check this machine, the files of a run, or what would invalidate an evaluation of a model."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

from taet.cli.evaluate import OF_DATA
from taet.cli.options import POSITIONAL, Command, Options, Parsed, parse
from taet.fields import Count
from taet.settings import Data, Evaluation

DATA_FILES = (
    *("cifar10.npz", "cifar-10-batches-py", "cifar100.npz", "cifar-100-python", "FashionMNIST/raw"),
    *("dermamnist.npz", "ham10000_32.npz", "tiny-imagenet-200", "gtsrb"),
)


class CheckCommand(Command):
    """Without a model: print the installed versions, the device that a run would use, the speed of attacks on it, and
    the data files found.

    With a run folder: read every file in it, and verify all checksums and that the files belong together. Then, as for
    any model, test it on a batch of images, in seconds, before attacks that take hours: expected input, logits,
    gradients, eval mode, determinism, speed, and the estimated time of each attack on this machine. ! marks a problem
    that would invalidate an evaluation, with a remedy. Exit status 1 with a damaged file.
    """

    examples = (
        "taet check",
        "taet check runs/x",
        "taet check runs/x --attacks pgd-20 autoattack --device cuda",
        "taet check runs/x --data folder:./other-clinic",
        "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    )

    model: Annotated[str | None, POSITIONAL] = None
    """Run folder, or a model as of taet evaluate --model, which needs --data."""
    weights: str | None = None
    """As in taet evaluate."""
    normalize: str = "none"
    """As in taet evaluate."""
    trust_model: str | None = None
    """As in taet evaluate."""
    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    batch_size: Count = Evaluation.default("batch_size")
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    as_json: bool = False
    """Print JSON."""


def run(words: list[str]) -> int:
    """Check, and print what was found."""
    parsed = parse(CheckCommand, words, "taet check", [Options("data", Data(), usual=OF_DATA)])
    if parsed.command.model is None:
        found = machine()
        text = "\n".join(f"{name:16} {value}" for name, value in found.items())
        print(json.dumps(found, indent=1) if parsed.command.as_json else text)
        return 0
    return _check_model(parsed)


def _check_model(parsed: Parsed[CheckCommand]) -> int:
    from taet.cli.subject import is_folder, local, opened
    from taet.evaluation.bundles import attacks_of
    from taet.evaluation.check import check
    from taet.evaluation.subject import GivenImages, subject_of
    from taet.evaluation.verification import verify
    from taet.models import trusted
    from taet.training.environment import resolve_device
    from taet.training.folder import DELIVERED, RunFolder

    command, data = parsed.command, parsed.of("data")
    attacks_of(Evaluation(attacks=command.attacks or Evaluation.default("attacks"), batch_size=command.batch_size))
    device, name = resolve_device(command.device), local(command.model or "")
    is_run = is_folder(name) and not data
    if is_run and not RunFolder(Path(name)).is_run:
        RunFolder(Path(name)).record  # noqa: B018  # refuses it
    files = [finding._asdict() for finding in verify(Path(name))] if is_run else []
    for one in files if not command.as_json else ():
        state = f"WRONG: {one['problem']}" if one["problem"] else f"on trust: {one['unverified']}"
        print(f"{one['file']:20} {state if one['problem'] or one['unverified'] else 'verified'}")
    if any(one["problem"] for one in files):
        print(json.dumps({"files": files}, indent=1) if command.as_json else "", end="")
        return 1
    with trusted(command.trust_model):
        notes: tuple[str, ...] = ()
        if is_run:
            subject = subject_of("check", Path(name), weights=command.weights or DELIVERED)
        else:
            model, dataset, own, notes = opened(name, data, command.weights, command.normalize)
            subject = subject_of("check", model, GivenImages.of(dataset), name=own, notes=notes)
        found = check(
            subject.model.to(device),
            subject.images,
            subject.labels,
            attacks=command.attacks or subject.settings.attacks,
            class_names=subject.class_names,
            batch_size=command.batch_size,
            name=name,
        )
    whole = {**found.to_json(), "notes": [*notes], "files": files}
    print(json.dumps(whole, indent=1) if command.as_json else "\n".join([str(found), *notes]))
    return 0


def machine() -> dict[str, Any]:
    """Return what a run would find on this machine."""
    import torch

    from taet.training.environment import PACKAGES, environment, resolve_device

    device, free, root = resolve_device("auto"), shutil.disk_usage(".").free / 1e9, os.environ.get("TAET_DATA")
    about = environment(device)
    problems = [f"{name} is not installed" for name in PACKAGES if about["versions"][name] is None]
    if free < 1:
        problems.append(f"only {free:.2f} GB of disk are free here; a run of ResNet-18 takes about 0.2 GB")
    return {
        **about["versions"],
        "commit": about["commit"],
        "device": about["device"],
        "threads": torch.get_num_threads(),
        **{f"PGD-10, {name}": f"{speed(device, name == 'bf16'):.0f} images a second" for name in ("bf16", "float32")},
        "data root": root or "TAET_DATA is not set",
        "data": ", ".join(name for name in DATA_FILES if root and (Path(root) / name).exists()) or "no known file",
        "free disk": f"{free:.1f} GB",
        "problems": ", ".join(problems) or "none",
    }


def speed(device: Any, bf16: bool) -> float:
    """Return the images of 32 x 32 pixels per second of PGD-10 on ResNet-8: the best of three trials."""
    import torch

    from taet import models
    from taet.attacks import pgd

    model = models.build("resnet8", 10).to(device).to(memory_format=torch.channels_last)
    x = torch.rand(128, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y, seconds = torch.arange(128, device=device) % 10, []
    for _ in range(4):
        begun = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            attacked = pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, start="none")
        attacked.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return len(x) / min(seconds)
