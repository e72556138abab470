"""How long a run will take is told from steps that are those of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taet.settings import Run
from taet.training import expected
from taet.training.prepare import prepare


def test_the_estimate_takes_the_steps_of_the_run(tiny: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of each stage, with weight perturbation where it is on, and nothing of the run is moved."""
    step, found = expected.training_step, []

    def recorded(state: Any, *given: Any) -> Any:
        found.append((state.method.stage, state.awp))
        return step(state, *given)

    monkeypatch.setattr(expected, "training_step", recorded)
    plan, state = prepare(tiny("taet", {"training.epochs": 4, "training.awp": 0.01, "training.awp_start": 0.5}))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    assert expected.expected_seconds(plan, state) > 0
    assert found == [("clean", 0.0)] * 2 + [("adversarial", 0.01)] * 2
    assert all(value.equal(before[name]) for name, value in state.model.state_dict().items())
    assert (state.epoch, state.step) == (0, 0)
