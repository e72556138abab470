"""`taet tune`: equal budgets, on validation images alone; the test images are looked at by the last comparison only."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taet import data
from taet.data import digits
from taet.data.dataset import Dataset
from taet.errors import UserError
from taet.experiments import tune as tuning
from taet.experiments.cells import Cell
from taet.experiments.comparison import CellOutcome, Comparison
from taet.experiments.journal import JOURNAL
from taet.experiments.tune import search_of, tune
from taet.settings import Data
from taet.training.folder import RunFolder

SPEC: dict[str, Any] = {
    "methods": ["at", "trades"],
    "data": ["digits-lt"],
    "seeds": [0, 1],
    "settings": {"model.name": "resnet8", "training.epochs": 2, "training.precision": "float32"},
    "tune": {
        "trials": 4,
        "space": {"lr": {"low": 0.01, "high": 0.5, "log": True}},
        "methods": {"trades": {"beta": [1.0, 6.0]}},
    },
}


def changed(**change: Any) -> dict[str, Any]:
    return {**SPEC, "tune": {**SPEC["tune"], **change}}


def of_row(settings: dict[str, Any]) -> dict[str, Any]:
    return {**SPEC, "methods": [{"name": "at", "settings": settings}, "trades"]}


class Guarded(np.ndarray):
    """Images that must not be looked at."""

    def __getitem__(self, _: Any) -> Any:
        raise AssertionError("the test images were looked at")


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits whose test images raise where anything reads a pixel of them."""
    read = digits.read

    def with_guard(about: Any) -> Dataset:
        found = read(about)
        return dataclasses.replace(found, test=dataclasses.replace(found.test, images=found.test.images.view(Guarded)))

    monkeypatch.setattr(digits, "read", with_guard)


@pytest.mark.usefixtures("guarded")
def test_the_data_of_a_trial_are_loaded_without_a_look_at_the_test_images() -> None:
    found = data.load("digits-lt", validation=0.2, test="validation")
    assert found.validation is not None
    assert found.test.sha256 == found.validation.sha256
    assert "the test images are not looked at: the validation images stand in their place" in found.notes
    facts = data.facts(Data(name="digits-lt", validation=0.2, test="validation"))
    assert facts is not None
    assert facts.sizes == {part: len(split) for part, split in found.splits.items()}
    with pytest.raises(AssertionError, match="were looked at"):
        _ = data.load("digits-lt", validation=0.2).test.sha256


def test_the_training_images_of_a_trial_are_those_of_the_comparison() -> None:
    trial, final = (data.load("digits-lt", validation=0.2, test=test) for test in ("validation", "long-tailed"))
    assert trial.train.sha256 == final.train.sha256
    assert trial.validation is not None
    assert final.validation is not None
    assert trial.validation.sha256 == final.validation.sha256


def test_files_of_test_images_are_not_decoded(tmp_path: Path) -> None:
    """Test files whose header is right and whose pixels are missing."""
    draws = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 3)):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                file = tmp_path / part / label / f"{number}.png"
                Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
                if part == "test":
                    file.write_bytes(file.read_bytes()[:60])
    found = data.load(f"folder:{tmp_path}", validation=0.3, test="validation")
    assert {part: len(split) for part, split in found.splits.items()} == {"train": 14, "validation": 6, "test": 6}
    with pytest.raises(UserError, match="cannot be read"):
        data.load(f"folder:{tmp_path}", validation=0.3)


def test_without_validation_images_there_is_nothing_to_put_in_their_place() -> None:
    with pytest.raises(UserError, match=r"test set: got validation, but no validation images; .*--data\.validation"):
        data.load("digits-lt", test="validation")


# -- trials without training -------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Let a trial's value be a function of its settings, at once; return the cells in the order of training."""
    pytest.importorskip("optuna", reason="taet tune needs optuna (taet[tune])")
    seen: list[Cell] = []

    def fill(title: str, place: Path, planned: Sequence[Cell], *_: Any) -> tuple[Comparison, bool]:
        seen.extend(planned)
        assert all(cell.run is not None and cell.run.data.test == "validation" for cell in planned)
        assert all(not cell.attacked and cell.seed == 0 for cell in planned)
        outcomes = tuple(CellOutcome(cell, state_of(cell), "", ()) for cell in planned)
        return Comparison(title, place, outcomes), False

    def value(folder: RunFolder) -> float:
        run = next(cell.run for cell in seen if cell.folder == folder.path)
        return 1 - abs(np.log(run.training.lr / 0.1)) / 10  # type: ignore[union-attr]

    def compare(final: Any, out: Path, **_: Any) -> Comparison:
        (out.parent / "final.json").write_text(json.dumps([[e.name, dict(e.settings)] for e in final.methods]))
        assert all(list(entry.settings)[-1] == "training.tuned" for entry in final.methods)
        assert final.seeds == (0, 1)
        assert "data.test" not in final.settings
        return Comparison(final.title, out, ())

    monkeypatch.setattr(tuning, "fill", fill)
    monkeypatch.setattr(tuning, "value", value)
    monkeypatch.setattr(tuning, "compare", compare)
    return seen


