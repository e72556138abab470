"""The work of a run, in passes of an image through the model, and its duration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from taet.settings import Run


@dataclass(frozen=True)
class RunWork:
    """Forward and backward passes of an image; a backward pass to the weights counts as two."""

    training: tuple[float, ...]
    """For every epoch."""
    curve: tuple[float, ...]
    """For the point of the curve after every epoch."""

    @property
    def total(self) -> float:
        return sum(self.training) + sum(self.curve)

    def done(self, epoch: int, trained: float, watched: float) -> float:
        """Return the finished work in `epoch`, from 0, after these fractions of its training and of its curve point."""
        before = sum(self.training[:epoch]) + sum(self.curve[:epoch])
        if epoch == len(self.training):
            return before
        return before + self.training[epoch] * trained + self.curve[epoch] * min(watched, 1)

    def seconds(self, stages: Sequence[str], pace: Callable[[int], float]) -> float:
        """Return the duration; pace(epoch) measures the seconds of one pass in a step of the stage of `epoch`.

        The points of the curve run at the pace of the fastest stage.
        """
        found = {stage: pace(stages.index(stage)) for stage in dict.fromkeys(stages)}
        parts = zip(stages, self.training, self.curve, strict=True)
        return sum(trained * found[stage] + watched * min(found.values()) for stage, trained, watched in parts)


def work_of(run: Run, stages: Sequence[str], images: int, curve_epochs: Collection[int], curve_images: int) -> RunWork:
    """Return the work of a run on `images`, with points of the curve on `curve_images` after `curve_epochs`."""
    steps = 2 * run.threat.steps
    point = curve_images * (2.0 + 2 * run.training.monitor_steps)
    return RunWork(
        tuple(images * (3.0 + (0 if stage == "clean" else steps)) for stage in stages),
        tuple(point if epoch in curve_epochs else 0.0 for epoch in range(len(stages))),
    )
