"""`taet transfer RUN RUN ...`: evaluate every run on the adversarial examples of every other run."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from taet.cli import flags
from taet.cli.processes import together
from taet.cli.progress import progress
from taet.evaluation.transfer import transfer
from taet.fields import Count, Radius
from taet.models import trusted

EXAMPLES = (
    "taet transfer runs/at runs/taet",
    "taet transfer runs/* --attack pgd-100 --eps 8/255",
    "taet transfer runs/at runs/taet --attack cw-linf-20:restarts=2 --json",
)
DESCRIPTION = """Evaluate every run on the adversarial examples that an attack makes on every other run, add the columns
to their cards, RUN/evaluation.json, and print the matrix. An interrupted transfer continues."""


@dataclass(frozen=True)
class TransferOptions:
    """Runs, and the attack that makes the examples. Defaults are the settings of the runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two or more run folders with the same test images."""
    attack: str = "pgd-20"
    """Name of an attack (see `taet list attacks`), e.g. fgsm, pgd-20, cw-linf-100."""
    eps: Annotated[Radius, Field(gt=0)] | None = None
    """Radius of the ball, e.g. 8/255."""
    batch_size: Count | None = None
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_model: tuple[str, ...] = ()
    """Names of the runs' models that are package.module:callable. Their code is imported and run only if they are named
    here."""
    json: bool = False
    """Print the matrices as JSON."""


def run(arguments: list[str]) -> None:
    """Measure missing columns, add them to the cards and print the matrix."""
    parsed = flags.parse(TransferOptions, arguments, "taet transfer", DESCRIPTION, EXAMPLES)
    with together(parsed.device):
        with trusted(*parsed.trust_model), progress("transfer") as report:
            result = transfer(
                parsed.runs,
                parsed.attack,
                eps=parsed.eps,
                batch_size=parsed.batch_size,
                device=parsed.device,
                progress=report,
                command=flags.call_text(["transfer", *arguments]),
            )
        if parsed.json:
            print(json.dumps(result.to_json(), indent=1))
        else:
            print(f"{result}\nnext: taet report {shlex.join(map(str, parsed.runs))}")
