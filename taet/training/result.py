"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taet.data import Dataset
from taet.formatting import plural
from taet.settings import Run
from taet.training.collapse import training_flags
from taet.training.record import Epoch, MetricsRow, balanced_accuracies


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: its folder, the model that it delivers (eval mode), the data, and one row per epoch."""

    folder: Path
    run: Run
    model: nn.Module
    dataset: Dataset
    history: tuple[MetricsRow, ...]

    def __repr__(self) -> str:
        watched = [row for row in self.history if row["monitor"]][-1:]
        epochs = plural(len(self.history), "epoch")
        lines = [f"{self.run.method} on {self.dataset.name}: {epochs}, {self.folder}"]
        for row in watched:
            where = f"({row['monitor']['split']}, last point of the curve)"
            seen = balanced_accuracies(row["monitor"]).items()
            lines += [f"  {name:8} balanced accuracy {100 * value:.2f} % {where}" for name, value in seen]
        flags = training_flags([Epoch.from_json(row) for row in self.history])
        return "\n".join([*lines, *(f"  {name}: {text}" for name, text in flags.items())])
