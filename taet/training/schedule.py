"""The learning rate over the epochs."""

from __future__ import annotations

from taet.config import Run


def milestone_epochs(run: Run) -> tuple[int, ...]:
    """Milestones as epochs, from 0: they scale with the length of the run."""
    return tuple(round(share * run.training.epochs) for share in run.training.milestones)


def learning_rate(run: Run, epoch: int) -> float:
    """Learning rate of `epoch` (from 0): divided by ten at every milestone that has passed."""
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(run.training.lr * 0.1**passed)
