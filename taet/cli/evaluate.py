"""`taet evaluate RUN`: attack a finished run and write its result card."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.progress import progress
from taet.evaluation import evaluate, parse_attack

EXAMPLES = (
    "taet evaluate runs/x",
    "taet evaluate runs/x --attacks clean pgd-20 autoattack-fast",
    "taet evaluate runs/x --weights model-best --eps 4/255 --json",
)


@dataclass(frozen=True)
class Flags:
    """A run and what it faces; what is not given is what the run was configured with."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    attacks: tuple[str, ...] | None = None
    """Names of attacks (see `taet list attacks`), e.g. clean fgsm pgd-20 pgd-100 autoattack."""
    eps: float | None = None
    """Radius of the ball, e.g. 8/255."""
    step_size: float | None = None
    """Step of PGD, e.g. 1/255."""
    batch_size: int | None = None
    """Images per batch."""
    seed: int | None = None
    """Seed of every random start."""
    weights: Literal["model", "model-last", "model-best"] = "model"
    """What the run delivers, its last epoch, or its best one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print the result card instead of a table."""


def run(arguments: list[str]) -> None:
    """Attack a run and print its card."""
    parsed = flags.parse(
        Flags,
        arguments,
        prog="taet evaluate",
        description="Attack a finished run and write its result card, RUN/evaluation.json; an evaluation that was "
        "interrupted goes on where it was.",
        examples=EXAMPLES,
    )
    for name in parsed.attacks or ():
        parse_attack(name)
    with progress(f"evaluate {parsed.run}") as report:
        card = evaluate(
            parsed.run,
            attacks=parsed.attacks,
            eps=parsed.eps,
            step_size=parsed.step_size,
            batch_size=parsed.batch_size,
            seed=parsed.seed,
            device=parsed.device,
            weights=parsed.weights,
            progress=report,
            command=shlex.join(["taet", "evaluate", *arguments]),
        )
    if parsed.json:
        path = parsed.run / f"evaluation{parsed.weights.removeprefix('model')}.json"
        print(path.read_text(encoding="utf-8"), end="")
    else:
        print(card)
        print(f"next: taet report {parsed.run}")
