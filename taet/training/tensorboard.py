"""Rows of metrics.jsonl as TensorBoard scalars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from taet import metrics
from taet.errors import UserError

Row = dict[str, Any]


@contextlib.contextmanager
def board(folder: Path, wanted: bool) -> Iterator[Callable[[Row], None]]:
    """Yield a function that adds one epoch's row to the events in `folder`, or does nothing where none are wanted."""
    if not wanted:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is missing: pip install 'taet[tensorboard]', or leave --tensorboard out") from None
    with SummaryWriter(str(folder)) as writer:

        def write(row: Row) -> None:
            for name, value in scalars(row).items():
                writer.add_scalar(name, value, row["epoch"])

        yield write


def scalars(row: Row) -> dict[str, float]:
    """Learning rate, loss and parts, and balanced accuracies of one row of metrics.jsonl."""
    values = {f"loss/{name}": value for name, value in row["loss"].items()} | {"lr": row["lr"]}
    for name, counts in (row["monitor"] or {}).items():
        if isinstance(counts, dict):
            values[f"balanced accuracy/{name}"] = metrics.balanced_accuracy(counts["correct"], counts["total"])
    return values
