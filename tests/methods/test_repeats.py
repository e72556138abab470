"""The same seed gives the same bits: every method twice in a row, and a comparison whatever its number of jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from taet import registry
from taet.cli import main
from taet.settings import Run
from taet.training import train

SHORT = {"training.epochs": 2, "data.max_count": 10, "data.test_max_count": 4, "data.validation": 0.2}
AssertSame = Callable[[Path, Path], None]


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", sorted(registry.entries("methods")))
def test_a_method_trains_to_the_same_bits_twice(
    name: str, tiny: Callable[..., Run], tmp_path: Path, assert_same: AssertSame
) -> None:
    run = tiny(name, SHORT)
    first, second = (train(run, out=tmp_path / place) for place in ("first", "second"))
    assert_same(second.folder, first.folder)
    if name == "at":
        other = train(tiny(name, SHORT | {"seed": 1}), out=tmp_path / "other")
        with pytest.raises(AssertionError):
            assert_same(other.folder, first.folder)


SPECIFICATION = """
methods = ["at", "harl"]
data = ["digits-lt"]
seeds = [0]
[settings]
model.name = "resnet8"
data = {max_count = 20, test_max_count = 4}
training = {epochs = 2, batch_size = 32, monitor_steps = 1, threads = 1}
threat = {steps = 1, eps = "13/255"}
evaluation.attacks = ["clean", "pgd-3"]
"""


@pytest.mark.full
@pytest.mark.usefixtures("outlined")
def test_the_number_of_jobs_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.toml").write_text(SPECIFICATION)
    for jobs in ("1", "2"):
        assert main(["compare", "two.toml", "--jobs", jobs, "--out", jobs]) == 0
    for one in (tmp_path / "1" / "runs").iterdir():
        other = tmp_path / "2" / "runs" / one.name
        assert_same(other, one)
