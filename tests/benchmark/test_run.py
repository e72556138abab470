"""The command of the benchmark: what it says, and which commands it runs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import plan
import run
from taet.errors import UserError
from taet.run.folder import RunFolder

BENCHMARK = Path(run.__file__).parent
MAIN = plan.BenchmarkRun(
    *("main", "small", plan.protocol().sets["cifar10-lt-ir50"], plan.protocol().rows["taet-tuned"]),
    replicate=2,
    choice=3,
)


def test_a_dry_run_says_what_is_there_and_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main(["--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("tuning cifar10-lt-ir50")
    assert "of  76 runs" in first
    assert "core-hours left" in first


@pytest.mark.full
def test_a_dry_run_whose_reader_has_left_ends_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, str(BENCHMARK / "run.py"), "--dry-run"]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(call, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_new_run_is_trained_and_a_started_one_resumed(tmp_path: Path) -> None:
    step = run.next_step(MAIN, tmp_path)
    assert step is not None
    assert step.words[:2] == ["train", "taet"]
    folder = tmp_path / run.run_folder(MAIN)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    step = run.next_step(MAIN, tmp_path)
    assert step is not None
    assert step.words == ["train", "--resume", str(run.run_folder(MAIN))]


def test_the_words_of_a_run_name_its_replicate_and_its_setting() -> None:
    words = " ".join(run.train_words(MAIN, Path("x")))
    for part in (
        *("--seed 2", "--data.seed 2", "--data.class-order 2", "--data.test-seed 0"),
        *("--lr 0.2", "--method.alpha 3.0", "--epochs 41", "--threat.step-size 6/255"),
    ):
        assert part in words


def test_no_command_names_a_folder_of_this_machine() -> None:
    assert not any(word.startswith("/") for word in run.train_words(MAIN, run.run_folder(MAIN)))


def test_weights_are_kept_of_replicate_1_where_the_licence_allows_it() -> None:
    rules = plan.protocol()
    runs = list(plan.main_runs("small", {"at": 0}, ["at"], rules.sets, [1, 2]))
    kept = {(one.data_set.name, one.replicate) for one in runs if run.keeps_weights(one)}
    assert kept == {(name, 1) for name in rules.sets if name != "ham10000"}


def test_a_method_of_ones_own_is_a_further_row_with_the_same_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.toml"
    rows.write_text(
        """[[rows]]
name = "mine"
method = "trades"
published = { "method.beta" = 1.0 }
other = { "method.beta" = 2.0 }
epochs = { 90 = [20, 20], 45 = [10, 10] }
"""
    )
    monkeypatch.setenv(plan.ADDED_ROWS, str(rows))
    plan.protocol.cache_clear()
    try:
        assert run.main(["--rows", "mine", "--dry-run"]) == 0
        assert "of   4 runs" in capsys.readouterr().out
        runs = list(plan.runs_of(["mine"], "small", {"mine": 2}))
        assert len(runs) == 4 + 5 * 3
    finally:
        plan.protocol.cache_clear()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("atbsl", "gtsrb", "1"), "unknown row 'atbsl'; allowed: "),
        (("at-bsl", "gtsrp", "1"), "did you mean 'gtsrb'?"),
        (("at-bsl", "gtsrb", "one"), "replicate: got 'one'; allowed: a whole number"),
        (("at-bsl", "gtsrb", "1"), "at-bsl: its four tuning runs are not all there"),
    ],
)
def test_a_run_that_cannot_be_named_is_one_line(
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "chosen_settings", lambda _: {})
    assert run.main(["--command", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_setting_is_chosen_when_its_four_runs_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"at": [0.2, 0.25, 0.22, 0.25], "trades": [0.3, None, 0.1, 0.2]}

    def score(one: plan.BenchmarkRun) -> float | None:
        return scores.get(one.row.name, [None] * 4)[one.choice]

    monkeypatch.setattr(run, "tuning_score", score)
    assert run.chosen_settings("small") == {"at": 1}


def test_a_run_that_another_process_works_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")  # no card is there yet
    first, second, *_ = plan.all_runs("small", {})
    others = run.claim(first, tmp_path)
    assert others is not None
    taken = run.claim_next("small", tmp_path, [])
    assert taken is not None
    assert taken[0] == second
    others.release()
    taken_later = run.claim_next("small", tmp_path, [])
    assert taken_later is not None
    assert taken_later[0] == first


def test_a_run_that_another_process_has_finished_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = plan.all_runs("small", {})
    answers = iter([["quick"], []])  # missing when looked at, there once the run is claimed

    def missing_of(one: plan.BenchmarkRun) -> list[str]:
        return next(answers) if one == first else ["quick"]

    monkeypatch.setattr(run, "missing_attacks", missing_of)
    taken = run.claim_next("small", tmp_path, [])
    assert taken is not None
    assert taken[0] == second


@pytest.fixture
def diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plan.BenchmarkRun:
    """The first run of all, after `taet train` ended because it diverged."""
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "LEDGER", tmp_path / "results" / "core-seconds.csv")

    def train(step: run.Step, work: Path, _: float) -> int:
        folder = work / step.words[-1]
        folder.mkdir(parents=True)
        RunFolder(folder).mark_diverged("a weight", epoch=3, step=17)
        return 2

    monkeypatch.setattr(run, "execute", train)
    first = next(plan.all_runs("small", {}))
    assert run.work_on(first, tmp_path, deadline=math.inf)
    return first


def test_a_run_that_diverged_is_over(diverged: plan.BenchmarkRun, tmp_path: Path) -> None:
    taken = run.claim_next("small", tmp_path, [])
    assert taken is not None
    assert taken[0] != diverged


def test_where_a_run_diverged_is_kept(diverged: plan.BenchmarkRun) -> None:
    kept = json.loads(run.divergence_path(diverged).read_bytes())
    assert (kept["what"], kept["epoch"], kept["step"]) == ("a weight", 3, 17)


def test_a_setting_that_diverged_is_chosen_last(diverged: plan.BenchmarkRun) -> None:
    assert run.tuning_score(diverged) == 0.0


def test_a_run_that_fails_does_not_stop_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    begun: list[plan.BenchmarkRun] = []

    def fail_twice(one: plan.BenchmarkRun, *_: object) -> bool:
        begun.append(one)
        if len(begun) < 3:
            raise UserError("the disk is full")
        return False  # the time is over

    monkeypatch.setattr(run, "work_on", fail_twice)
    assert run.work_through("small", tmp_path, 1.0, []) == 2
    assert begun == [*plan.all_runs("small", {})][:3]
    assert capsys.readouterr().err.count("error: the disk is full; the next run begins") == 2


def test_images_of_ones_own_are_attacked_by_their_own_step() -> None:
    words = {
        name: run.train_words(
            plan.BenchmarkRun("main", "small", data_set, plan.protocol().rows["at"], 1, 0),
            Path("x"),
        )
        for name, data_set in plan.protocol().sets.items()
    }
    assert {name for name, own in words.items() if "--no-evaluate" in own} == {"ham10000"}


def test_the_best_others_are_attacked_by_autoattack() -> None:
    best = {"gtsrb": ["trades", "mart", "robal"]}
    chosen = dict.fromkeys(plan.protocol().rows, 0)
    attacked = [*plan.autoattack_runs("small", chosen, best)]
    assert {one.row.name for one in attacked if one.data_set.name == "gtsrb"} == {
        *plan.ATTACKED_ROWS,
        *best["gtsrb"],
    }
    assert attacked[0].data_set.name == "cifar100-lt-ir10"
