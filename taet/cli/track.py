"""`taet track RUN... --to TRACKER`: write run folders to MLflow or W&B."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.deployment.track import track
from taet.errors import UserError

EXAMPLES = (
    "taet track runs/x --to mlflow",
    "taet track runs/* --to wandb --project lesions",
)
DESCRIPTION = """Write run folders, finished or in progress, to an experiment tracker: settings, every epoch of the
curve, and the numbers of the result card. The same call again writes only what is new, also after a crash. Training
needs no tracker and no network: call it whenever the tracker is reachable.

mlflow (pip install 'taet[mlflow]') writes to MLFLOW_TRACKING_URI, by default to local files. wandb (pip install
'taet[wandb]') needs its login, or WANDB_MODE=offline and later wandb sync."""


@dataclass(frozen=True)
class TrackOptions:
    """Runs and where they are written."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    to: Literal["mlflow", "wandb"]
    """Tracker."""
    project: str = "taet"
    """Experiment of MLflow, or project of W&B."""


def run(arguments: list[str]) -> None:
    """Write each run, and print what was new."""
    parsed = read(arguments)
    for folder in parsed.runs:
        print(f"{folder}: {track(folder, parsed.to, parsed.project)}", flush=True)


def read(arguments: list[str]) -> TrackOptions:
    """Parse a call."""
    parsed = flags.parse(TrackOptions, arguments, "taet track", DESCRIPTION, EXAMPLES)
    if not parsed.runs:
        raise UserError("which runs? taet track RUN... --to mlflow|wandb")
    return parsed
