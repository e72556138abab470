"""The schedule of the learning rate."""

import math

from taet.settings import Run
from taet.training.checks import milestone_epochs

ONE_CYCLE_RISE = 0.3  # default share of the steps over which the rate rises
# first and last rate, relative to the highest
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0, of `steps` in an epoch) in `epoch` (from 0).

    Over the first W = warmup * epochs the rate rises linearly, up to `lr` at the last of their
    steps. After that, `steps`: divided by ten at every milestone that has passed; `cosine`: half of
    1 + cos(pi u), u the completed fraction of the remaining steps (Loshchilov and Hutter, ICLR
    2017, arXiv:1608.03983, without restarts).

    `one-cycle` rises from lr / 25 to lr and falls to lr / 250,000, each by half a cosine (Smith and
    Topin, arXiv:1708.07120, as torch's OneCycleLR has it; the momentum stays).
    """
    training = run.training
    done, total = epoch * steps + step, training.epochs * steps
    if training.decay == "one-cycle":
        return training.lr * _one_cycle(done, total, training.warmup or ONE_CYCLE_RISE)
    rise = round(training.warmup * total)
    if done < rise:
        return training.lr * (done + 1) / rise
    if training.decay == "cosine":
        share = (done - rise) / (total - rise)
        return training.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(training.lr * 0.1**passed)


def _one_cycle(done: int, total: int, rise: float) -> float:
    """Return the rate after `done` of `total` steps, relative to the highest."""
    peak, last = max(rise * total - 1, 0), total - 1
    if done <= peak:
        begin, end = ONE_CYCLE_START, 1.0
        share = done / peak if peak else 1.0
    else:
        begin, end = 1.0, ONE_CYCLE_END
        share = (done - peak) / (last - peak)
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
