"""How long a run will take is told from steps that are those of the run, and fail as they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from taet.errors import UserError
from taet.settings import Run
from taet.training import step as steps
from taet.training import train
from taet.training.trainer import Trainer


def normalised() -> nn.Module:
    """A network whose batch normalisation has one value per channel for each image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def ask(trainer: Trainer) -> None:
    assert trainer.expected_seconds() > 0


@pytest.mark.parametrize("announce", [None, ask], ids=["training", "estimate"])
def test_a_batch_that_batch_normalisation_cannot_take_is_one_line(
    announce: Any, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    run = tiny("at", {"training.batch_size": 1, "threat.bn_mode": "eval"})
    with pytest.raises(UserError, match="a batch of 1 leaves batch normalisation one value per channel; take a larger"):
        train(run, out=tmp_path / "run", model=normalised(), announce=announce)


def test_the_estimate_takes_the_steps_of_the_run(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of each stage, with weight perturbation where it is on, and nothing of the run is moved."""
    step, found = steps.training_step, []

    def recorded(*arguments: Any, **options: Any) -> Any:
        found.append((options["awp"], options["number"]))
        return step(*arguments, **options)

    monkeypatch.setattr(steps, "training_step", recorded)
    run = tiny("taet", {"training.epochs": 4, "training.awp": 0.01, "training.awp_start": 0.5})
    whole = Trainer(run, tmp_path, model=None, dataset=None, progress=None)
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    assert whole.expected_seconds() > 0
    stages = [whole.method.task.stages[epoch] for epoch in range(4)]
    first = {stage: stages.index(stage) for stage in stages}
    assert len(first) == 2
    assert [awp for awp, _ in found] == [0.01 if epoch >= 2 else 0.0 for epoch in first.values() for _ in range(2)]
    assert all(value.equal(before[name]) for name, value in whole.model.state_dict().items())
