"""A run that is stopped anywhere and resumed is the run that was not."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from taet import models
from taet.errors import UserError
from taet.files import seal
from taet.settings import Run
from taet.training import TrainingResult, resume, train
from taet.training import step as steps
from taet.training.folder import RunFolder
from taet.training.interruption import interruption

STEPS = 6  # two epochs of three steps
AssertSame = Callable[[Path, Path], None]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "at": ("at", {}),
    "stages": ("taet", {}),  # epoch 1 is clean, epoch 2 is not
    "validation": ("harl", {"data.max_count": 30, "data.validation": 0.2, "training.selection": "best-validation"}),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is tidied up."""


@pytest.fixture(scope="module", params=RUNS)
def whole(
    request: pytest.FixtureRequest, tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    """A run that nothing stopped."""
    method, changes = RUNS[request.param]
    return train(tiny(method, changes), out=tmp_path_factory.mktemp("whole") / "run")


def go_on(run: Run, folder: Path) -> None:
    """What a user does after a kill."""
    if (folder / "run.json").exists():
        resume(folder)
    else:
        train(run, out=folder)


def stopping(monkeypatch: pytest.MonkeyPatch, at: int, stop: Callable[[], None]) -> None:
    """Call `stop` before the step with index `at`."""
    step, calls = steps.training_step, itertools.count()

    def wrapped(*args: Any, **options: Any) -> Any:
        if next(calls) == at:
            stop()
        return step(*args, **options)

    monkeypatch.setattr(steps, "training_step", wrapped)


def raise_killed() -> None:
    raise Killed


def killed(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed before its third step."""
    with monkeypatch.context() as patch:
        stopping(patch, 2, raise_killed)
        with pytest.raises(Killed):
            train(run, out=folder)
    return folder


@pytest.mark.sample(3)
@pytest.mark.diagonal("whole", "at")
@pytest.mark.parametrize("at", range(STEPS))
def test_killed_before_any_step(
    whole: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame, at: int
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, at, raise_killed)
        with pytest.raises(Killed):
            train(whole.run, out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").exists()  # from before the first step on
    go_on(whole.run, tmp_path / "run")
    assert_same(tmp_path / "run", whole.folder)


@pytest.mark.sample(3)
@pytest.mark.diagonal("whole", "at")
@pytest.mark.parametrize("at", range(STEPS))
def test_interrupted_in_any_step(
    whole: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame, at: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stopping(patch, at, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(whole.run, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        stopping(patch, STEPS - at - 1, raise_killed)  # the step under way was finished and kept: none more is needed
        resume(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(tmp_path / "run", whole.folder)


def test_a_run_of_a_version_with_fewer_settings_goes_on(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny("at", {})
    whole, folder = train(run, out=tmp_path / "whole"), RunFolder(killed(run, tmp_path / "run", monkeypatch))
    state, record = folder.load_checkpoint(folder.record.run_hash), json.loads((folder.path / "run.json").read_text())
    del record["run"]["data"]["fit"]
    (folder.path / "run.json").write_text(json.dumps(seal(record)))
    older = RunFolder(folder.path)
    older.save_checkpoint(state | {"run_hash": older.record.run_hash})
    result = resume(folder.path)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.state_dict().items())
    RunFolder(folder.path).check_weights()
    assert resume(folder.path).history == result.history


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 4])
def test_killed_at_every_write(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame, every: int
) -> None:
    changes = {"training.save_minutes": 0.0, "training.batch_size": 64, "evaluation.batch_size": 500}
    run = tiny("taet", changes | {"data.validation": 0.2, "training.selection": "best-validation"})
    flush, writes = os.fsync, itertools.count()

    def counted(descriptor: int) -> None:
        next(writes)
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        whole = train(run, out=tmp_path / "whole")
    total = next(writes)
    assert total > 20
    for number in range(0, total, every):
        folder, calls = tmp_path / str(number), itertools.count()

        def killing(_: int, calls: itertools.count[int] = calls, number: int = number) -> None:
            if next(calls) == number:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", killing)
            with pytest.raises(Killed):
                train(run, out=folder)
        folder.mkdir(exist_ok=True)  # a kill before anything was written in it leaves it, an exception does not
        unfinished = folder / f".taet-{number:016x}.part"  # what a kill leaves where no exception is raised
        unfinished.write_bytes(b"half of it")
        go_on(run, folder)
        assert not unfinished.exists()
        assert_same(folder, whole.folder)


@pytest.mark.sample(3)
def test_stopped_again_and_again(
    whole: TrainingResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame
) -> None:
    folder = tmp_path / "run"
    for _ in range(STEPS):
        with monkeypatch.context() as patch:
            stopping(patch, 0, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(KeyboardInterrupt):
                go_on(whole.run, folder)
    resume(folder)
    assert_same(folder, whole.folder)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("at", "again"), [(3, True), (4, False)])
def test_a_method_is_told_of_each_epoch_once(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, again: bool
) -> None:
    told: list[tuple[int, list[float]]] = []

    def start_epoch(_: Any, epoch: int, predicted_counts: Tensor) -> None:
        told.append((epoch, predicted_counts.tolist()))

    monkeypatch.setattr("taet.methods.at.AdversarialTraining.start_epoch", start_epoch)
    run = tiny("at", {"training.save_minutes": 0.0})
    with monkeypatch.context() as patch:
        stopping(patch, at, raise_killed)
        with pytest.raises(Killed):
            train(run, out=tmp_path / "run")
    assert [epoch for epoch, _ in told] == [0, 1]
    history = resume(tmp_path / "run").history
    second = (1, history[0]["predicted"])
    assert told[1:] == ([second, second] if again else [second])  # again only where epoch 2 had no step yet


def test_a_finished_run_is_returned_as_it_is(
    whole: TrainingResult, monkeypatch: pytest.MonkeyPatch, rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    before = rows(whole.folder), (whole.folder / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        stopping(patch, 0, raise_killed)
        again = resume(whole.folder)
    assert again.history == whole.history
    assert (rows(whole.folder), (whole.folder / "model.safetensors").read_bytes()) == before


@pytest.fixture
def begun_from(tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A file of pretrained weights, a whole run that begins from it, and one that was killed."""
    file = tmp_path / "start.pt"
    torch.save(models.build("resnet8", 10, (1, 8, 8), seed=3).state_dict(), file)
    run = tiny("at", {"model.weights": str(file)})
    whole = train(run, out=tmp_path / "whole").folder
    return file, whole, killed(run, tmp_path / "run", monkeypatch)


def test_pretrained_weights_are_not_needed_again(begun_from: tuple[Path, Path, Path], assert_same: AssertSame) -> None:
    file, whole, folder = begun_from
    record = (folder / "run.json").read_bytes()
    file.unlink()
    notes = resume(folder).model.notes
    assert_same(folder, whole)
    assert (folder / "run.json").read_bytes() == record
    assert list(notes) == json.loads(record)["model_notes"]
    assert notes[0].startswith("weights: ")
    assert str(file) in notes[0]


def test_without_a_checkpoint_pretrained_weights_must_be_those_of_the_run(
    begun_from: tuple[Path, Path, Path], assert_same: AssertSame
) -> None:
    file, whole, folder = begun_from
    (folder / "checkpoint.pt").unlink()
    content = file.read_bytes()
    torch.save(models.build("resnet8", 10, (1, 8, 8), seed=4).state_dict(), file)
    with pytest.raises(UserError, match=r"start\.pt: got SHA-256 \w{12}; .* was started with SHA-256 \w{12}"):
        resume(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"weights .*start\.pt: got no file; .* was started with SHA-256 \w{12}"):
        resume(folder)
    file.write_bytes(content)
    resume(folder)
    assert_same(folder, whole)


OWN = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".called").touch()

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_code_of_ones_own_is_run_again_but_none_that_lies_in_the_run(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, trap = "own_net_to_resume", tmp_path / "run" / "trap.py"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    folder = killed(tiny("at", {"model.name": f"{name}:build"}), tmp_path / "run", monkeypatch)
    del sys.modules[name]
    (tmp_path / f"{name}.called").unlink()
    record = (folder / "run.json").read_text()
    other = json.loads(record.replace(f"{name}:build", "run.trap:build"))
    (folder / "run.json").write_text(json.dumps(seal(other)))
    trap.write_text(OWN)
    with pytest.raises(UserError, match=r"run: got the model 'run\.trap:build', which is code outside this package"):
        resume("run")
    looked_for = r"'run\.trap:build' is looked for in .*run, and opening a run never runs code"
    with models.trusted("run.trap:build"), pytest.raises(UserError, match=looked_for):
        resume("run")
    assert not trap.with_suffix(".called").exists()
    (folder / "run.json").write_text(record)
    with models.trusted(f"{name}:build"):
        assert len(resume(folder).history) == 2
    assert (tmp_path / f"{name}.called").exists()
    del sys.modules[name]


def test_a_closed_terminal_asks_too_unless_it_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with interruption() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.is_set()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interruption() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_folder_that_is_removed_under_a_training_is_one_line(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 3, lambda: shutil.rmtree(tmp_path / "run"))
        with pytest.raises(UserError, match=r"cannot write .*No such file or directory"):
            train(tiny("at"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
        signal.raise_signal(signal.SIGTERM)  # as a scheduler sends it once more
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("taet.training.interruption.world_size", lambda: 2)
        signal.raise_signal(signal.SIGINT)  # as torchrun sends it once more


@pytest.mark.full
def test_a_clock_that_jumps_changes_no_bit(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame
) -> None:
    run = tiny("at", {"training.save_minutes": 0.0})
    whole = train(run, out=tmp_path / "whole")
    clock, jumps = time.time, itertools.cycle([0.0, 1e9, -1e9, -1.7e9])
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    jumped = train(run, out=tmp_path / "jumped")
    assert_same(whole.folder, jumped.folder)
