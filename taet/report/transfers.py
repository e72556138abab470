"""Transfer between the models of a page: accuracy on adversarial examples that were made on another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from taet.evaluation import transfer
from taet.evaluation.transfer import Transfer
from taet.report.series import Series


def matrices(all_series: Sequence[Series]) -> list[Transfer]:
    """Return the matrix of each attack whose examples were transferred between these models, without other models."""
    cards = {
        one.label if len(one.runs) == 1 else f"{one.label}, seed {run.seed}": run.card
        for one in all_series
        for run in one.runs
        if run.card is not None
    }
    found = []
    for matrix in transfer.matrices(cards):
        there = ~np.isnan(matrix.balanced) & ~np.eye(len(matrix.names), dtype=bool)
        part = np.flatnonzero(there.any(0) | there.any(1))
        names, both = tuple(matrix.names[row] for row in part), np.ix_(part, part)
        clean, balanced, accuracy = matrix.clean[part], matrix.balanced[both], matrix.accuracy[both]
        found.append(replace(matrix, names=names, clean=clean, balanced=balanced, accuracy=accuracy))
    return found
