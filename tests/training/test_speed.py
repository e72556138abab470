"""The precision and the threads that are taken where none are named: the faster, said, recorded, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taet.settings import Run, Training
from taet.training import resume, speed, train
from taet.training.folder import RunFolder
from taet.training.speed import settle

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")
ALONE = Training(threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Measurements to come, the first at the end; each is taken once."""
    left: list[dict[str, float]] = []
    monkeypatch.setattr(speed, "_fastest", lambda *_: left.pop())
    return left


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def chosen(model: nn.Module | None = None, training: Training = ALONE) -> Any:
    return settle(training, model or network(), SHAPE, CPU)["training.precision"]


@pytest.mark.parametrize(("bf16", "faster"), [(1.0, "bf16"), (4.0, "float32")])
def test_the_faster_is_taken_and_the_factor_is_said(bf16: float, faster: str, measured: list[dict[str, float]]) -> None:
    measured.append({"bf16": bf16, "float32": 2.0})
    found = chosen()
    assert found.value == faster
    assert "measured 2.0 times as fast as" in found.why


def test_a_difference_that_chance_may_reverse_does_not_decide(measured: list[dict[str, float]]) -> None:
    measured.append({"bf16": 1.9, "float32": 2.0})
    assert chosen() == ("float32", "bf16 is not faster by a tenth on this processor")


def test_it_is_measured_once_for_each_network(measured: list[dict[str, float]], cache: Path) -> None:
    measured += [{"bf16": 1.0, "float32": 2.0}, {"bf16": 2.0, "float32": 1.0}]
    assert [chosen().value for _ in range(3)] == ["float32"] * 3
    assert chosen(nn.Sequential(nn.Flatten(), nn.Linear(64, 11))).value == "bf16"
    assert not measured
    assert len(list(cache.rglob("*.json"))) == 2


@pytest.mark.parametrize("change", ["truncated", "edited", "elsewhere"])
def test_what_was_kept_is_checked(change: str, measured: list[dict[str, float]], cache: Path) -> None:
    measured += [{"bf16": 1.0, "float32": 2.0}, {"bf16": 2.0, "float32": 1.0}]
    chosen()
    (path,) = cache.rglob("*.json")
    held = json.loads(path.read_text())
    if change == "truncated":
        path.write_text(path.read_text()[:50])
    elif change == "edited":
        path.write_text(json.dumps(held | {"seconds": {"bf16": 9.0, "float32": 1.0}}))
    else:
        path.write_text(json.dumps(speed.seal(held | {"facts": {"processor": "another"}})))
    assert chosen().value == "bf16"
    assert not measured


def test_a_cache_that_cannot_be_written_is_no_error(
    measured: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "file"))
    measured.append({"bf16": 1.0, "float32": 2.0})
    assert chosen().value == "bf16"


class NoHalf(nn.Module):
    """Has an operation that does not run in bf16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not in bf16")
        return x.flatten(1)[:, :10]


def test_a_network_that_cannot_run_in_bf16_trains_in_float32() -> None:
    assert chosen(NoHalf()) == ("float32", "this network could not be timed in bf16")


def test_what_is_named_is_not_measured() -> None:
    assert settle(Training(precision="bf16", threads=2), network(), SHAPE, CPU) == {}


@pytest.mark.parametrize(
    ("one", "both", "set_", "load", "expected"),
    [(1.0, 2.0, None, 0.0, 1), (1.9, 2.0, None, 0.0, None), (1.0, 2.0, "2", 0.0, None), (1.0, 2.0, None, 3.0, None)],
    ids=["faster", "not clearly", "chosen by the user", "busy"],
)
def test_one_thread_is_taken_where_it_is_clearly_faster(
    one: float,
    both: float,
    set_: str | None,
    load: float,
    expected: int | None,
    measured: list[dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(speed, "cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_ is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_)
    measured.append({"1": one, "2": both})
    made = settle(Training(precision="float32"), network(), SHAPE, CPU).get("training.threads")
    assert (made and made.value) == expected
    assert made is None or "changes the last bits" in made.why


def test_a_real_measurement_leaves_the_network_and_the_random_state_as_they_were() -> None:
    model, state, threads = network(), torch.get_rng_state(), torch.get_num_threads()
    before = [value.clone() for value in model.state_dict().values()]
    assert chosen(model).value in speed.PRECISIONS
    assert all(a.equal(b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.get_rng_state().equal(state)
    assert torch.get_num_threads() == threads


def test_a_run_records_what_was_taken_and_resumes_with_it(
    tiny: Callable[..., Run],
    tmp_path: Path,
    measured: list[dict[str, float]],
    assert_same: Callable[[Path, Path], None],
) -> None:
    """The other machine would take the other precision."""
    measured += [{"bf16": 1.0, "float32": 2.0}]
    folder = tmp_path / "auto"

    def stop(done: float, total: float, _: str) -> None:
        if done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny("at", {"training.precision": "auto", "training.save_minutes": 0.0}), out=folder, progress=stop)
    assert RunFolder(folder).record.run.training.precision == "bf16"
    measured += [{"bf16": 2.0, "float32": 1.0}]
    resume(folder)
    train(tiny("at"), out=tmp_path / "named")
    assert_same(folder, tmp_path / "named")
