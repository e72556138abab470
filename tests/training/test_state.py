"""A run that is stopped anywhere and resumed is the run that was not; a checkpoint of another one is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taet import models
from taet.errors import UserError
from taet.files import seal
from taet.settings import Run
from taet.training import TrainingResult, resume, train
from taet.training.checkpoint import save_checkpoint
from taet.training.folder import RunFolder
from taet.training.interruption import interruption


class Killed(BaseException):
    """Stands for SIGKILL."""


STEPS = 6  # two epochs of three steps
Tiny = Callable[..., Run]
AssertSame = Callable[[Path, Path], None]
BeforeStep = Callable[..., AbstractContextManager[None]]
GoOn = Callable[[Run, Path], None]
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "average, weights perturbed": ("trades", {"training.ema": 0.5, "training.awp": 0.01}),
    "stages": ("taet", {"training.distance_images": 2}),  # epoch 1 is clean, epoch 2 is not
    "validation": ("harl", {"data.max_count": 30, "data.validation": 0.2, "training.selection": "best-validation"}),
}


@pytest.fixture(scope="module", params=RUNS)
def whole(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run that nothing stopped."""
    method, changes = RUNS[request.param]
    return train(tiny(method, changes), out=tmp_path_factory.mktemp("whole") / "run")


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.diagonal("whole", "at")
@pytest.mark.parametrize("at", range(STEPS))
def test_killed_or_interrupted_before_any_step(
    whole: TrainingResult,
    tmp_path: Path,
    before_step: BeforeStep,
    killed_before: BeforeStep,
    assert_same: AssertSame,
    go_on: GoOn,
    at: int,
) -> None:
    with killed_before(at):
        train(whole.run, out=tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.pt").exists()  # from before the first step on
    go_on(whole.run, tmp_path / "killed")
    assert_same(tmp_path / "killed", whole.folder)

    before, out = signal.getsignal(signal.SIGINT), tmp_path / "interrupted"
    with (
        before_step(at, lambda: signal.raise_signal(signal.SIGINT)),
        pytest.raises(KeyboardInterrupt, match=f"progress is saved in {out}; continue with: taet train --resume {out}"),
    ):
        train(whole.run, out=out)
    with before_step(STEPS - at - 1):  # the step under way was finished and kept: none more is needed
        resume(out)
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(out, whole.folder)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 5])
def test_killed_at_every_write(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame, go_on: GoOn, every: int
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
    whole: TrainingResult, tmp_path: Path, before_step: BeforeStep, assert_same: AssertSame, go_on: GoOn
) -> None:
    folder = tmp_path / "run"
    for _ in range(STEPS):
        with before_step(0, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
            go_on(whole.run, folder)
    resume(folder)
    assert_same(folder, whole.folder)


def test_a_finished_run_is_returned_as_it_is(result: TrainingResult, before_step: BeforeStep) -> None:
    before = {path: path.read_bytes() for path in result.folder.iterdir() if path.is_file()}
    with before_step(0):
        again = resume(result.folder)
    assert again.history == result.history
    after = {path: path.read_bytes() for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"checkpoint.pt"}


def test_a_run_folder_that_is_removed_under_a_training_is_one_line(
    tiny: Tiny, tmp_path: Path, before_step: BeforeStep
) -> None:
    remove = before_step(3, lambda: shutil.rmtree(tmp_path / "run"))
    with remove, pytest.raises(UserError, match=r"cannot write .*No such file or directory"):
        train(tiny("at"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_version_with_fewer_settings_goes_on(tiny: Tiny, tmp_path: Path, killed_before: BeforeStep) -> None:
    whole = train(tiny("at"), out=tmp_path / "whole")
    with killed_before(2):
        train(tiny("at"), out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    state, record = folder.load_checkpoint(folder.record.run_hash), json.loads((folder.path / "run.json").read_text())
    del record["run"]["data"]["fit"]
    (folder.path / "run.json").write_text(json.dumps(seal(record)))
    older = RunFolder(folder.path)
    older.save_checkpoint(state | {"run_hash": older.record.run_hash})
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resume(folder.path).model.state_dict().items())
    RunFolder(folder.path).check_weights()


# -- signals -----------------------------------------------------------------------------------------------------------


def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
        signal.raise_signal(signal.SIGTERM)  # as a scheduler sends it once more
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("taet.training.interruption.world_size", lambda: 2)
        signal.raise_signal(signal.SIGINT)  # as torchrun sends it once more


@pytest.mark.parametrize(("handler", "asks"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_closed_terminal_asks_too_unless_it_is_ignored(handler: Any, asks: bool) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with interruption() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked.is_set() == asks
    finally:
        signal.signal(signal.SIGHUP, before)


# -- weights and code of others ----------------------------------------------------------------------------------------


def test_pretrained_weights_are_needed_again_only_without_a_checkpoint(
    tiny: Tiny, tmp_path: Path, killed_before: BeforeStep, assert_same: AssertSame
) -> None:
    file = tmp_path / "start.pt"
    torch.save(models.build("resnet8", 10, (1, 8, 8), seed=3).state_dict(), file)
    content, run = file.read_bytes(), tiny("at", {"model.weights": str(file)})
    whole = train(run, out=tmp_path / "whole").folder
    with killed_before(2):
        train(run, out=tmp_path / "run")
    again = Path(shutil.copytree(tmp_path / "run", tmp_path / "again"))
    file.unlink()
    notes = resume(tmp_path / "run").model.notes
    assert_same(tmp_path / "run", whole)
    assert notes[0].startswith("weights: ")
    assert str(file) in notes[0]
    (again / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"weights .*start\.pt: got no file; .* was started with SHA-256 \w{12}"):
        resume(again)
    torch.save(models.build("resnet8", 10, (1, 8, 8), seed=4).state_dict(), file)
    with pytest.raises(UserError, match=r"start\.pt: got SHA-256 \w{12}; .* was started with SHA-256 \w{12}"):
        resume(again)
    file.write_bytes(content)
    resume(again)
    assert_same(again, whole)


OWN = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".called").touch()

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_code_of_ones_own_is_run_again_but_none_that_lies_in_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_before: BeforeStep
) -> None:
    name, trap, folder = "own_net_to_resume", tmp_path / "run" / "trap.py", tmp_path / "run"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with killed_before(2):
        train(tiny("at", {"model.name": f"{name}:build"}), out=folder)
    del sys.modules[name]
    (tmp_path / f"{name}.called").unlink()
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(json.dumps(seal(json.loads(record.replace(f"{name}:build", "run.trap:build")))))
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


# -- checkpoints that do not fit ---------------------------------------------------------------------------------------


def refused(folder: Path, match: str) -> None:
    """Refused in one line, and nothing was changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=match) as caught:
        resume(folder)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DELETED, ZERO = "deleted", torch.zeros(1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("position", (DELETED, 5)),
        ("position.epoch", ("x", -1, 4, None, 1.0, True, 2**70)),
        ("position.step", ("x", -1, 99, None)),
        ("position.seconds", (-1.0, "x")),
        ("position.best_score", ("x",)),
        ("position.metrics_bytes", (-1, "x", 10**9, 5)),
        ("position.metrics_sha256", (5, "0" * 64)),
        ("model", (DELETED, 5, {}, {"zz": ZERO}, None)),
        ("method", (5, {"zz": ZERO})),
        ("average", ({"zz": ZERO},)),
        ("optimizer", (5, {}, {"param_groups": [], "state": {}}, {"param_groups": [{}], "state": {}})),
        ("sums", (5, {}, {"correct": 5, "total": 5, "predicted": 5, "sums": {}, "images": 0})),
        ("predicted", (5, None, torch.zeros(3), torch.zeros(10, dtype=torch.int8))),
        ("best_weights", (5, {}, {"zz": ZERO})),
        ("images", (5, {}, None)),
        ("run_hash", (5, None, "x")),
    ],
)
def test_every_part_of_a_checkpoint_is_checked(folder: Path, name: str, values: tuple[Any, ...]) -> None:
    (folder / "done").unlink()
    path = folder / "checkpoint.pt"
    for value in values:
        state = torch.load(path, weights_only=True)
        content, place = path.read_bytes(), state
        *above, last = name.split(".")
        for key in above:
            place = place[key]
        place[last] = value
        if value is DELETED:
            del place[last]
        torch.save(state, path)
        refused(folder, r"checkpoint|started with")
        path.write_bytes(content)


class Malicious:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_damaged_foreign_newer_or_malicious_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    path, mark = folder / "checkpoint.pt", tmp_path / "mark"
    content, flipped = path.read_bytes(), bytearray(path.read_bytes())
    at = content.find(load_file(folder / "model.safetensors")["head.weight"].numpy().tobytes())
    assert at > 0
    flipped[at + 2] ^= 1
    damaged = "is not a checkpoint of taet"
    cases: list[tuple[Any, str]] = [(content[:size], damaged) for size in (0, 100, len(content) - 100)]
    cases += [(bytes(flipped), rf"{damaged}, or is truncated \(BadZipFile")]
    cases += [(state, damaged) for state in ({"model": 1}, [1, 2], ZERO, {"schema": "one"})]
    cases += [({"schema": 2}, "got schema 2; allowed: up to 1"), ({"schema": 1, "evil": Malicious(mark)}, damaged)]
    for case, match in cases:
        if isinstance(case, bytes):
            path.write_bytes(case)
        else:
            torch.save(case, path)
        refused(folder, match)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file would have run it


def test_a_checkpoint_that_does_not_load_back_leaves_the_old_one(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    before = path.read_bytes()
    with pytest.raises(Exception, match="Weights only load failed"):
        save_checkpoint(path, {"path": path})
    assert path.read_bytes() == before
