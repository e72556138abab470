"""Feedback: a method learns from validation images at each point of the curve, never from a test
image."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from taet import methods
from taet.data import DataFacts
from taet.errors import UserError
from taet.methods.base import ClassFeedback
from taet.run.folder import weights_digest
from taet.settings import Run, override
from taet.training import TrainingResult, resume, train
from taet.training.checks import resolve
from taet.training.curve import TrainingCurve
from taet.training.loop import TrainingMonitor
from taet.training.prepare import TrainingPlan
from tests.golden_numbers import Golden
from tests.training.conftest import Tiny

FACTS = {"validation": 10, "test": 30}
CHANGES = {
    "data.max_count": 30,
    "data.validation": 0.2,
    "training.epochs": 3,
    "training.precision": "float32",
}


@pytest.fixture(scope="module")
def run(tiny: Tiny) -> Run:
    return tiny("wat", CHANGES)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run that nothing stopped."""
    return train(run, out=tmp_path_factory.mktemp("whole") / "run")


def same(one: TrainingResult, other: TrainingResult) -> bool:
    return weights_digest(one.model) == weights_digest(other.model)


def test_it_is_told_of_every_validation_image_and_learns_from_it(
    run: Run, whole: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ClassFeedback] = []
    method = methods.find("wat")
    feedback = method.feedback

    def listening(self: Any, epoch: int, seen: ClassFeedback) -> None:
        told.append(seen)
        feedback(self, epoch, seen)

    monkeypatch.setattr(method, "feedback", listening)
    again = train(run, out=tmp_path / "run")
    assert same(whole, again)
    split = again.dataset.validation
    for seen, row in zip(told, again.history, strict=True):
        assert seen.images.tolist() == split.class_counts.tolist()
        assert seen.clean.tolist() == row["monitor"]["clean"]["correct"]
        assert seen.robust.tolist() == row["monitor"]["pgd-1"]["correct"]
    x = torch.from_numpy(split.images).movedim(3, 1) / 255
    labels = torch.from_numpy(split.labels)
    losses = torch.nn.functional.cross_entropy(
        again.model(x).detach(), labels, reduction="none"
    ).double()
    expected = torch.zeros(10, dtype=torch.float64).index_add_(0, labels, losses)
    torch.testing.assert_close(seen.clean_loss, expected, rtol=1e-4, atol=1e-5)
    assert (seen.divergence >= 0).all()


