"""Which settings decide the numbers of a run: one answer for resuming, for reports and for comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from taet import config
from taet.config import Run
from taet.training.checkpoint import digest

# Where and how fast a run is made, and how often it is saved.
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
LATER = frozenset({"evaluation.attacks"})
"""Settings that say what happens to the finished model."""


def decisive(run: Run | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's training, by dotted name; `run` may be given as JSON."""
    values = config.to_json(run) if isinstance(run, Run) else run
    return {name: value for name, value in _flat(values, "") if name not in MACHINE | LATER}


def run_hash(run: Run) -> str:
    """SHA-256 of the decisive settings and the attacks to come, as checkpoints and weights carry it."""
    values = config.to_json(run)
    for part, _, name in (setting.partition(".") for setting in MACHINE):
        del values[part][name]
    return digest(values)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value