def state_of(cell: Cell) -> Any:
    return "failed" if cell.entry.name == "trades.0001" else "done"


def names(cells: Sequence[Cell]) -> list[str]:
    return [cell.entry.name for cell in cells]


def test_every_method_gets_the_same_number_of_trials_and_the_best_is_compared(
    tmp_path: Path, trained: list[Cell]
) -> None:
    said: list[str] = []
    found = tune(search_of(SPEC), tmp_path, say=said.append)
    assert len(said) == 8
    assert re.fullmatch(r"trial 4 of 8, about \d+:\d\d left: trades\.0001 failed", said[3])
    assert re.fullmatch(r"trial 8 of 8: (at|trades)\.0003 done", said[-1])
    assert sorted(names(trained)) == [f"{row}.{number:04}" for row in ("at", "trades") for number in range(4)]
    assert names(trained)[:4] == ["at.0000", "trades.0000", "at.0001", "trades.0001"]  # evenly
    best = {row: numbers["settings"] for row, numbers in found.best.items()}
    told = [[row, {**settings, "training.tuned": 4}] for row, settings in best.items()]
    assert told == json.loads((tmp_path / "final.json").read_text())
    for row, settings in best.items():
        ended = [cell for cell in trained if cell.entry.name.startswith(row) and state_of(cell) == "done"]
        rates = [cell.run.training.lr for cell in ended if cell.run is not None]
        assert settings["training.lr"] == min(rates, key=lambda rate: abs(np.log(rate / 0.1)))
    assert best["trades"]["method.beta"] in (1.0, 6.0)
    assert (found.best["at"]["failed"], found.best["trades"]["failed"]) == (0, 1)
    assert all(numbers["trials"] == 4 for numbers in found.best.values())
    # Again: nothing is left to do.
    again = len(trained)
    assert tune(search_of(SPEC), tmp_path).best == found.best
    assert len(trained) == again
    with pytest.raises(UserError, match="holds trials of at with another specification; choose another --out"):
        tune(search_of(changed(seed=3)), tmp_path)


