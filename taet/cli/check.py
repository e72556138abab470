"""`taet check MODEL`: what would spoil an evaluation, and how long one would take."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import nn

from taet.cli import flags
from taet.cli.evaluate import Origin, open_model
from taet.config import Evaluation
from taet.data import Dataset
from taet.errors import UserError
from taet.evaluation.attack import check_attacks
from taet.evaluation.check import check
from taet.training.checkpoint import load_run
from taet.training.environment import resolve_device

EXAMPLES = (
    "taet check runs/x",
    "taet check runs/x --attacks pgd-20 autoattack --device cuda",
    "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet check mynets.wide:build --data npz:test.npz --json",
)
DESCRIPTION = """Try a model on one batch of test images, in seconds, before it is attacked for hours: the input that it
expects, logits, gradients, eval mode, determinism, speed, and the time that each attack would take here. ! marks what
would spoil an evaluation, and says what to do.

MODEL is a run folder, which names its data, or what taet evaluate --model takes. --data is short for --data.name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is tried."""

    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Not given: the run's, or the default."""
    batch_size: int = Evaluation.batch_size
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """A run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    weights: Literal["model", "model-last", "model-best"] = "model"
    """What the run delivers, its last epoch, or its best one."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """A model of any origin and its test images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """package.module:callable, torchvision:NAME, timm:NAME, or a name of taet list models."""
    origin: Annotated[Origin, tyro.conf.arg(name="")] = field(default_factory=Origin)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def run(arguments: list[str]) -> None:
    """Check a run or a model and print what was found."""
    parsed = read(arguments)
    if isinstance(parsed, RunFlags):
        chosen, model, dataset, _ = load_run(parsed.run, parsed.weights)
        show(model, dataset, parsed.settings, str(parsed.run), (), chosen.evaluation.attacks)
    else:
        loaded, dataset = open_model(parsed.model, parsed.origin)
        show(loaded.model, dataset, parsed.settings, parsed.model, loaded.notes, Evaluation.attacks)


def read(arguments: list[str]) -> RunFlags | ModelFlags:
    """Return what the words of the call mean; a mistake is told before model and data are loaded."""
    if not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0].startswith("-")):
        raise UserError("which model? taet check MODEL [options]: a run folder, or what taet evaluate --model takes")
    first = arguments[0]
    is_folder = Path(first).is_dir() or (":" not in first and os.sep in first)
    parsed = _parse(RunFlags, arguments) if is_folder else _parse(ModelFlags, arguments)
    settings = parsed.settings
    check_attacks(Evaluation(attacks=settings.attacks or Evaluation.attacks, batch_size=settings.batch_size))
    resolve_device(settings.device)
    return parsed


def _parse(kind: type[flags.T], arguments: list[str]) -> flags.T:
    return flags.parse(kind, arguments, prog="taet check", description=DESCRIPTION, examples=EXAMPLES)


def show(
    model: nn.Module,
    dataset: Dataset,
    settings: Settings,
    name: str,
    notes: tuple[str, ...],
    attacks: tuple[str, ...],
) -> None:
    """Check a model on the test images of a data set and print what was found."""
    found = check(
        model.to(resolve_device(settings.device)),
        dataset.test.images,
        dataset.test.labels,
        attacks=settings.attacks or attacks,
        class_names=dataset.class_names,
        batch_size=settings.batch_size,
        name=name,
    )
    if settings.json:
        print(json.dumps({**found.to_json(), "notes": list(notes)}, indent=1))
    else:
        print("\n".join([str(found), *notes]))
