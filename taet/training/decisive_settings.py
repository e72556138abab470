"""Equality of runs: the settings that determine their numbers, for resuming, reports and comparisons."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from taet.errors import UserError
from taet.files import digest
from taet.settings import Data, Run, from_json, to_json

# Settings of place, speed and saving.
MACHINE = frozenset(
    {
        "data.root",
        "data.storage",
        "training.capture",
        "training.device",
        "training.save_minutes",
        "training.tensorboard",
        "training.threads",
        "training.workers",
    }
)
CURVE = frozenset({"training.monitor_every", "training.monitor_images", "training.monitor_steps"})
"""Settings that affect weights only if the curve selects the epoch or the method learns from it."""
LATER = frozenset({"evaluation.attacks", "evaluation.search_precision"})
"""Settings of the evaluation of the finished model."""


def training_settings(run: Run | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine a run's training, by dotted name.

    `run` may be given as JSON, which is read as this version reads it; what it cannot read is taken as stored.
    """
    values = run
    if not isinstance(run, Run):
        with contextlib.suppress(UserError):
            values = from_json(Run, current(run))
    behind = {} if isinstance(run, Run) else left_behind(run)
    values = to_json(values) if isinstance(values, Run) else current(values)
    return {name: value for name, value in _flat(values, "") if name not in MACHINE | LATER} | behind


def current(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored JSON of a run without the settings of its data that have left."""
    data = {name: value for name, value in stored.get("data", {}).items() if name not in Data.left}
    return {**stored, **({"data": data} if "data" in stored else {})}


def left_behind(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have left and are not at their default, by dotted name."""
    data = stored.get("data", {})
    return {f"data.{name}": data[name] for name, value in Data.left.items() if name in data and data[name] != value}


def run_hash(run: Run | Mapping[str, Any]) -> str:
    """SHA-256 of these settings and the later attacks, as stored in checkpoints and weights.

    For stored JSON it is the hash of the version that wrote it: later versions may have more settings.
    """
    values = to_json(run) if isinstance(run, Run) else run
    parts = {part: entry for part, entry in values.items() if isinstance(entry, Mapping)}
    kept = {
        part: {name: entry for name, entry in entries.items() if f"{part}.{name}" not in MACHINE}
        for part, entries in parts.items()
    }
    return digest({**values, **kept})


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
