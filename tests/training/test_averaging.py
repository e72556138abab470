"""Averages of weights: the schedule of the decay, the closed form of the average, and what a run delivers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from taet.errors import UserError
from taet.settings import Run, Training
from taet.training import resume, train
from taet.training import step as steps
from taet.training.averaging import WeightAverage, ema_decay
from taet.training.curve import TrainingCurve
from taet.training.trainer import Trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())


def test_golden() -> None:
    case = GOLDEN["ema_decay"]
    inputs = case["inputs"]
    found = [ema_decay(step, inputs["warmup"], inputs["tau"]) for step in inputs["steps"]]
    assert found == pytest.approx(case["expected"], abs=case["tolerance"])


def network(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


def test_equal_weights_give_the_mean_of_all_models_and_of_their_statistics() -> None:
    average = WeightAverage(network(100))
    for value in (1, 2, 6):
        average.add_equally(network(value))
    assert average.models == 3
    for name, value in average.tensors.items():
        expected = 6 if name.endswith("num_batches_tracked") else 3
        torch.testing.assert_close(value, torch.full_like(value, expected)), name


def test_a_decay_moves_by_its_complement() -> None:
    average = WeightAverage(network(4))
    average.add(network(8), 0.75)
    assert (average.tensors["0.weight"] == 5).all()
    average.add(network(9), 0.0)
    assert (average.tensors["1.running_mean"] == 9).all()


def test_the_average_is_no_view_of_the_model() -> None:
    model = network(1)
    average = WeightAverage(model)
    average.add_equally(model)
    model[0].weight.data.fill_(7)
    assert (average.tensors["0.weight"] == 1).all()


def test_its_state_is_restored() -> None:
    one, other = WeightAverage(network(1)), WeightAverage(network(2))
    one.add_equally(network(5))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for average in (one, other):
        average.add_equally(network(8))
    assert other.models == 2
    assert all(torch.equal(one.tensors[name], value) for name, value in other.tensors.items())


def watch_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """State of the live model after every step of the runs to come."""
    states: list[dict[str, Tensor]] = []
    step = steps.training_step

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = step(model, *args, **kwargs)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return loss

    monkeypatch.setattr(steps, "training_step", spy)
    return states


def test_a_run_delivers_the_moving_average_of_its_steps(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = watch_weights(monkeypatch)
    run = tiny("at", {"training.epochs": 3, "training.ema": 0.6, "training.batch_size": 24})
    result = train(run, out=tmp_path / "run")
    warmup, name = round(0.025 * len(states)), "head.weight"
    expected = states[0][name]
    for number, state in enumerate(states):
        decay = 0.0 if number < warmup else min(0.6, (1 + number - warmup) / (10 + number - warmup))
        expected = decay * expected + (1 - decay) * state[name]
    delivered = load_file(tmp_path / "run" / "model.safetensors")[name]
    torch.testing.assert_close(delivered, expected)
    assert not torch.allclose(delivered, states[-1][name])
    assert torch.equal(delivered, result.model.state_dict()[name].cpu())


def test_a_run_delivers_the_mean_of_its_last_epochs_with_statistics_of_its_own(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = watch_weights(monkeypatch)
    run = tiny("at", {"training.epochs": 4, "training.swa": 0.5, "training.batch_size": 24})
    train(run, out=tmp_path / "run")
    per_epoch = len(states) // 4
    last_two = [states[(epoch + 1) * per_epoch - 1] for epoch in (2, 3)]
    delivered = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(delivered["head.weight"], (last_two[0]["head.weight"] + last_two[1]["head.weight"]) / 2)
    statistics = next(name for name in delivered if name.endswith("running_var"))
    mean = (last_two[0][statistics] + last_two[1][statistics]) / 2
    assert not torch.allclose(delivered[statistics], mean, rtol=1e-3), "the statistics were estimated anew"


@pytest.mark.parametrize(
    "changes",
    [
        {"training.swa": 0.25},
        *(pytest.param(one, marks=pytest.mark.full) for one in ({"training.ema": 0.5}, {"training.awp": 0.01})),
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    changes: dict[str, Any], tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny("at", {"training.epochs": 3, **changes})
    train(run, out=tmp_path / "whole")
    monkeypatch.setattr("taet.training.trainer.LOOK_SECONDS", -1.0)  # progress after every batch
    trainers: list[Trainer] = []
    calls = iter(range(10**6))

    def progress(*_: object) -> None:
        if next(calls) in (1, 4, 11, 14, 30):  # while training, watching and estimating statistics
            trainers[-1].asked_to_stop.set()

    stops = 0
    with pytest.raises(KeyboardInterrupt):
        train(run, out=tmp_path / "cut", progress=progress, announce=trainers.append)
    for _ in range(10):
        stops += 1
        try:
            resume(tmp_path / "cut", progress=progress, announce=trainers.append)
            break
        except KeyboardInterrupt:
            continue
    assert stops > 1
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_an_average_of_no_epoch_is_refused(tiny: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"swa: got 0\.9; that leaves none of 3 epochs to average"):
        train(tiny("at", {"training.epochs": 3, "training.swa": 0.9}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_what_is_delivered_is_what_was_watched_last(
    bn_mode: str, tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the attack's weights follow the predictions, and batch statistics the attack."""
    watched: list[dict[str, Tensor]] = []
    measure = TrainingCurve.measure

    def spy(self: TrainingCurve, model: nn.Module, *given: Any) -> Any:
        watched.append({name: value.clone() for name, value in model.state_dict().items()})
        return measure(self, model, *given)

    monkeypatch.setattr(TrainingCurve, "measure", spy)
    changes = {"training.swa": 0.4, "threat.weighting": "rbl", "threat.bn_mode": bn_mode}
    delivered = train(tiny("at", {"training.epochs": 3, **changes}), out=tmp_path / "run").model.state_dict()
    assert all(torch.equal(value, delivered[name]) for name, value in watched[-1].items())


def test_two_averages_at_once_are_refused() -> None:
    with pytest.raises(UserError, match=r"swa: got 0\.5 with ema 0\.9"):
        Training(ema=0.9, swa=0.5)
