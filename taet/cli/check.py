"""`taet check MODEL`: find problems that would invalidate an evaluation, and estimate its duration."""

from __future__ import annotations

import json
from dataclasses import dataclass

from taet.cli.subject import OfNamed, OfRun, here, opened, parse
from taet.evaluation.bundles import attacks_of
from taet.evaluation.check import Check, check
from taet.evaluation.subject import GivenImages, subject_of
from taet.fields import Count
from taet.models import trusted
from taet.settings import Evaluation
from taet.training.environment import resolve_device

EXAMPLES = (
    "taet check runs/x",
    "taet check runs/x --attacks pgd-20 autoattack --device cuda",
    "taet check runs/x --data folder:./other-clinic",
    "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet check mynets.wide:build --data npz:test.npz --json",
)
DESCRIPTION = """Test a model on a batch of images, in seconds, before attacks that take hours: expected input, logits,
gradients, eval mode, determinism, speed, and the estimated time of each attack on this machine. ! marks a problem that
would invalidate an evaluation, with a remedy.

MODEL is a run folder (with its own data, unless --data is given), or a model as for taet evaluate --model."""


BATCH_SIZE: int = Evaluation.default("batch_size")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a model is tested."""

    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    batch_size: Count = BATCH_SIZE
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class RunCheck(CheckOptions, OfRun):
    """A run."""


@dataclass(frozen=True, kw_only=True)
class ModelCheck(CheckOptions, OfNamed):
    """A model and its test images."""


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
    notes: tuple[str, ...] = ()
    if isinstance(parsed, RunCheck):
        name, subject = str(parsed.run), subject_of("check", parsed.run, weights=parsed.weights)
    else:
        model, dataset, own_name, notes = opened(parsed.model, parsed)
        name, subject = parsed.model, subject_of("check", model, GivenImages.of(dataset), name=own_name, notes=notes)
    found = check(
        subject.model.to(resolve_device(parsed.device)),
        subject.images,
        subject.labels,
        attacks=parsed.attacks or subject.settings.attacks,
        class_names=subject.class_names,
        batch_size=parsed.batch_size,
        name=name,
    )
    return found, notes


def read(arguments: list[str]) -> RunCheck | ModelCheck:
    """Parse a call; mistakes are refused before model and data are loaded."""
    parsed = parse(RunCheck, ModelCheck, arguments, "check", DESCRIPTION, EXAMPLES)
    attacks_of(Evaluation(attacks=parsed.attacks or Evaluation.default("attacks"), batch_size=parsed.batch_size))
    resolve_device(parsed.device)
    return parsed
