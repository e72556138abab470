"""`taet check MODEL`: find what would spoil an evaluation, and estimate its duration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from numpy.typing import NDArray
from torch import nn

from taet.bounds import Count
from taet.cli import flags
from taet.cli.subject import OfModel, OfRun, data_for_run, is_folder, open_model, options_of
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
DESCRIPTION = """Try a model on one batch of test images, in seconds, before attacking it for hours: expected input,
logits, gradients, eval mode, determinism, speed, and the time that each attack would take here. ! marks what would
spoil an evaluation, with a remedy.

MODEL is a run folder (with its own data, unless --data is given), or a model as for taet evaluate --model."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a model is tried."""

    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    batch_size: Count = Evaluation.batch_size
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class RunCheck(CheckOptions, OfRun):
    """A run."""


@dataclass(frozen=True, kw_only=True)
class ModelCheck(CheckOptions, OfModel):
    """A model of any origin, or a run, and its test images."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, or a run folder."""


def run(arguments: list[str]) -> None:
    """Check a run or a model and print the findings."""
    parsed = read(arguments)
    if isinstance(parsed, RunCheck):
        chosen, model, dataset, _ = load_run(parsed.run, parsed.weights)
        trial = model, dataset.test.images, dataset.test.labels, dataset.class_names
        show(*trial, parsed, str(parsed.run), (), chosen.evaluation.attacks)
    elif is_folder(parsed.model):
        dataset = data_for_run(parsed.model, parsed)
        chosen, model, record = load_model(parsed.model)
        known = record.data.class_names
        trial = model, dataset.test.images, by_name(dataset.test.labels, dataset.class_names, known), known
        show(*trial, parsed, parsed.model, (), chosen.evaluation.attacks)
    else:
        loaded, dataset = open_model(parsed.model, parsed)
        trial = loaded.model, dataset.test.images, dataset.test.labels, dataset.class_names
        show(*trial, parsed, parsed.model, loaded.notes, Evaluation.attacks)


def read(arguments: list[str]) -> RunCheck | ModelCheck:
    """Parse a call; mistakes are refused before model and data are loaded."""
    if not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0].startswith("-")):
        raise UserError("which model? taet check MODEL [options]: a run folder, or what taet evaluate --model takes")
    own_data = not options_of(arguments) & {"--data", "--data.name"}
    kind: type[RunCheck | ModelCheck] = RunCheck if is_folder(arguments[0]) and own_data else ModelCheck
    parsed = flags.parse(kind, arguments, prog="taet check", description=DESCRIPTION, examples=EXAMPLES)
    check_attacks(Evaluation(attacks=parsed.attacks or Evaluation.attacks, batch_size=parsed.batch_size))
    resolve_device(parsed.device)
    return parsed


def show(
    model: nn.Module,
    images: Images,
    labels: NDArray[Any],
    class_names: Sequence[str],
    options: CheckOptions,
    name: str,
    notes: tuple[str, ...],
    attacks: tuple[str, ...],
) -> None:
    """Check a model on test images and print the findings; `labels` index `class_names`."""
    found = check(
        model.to(resolve_device(options.device)),
        images,
        labels,
        attacks=options.attacks or attacks,
        class_names=class_names,
        batch_size=options.batch_size,
        name=name,
    )
    if options.json:
        print(json.dumps({**found.to_json(), "notes": list(notes)}, indent=1))
    else:
        print("\n".join([str(found), *notes]))
