"""`taet check MODEL`: find what would spoil an evaluation, and estimate its duration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from taet.bounds import Count
from taet.cli import flags
from taet.cli.subject import OfModel, OfRun, data_for_run, here, is_folder, open_model, options_of
from taet.config import Evaluation
from taet.errors import UserError
from taet.evaluation.bundles import check_attacks
from taet.evaluation.check import Check, check
from taet.evaluation.subject import by_name
from taet.models import trusted
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
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, a run folder, or
    hf:USER/NAME@COMMIT."""


def run(arguments: list[str]) -> None:
    """Check a run or a model and print the findings."""
    parsed = here(read(arguments))
    with trusted(parsed.trust_model):
        found, notes = _checked(parsed)
    if parsed.json:
        print(json.dumps({**found.to_json(), "notes": list(notes)}, indent=1))
    else:
        print("\n".join([str(found), *notes]))


def _checked(parsed: RunCheck | ModelCheck) -> tuple[Check, tuple[str, ...]]:
    """Return the findings, and notes on the model."""
    attacks, notes = Evaluation.attacks, tuple[str, ...]()
    if isinstance(parsed, RunCheck):
        name = str(parsed.run)
        chosen, model, dataset, _ = load_run(parsed.run, parsed.weights)
        labels, class_names, attacks = dataset.test.labels, dataset.class_names, chosen.evaluation.attacks
    elif is_folder(parsed.model):
        name, dataset = parsed.model, data_for_run(parsed.model, parsed)
        chosen, model, record = load_model(parsed.model)
        class_names, attacks = record.data.class_names, chosen.evaluation.attacks
        labels = by_name(dataset.test.labels, dataset.class_names, class_names)
    else:
        name = parsed.model
        (model, notes), dataset = open_model(parsed.model, parsed)
        labels, class_names = dataset.test.labels, dataset.class_names
    found = check(
        model.to(resolve_device(parsed.device)),
        dataset.test.images,
        labels,
        attacks=parsed.attacks or attacks,
        class_names=class_names,
        batch_size=parsed.batch_size,
        name=name,
    )
    return found, notes


def read(arguments: list[str]) -> RunCheck | ModelCheck:
    """Parse a call; mistakes are refused before model and data are loaded."""
    if not {"-h", "--help"} & set(arguments) and (not arguments or arguments[0].startswith("-")):
        raise UserError("which model? taet check MODEL [options]: a run folder, or what taet evaluate --model takes")
    own_data = not options_of(arguments) & {"--data", "--data.name"}
    kind: type[RunCheck | ModelCheck] = RunCheck if is_folder(arguments[0]) and own_data else ModelCheck
    parsed = flags.parse(kind, arguments, "taet check", DESCRIPTION, EXAMPLES)
    check_attacks(Evaluation(attacks=parsed.attacks or Evaluation.attacks, batch_size=parsed.batch_size))
    resolve_device(parsed.device)
    return parsed
