"""A run that several processes share, is stopped, and goes on with another number of them."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from taet.errors import UserError
from taet.run.folder import weights_digest
from taet.run.identity import run_from_json
from taet.settings import Run, override
from taet.training import loop, resume, train
from tests.calls import met

pytestmark = pytest.mark.full

MOST = 3
STOPPED_AFTER = 4  # steps: in the second of the three of an epoch
# The batches are of 32, 32 and 2 images, so that shares are uneven, and one of three is empty.
SHARED = {"data.validation": 0.1, "training.precision": "float32", "training.save_minutes": 100.0}
SHARED |= {"data.test_max_count": 10, "evaluation.batch_size": 40}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "averaged epochs, drift, attacked in train mode": (
        "at-bsl",
        {
            "training.swa": 0.5,
            "training.distance_images": 3,
            "threat.bn_mode": "train",
            "training.augment": "none",
        },
    ),
    ("stages, averaged steps, weights perturbed"): (
        "harl",
        {"training.ema": 0.6, "training.awp": 0.01},
    ),
    # With seed 0, another order of sums turns signs of the attack, and one process alone moves this
    # run by 0.011.
    "feedback, summed up": ("wat", {"training.epochs": 3, "data.validation": 0.3, "seed": 1}),
    "compiled": ("at", {"training.compile": True, "data.max_count": 30}),
    "best epoch": ("at", {"training.selection": "best-validation", "data.max_count": 30}),
}
OTHER_STATISTICS = "best epoch"
"""The run whose statistics depend on the number of processes."""


def stopped(run: Run, folder: Path, number: int) -> None:
    """Train until one process, and it alone, is asked to stop."""
    step, steps = loop.training_step, iter(range(100))

    def asking(*given: Any) -> Any:
        if next(steps) == STOPPED_AFTER and number == 1:
            signal.raise_signal(signal.SIGINT)
        return step(*given)

    with mock.patch.object(loop, "training_step", asking), contextlib.suppress(KeyboardInterrupt):
        train(run, out=folder)
        raise AssertionError("it was not stopped")


def work(number: int, folder: Path) -> None:
    """What each process does: two share a run and stop another, three continue it, and one does it
    all alone."""
    torch.set_num_threads(1)
    runs = {
        name: run_from_json(values)
        for name, values in json.loads((folder / "runs.json").read_text()).items()
    }
    found: dict[str, Any] = {}
    flush, writes = os.fsync, []

    def counted(descriptor: int) -> None:
        writes.append(descriptor)
        flush(descriptor)

    with mock.patch.object(os, "fsync", counted):
        if number < 2:
            with met(folder, number):
                for name, run in runs.items():
                    found[name] = weights_digest(train(run, out=folder / name / "2").model)
                    stopped(run, folder / name / "2 stopped", number)
                    if number == 0:
                        for goes_on in (1, 3):
                            shutil.copytree(
                                folder / name / "2 stopped", folder / name / f"2 then {goes_on}"
                            )
                    resume(folder / name / "2 stopped")
                found["mistakes"] = []
                for changes, out in (
                    ({}, "2"),
                    ({"training.batch_size": 1}, "new"),
                    ({"data.name": "no"}, "new"),
                ):
                    with pytest.raises(UserError) as caught:
                        train(override(run, changes), out=folder / name / out)
                    found["mistakes"].append(str(caught.value).replace(str(folder), ""))
        with met(folder, number, MOST):
            for name in runs:
                found[f"{name} then"] = weights_digest(resume(folder / name / "2 then 3").model)
    found["writes"] = len(writes)
    if number == 2:
        for name, run in runs.items():
            train(run, out=folder / name / "1")
            resume(folder / name / "2 then 1")
    (folder / f"{number}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(
    tiny: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
    side_by_side: Callable[[str, Path, int], None],
) -> Path:
    """Where they all were."""
    folder = tmp_path_factory.mktemp("processes")
    runs = {
        name: tiny(method, SHARED | changes).model_dump()
        for name, (method, changes) in RUNS.items()
    }
    (folder / "runs.json").write_text(json.dumps(runs))
    side_by_side(__file__, folder, MOST)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(MOST)]


def counts(row: dict[str, Any]) -> list[int]:
    """Correct and all images under each attack, over the classes."""
    return [
        sum(values)
        for name, each in row["monitor"].items()
        if name != "split"
        for values in each.values()
    ]


@pytest.mark.parametrize("other", ["2", "2 then 1", "2 then 3"])
@pytest.mark.parametrize("name", [name for name in RUNS if name != OTHER_STATISTICS])
def test_any_number_of_processes_trains_what_one_does(
    name: str, other: str, folder: Path, rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    expected, found = folder / name / "1", folder / name / other
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.glob("*.safetensors"):
        weights, wanted = load_file(found / path.name), load_file(path)
        for key, value in wanted.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=5e-3, msg=key)
    for row, wanted_row in zip(rows(found), rows(expected), strict=True):
        assert row["loss"] == pytest.approx(wanted_row["loss"], rel=1e-3, abs=1e-4)
        # rounding may turn a sign of an attack
        assert counts(row) == pytest.approx(counts(wanted_row), abs=2)
        assert sum(row["predicted"]) == sum(wanted_row["predicted"]) == sum(row["train"]["total"])


@pytest.mark.parametrize("name", RUNS)
def test_the_same_number_of_processes_goes_on_to_the_same_bits(
    name: str, folder: Path, assert_same: Callable[[Path, Path], None]
) -> None:
    assert_same(folder / name / "2 stopped", folder / name / "2")


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_hold_the_same_weights_and_statistics(
    name: str, told: list[dict[str, Any]]
) -> None:
    assert told[0][name] == told[1][name]
    assert len({found[f"{name} then"] for found in told}) == 1


def test_the_first_process_alone_writes(told: list[dict[str, Any]]) -> None:
    assert [found["writes"] > 0 for found in told] == [True, False, False]


def test_a_mistake_is_one_in_all(told: list[dict[str, Any]]) -> None:
    assert told[0]["mistakes"] == told[1]["mistakes"]
    exists, small, unknown = told[0]["mistakes"]
    assert "holds a run; choose another --out, or remove the folder" in exists
    assert small == "batch size: got 1 for 2 processes; allowed: 2 or more, an image for each"
    assert "unknown data set, and no folder" in unknown


@pytest.mark.parametrize("name", ["2", "2 stopped", "2 then 3"])
def test_processes_that_share_a_run_attack_the_compiled_network(name: str, folder: Path) -> None:
    run = json.loads((folder / "compiled" / name / "run.json").read_bytes())
    assert run["choices"]["training.compile"].startswith("True: asked for; ")
