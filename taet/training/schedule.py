"""The learning rate over the epochs."""

from __future__ import annotations

import math

from taet.config import Run, epoch_at


def milestone_epochs(run: Run) -> tuple[int, ...]:
    """Milestones as epochs, from 0: they scale with the length of the run."""
    return tuple(epoch_at(share, run.training.epochs) for share in run.training.milestones)


def watched_epochs(run: Run) -> tuple[int, ...]:
    """Epochs, from 0, that have a point of the curve."""
    every, epochs = run.training.monitor_every, run.training.epochs
    return tuple(e for e in range(epochs) if every and ((e + 1) % every == 0 or e + 1 == epochs))


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0, of `steps` in an epoch) in `epoch` (from 0).

    Over the first W = warmup * epochs the rate rises linearly, up to `lr` at the last of their steps. From there
    `steps`: divided by ten at every milestone that has passed; `cosine`: half of 1 + cos(pi u), u the completed
    share of the remaining steps (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, without restarts).
    """
    training = run.training
    done, rise = epoch * steps + step, round(training.warmup * training.epochs * steps)
    if done < rise:
        return training.lr * (done + 1) / rise
    if training.decay == "cosine":
        share = (done - rise) / (training.epochs * steps - rise)
        return training.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(training.lr * 0.1**passed)
