"""`taet track`: a run folder, finished or in progress, written to an experiment tracker without duplicates.

The tracker is a copy of the folder, so training neither needs a server nor waits for one.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from taet.errors import custom_code, needed, unknown
from taet.evaluation import card_store
from taet.files import digest, read_json, write_json
from taet.training.decisive_settings import training_settings
from taet.training.folder import RunFolder
from taet.training.tensorboard import scalars

UNNAMED = re.compile(r"[^A-Za-z0-9_./ -]")
"""Characters of attack names that a metric of MLflow may not have; the colon is refused by some versions only."""
IDENTITY, MOST_METRICS, MOST_PARAMS, MOST_TEXT = "taet.id", 1000, 100, 250


class Written(NamedTuple):
    """The entries that a call added to a tracker."""

    place: str
    """The tracker, and the identity of the run in it."""
    epochs: int
    numbers: int
    """Values of the result card."""

    def __str__(self) -> str:
        if not self.epochs and not self.numbers:
            return f"{self.place}: nothing new"
        return f"{self.place}: {self.epochs} epochs and {self.numbers} numbers of the result card are new"


@dataclass(frozen=True)
class Tracked:
    """The facts about a run that a tracker stores."""

    name: str
    identity: str
    """The same in every call for this run, and for a copy of its folder."""
    settings: Mapping[str, str]
    tags: Mapping[str, str]
    epochs: Mapping[int, Mapping[str, float]]
    """For each epoch, from 1: finite values by name."""
    results: Mapping[str, float]
    """Values of the result card; empty before it exists."""
    finished: bool


def told(path: Path) -> Tracked:
    """Read and verify a run folder."""
    folder = RunFolder(path)
    record = folder.record
    _ = folder.metrics  # typed and checked
    card = card_store.of_folder(folder) if folder.is_done else None
    settings = {name: _short(value) for name, value in training_settings(record.settings).items()}
    tags = {
        "taet.method": record.method_title,
        "taet.data": record.data.name,
        "taet.command": record.command,
        "taet.deviations": "; ".join(record.deviations),
    }
    results: dict[str, float] = {}
    for column in card.columns if card is not None else ():
        assert card is not None
        summary = card.summary_of(column)
        numbers = {"accuracy": summary.accuracy, "balanced accuracy": summary.balanced, **summary.groups}
        numbers |= {"worst class": summary.worst_class[1]}
        results |= {f"test/{UNNAMED.sub(' ', column.name)}/{name}": n for name, n in numbers.items()}
    return Tracked(
        name=path.resolve().name,
        identity=digest([record.run_hash, record.started])[:20],
        settings=settings,
        tags={name: _short(text) for name, text in tags.items() if text},
        epochs={row["epoch"]: _finite(scalars(row)) for row in folder.rows},
        results=_finite(results),
        finished=folder.is_done,
    )


def track(run_dir: str | os.PathLike[str], to: str, project: str = "taet") -> Written:
    """Write the data of a run that a tracker lacks: settings, every epoch of the curve, and the numbers of the card.

    Args:
        run_dir: a run folder, finished or not.
        to: mlflow (MLFLOW_TRACKING_URI, or a folder here) or wandb (WANDB_MODE=offline writes only files).
        project: experiment of MLflow, or project of W&B.

    Raises:
        UserError: not a run folder, or a damaged one, an unknown tracker, a missing package, a tracker that fails.
    """
    path = Path(run_dir)
    writers = {"mlflow": _to_mlflow, "wandb": _to_wandb}
    if to not in writers:
        raise unknown("tracker", to, writers)
    run = told(path)
    library = needed(to, f"taet track --to {to}", to)
    with custom_code(to):
        return writers[to](library, run, project, path)


def _to_mlflow(library: Any, run: Tracked, project: str, _: Path) -> Written:
    """Write through MLflow's client, which reports the stored steps of each metric."""
    client, entities = library.MlflowClient(), library.entities
    experiment = client.get_experiment_by_name(project)
    number = client.create_experiment(project) if experiment is None else experiment.experiment_id
    found = client.search_runs([number], filter_string=f"tags.`{IDENTITY}` = '{run.identity}'", max_results=1)
    known = found[0] if found else client.create_run(number, tags={IDENTITY: run.identity}, run_name=run.name)
    place, now = known.info.run_id, int(1000 * time.time())
    names = sorted({name for values in run.epochs.values() for name in values})
    there = {name: {one.step for one in client.get_metric_history(place, name)} for name in names if found}
    new = [
        (name, value, epoch)
        for epoch, values in sorted(run.epochs.items())
        for name, value in values.items()
        if epoch not in there.get(name, ())
    ]
    results = [(name, value, 0) for name, value in run.results.items() if known.data.metrics.get(name) != value]
    metrics = [entities.Metric(name, value, now, step) for name, value, step in (*new, *results)]
    params = [entities.Param(*item) for item in run.settings.items() if item[0] not in known.data.params]
    tags = [entities.RunTag(*item) for item in run.tags.items() if known.data.tags.get(item[0]) != item[1]]
    if tags:
        client.log_batch(place, tags=tags)
    for begin in range(0, len(params), MOST_PARAMS):
        client.log_batch(place, params=params[begin : begin + MOST_PARAMS])
    for begin in range(0, len(metrics), MOST_METRICS):
        client.log_batch(place, metrics=metrics[begin : begin + MOST_METRICS])
    if run.finished and known.info.status != "FINISHED":
        client.set_terminated(place, "FINISHED")
    return Written(f"mlflow run {place}", len({epoch for *_, epoch in new}), len(results))


def _to_wandb(library: Any, run: Tracked, project: str, path: Path) -> Written:
    """Write through W&B, resuming the run of the same identity.

    W&B cannot be queried offline, so a file in the run folder records what it holds.
    """
    mark = RunFolder(path).tracked
    stored = read_json(mark, links=False) if mark.exists() else {}
    before = stored.get(project) if isinstance(stored, dict) else None
    before = before if isinstance(before, dict) and before.get("id") == run.identity else {}
    done, results = before.get("epochs", 0), before.get("results")
    epochs = {epoch: values for epoch, values in sorted(run.epochs.items()) if epoch > done}
    changed = run.results if digest(run.results) != results else {}
    place = f"wandb run {project}/{run.identity}"
    if not epochs and not changed:
        return Written(place, 0, 0)
    config = {**run.settings, **run.tags}
    opened = library.init(project=project, id=run.identity, name=run.name, config=config, resume="allow")
    for epoch, values in epochs.items():
        opened.log(dict(values), step=epoch)
    opened.summary.update(dict(changed))
    opened.finish()
    now = {"id": run.identity, "epochs": max([done, *run.epochs]), "results": digest(run.results)}
    write_json(mark, {**(stored if isinstance(stored, dict) else {}), project: now})
    return Written(place, len(epochs), len(changed))


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def _short(value: Any) -> str:
    return str(value)[:MOST_TEXT]
