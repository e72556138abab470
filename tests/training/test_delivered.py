"""Which weights a run delivers: of the last epoch, of the best, or an average."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from taet.evaluation.target import EvaluationTarget
from taet.run.loading import load_model
from taet.run.record import CurvePoint
from taet.settings.schema import from_json
from taet.training import TrainingResult, train
from taet.training.curve import TrainingCurve
from tests.calls import one_line
from tests.training.conftest import Step, Tiny

VALIDATED = {"data.max_count": 40, "data.validation": 0.2, "training.epochs": 3}
BEST_EPOCH = 2


class Delivered(NamedTuple):
    """A file of weights, and the epoch that it says it is of."""

    tensors: dict[str, Tensor]
    epoch: int


def delivered(folder: Path, name: str) -> Delivered:
    path = folder / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return Delivered(load_file(path), json.loads(file.metadata()["taet"])["epoch"])


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name


class Case(NamedTuple):
    """A rule of selection, the test images of the card, and what follows from them."""

    selection: str
    test: str
    epoch: int
    split: str
    leaks: bool
    """The delivered weights were chosen on the images of the card."""


CASES = [
    Case("last", "validation", 3, "validation", leaks=False),
    Case("best-validation", "balanced", 2, "validation", leaks=False),
    Case("best-validation", "validation", 2, "validation", leaks=True),
    Case("best-test", "balanced", 2, "test", leaks=True),
]


class Selected(NamedTuple):
    """A finished run with the selection of a case, and the weights after each of its epochs."""

    case: Case
    run: TrainingResult
    weights_of_epochs: list[dict[str, Tensor]]


@contextmanager
def second_epoch_is_best() -> Iterator[list[dict[str, Tensor]]]:
    """Within this context, the second of three points of a curve is the best; give the weights at
    each point.
    """
    weights: list[dict[str, Tensor]] = []

    def measure(self: TrainingCurve, model: nn.Module, _: object) -> tuple[CurvePoint, None]:
        weights.append(copy.deepcopy(model.state_dict()))
        correct = (1, 3, 2)[len(weights) - 1]
        counts = {"correct": [correct] * 10, "total": [4] * 10}
        return from_json(CurvePoint, {"split": self.name, "clean": counts, "pgd-1": counts}), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingCurve, "measure", measure)
        yield weights


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.selection}-{case.test}")
def selected(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Selected:
    case: Case = request.param
    changes = VALIDATED | {"training.selection": case.selection, "data.test": case.test}
    with second_epoch_is_best() as weights_of_epochs:
        finished = train(tiny("at", changes), out=tmp_path_factory.mktemp("selected") / "run")
    return Selected(case, finished, weights_of_epochs)


@pytest.mark.full
def test_a_run_delivers_the_epoch_that_was_asked_for(selected: Selected) -> None:
    case, run, weights_of_epochs = selected
    tensors, epoch = delivered(run.folder, "model")
    assert epoch == case.epoch
    assert_equal(tensors, weights_of_epochs[case.epoch - 1])
    assert_equal(run.model.state_dict(), weights_of_epochs[case.epoch - 1])


def test_a_run_keeps_the_other_epoch_beside_the_one_that_it_delivers(selected: Selected) -> None:
    case, run, weights_of_epochs = selected
    name, other = ("model-best", BEST_EPOCH) if case.selection == "last" else ("model-last", 3)
    tensors, epoch = delivered(run.folder, name)
    assert epoch == other
    assert_equal(tensors, weights_of_epochs[other - 1])


def test_record_and_rows_name_the_rule_and_the_split_of_the_selection(selected: Selected) -> None:
    case, run, _ = selected
    record = json.loads((run.folder / "run.json").read_text())
    assert record["selection"] == {"rule": case.selection, "split": case.split}
    assert {row["monitor"]["split"] for row in run.history} == {case.split}


def about_model(*given: Any, **options: Any) -> dict[str, Any]:
    """Return what a card says of the model of a run."""
    model: dict[str, Any] = EvaluationTarget.of(*given, **options).about["model"]
    return model


def test_a_card_says_whether_its_images_chose_the_delivered_weights(selected: Selected) -> None:
    case, run, _ = selected
    model = about_model(run.folder, weights="model")
    assert (model["selection"], model["leak"]) == (case.selection, case.leaks)


def test_a_card_says_whether_its_images_chose_the_other_weights(selected: Selected) -> None:
    case, run, _ = selected
    if case.selection == "last":  # best on the validation images, which are those of this card
        model = about_model(run.folder, weights="model-best")
        assert (model["selection"], model["leak"]) == ("best-validation", True)
    else:
        model = about_model(run.folder, weights="model-last")
        assert (model["selection"], model["leak"]) == ("last", False)


def test_other_images_may_hold_test_images_that_chose_the_weights(selected: Selected) -> None:
    images, labels = np.zeros((1, 8, 8, 1), np.uint8), np.array([0])
    model = about_model(selected.run.folder, images, labels)
    assert model["leak"] == selected.case.leaks


# -- weights that are not there


@pytest.fixture(scope="module")
def without_best(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose curve is of test images: it keeps no best epoch."""
    run = tiny("at", {"training.epochs": 3})
    return train(run, out=tmp_path_factory.mktemp("without") / "run").folder


