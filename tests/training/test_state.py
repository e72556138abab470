"""A run that is stopped anywhere and resumed is the run that was not; a checkpoint of another one
is refused."""

import copy
import math
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taet.machine import interruption
from taet.run.folder import RunFolder
from taet.settings import Run
from taet.training import TrainingResult, loop, resume, train
from tests.calls import one_line
from tests.models.test_weights import Trap
from tests.training.conftest import AssertSame, BeforeStep, Tiny

STEPS = 6  # two epochs of three steps
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "average, weights perturbed": ("trades", {"training.ema": 0.5, "training.awp": 0.01}),
    "stages": ("taet", {"training.distance_images": 2}),  # epoch 1 is clean, epoch 2 is not
    "validation": (
        "harl",
        {"data.max_count": 30, "data.validation": 0.2, "training.selection": "best-validation"},
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def whole(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    """A run that nothing stopped."""
    method, changes = RUNS[request.param]
    return train(tiny(method, changes), out=tmp_path_factory.mktemp("whole") / "run")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.full
@pytest.mark.sample(5)  # which shares no factor with the numbers of runs and of steps
@pytest.mark.parametrize("at", range(STEPS))
def test_killed_or_interrupted_before_any_step(
    whole: TrainingResult,
    tmp_path: Path,
    before_step: BeforeStep,
    killed_before: BeforeStep,
    assert_same: AssertSame,
    go_on: Callable[[Run, Path], None],
    at: int,
) -> None:
    with killed_before(at):
        train(whole.run, out=tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoint.pt").exists()  # from before the first step on
    go_on(whole.run, tmp_path / "killed")
    assert_same(tmp_path / "killed", whole.folder)

    before, out = signal.getsignal(signal.SIGINT), tmp_path / "interrupted"
    told = f"progress is saved in {out}; continue with: taet train --resume {out}"
    with before_step(at, interrupt), pytest.raises(KeyboardInterrupt, match=told):
        train(whole.run, out=out)
    # the step under way was finished and kept: none more is needed
    with before_step(STEPS - at - 1, interrupt):
        resume(out)
    assert signal.getsignal(signal.SIGINT) is before
    assert_same(out, whole.folder)


@pytest.mark.full
@pytest.mark.parametrize("swa", [0.25, 0.6])
def test_stopped_while_training_watching_and_estimating_statistics(
    swa: float, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame
) -> None:
    run = tiny("at", {"training.epochs": 3, "training.swa": swa})
    train(run, out=tmp_path / "whole")
    monkeypatch.setattr(loop, "LOOK_SECONDS", -1.0)  # progress after every batch
    calls, stops = iter(range(10**6)), 0

    def progress(*_: object) -> None:
        if next(calls) in (1, 4, 11, 14, 30):
            interrupt()

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


def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("taet.machine.world_size", lambda: 2)
        signal.raise_signal(signal.SIGINT)  # as torchrun sends it once more


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its results were written."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(tiny("at"), out=folder)
    (folder / "done").unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"run_hash": "x"}, "belongs to another run"),
        ({"rows": ...}, "lacks rows: another version of taet wrote it"),
        ({"model": {"zz": torch.zeros(1)}}, r"checkpoint\.pt: model: got other tensors"),
        ({"predicted": torch.zeros(1)}, r"predicted: got shape \[1\]; allowed: \[10\]"),
        ({"optimizer": {}}, "does not fit this run"),
        ({"evil": Trap(Path("mark"))}, "is not a checkpoint"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_that_is_not_of_this_run_is_refused_and_nothing_is_changed(
    stopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    path = folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True) | change
    torch.save({name: value for name, value in state.items() if value is not ...}, path)
    refused(folder, match)
    assert not Path("mark").exists()


@pytest.fixture(scope="module")
def saved_after_one_epoch(stopped: Path) -> dict[str, Any]:
    """The checkpoint of the run as it was after the first of its two epochs."""
    state: dict[str, Any] = torch.load(stopped / "checkpoint.pt", weights_only=True)
    return {**state, "epoch": 1, "rows": state["rows"][:1]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epoch", -1, "epoch: got -1; allowed: a whole number, 0 or more"),
        ("epoch", 10**9, "epoch: got 1000000000; allowed: up to 2 in this run"),
        ("epoch", 2, "rows: got those of the epochs 1; allowed: 1 to 2"),
        ("epoch", 0.5, "epoch: got 0.5; allowed: a whole number"),
        ("step", 4, "step: got 4; allowed: up to 3 in this run"),
        ("step", 2, "sums: got sums of 0 images after step 2"),
        ("step", None, "step: got None; allowed: a whole number"),
        ("rows", [], "rows: got those of the epochs none; allowed: 1 to 1"),
        ("rows", None, "rows: got None; allowed"),
        ("seconds", math.nan, "seconds: got nan; allowed: a number"),
        ("best", {}, "best: got {}; allowed"),
        ("best", [0.5, 7, {}], "best epoch: got 7; allowed: up to 1"),
        ("asked", 5, "asked: got 5; allowed: up to 1"),
        ("examples", torch.zeros(2), "examples: got some; allowed: none"),
    ],
)
def test_a_checkpoint_with_impossible_progress_is_refused(
    stopped: Path,
    saved_after_one_epoch: dict[str, Any],
    tmp_path: Path,
    field: str,
    value: object,
    message: str,
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    torch.save({**saved_after_one_epoch, field: value}, folder / "checkpoint.pt")
    refused(folder, r"checkpoint\.pt: " + re.escape(message))


def test_a_checkpoint_of_another_optimiser_or_with_weights_that_are_not_finite_is_refused(
    stopped: Path, saved_after_one_epoch: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    optimizer = copy.deepcopy(saved_after_one_epoch["optimizer"])
    optimizer["param_groups"][0]["weight_decay"] = 7.0
    torch.save({**saved_after_one_epoch, "optimizer": optimizer}, folder / "checkpoint.pt")
    refused(folder, r"checkpoint\.pt: optimizer: weight_decay: got 7\.0; allowed: 0\.0005")
    weights = copy.deepcopy(saved_after_one_epoch["model"])
    weights["head.bias"][0] = math.nan
    torch.save({**saved_after_one_epoch, "model": weights}, folder / "checkpoint.pt")
    refused(
        folder, r"checkpoint\.pt: model: head\.bias: got torch\.float32 values; allowed: .*finite"
    )


def test_a_damaged_checkpoint_is_refused_and_one_that_does_not_load_back_never_written(
    folder: Path,
) -> None:
    (folder / "done").unlink()
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (b"", content[:100], content[:-100], bytes(flipped)):
        path.write_bytes(damaged)
        refused(folder, "is not a checkpoint of taet, or is truncated")
    with pytest.raises(Exception, match="Weights only load failed"):
        RunFolder(folder).save_checkpoint({"path": path})
    assert path.read_bytes() == bytes(flipped)


def refused(folder: Path, match: str) -> None:
    """Refused in one line, and nothing was changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with one_line(match):
        resume(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
