"""The plan of the benchmark: every run of the protocol, in its order, with settings that fit."""

from itertools import pairwise
from pathlib import Path

import pytest

import plan
from run import train_words
from taet import methods, protocols
from taet.cli.train import read
from taet.data import DataFacts
from taet.settings import Run, override
from taet.training.checks import resolve
from taet.training.passes import epochs_for_passes

CHOSEN = dict.fromkeys(plan.protocol().rows, 0)
FACTS = DataFacts((40, 20, 10), (3, 32, 32), {"train": 70, "validation": 9, "test": 9})


def asked(run: plan.BenchmarkRun) -> Run:
    """The run that the command of a benchmark's run trains."""
    start = protocols.start("taet", run.row.method)
    start = start.replace(settings=start.settings or methods.find(run.row.method).Config())
    return override(start, run.settings())


def test_there_are_nineteen_rows_with_four_settings_each() -> None:
    rules = plan.protocol()
    assert len(rules.rows) == 19
    for row in rules.rows.values():
        choices = rules.choices(row)
        assert all(first not in choices[:n] for n, first in enumerate(choices))
        assert len(choices) == 4


def test_tuning_comes_first_and_uses_neither_test_images_nor_a_measured_replicate() -> None:
    runs = list(plan.all_runs("small", CHOSEN))
    tuning = [run for run in runs if run.stage == "tuning"]
    assert runs[: len(tuning)] == tuning
    for run in tuning:
        data = asked(run).data
        assert (data.test, data.validation_per_class, data.seed) == ("validation", 200, 11)


def test_a_row_that_is_not_tuned_has_no_other_runs() -> None:
    tuned = {name: 0 for name in CHOSEN if name != "trades"}
    later = [run for run in plan.all_runs("small", tuned) if run.stage != "tuning"]
    assert {run.row.name for run in later} == set(tuned)


def test_the_must_has_every_row_on_every_set_in_three_replicates() -> None:
    runs = [run for run in plan.all_runs("small", CHOSEN) if run.stage == "main"]
    cells = {(run.row.name, run.data_set.name, run.replicate) for run in runs if run.replicate < 4}
    assert len(cells) == 19 * 5 * 3


def test_replicate_1_of_the_first_rows_comes_before_all_others() -> None:
    runs = [run for run in plan.all_runs("small", CHOSEN) if run.stage == "main"]
    first = [run.row.name in plan.FIRST_ROWS and run.replicate == 1 for run in runs]
    assert all(earlier or not later for earlier, later in pairwise(first[:80]))


def test_test_images_are_the_same_in_all_replicates() -> None:
    rules = plan.protocol()
    for data_set in rules.sets.values():
        runs = plan.main_runs("small", CHOSEN, ["at"], [data_set.name], [1, 2])
        first, second = (asked(run).data for run in runs)
        assert first.test_seed == second.test_seed == 0
        assert first.seed != second.seed
        assert (first.class_order != second.class_order) == data_set.made


def test_variance_components_redraw_one_seed_alone() -> None:
    runs = list(plan.variance_runs("small", CHOSEN))
    assert len(runs) == 30
    for run in runs:
        seeds = asked(run)
        redrawn = [seeds.seed, seeds.data.seed, seeds.data.class_order]
        assert sorted(redrawn)[:2] == [1, 1]


def test_anchors_take_ten_attack_steps_and_1100_passes() -> None:
    runs = list(plan.anchor_runs("small", CHOSEN))
    assert len(runs) == 8
    for run in runs:
        threat = asked(run).threat
        assert (threat.steps, threat.step_size) == (10, pytest.approx(2 / 255))
        assert run.passes == 1100


@pytest.mark.parametrize("row", CHOSEN)
def test_every_setting_of_a_row_can_be_trained(row: str) -> None:
    for run in plan.tuning_runs("small"):
        if run.row.name == row:
            resolve(asked(run), FACTS)


@pytest.mark.parametrize("row", CHOSEN)
def test_the_command_of_a_run_asks_for_its_settings(row: str) -> None:
    for tuning_run in plan.tuning_runs("small"):
        if tuning_run.row.name == row:
            _, *words = train_words(tuning_run, Path("x"))
            assert read(words).run() == asked(tuning_run)


@pytest.mark.full
@pytest.mark.parametrize("row", CHOSEN)
def test_the_epochs_of_a_row_are_those_of_the_counted_passes(row: str) -> None:
    own = plan.protocol().rows[row]
    data_set = plan.protocol().sets["cifar10-lt-ir50"]
    for budget, epochs in own.epochs.items():
        stage = "anchor" if budget == str(plan.ANCHOR_PASSES) else "main"
        for choice, expected in enumerate(epochs):
            run = plan.BenchmarkRun(stage, "small", data_set, own, 1, choice)
            counted = epochs_for_passes(asked(run), FACTS, float(budget))
            assert counted.epochs == expected
            if budget == "90":
                assert counted.passes == pytest.approx(own.passes[choice], abs=0.05)


def test_the_name_of_a_run_is_its_own() -> None:
    runs = {(run.place, run.name, run.attacks) for run in plan.all_runs("small", CHOSEN)}
    folders = {(run.place, run.name) for run in plan.all_runs("small", CHOSEN)}
    assert len(folders) == 76 + 19 * 5 * 3 + 30 + 9 * 2 * 7 + 8
    assert len(runs) > len(folders)