@pytest.fixture
def lost_best(tiny: Tiny, tmp_path: Path) -> Path:
    """A run whose best epoch was removed."""
    with second_epoch_is_best():
        folder = train(tiny("at", VALIDATED), out=tmp_path / "lost").folder
    (folder / "model-best.safetensors").unlink()
    return folder


@pytest.mark.parametrize("run", ["without_best", "lost_best"])
def test_a_best_epoch_that_a_run_lost_or_never_had_is_not_replaced_by_another(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(run)
    with one_line(r"holds no model-best.safetensors: it has model.safetensors"):
        load_model(folder, "model-best")


def test_the_last_epoch_is_that_which_was_delivered_where_there_is_no_other_file(
    without_best: Path,
) -> None:
    _, model, _ = load_model(without_best, "model-last")
    assert_equal(model.state_dict(), load_file(without_best / "model.safetensors"))


def test_delivered_weights_that_were_removed_are_told(without_best: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(without_best, tmp_path / "run"))
    (folder / "model.safetensors").unlink()
    with one_line("holds no model.safetensors: they were removed after the training"):
        load_model(folder)


# -- averages


def moving_average(values: list[Tensor], decay: float, warmup: int) -> Tensor:
    """Return the average of the values so far; the decay rises from 0.1 after `warmup` values."""
    average = values[0]
    for number, value in enumerate(values):
        since = number - warmup
        own_decay = 0.0 if since < 0 else min(decay, (1 + since) / (10 + since))
        average = own_decay * average + (1 - own_decay) * value
    return average


def test_a_run_delivers_the_moving_average_of_its_steps(
    tiny: Tiny, tmp_path: Path, steps_seen: list[Step]
) -> None:
    run = tiny("at", {"training.epochs": 3, "training.ema": 0.6, "training.batch_size": 24})
    train(run, out=tmp_path / "run")
    heads = [step.weights["head.weight"] for step in steps_seen]
    expected = moving_average(heads, 0.6, warmup=round(0.025 * len(heads)))
    found = load_file(tmp_path / "run" / "model.safetensors")["head.weight"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, heads[-1])


@pytest.mark.full
def test_a_run_delivers_the_mean_of_its_last_epochs_with_statistics_of_its_own(
    tiny: Tiny, tmp_path: Path, steps_seen: list[Step]
) -> None:
    changes = {"training.epochs": 4, "training.swa": 0.5, "training.batch_size": 24}
    train(tiny("at", changes), out=tmp_path / "run")
    per_epoch = len(steps_seen) // 4
    third, fourth = (steps_seen[(epoch + 1) * per_epoch - 1].weights for epoch in (2, 3))
    found = load_file(tmp_path / "run" / "model.safetensors")
    mean = (third["head.weight"] + fourth["head.weight"]) / 2
    torch.testing.assert_close(found["head.weight"], mean)
    variance = next(name for name in found if name.endswith("running_var"))
    mean_variance = (third[variance] + fourth[variance]) / 2
    assert not torch.allclose(found[variance], mean_variance, rtol=1e-3), "estimated anew"
