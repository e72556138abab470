"""Copy a run folder, finished or in progress, to MLflow, Weights & Biases or TensorBoard.

    pip install mlflow            # or wandb, or tensorboard
    python examples/track.py runs/taet --to mlflow
    python examples/track.py runs/taet --to print

The run folder stays the record and the tracker is a copy of it: training neither needs a server nor
waits for one. run.json holds the settings, metrics.jsonl a line for each epoch, and evaluation.json
the result card.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taet.evaluation import ResultCard
from taet.settings import flat

MOST_TEXT = 250  # characters of a parameter of MLflow


class Tracked(NamedTuple):
    """What a tracker is told about a run."""

    name: str
    settings: dict[str, str]
    epochs: dict[int, dict[str, float]]
    """Finite values by name, for each epoch from 1."""
    results: dict[str, float]
    """Values of the result card; empty before it exists."""


def read(folder: Path) -> Tracked:
    """Read a run folder."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    settings = {name: str(value)[:MOST_TEXT] for name, value in flat(record["run"])}
    rows = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    epochs = {row["epoch"]: finite(dict(flat(row))) for row in rows}
    results: dict[str, float] = {}
    if (folder / "evaluation.json").exists():
        card = ResultCard.load(folder / "evaluation.json")
        for column in card.columns:
            summary = card.summary(column.name)
            numbers = {
                "accuracy": summary.accuracy,
                "balanced accuracy": summary.balanced,
                **summary.groups,
            }
            results |= {
                f"test/{column.name.replace(':', ' ')}/{name}": number
                for name, number in numbers.items()
            }
    return Tracked(folder.resolve().name, settings, epochs, finite(results))


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the values."""
    numbers = {
        name: float(value) for name, value in values.items() if isinstance(value, int | float)
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def to_print(run: Tracked, project: str) -> None:
    """Print what a tracker would be told."""
    print(f"{project}/{run.name}: {len(run.settings)} settings, {len(run.epochs)} epochs")
    for name, number in run.results.items():
        print(f"{name} {number:.4f}")


def to_mlflow(run: Tracked, project: str) -> None:
    """Write a new run of MLflow (MLFLOW_TRACKING_URI, or a folder here)."""
    import mlflow

    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params(run.settings)
        for epoch, values in run.epochs.items():
            mlflow.log_metrics(values, step=epoch)
        mlflow.log_metrics(run.results)


def to_wandb(run: Tracked, project: str) -> None:
    """Write a run of W&B (WANDB_MODE=offline writes only files)."""
    import wandb

    with wandb.init(project=project, name=run.name, config=run.settings) as opened:
        for epoch, values in run.epochs.items():
            opened.log(values, step=epoch)
        opened.summary.update(run.results)


def to_tensorboard(run: Tracked, project: str) -> None:
    """Write events into PROJECT/NAME, which `tensorboard --logdir PROJECT` shows."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(f"{project}/{run.name}") as writer:
        for epoch, values in run.epochs.items():
            for name, value in values.items():
                writer.add_scalar(name, value, epoch)
        for name, value in run.results.items():
            writer.add_scalar(name, value)


TRACKERS = {
    "mlflow": to_mlflow,
    "wandb": to_wandb,
    "tensorboard": to_tensorboard,
    "print": to_print,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy the run that `arguments` name."""
    parser = argparse.ArgumentParser(description="Copy a run folder to an experiment tracker.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--to", choices=TRACKERS, default="print")
    parser.add_argument("--project", default="taet-runs", help="project, or folder of TensorBoard")
    given = parser.parse_args(arguments)
    try:
        TRACKERS[given.to](read(given.run), given.project)
    except ModuleNotFoundError as error:
        sys.exit(
            f"track.py --to {given.to} needs the package {error.name}: pip install {error.name}"
        )


if __name__ == "__main__":
    main()
