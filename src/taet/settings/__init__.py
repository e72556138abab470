"""The settings of a run: what was asked, frozen, checked, and one JSON."""

from taet.settings.schema import (
    Data,
    Evaluation,
    Model,
    Outer,
    Run,
    Slurm,
    Threat,
    Training,
    flat,
    override,
)

__all__ = [
    "Data",
    "Evaluation",
    "Model",
    "Outer",
    "Run",
    "Slurm",
    "Threat",
    "Training",
    "flat",
    "override",
]
