"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from taet.data import Dataset
from taet.formatting import plural
from taet.settings import Run
from taet.training.collapse import training_flags
from taet.training.record import Epoch, MetricsRow


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: its folder, the model that it delivers (eval mode), the data, and one row per epoch."""

    folder: Path
    run: Run
    model: nn.Module
    dataset: Dataset
    history: tuple[MetricsRow, ...]

    def __repr__(self) -> str:
        epochs = [Epoch.from_json(row) for row in self.history]
        lines = [f"{self.run.method} on {self.dataset.name}: {plural(len(epochs), 'epoch')}, {self.folder}"]
        for point in [epoch.monitor for epoch in epochs if epoch.monitor][-1:]:
            where = f"({point.split}, last point of the curve)"
            seen = {name: counts.balanced_accuracy for name, counts in point.counts.items()}
            lines += [f"  {name:8} balanced accuracy {100 * value:.2f} % {where}" for name, value in seen.items()]
        flags = training_flags(epochs)
        return "\n".join([*lines, *(f"  {name}: {text}" for name, text in flags.items())])
