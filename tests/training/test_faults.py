"""Each operation on the disk fails, or the process is killed there: the work goes on with the same
bits."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

import taet
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.check import verify
from taet.settings import Run
from taet.training import train
from tests.training.conftest import Killed

ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
OPERATIONS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "pwrite")


class Disk:
    """Counts the operations that change the disk below `root`, and lets the one of number `at`
    fail."""

    def __init__(self, root: Path, at: int | None = None, kind: str = "EIO"):
        self.root, self.at, self.kind, self.count = root, at, kind, 0

    def operate(self) -> None:
        number, self.count = self.count, self.count + 1
        if self.at is None or number < self.at or (number > self.at and self.kind != "kill"):
            return
        # each later operation, too, so that no cleaning up reaches the disk
        if self.kind == "kill":
            raise Killed
        raise OSError(ERRORS[self.kind], os.strerror(ERRORS[self.kind]))

    def mine(self, place: Any) -> bool:
        """Whether a path or a descriptor is below the root."""
        try:
            path = (
                os.readlink(f"/proc/self/fd/{place}")
                if isinstance(place, int)
                else os.fspath(place)
            )
        except (OSError, TypeError):
            return False
        return str(path).startswith(str(self.root))


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    """Inside, operations on the disk are counted and may fail."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            plain = getattr(os, name)

            def call(place: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
                if disk.mine(place) or "dir_fd" in options:
                    disk.operate()
                return plain(place, *args, **options)

            patch.setattr(os, name, call)
        yield disk


class Job(NamedTuple):
    """Something that changes a folder: how it is prepared, done, done again after a failure, and
    its result."""

    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    result: Callable[[Path], object]


def numbers(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that does not depend on the clock."""
    found: dict[str, Any] = {
        "weights": [value.tolist() for value in load_file(folder / "model.safetensors").values()]
    }
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [(row["epoch"], row["loss"], row["train"], row["monitor"]) for row in rows]
    if (folder / "evaluation.json").exists():
        card = ResultCard.load(folder)
        found["card"] = [(column.name, column.predictions.tolist()) for column in card.columns]
    assert all(finding.ok for finding in verify(folder))
    return found


@pytest.fixture(scope="module")
def jobs(
    tiny: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
    go_on: Callable[[Run, Path], None],
) -> dict[str, Job]:
    changes = {
        "training.batch_size": 64,
        "training.save_minutes": 0.0,
        "data.max_count": 10,
        "data.test_max_count": 2,
    }
    run = tiny("at", changes)
    finished = train(run, out=tmp_path_factory.mktemp("finished") / "run").folder
    return {
        "train": Job(
            lambda _: None,
            lambda root: go_on(run, root / "run"),
            lambda root: numbers(root / "run"),
        ),
        "evaluate": Job(
            lambda root: shutil.copytree(finished, root / "run"),
            lambda root: taet.evaluate(root / "run", attacks=["clean", "fgsm"]),
            lambda root: numbers(root / "run"),
        ),
    }


@pytest.mark.full
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_every_operation_may_fail(jobs: dict[str, Job], tmp_path: Path, name: str) -> None:
    job = jobs[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    job.prepare(whole)
    with failing(Disk(whole)) as disk:
        job.work(whole)
    expected, total = job.result(whole), disk.count
    assert total > 3
    for number, kind in [(at, kind) for at in range(total) for kind in ("kill", [*ERRORS][at % 2])]:
        root = tmp_path / f"{kind}-{number}"
        root.mkdir()
        job.prepare(root)
        before = {path: path.read_bytes() for path in root.rglob("*.json") if path.is_file()}
        with contextlib.suppress(UserError, Killed), failing(Disk(root, number, kind)):
            job.work(root)
        for path in before:  # what was there is there, old or new
            assert path.exists(), (number, kind)
        job.work(root)
        assert job.result(root) == expected, (number, kind)
        left = [*root.rglob("*.part")]
        assert not left, (number, kind, left)
        shutil.rmtree(root)