def test_a_search_that_was_interrupted_continues_with_the_trials_that_it_would_have_made(
    tmp_path: Path, trained: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(search_of(SPEC), tmp_path / "whole")
    whole = {cell.entry.name: cell.run for cell in trained}
    trained.clear()
    fill: Callable[..., Any] = tuning.fill  # type: ignore[attr-defined]

    def dies(title: str, place: Path, planned: Sequence[Cell], *rest: Any) -> tuple[Comparison, bool]:
        if len(trained) == 3:  # asked for, and not told
            raise KeyboardInterrupt
        result: tuple[Comparison, bool] = fill(title, place, planned, *rest)
        return result

    monkeypatch.setattr(tuning, "fill", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(search_of(SPEC), tmp_path / "part")
    monkeypatch.setattr(tuning, "fill", fill)
    tune(search_of(SPEC), tmp_path / "part")
    assert {cell.entry.name: cell.run for cell in trained} == whole
    assert len(trained) == 8  # none twice


def test_an_unfinished_line_of_the_journal_loses_nothing_else(tmp_path: Path, trained: list[Cell]) -> None:
    whole = tune(search_of(SPEC), tmp_path)
    journal = tmp_path / JOURNAL
    os.truncate(journal, journal.stat().st_size - 20)  # the value of the last trial
    for added in (1, 0):
        before = len(trained)
        assert tune(search_of(SPEC), tmp_path).best == whole.best
        assert len(trained) == before + added
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.sample(5)
@pytest.mark.parametrize("place", [3, -1])
@pytest.mark.parametrize(
    "junk", [b'{"op_code":4,"wor{"op_code":5}', b"\xff\xff", b"[1]", b'{"op_code":4}', b'{"op_code":77}']
)
def test_a_damaged_line_of_the_journal_is_named_and_nothing_is_changed(
    tmp_path: Path, trained: list[Cell], junk: bytes, place: int
) -> None:
    tune(search_of(changed(trials=1)), tmp_path)
    journal, before = tmp_path / JOURNAL, len(trained)
    lines = journal.read_bytes().splitlines()
    lines[place] = junk
    journal.write_bytes(b"\n".join(lines) + b"\n")
    kept = journal.read_bytes()
    number = range(1, len(lines) + 1)[place]
    with pytest.raises(UserError) as caught:
        tune(search_of(changed(trials=1)), tmp_path)
    way_out = "remove it and all later lines to keep the trials before it, or choose another --out"
    assert str(caught.value) == f"{journal}: line {number} is damaged; {way_out}"
    assert (journal.read_bytes(), len(trained)) == (kept, before)
    journal.write_bytes(b"\n".join(lines[: number - 1]) + b"\n")
    assert tune(search_of(changed(trials=1)), tmp_path).best


def test_the_lock_of_a_killed_process_can_be_dated(
    tmp_path: Path, trained: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna asks the age of the journal through the lock, a link, and waits for ever if it leads nowhere."""
    monkeypatch.chdir(tmp_path)
    targets: list[str] = []
    link = os.symlink
    monkeypatch.setattr(os, "symlink", lambda target, name: (targets.append(target), link(target, name)))
    tune(search_of(changed(trials=1)), Path("out"))
    assert {*targets} == {str(tmp_path / "out" / JOURNAL)}
    assert trained


def test_two_processes_share_the_work_and_never_make_a_trial_too_many(
    tmp_path: Path, trained: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second works between the question of the first and its answer, as another process would."""
    search, fill, begun = search_of(SPEC), tuning.fill, itertools.count()
    asked: list[list[str]] = []

    def filling(title: str, place: Path, planned: Sequence[Cell], *given: Any) -> tuple[Comparison, bool]:
        asked.append(names(planned))
        if next(begun) == 0:
            tune(search, tmp_path, jobs=8)
        return fill(title, place, planned, *given)

    monkeypatch.setattr(tuning, "fill", filling)
    tune(search, tmp_path, jobs=3)
    first, same, others = asked
    assert sorted(first) == sorted(same), "trials without a result are run, as their process may have ended"
    assert (len(first), len(others), len({*first, *others})) == (3, 5, 8)
    assert len(trained) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune": 3}, "tune: got 3; allowed: a table with trials and space"),
        (changed(trials=0), "tune trials: got 0; allowed: 1 to 10000"),
        (
            changed(tials=1),
            "unknown key of tune 'tials'; allowed: methods, seed, space, trials; did you mean 'trials'?",
        ),
        (changed(space={"lr": 0.1}), "tune: at: lr: got 0.1; allowed: a list of values, or low and high"),
        (changed(space={"lr": [[1]]}), "allowed: a list of values, or low and high"),
        (changed(space={"lr": {"low": 1, "high": 0.1}}), "allowed: low below high"),
        (changed(space={"lr": {"low": 0, "high": 0.1, "log": True}}), "log with low above 0"),
        (changed(space={"lrr": [0.1]}), "unknown setting 'lrr'"),
        (changed(space={"beta": [0.1]}), "tune: at: beta: methods: at: unknown setting 'beta'"),
        (changed(methods={"mart": {}}), "unknown method of tune 'mart'; allowed: at, trades"),
        (changed(methods={"trades": 3}), "tune: trades: got 3; allowed: a table"),
        (changed(space={}), "tune: at: got nothing to tune"),
        ({**SPEC, "data": ["digits-lt", "cifar10-lt"]}, "data: got 2; allowed: one"),
        ({**SPEC, "settings": {"data.test": "validation"}}, "got data.test = validation or selection = best-test"),
        ({**SPEC, "settings": {"selection": "best-test"}}, "selection = best-test"),
        (of_row({"selection": "best-test"}), "methods: at: got data.test = validation or selection = best-test"),
        (of_row({"data.test": "validation"}), "methods: at: got data.test = validation"),
        (of_row({"data.test": "balanced"}), "methods: at: got data.test; allowed: in the shared settings"),
        (of_row({"tuned": 3}), "methods: at: got training.tuned; allowed: without it"),
        ({**SPEC, "settings": {"tuned": 3}}, "settings: got training.tuned; allowed: without it"),
        *(
            (changed(space={name: [value]}), f"tune: at: {name}: got {full}; allowed: settings that change neither")
            for name, value, full in (
                ("data.test", "balanced", "data.test"),
                ("threat.eps", 0.01, "threat.eps"),
                ("evaluation.attacks", "clean", "evaluation.attacks"),
                ("selection", "last", "training.selection"),
                ("monitor-steps", 1, "training.monitor_steps"),
                ("tuned", 1, "training.tuned"),
            )
        ),
        (changed(methods={"trades": {"monitor-every": [2]}}), "trades: monitor-every: got training.monitor_every"),
        (changed(space={"lr": {"low": 0.1, "high": 1, "log": 1}}), "log: got 1; allowed: true or false"),
        (changed(space={"lr": {"low": 0.1, "high": 0.5, "step": 0}}), "got step 0; allowed: above 0, up to high -"),
        (changed(space={"lr": {"low": 0.1, "high": 0.5, "step": 0.6}}), "got step 0.6; allowed: above 0, up to high"),
        (changed(space={"epochs": {"low": 2, "high": 8, "step": 1.5}}), "allowed: whole numbers for low, high and"),
        (changed(space={"lr": [0.1, 0.2, 0.1]}), "allowed: a list with each value once"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        search_of({**SPEC, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_range_has_whole_numbers_only_where_the_setting_is_one() -> None:
    optuna = pytest.importorskip("optuna", reason="taet tune needs optuna (taet[tune])")
    ranges = {"lr": {"low": 1, "high": 3}, "epochs": {"low": 2, "high": 8, "step": 2}}
    spaces = search_of(changed(space=ranges, methods={"trades": {"beta": {"low": 1, "high": 10}}})).spaces["trades"]
    found = {name: choices.distribution(optuna) for name, choices in spaces.items()}
    assert found["training.lr"] == optuna.distributions.FloatDistribution(1.0, 3.0)
    assert found["method.beta"] == optuna.distributions.FloatDistribution(1.0, 10.0)
    assert found["training.epochs"] == optuna.distributions.IntDistribution(2, 8, step=2)


@pytest.mark.parametrize("settings", [{"data.test": "balanced"}, {"training.selection": "best-test"}])
def test_no_cell_of_a_trial_opens_test_images(tmp_path: Path, settings: dict[str, Any]) -> None:
    search = search_of(SPEC)
    with pytest.raises(UserError, match="tune: at: got a trial on test images; allowed: on validation images alone"):
        tuning._cells(search, [tuning.Asked("at", 0, settings)], tmp_path)


def test_no_settings_of_a_row_replace_the_number_of_trials() -> None:
    search = search_of(SPEC)
    rows = tuple(dataclasses.replace(row, settings={"training.tuned": 0}) for row in search.grid.methods)
    search = dataclasses.replace(search, grid=dataclasses.replace(search.grid, methods=rows))
    made = tuning.final(search, {row.name: {"settings": {"training.tuned": 1}} for row in rows})
    assert [point.entry.settings["training.tuned"] for point in made.points] == [4] * 4


def test_the_value_of_a_trial_is_of_the_epoch_that_it_delivers() -> None:
    counts = SimpleNamespace(correct=np.array([1, 3]), total=np.array([4, 4]))
    rows = [SimpleNamespace(epoch=2, monitor=SimpleNamespace(split="validation", attacked=counts))]
    folder: Any = SimpleNamespace(path="at.0003", metrics=rows, weights_about=lambda: SimpleNamespace(epoch=2))
    assert tuning.value(folder) == 0.5
    folder.weights_about = lambda: SimpleNamespace(epoch=3)
    with pytest.raises(UserError, match=r"trial at\.0003 has no curve on validation images at epoch 3"):
        tuning.value(folder)


@pytest.mark.parametrize("space", [{"momentum": {"low": 0.1, "high": 5.0}}, {"lr": [0.1, -1.0]}])
def test_an_end_of_the_range_that_no_run_can_have_is_refused_before_any_trial(
    tmp_path: Path, trained: list[Cell], space: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="allowed"):
        tune(search_of(changed(space=space, methods={})), tmp_path / "x")
    assert not trained
    assert not (tmp_path / "x").exists()


def test_without_optuna_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'taet\[tune\]'"):
        tune(search_of(SPEC), tmp_path)


@pytest.mark.full
def test_a_whole_search_on_digits(tmp_path: Path) -> None:
    """Six processes: trials, and a comparison whose cards and report name their number."""
    pytest.importorskip("optuna", reason="taet tune needs optuna (taet[tune])")
    settings = {
        **SPEC["settings"], "data.max_count": 40, "data.test_max_count": 4, "threat.eps": 0.1, "threat.step_size": 0.05,
        "threat.steps": 1, "training.monitor_steps": 2, "training.batch_size": 32,
        "evaluation.attacks": ["clean", "fgsm"],
    }  # fmt: skip
    search = search_of({**changed(trials=1), "seeds": [0], "settings": settings})
    found = tune(search, tmp_path)
    assert found.comparison is not None
    assert found.comparison.counts == {"done": 2}
    assert found.comparison.report is not None
    assert "tuned: 1 trials" in found.comparison.report.read_text()
    for outcome in found.comparison.outcomes:
        card = json.loads((outcome.cell.folder / "evaluation.json").read_text())
        assert card["run"]["config"]["training"]["tuned"] == 1
        assert "tuned: 1 trials" in card["run"]["deviations"]
    trial = next((tmp_path / "runs").glob("at.0000*"))
    record = RunFolder(trial).record
    assert record.data.test.sha256 == record.data.splits["validation"].sha256
    assert not (trial / "evaluation.json").exists()
    value = found.best["at"]["value"]
    shutil.rmtree(tmp_path / "tuned-1")
    assert tune(search, tmp_path).best["at"]["value"] == value
