"""Rows of metrics.jsonl as TensorBoard scalars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from taet import metrics
from taet.errors import UserError


def write_tensorboard(folder: Path, row: dict[str, Any]) -> None:
    """Add one epoch to the events in `folder`: loss and parts, learning rate, balanced accuracies."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is missing: pip install 'taet[tensorboard]', or leave --tensorboard out") from None
    scalars = {f"loss/{name}": value for name, value in row["loss"].items()} | {"lr": row["lr"]}
    for name, counts in (row["monitor"] or {}).items():
        if isinstance(counts, dict):
            scalars[f"balanced accuracy/{name}"] = metrics.balanced_accuracy(counts["correct"], counts["total"])
    with SummaryWriter(str(folder)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, row["epoch"])
