"""Transfer between the models of a page: accuracy on adversarial examples that were made on another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taet.evaluation import transfer
from taet.report.series import Series


@dataclass(frozen=True)
class TransferTable:
    """Balanced accuracy: one row per attacked model, one column per model that the examples were made on."""

    attack: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, float, tuple[float, ...]], ...]
    """Name, accuracy on clean images, and on the examples of each column; nan if not measured."""


def matrices(all_series: Sequence[Series]) -> tuple[TransferTable, ...]:
    """Return a table for each attack whose examples were transferred between these models."""
    cards = {
        one.label if len(one.runs) == 1 else f"{one.label}, seed {run.seed}": run.card
        for one in all_series
        for run in one.runs
        if run.card is not None
    }
    found = []
    for matrix in transfer.matrices(cards):
        there = ~np.isnan(matrix.balanced) & ~np.eye(len(matrix.names), dtype=bool)
        taking_part = np.flatnonzero(there.any(0) | there.any(1))
        rows = [
            (matrix.names[row], float(matrix.clean[row]), tuple(map(float, matrix.balanced[row, taking_part])))
            for row in taking_part
        ]
        found.append(TransferTable(matrix.attack, tuple(matrix.names[column] for column in taking_part), tuple(rows)))
    return tuple(found)
