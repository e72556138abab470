"""The settings of a run: what was asked, frozen, checked, and one JSON."""

from taet.settings.schema import (
    SHORT,
    Data,
    Evaluation,
    Model,
    Outer,
    Run,
    Slurm,
    Threat,
    Training,
    epoch_at,
    flat,
    from_json,
    option,
    option_words,
    override,
)

__all__ = [
    "SHORT",
    "Data",
    "Evaluation",
    "Model",
    "Outer",
    "Run",
    "Slurm",
    "Threat",
    "Training",
    "epoch_at",
    "flat",
    "from_json",
    "option",
    "option_words",
    "override",
]
