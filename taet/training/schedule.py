"""The learning rate over the epochs."""

from __future__ import annotations

import math

from taet.settings import Run, epoch_at

POINTS, IMAGES = 20, 1000
"""Default points, and images per point, of a curve that does not affect the weights."""

ONE_CYCLE_RISE = 0.3
"""Default fraction of the steps over which one-cycle rises."""
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000
"""First and last rate of one-cycle, relative to the highest."""


def milestone_epochs(run: Run) -> tuple[int, ...]:
    """Milestones as epochs, from 0: they scale with the length of the run."""
    return tuple(epoch_at(share, run.training.epochs) for share in run.training.milestones)


def curve_decides(run: Run, learns: bool) -> bool:
    """Whether the curve selects the epoch, or the method `learns` from it."""
    return learns or run.training.selection != "last"


def watched_epochs(run: Run, learns: bool) -> tuple[int, ...]:
    """Epochs, from 0, with a point of the curve; `learns`: the method learns from it."""
    every, epochs = run.training.monitor_every, run.training.epochs
    if every is None:
        every = 1 if curve_decides(run, learns) else max(1, epochs // POINTS)
    return tuple(e for e in range(epochs) if every and ((e + 1) % every == 0 or e + 1 == epochs))


def watched_images(run: Run, learns: bool) -> int | None:
    """Largest number of images of a point of the curve, None for all; `learns`: the method learns from it."""
    if run.training.monitor_images is None:
        return None if curve_decides(run, learns) else IMAGES
    return run.training.monitor_images


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0, of `steps` in an epoch) in `epoch` (from 0).

    Over the first W = warmup * epochs the rate rises linearly, up to `lr` at the last of their steps. After that,
    `steps`: divided by ten at every milestone that has passed; `cosine`: half of 1 + cos(pi u), u the completed
    fraction of the remaining steps (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, without restarts).

    `one-cycle` rises from lr / 25 to lr and falls to lr / 250,000, each by half a cosine (Smith and Topin,
    arXiv:1708.07120, as torch's OneCycleLR has it; the momentum stays).
    """
    training = run.training
    done, total = epoch * steps + step, training.epochs * steps
    if training.decay == "one-cycle":
        return _one_cycle(training.lr, done, max((training.warmup or ONE_CYCLE_RISE) * total - 1, 0), total - 1)
    rise = round(training.warmup * total)
    if done < rise:
        return training.lr * (done + 1) / rise
    if training.decay == "cosine":
        share = (done - rise) / (total - rise)
        return training.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(training.lr * 0.1**passed)


def _one_cycle(highest: float, done: int, peak: float, last: float) -> float:
    """Rate after `done` steps of a cycle that reaches `highest` at `peak` and ends at `last`, counted from 0."""
    if done <= peak:
        begin, end, share = ONE_CYCLE_START, 1.0, done / peak if peak else 1.0
    else:
        begin, end, share = 1.0, ONE_CYCLE_END, (done - peak) / (last - peak)
    return highest * (end + (begin - end) * (1 + math.cos(math.pi * share)) / 2)
