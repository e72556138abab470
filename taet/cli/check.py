"""`taet check MODEL`: what would spoil an evaluation, and how long one would take."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from numpy.typing import NDArray
from torch import nn

from taet.cli import flags
from taet.cli.evaluate import Origin, data_for_run, open_model
from taet.config import Evaluation
from taet.data.store import Images
from taet.errors import UserError
from taet.evaluation.bundles import check_attacks
from taet.evaluation.check import check
from taet.evaluation.subject import by_name
from taet.training.environment import resolve_device
from taet.training.finished import load_model, load_run

EXAMPLES = (
    "taet check runs/x",
    "taet check runs/x --attacks pgd-20 autoattack --device cuda",
    "taet check runs/x --data folder:./other-clinic",
    "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet check mynets.wide:build --data npz:test.npz --json",
)
DESCRIPTION = """Try a model on one batch of test images, in seconds, before it is attacked for hours: the input that it
expects, logits, gradients, eval mode, determinism, speed, and the time that each attack would take here. ! marks what
would spoil an evaluation, and says what to do.

MODEL is a run folder, which names its data unless --data does, or what taet evaluate --model takes. --data is short for
--data.name."""


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
    """A model of any origin, or a run, and its test images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, or a run folder."""
    origin: Annotated[Origin, tyro.conf.arg(name="")] = field(default_factory=Origin)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def run(arguments: list[str]) -> None:
    """Check a run or a model and print what was found."""
    parsed = read(arguments)
    if isinstance(parsed, RunFlags):
        chosen, model, dataset, _ = load_run(parsed.run, parsed.weights)
        trial = model, dataset.test.images, dataset.test.labels, dataset.class_names
        show(*trial, parsed.settings, str(parsed.run), (), chosen.evaluation.attacks)
    elif _is_folder(parsed.model):
        dataset = data_for_run(parsed.model, parsed.origin)
        chosen, model, record = load_model(parsed.model)
        known = record.data.class_names
        trial = model, dataset.test.images, by_name(dataset.test.labels, dataset.class_names, known), known
        show(*trial, parsed.settings, parsed.model, (), chosen.evaluation.attacks)
    else:
        loaded, dataset = open_model(parsed.model, parsed.origin)
        trial = loaded.model, dataset.test.images, dataset.test.labels, dataset.class_names
        show(*trial, parsed.settings, parsed.model, loaded.notes, Evaluation.attacks)


def read(arguments: list[str]) -> RunFlags | ModelFlags:
    """Return what the words of the call mean; a mistake is told before model and data are loaded."""
    if not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0].startswith("-")):
        raise UserError("which model? taet check MODEL [options]: a run folder, or what taet evaluate --model takes")
    own_data = not {word.partition("=")[0] for word in arguments} & {"--data", "--data.name"}
    kind: type[RunFlags | ModelFlags] = RunFlags if _is_folder(arguments[0]) and own_data else ModelFlags
    parsed = _parse(kind, arguments)
    settings = parsed.settings
    check_attacks(Evaluation(attacks=settings.attacks or Evaluation.attacks, batch_size=settings.batch_size))
    resolve_device(settings.device)
    return parsed


def _is_folder(name: str) -> bool:
    return Path(name).is_dir() or (":" not in name and os.sep in name)


def _parse(kind: type[flags.T], arguments: list[str]) -> flags.T:
    return flags.parse(kind, arguments, prog="taet check", description=DESCRIPTION, examples=EXAMPLES)


def show(
    model: nn.Module,
    images: Images,
    labels: NDArray[Any],
    class_names: Sequence[str],
    settings: Settings,
    name: str,
    notes: tuple[str, ...],
    attacks: tuple[str, ...],
) -> None:
    """Check a model on test images and print what was found; `labels` count `class_names`."""
    found = check(
        model.to(resolve_device(settings.device)),
        images,
        labels,
        attacks=settings.attacks or attacks,
        class_names=class_names,
        batch_size=settings.batch_size,
        name=name,
    )
    if settings.json:
        print(json.dumps({**found.to_json(), "notes": list(notes)}, indent=1))
    else:
        print("\n".join([str(found), *notes]))
