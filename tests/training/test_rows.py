"""The rows of metrics.jsonl and the record in run.json say what the training did."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import taet
from taet.methods.at import AdversarialTraining
from taet.metrics import accuracies
from taet.run.folder import RunFolder, weights_digest
from taet.run.record import Epoch
from taet.training import TrainingResult, loop, train
from tests.training.conftest import Step, Tiny, recorded_steps

STEPS_PER_EPOCH = 3
IMAGES = 78


def test_the_file_has_the_rows_of_the_result(result: TrainingResult) -> None:
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(result.history)


def test_a_row_has_every_field_of_an_epoch(result: TrainingResult) -> None:
    fields = {field.alias or name for name, field in Epoch.model_fields.items()}
    for row in result.history:
        assert row.keys() == fields


def test_rows_name_the_stages_of_the_method(result: TrainingResult) -> None:
    stages = [(row["epoch"], row["stage"]) for row in result.history]
    assert stages == [(1, "clean"), (2, "adversarial"), (3, "adversarial")]


def test_a_row_counts_every_training_image_once(result: TrainingResult) -> None:
    for row in result.history:
        assert row["train"]["total"] == result.dataset.class_counts.tolist()
        assert sum(row["predicted"]) == len(result.dataset.train)


def test_a_row_has_the_accuracies_of_the_curve_on_its_split(result: TrainingResult) -> None:
    for row in result.history:
        assert row["monitor"].keys() == {"split", "clean", "fgsm", "pgd-1"}


def test_a_row_has_its_time_speed_and_memory(result: TrainingResult) -> None:
    for row in result.history:
        assert row["seconds"] > 0
        assert row["images_per_second"] > 0
        assert row["peak_memory_mb"] > 0


def test_the_parts_of_a_loss_add_up_to_its_total(result: TrainingResult) -> None:
    for row in result.history[1:]:  # the first epoch is clean, without these parts
        parts = dict(row["loss"])
        total = parts.pop("total")
        assert parts.keys() == {"bcl", "hdl", "rcel"}
        assert total == pytest.approx(0.1 * sum(parts.values()), rel=1e-5)


def test_the_record_has_counts_digest_and_indices_of_every_split(result: TrainingResult) -> None:
    stored = json.loads((result.folder / "run.json").read_text())["data"]["splits"]
    assert stored.keys() == result.dataset.splits.keys()
    for name, split in result.dataset.splits.items():
        assert stored[name]["class_counts"] == split.class_counts.tolist()
        assert stored[name]["sha256"] == split.sha256
        assert len(stored[name]["indices"]) == len(split)


def test_the_record_has_method_seed_and_threads(result: TrainingResult) -> None:
    stored = json.loads((result.folder / "run.json").read_text())
    assert (stored["method_title"], stored["run"]["seed"], stored["threads"]) == ("TAET", 0, 1)


def test_the_last_point_of_the_curve_is_that_of_the_delivered_model(result: TrainingResult) -> None:
    test, last = result.dataset.test, result.history[-1]["monitor"]
    card = taet.evaluate(result.model, test.images, test.labels, attacks=("clean",))
    correct, total = accuracies.class_counts(card.column("clean").correct, test.labels, 10)
    assert last["clean"] == {"correct": correct.tolist(), "total": total.tolist()}
    balanced = accuracies.balanced_accuracy(correct, total)
    assert f"clean    balanced accuracy {100 * balanced:.2f} %" in repr(result)


# -- four epochs, every step of which is seen


class Observed(NamedTuple):
    """A finished run, its steps, and what its method was told at the start of each epoch."""

    run: TrainingResult
    steps: list[Step]
    told: list[list[int]]


@pytest.fixture(scope="module")
def observed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    told: list[list[int]] = []
    changes = {"training.epochs": 4, "training.milestones": (0.5, 0.75), "training.lr": 0.02}

    def start_epoch(_: object, __: int, predicted: Tensor) -> None:
        told.append(predicted.tolist())

    with pytest.MonkeyPatch.context() as patch, recorded_steps() as steps:
        patch.setattr(AdversarialTraining, "start_epoch", start_epoch)
        run = train(tiny("at", changes), out=tmp_path_factory.mktemp("observed") / "run")
    return Observed(run, steps, told)


def test_the_learning_rate_falls_at_the_milestones(observed: Observed) -> None:
    rates = [step.lr for step in observed.steps]
    assert rates == pytest.approx([0.02] * 6 + [0.002] * 3 + [0.0002] * 3)


def test_a_row_has_the_learning_rate_of_its_epoch(observed: Observed) -> None:
    rates = [row["lr"] for row in observed.run.history]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.0002])


def test_a_row_counts_the_steps_of_its_epoch_as_a_loop_would(observed: Observed) -> None:
    row, steps = observed.run.history[0], observed.steps[:STEPS_PER_EPOCH]
    labels = torch.cat([step.labels for step in steps])
    predicted = torch.cat([step.loss.logits.argmax(1) for step in steps])
    correct = labels[predicted == labels]
    assert row["predicted"] == predicted.bincount(minlength=10).tolist()
    assert row["train"]["correct"] == correct.bincount(minlength=10).tolist()


def test_the_loss_of_a_row_is_the_mean_over_the_images_of_its_epoch(observed: Observed) -> None:
    row, steps = observed.run.history[0], observed.steps[:STEPS_PER_EPOCH]
    total = sum(step.loss.total.item() * len(step.labels) for step in steps)
    assert row["loss"]["total"] == pytest.approx(total / IMAGES, rel=1e-9)


def test_a_method_is_told_at_the_start_of_an_epoch_what_the_one_before_predicted(
    observed: Observed,
) -> None:
    before = [row["predicted"] for row in observed.run.history[:-1]]
    assert observed.told == [observed.run.dataset.class_counts.tolist(), *before]


class Clock:
    """A clock that stands still but where the test lets it go on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def after(self, seconds: float, returned: object = None) -> Any:
        """Return a function that takes so long and returns a value."""

        def function(*_: object) -> object:
            self.seconds += seconds
            return returned

        return function


def test_the_seconds_of_an_epoch_hold_its_curve_and_its_files_but_not_its_speed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(loop, "drift", clock.after(1, {}))
    monkeypatch.setattr(RunFolder, "write_metrics", clock.after(10))
    history = train(tiny("at"), out=tmp_path / "run").history
    assert [row["seconds"] for row in history] == [1, 11]  # writing is of the next epoch
    assert all(row["images_per_second"] > 1e9 for row in history)  # steps took no time


# -- distances of examples from epoch to epoch

DISTANCES = {"training.epochs": 3, "training.distance_images": 3}


def column(history: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in history]


@pytest.mark.full
def test_distances_of_examples_from_epoch_to_epoch_change_nothing_else(
    tiny: Tiny, tmp_path: Path
) -> None:
    plain = train(tiny("at", {"training.epochs": 3}), out=tmp_path / "plain")
    measured = train(tiny("at", DISTANCES), out=tmp_path / "run")
    assert column(plain.history, "distance") == [None, None, None]
    assert weights_digest(measured.model) == weights_digest(plain.model)


@pytest.mark.full
def test_distances_of_examples_are_means_and_quartiles_of_classes_from_the_second_epoch_on(
    tiny: Tiny, tmp_path: Path
) -> None:
    first, *later = train(tiny("at", DISTANCES), out=tmp_path / "run").history
    assert first["distance"] is None
    for row in later:
        quartiles, mean = np.array(row["distance_quartiles"]), np.array(row["distance"])
        assert quartiles.shape == (10, 3)
        assert (mean > 0).all()
        assert (quartiles[:, 0] <= mean).all()
