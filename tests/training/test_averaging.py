"""Averages of weights: the schedule of the decay, the closed form of the average, and what a run delivers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from taet.errors import UserError
from taet.settings import Run, Training
from taet.training import pauses, resume, train
from taet.training.averaging import averaged, ema_decay
from taet.training.curve import TrainingCurve

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "training.json").read_text())
Tiny = Callable[..., Run]


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
    average = averaged(network(100), lambda number: number / (number + 1))
    for value in (1, 2, 6):
        average.update_parameters(network(value))
    assert average.n_averaged == 3
    for name, tensor in average.module.state_dict().items():
        expected = 6 if name.endswith("num_batches_tracked") else 3
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_a_decay_moves_by_its_complement_from_the_first_model_on() -> None:
    average = averaged(network(4), lambda _: 0.75, models=1)
    average.update_parameters(network(8))
    assert (average.module[0].weight == 5).all()
    average = averaged(network(4), lambda _: 0.75)
    average.update_parameters(network(8))
    assert (average.module[1].running_mean == 8).all()


def test_a_run_delivers_the_moving_average_of_its_steps(tiny: Tiny, tmp_path: Path, steps_seen: list[Any]) -> None:
    run = tiny("at", {"training.epochs": 3, "training.ema": 0.6, "training.batch_size": 24})
    result = train(run, out=tmp_path / "run")
    name, weights = "head.weight", [one[0]["head.weight"] for one in steps_seen]
    warmup, expected = round(0.025 * len(weights)), weights[0]
    for number, value in enumerate(weights):
        decay = 0.0 if number < warmup else min(0.6, (1 + number - warmup) / (10 + number - warmup))
        expected = decay * expected + (1 - decay) * value
    delivered = load_file(tmp_path / "run" / "model.safetensors")[name]
    torch.testing.assert_close(delivered, expected)
    assert not torch.allclose(delivered, weights[-1])
    assert torch.equal(delivered, result.model.state_dict()[name])


def test_a_run_delivers_the_mean_of_its_last_epochs_with_statistics_of_its_own(
    tiny: Tiny, tmp_path: Path, steps_seen: list[Any]
) -> None:
    run = tiny("at", {"training.epochs": 4, "training.swa": 0.5, "training.batch_size": 24})
    train(run, out=tmp_path / "run")
    per_epoch = len(steps_seen) // 4
    one, two = (steps_seen[(epoch + 1) * per_epoch - 1][0] for epoch in (2, 3))
    delivered = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(delivered["head.weight"], (one["head.weight"] + two["head.weight"]) / 2)
    statistics = next(name for name in delivered if name.endswith("running_var"))
    mean = (one[statistics] + two[statistics]) / 2
    assert not torch.allclose(delivered[statistics], mean, rtol=1e-3), "the statistics were estimated anew"


@pytest.mark.parametrize(
    "changes",
    [{"training.swa": 0.25}, pytest.param({"training.ema": 0.5, "training.awp": 0.01}, marks=pytest.mark.full)],
    ids=str,
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    changes: dict[str, Any],
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Callable[[Path, Path], None],
) -> None:
    """Stopped while training, while watching, and while estimating statistics."""
    run = tiny("at", {"training.epochs": 3, **changes})
    train(run, out=tmp_path / "whole")
    monkeypatch.setattr(pauses, "LOOK_SECONDS", -1.0)  # progress after every batch
    calls, stops = iter(range(10**6)), 0

    def progress(*_: object) -> None:
        if next(calls) in (1, 4, 11, 14, 30):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run, out=tmp_path / "cut", progress=progress)
    for _ in range(10):
        stops += 1
        try:
            resume(tmp_path / "cut", progress=progress)
            break
        except KeyboardInterrupt:
            continue
    assert stops > 1
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_what_is_delivered_is_what_was_watched_last(
    bn_mode: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_an_average_of_no_epoch_and_two_at_once_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"swa: got 0\.9; that leaves none of 3 epochs to average"):
        train(tiny("at", {"training.epochs": 3, "training.swa": 0.9}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"swa: got 0\.5 with ema 0\.9"):
        Training(ema=0.9, swa=0.5)
