"""`taet check`: this machine, every file of a run, or what would invalidate an evaluation of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from taet.cli import flags
from taet.cli.subject import OfNamed, OfRun, here, opened, parse
from taet.evaluation.bundles import attacks_of
from taet.evaluation.check import Check, check
from taet.evaluation.subject import GivenImages
from taet.models import trusted
from taet.settings import Evaluation
from taet.training.environment import resolve_device

EXAMPLES = (
    "taet check",
    "taet check runs/x",
    "taet check runs/x --deep",
    "taet check runs/x --data folder:./other-clinic",
    "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet check mynets.wide:build --data npz:test.npz --json",
)
DESCRIPTION = """Without an argument: the versions, the device, the speed of attacks and the data files of this machine.
With a run: read every file in it, verify all checksums and that the files belong together, and try its model. With a
model: find what would invalidate an evaluation, in seconds, before attacks that take hours, and estimate their time.
! marks a problem, with a remedy; then the exit status is 1.

MODEL is a run folder (with its own data, unless --data is given), or a model as for taet evaluate --model."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How a model is tested."""

    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    deep: bool = False
    """Attack a randomised model also through the mean of many draws, and several logits of a class together."""
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


@dataclass(frozen=True, kw_only=True)
class MachineCheck(CheckOptions):
    """This machine."""


def run(arguments: list[str]) -> int:
    """Check and print the findings; return 1 if one is a problem."""
    if not arguments or arguments[0] == "--json":
        parsed = flags.parse(MachineCheck, arguments, "taet check", DESCRIPTION, EXAMPLES)
        return _print(check(), parsed.json)
    given = here(read(arguments))
    with trusted(given.trust_model):
        checked = partial(check, deep=given.deep, attacks=given.attacks, device=given.device)
        if isinstance(given, RunCheck):
            return _print(checked(given.run, weights=given.weights), given.json)
        model, dataset, _, notes = opened(given.model, given)
        return _print(checked(model, GivenImages.of(dataset)), given.json, notes)


def _print(found: Check, as_json: bool, notes: Sequence[str] = ()) -> int:
    lines = [json.dumps([vars(one) for one in found.findings], indent=1)] if as_json else [str(found), *notes]
    print("\n".join(lines))
    return 0 if found.ok else 1


def read(arguments: list[str]) -> RunCheck | ModelCheck:
    """Parse a call; mistakes are refused before model and data are loaded."""
    parsed = parse(RunCheck, ModelCheck, arguments, "check", DESCRIPTION, EXAMPLES)
    if parsed.attacks is not None:
        attacks_of(Evaluation(attacks=parsed.attacks))
    resolve_device(parsed.device)
    return parsed
