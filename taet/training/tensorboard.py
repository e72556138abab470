"""Rows of metrics.jsonl as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from taet.errors import UserError
from taet.training.record import Epoch


class Board:
    """TensorBoard events in a folder, created with the first row; a missing package raises a UserError immediately."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard is missing: pip install 'taet[tensorboard]', or omit --tensorboard") from None
        self.open: Callable[[], Any] = lambda: SummaryWriter(str(folder))
        self.writer: Any = None

    def write(self, epoch: Epoch) -> None:
        """Add the scalars of one epoch."""
        self.writer = self.open() if self.writer is None else self.writer
        for name, value in scalars(epoch).items():
            self.writer.add_scalar(name, value, epoch.epoch)

    def close(self) -> None:
        """Write all pending events."""
        if self.writer is not None:
            self.writer.close()


def scalars(epoch: Epoch) -> dict[str, float]:
    """Learning rate, loss and parts, and balanced accuracies of one row of metrics.jsonl."""
    values = {f"loss/{name}": value for name, value in epoch.loss.items()} | {"lr": epoch.lr or 0.0}
    seen = epoch.balanced_accuracies.items()
    return values | {f"balanced accuracy/{name}": value for name, value in seen if name != "training"}