class Sealed:
    """In the place of test images: nothing may be asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test set was asked for {name}")


def test_no_test_image_is_touched_once_training_has_begun(
    run: Run, whole: TrainingResult, tmp_path: Path
) -> None:
    def seal(plan: TrainingPlan, *_: object) -> None:
        assert plan.dataset.test.sha256  # known from here on; every checkpoint holds it
        for name in ("images", "labels"):
            object.__setattr__(plan.dataset.test, name, Sealed())

    assert same(whole, train(run, out=tmp_path / "run", announce=seal))


@pytest.mark.full
@pytest.mark.parametrize(("at", "when"), [(1, "after"), (2, "before")])
def test_killed_where_an_epoch_is_saved_it_learns_from_each_point_once(
    run: Run,
    whole: TrainingResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    when: str,
) -> None:
    save, saves = TrainingMonitor.save, itertools.count()  # the first one is of the initial weights

    def killing(self: TrainingMonitor) -> None:
        last = next(saves) == at
        if last and when == "before":
            raise SystemExit
        save(self)
        if last:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "save", killing)
        with pytest.raises(SystemExit):
            train(run, out=tmp_path / "run")
    resumed = resume(tmp_path / "run")
    assert same(whole, resumed)
    assert [row["monitor"] for row in resumed.history] == [row["monitor"] for row in whole.history]


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        (
            {},
            {"test": 30},
            "got no validation split, .* test set\\): add --data.validation 0.1, or",
        ),
        ({"training.monitor_every": 0}, FACTS, "got monitor every 0; allowed: 1 or more"),
        ({"training.selection": "best-test"}, FACTS, "got selection best-test; allowed: last"),
    ],
)
def test_without_validation_images_it_is_refused_in_one_line(
    tiny: Tiny, changes: dict[str, Any], sizes: dict[str, int], message: str
) -> None:
    facts = DataFacts((50, 20, 10), (3, 32, 32), {"train": 80} | sizes)
    for method, settings in (("wat", {}), ("robust-lt", {"base": "wat"})):
        with pytest.raises(UserError, match=f"^{method}: {message}"):
            resolve(
                tiny(method, changes | {"settings": methods.find(method).Config(**settings)}), facts
            )


def test_a_curve_whose_only_point_follows_the_last_epoch_is_refused(tiny: Tiny) -> None:
    facts = DataFacts((50, 20, 10), (1, 8, 8), {"train": 80} | FACTS)
    for name, settings in (("wat", {}), ("frl", {"begin": 0.0}), ("robust-lt", {"base": "wat"})):
        run = tiny(name, {"settings": methods.find(name).Config(**settings), "training.epochs": 24})
        assert resolve(override(run, {"training.monitor_every": 23}), facts)
        with pytest.raises(
            UserError,
            match=rf"^{name}: got 24 epochs, and it first learns .* after epoch 24; allowed: more",
        ):
            resolve(override(run, {"training.monitor_every": 24}), facts)
    # An average of admitted epochs may begin with the last one.
    gate = {"settings": methods.find("cfa").Config(gate="relative")}
    assert resolve(
        override(tiny("cfa"), gate | {"training.epochs": 24, "training.monitor_every": 24}), facts
    )


@pytest.mark.full
def test_an_average_of_admitted_epochs_is_delivered_and_resumed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs 2 and 4 of four are admitted, by a gate of this test, which a stop after it does not
    ask again."""
    asked: list[int] = []

    def accepts_epoch(_: Any, epoch: int, __: ClassFeedback) -> bool:
        asked.append(epoch)
        return epoch in (1, 3)

    monkeypatch.setattr(methods.find("cfa"), "accepts_epoch", accepts_epoch)
    config = methods.find("cfa").Config(gate="absolute", average=0.5)
    run = override(tiny("cfa", CHANGES), {"settings": config, "training.epochs": 4})
    live: list[dict[str, torch.Tensor]] = []  # the initial weights, and those after each epoch

    def keeping(self: TrainingMonitor, save: Any = TrainingMonitor.save) -> None:
        live.append({name: value.clone() for name, value in self.state.model.state_dict().items()})
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "save", keeping)
        finished = train(run, out=tmp_path / "run")
    assert asked == [0, 1, 2, 3]
    for name, value in finished.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (live[2][name] + live[4][name]) / 2)
    accuracies = [row["monitor"]["pgd-1"] for row in finished.history]
    assert accuracies[1] == accuracies[2], "the average did not move"
    measure, points = TrainingCurve.measure, itertools.count()

    def stopping(self: TrainingCurve, model: Any, monitor: Any) -> Any:
        # the curve after epoch 2: each epoch has a point for the gate, and one for the curve
        if next(points) == 3:
            signal.raise_signal(signal.SIGINT)
        return measure(self, model, monitor)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCurve, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(run, out=tmp_path / "stopped")
    assert same(finished, resume(tmp_path / "stopped"))
    assert asked[4:] == [0, 1, 2, 3]


@pytest.mark.full
def test_a_curve_that_decides_nothing_looks_at_few_images(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taet.training.curve.IMAGES", 12)
    for number, (method, selection) in enumerate(
        (("at", "last"), ("at", "best-validation"), ("wat", "last"))
    ):
        run = tiny(method, CHANGES | {"training.selection": selection, "training.epochs": 2})
        finished = train(run, out=tmp_path / str(number))
        validation = finished.dataset.validation
        shown = sum(finished.history[-1]["monitor"]["clean"]["total"])
        assert (shown == 12, shown == len(validation)) == (number == 0, number > 0)


def test_a_class_without_an_image_counts_as_the_mean_of_the_others() -> None:
    golden = Golden("feedback_rates")
    images, zero = golden["images"], torch.zeros_like(golden["images"])
    seen = ClassFeedback(images, zero, golden["robust"], zero, zero)
    assert seen.rates(seen.robust).tolist() == pytest.approx(golden.expected["rates"], abs=1e-12)
