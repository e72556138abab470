"""`taet data show NAME`: a data set's counts per class, imbalance ratio, groups and checksums, as a run takes it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from taet.cli import flags
from taet.config import Data
from taet.data import load
from taet.data.dataset import describe, render
from taet.errors import UserError, unknown

EXAMPLES = (
    "taet data show digits-lt",
    "taet data show cifar10-lt --root ~/data --imbalance-ratio 50",
    "taet data show folder:./lesions --size 32 --json",
)
ACTIONS = ("show",)


@dataclass(frozen=True)
class Flags:
    """A data set and how to print it."""

    data: Annotated[Data, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Data)
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> None:
    """Show a data set."""
    if not arguments:
        raise UserError("which data set? taet data show NAME; see taet list data")
    action, *rest = arguments
    if action not in (*ACTIONS, "-h", "--help"):
        raise unknown("action of taet data", action, ACTIONS)
    if rest and not rest[0].startswith("-"):
        rest = ["--name", *rest]
    parsed = flags.parse(
        Flags,
        ["--help"] if action.startswith("-") else [argument.replace("--data.", "--", 1) for argument in rest],
        prog="taet data show NAME",
        description="Show what a data set holds as a run would take it.",
        examples=EXAMPLES,
    )
    dataset = load(**dataclasses.asdict(parsed.data))
    print(json.dumps(describe(dataset), indent=1) if parsed.json else render(dataset))
