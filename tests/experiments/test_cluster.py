"""Which cells are submitted to SLURM, and a cell as a job, with stand-ins for squeue, submitit and
our processes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from taet.experiments import slurm
from taet.experiments.compare import compare
from taet.experiments.grid import parse
from taet.experiments.slurm import CellJob
from taet.settings import Slurm


class Submitit:
    """A library whose jobs wait for ever; `queue` holds their states."""

    def __init__(self) -> None:
        self.jobs: list[CellJob] = []
        self.options: dict[str, Any] = {}
        self.queue: dict[str, str] = {}
        self.helpers = SimpleNamespace(DelayedSubmission=lambda job: job)

    # its name in the library
    def AutoExecutor(self, folder: Path, cluster: str, slurm_max_num_timeout: int) -> Self:
        return self

    def update_parameters(self, **options: Any) -> None:
        self.options = options

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        yield

    def submit(self, job: CellJob) -> SimpleNamespace:
        self.jobs.append(job)
        number = f"7_{len(self.jobs)}"
        self.queue[number] = "pending"
        return SimpleNamespace(job_id=number)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Submitit:
    made = Submitit()
    monkeypatch.setattr(slurm, "needed", lambda *_: made)
    monkeypatch.setattr(slurm, "queue", lambda: dict(made.queue))
    return made


@pytest.mark.full
def test_cells_are_submitted_once_and_again_if_their_job_ended_early(
    small: dict[str, Any],
    tmp_path: Path,
    library: Submitit,
    processes: Callable[..., list[dict[str, Any]]],
) -> None:
    said: list[str] = []
    asked = Slurm(partition="gpu", time="1h30m", gpus=1, cpus=4)
    first = compare(small, tmp_path / "out", slurm=asked, progress=said.append)
    assert first.counts == {"submitted": 3}
    assert first.outcomes[1].reason == "job 7_2, submitted"
    assert library.options == {
        **{
            "name": "taet",
            "timeout_min": 90,
            "cpus_per_task": 4,
            "gpus_per_node": 1,
            "slurm_partition": "gpu",
        },
        **{"slurm_array_parallelism": 100, "slurm_signal_delay_s": 300},
    }
    library.jobs[0]()  # which ends as it should
    del library.queue["7_1"], library.queue["7_2"]
    second = compare(small, tmp_path / "out", slurm=asked, progress=said.append)
    assert [one.reason for one in second.outcomes] == ["", "job 7_4, submitted", "job 7_3, pending"]
    assert said[1:] == [
        f"1 job ended before the cell was done, see the logs: {library.jobs[1].name}",
        f"1 cell submitted, the last as job 7_4; logs in {tmp_path / 'out' / 'logs'}",
    ]
    assert [call["words"][0] for call in processes()] == ["train", "evaluate"]


@pytest.mark.usefixtures("library")
def test_a_job_fails_with_its_command_and_is_submitted_again_near_its_limit(
    small: dict[str, Any], tmp_path: Path, processes: Callable[..., list[dict[str, Any]]]
) -> None:
    (tmp_path / "logs").mkdir()
    job = CellJob(parse(small), tmp_path, "at_digits-lt_seed0", Slurm(), ())
    processes(seed0="fail")
    with pytest.raises(RuntimeError, match="exit status 1: the loss is not finite"):
        job()
    processes(seed0="hang")
    folder = tmp_path / "runs" / "at_digits-lt_seed0"
    (folder / "run.json").unlink()
    again: list[CellJob] = []

    def near_the_limit() -> None:
        while not (folder / "hangs").exists():
            time.sleep(0.05)
        again.append(job.checkpoint())

    told = threading.Thread(target=near_the_limit)
    told.start()
    with contextlib.suppress(RuntimeError):  # SLURM's signal would end this call
        job()
    told.join()
    assert (again, (folder / "saved").exists()) == ([job], True)
