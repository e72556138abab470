"""Several processes share an AutoAttack and give the flags of one, whoever had begun it and with how many."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.autoattack import run_parts
from taet.attacks.suite import SuiteResult
from taet.distributed import gather, joined, rank, world_size
from taet.evaluation.store import BatchStore

PROCESSES, BATCH, CLASSES = 2, 4, 4
NORMS: dict[Any, float] = {"linf": 0.1, "l2": 0.6}


def task() -> tuple[nn.Module, Tensor, Tensor]:
    """A small trained network and 30 images, of which it gets some wrong without any attack."""
    torch.manual_seed(0)
    patterns = torch.rand(CLASSES, 1, 8, 8)
    y = torch.arange(120) % CLASSES
    x = (patterns[y] + 0.3 * torch.randn(120, 1, 8, 8)).clamp(0, 1)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[30:]), y[30:]).backward()
        optimizer.step()
    y[:2] = (y[:2] + 1) % CLASSES
    return model, x[:30], y[:30]


def run(folder: Path, norm: Any) -> SuiteResult:
    state = BatchStore(folder, f"autoattack-{norm}", "")
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 30)
        return run_parts(*task(), eps=NORMS[norm], norm=norm, version="10", batch_size=BATCH, state=state)


def arrays(outcome: SuiteResult) -> dict[str, Tensor]:
    assert outcome.x_adv is not None
    count = torch.tensor([outcome.forwards, outcome.backwards])
    kept = {"x_adv": outcome.x_adv, "predictions": outcome.predictions, "correct": outcome.correct, "count": count}
    return {**kept, **outcome.parts}


def work(number: int, folder: Path) -> None:
    """What each process does, in the environment that torchrun gives it."""
    torch.set_num_threads(1)
    port = (folder / "port").read_text()
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with joined("cpu"):
        assert (rank(), world_size()) == (number, PROCESSES)
        assert gather(f"from {number}") == ["from 0", "from 1"]
        with joined("cpu"):  # within a group, nothing
            assert world_size() == PROCESSES
        assert world_size() == PROCESSES
        torch.save(arrays(run(folder / f"state-{number}", "linf")), folder / f"linf-{number}.pt")
        torch.save(arrays(run(folder / "begun", "l2")), folder / f"l2-{number}.pt")
    assert world_size() == 1


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, side_by_side: Callable[[str, Path, int], None]) -> Path:
    """The folder in which two processes have attacked: from the beginning, and in L2 from what one process had done."""
    folder = tmp_path_factory.mktemp("together")
    for norm in NORMS:
        torch.save(arrays(run(folder / "begun", norm)), folder / f"{norm}.pt")
    for number, path in enumerate(sorted((folder / "begun" / "autoattack-l2-").glob("*.npz"))):
        if number % 3:
            path.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    side_by_side(__file__, folder, PROCESSES)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
def test_two_processes_give_what_one_gives(norm: str, together: Path) -> None:
    expected = torch.load(together / f"{norm}.pt", weights_only=True)
    assert 0 < int(expected["correct"].sum()) < len(expected["correct"]) - BATCH
    for number in range(PROCESSES):
        found = torch.load(together / f"{norm}-{number}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.full
def test_each_unit_is_done_by_one_process_only(together: Path) -> None:
    shares = [
        {path.stem for path in (together / f"state-{number}" / "autoattack-linf-").glob("*.npz")}
        for number in range(PROCESSES)
    ]
    whole = {path.stem for path in (together / "begun" / "autoattack-linf-").glob("*.npz")}
    assert shares[0] | shares[1] == whole
    assert not shares[0] & shares[1]
    assert {name for name in whole if name.startswith("clean")} == {f"clean-{batch}" for batch in range(8)}
    assert all(
        int(name.rpartition("-")[2]) % PROCESSES == number for number in range(PROCESSES) for name in shares[number]
    )


def test_without_torchrun_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu"):
        assert (rank(), world_size(), gather("alone")) == (0, 1, ["alone"])
    monkeypatch.setenv("WORLD_SIZE", "4")  # of another tool, which gives no rank
    with joined("cpu"):
        assert world_size() == 1


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
