"""Every public function refuses arguments of the wrong type, in one line, before any work."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import taet
from taet import protocols
from taet.attacks import pgd
from taet.data import Dataset, long_tail_counts, long_tail_indices
from taet.settings import override
from taet.settings.arguments import checked_arguments
from tests.calls import one_line

RUN = override(protocols.taet("at"), {"training.epochs": 1, "training.threads": 1})
IMAGES, LABELS = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
X, Y = torch.rand(4, 1, 8, 8), torch.arange(4) % 2


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()


def dataset() -> Dataset:
    return Dataset.from_arrays(IMAGES, LABELS, IMAGES, LABELS)


def with_lock() -> nn.Module:
    model = network()
    model.lock = threading.Lock()
    return model


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "train out": (lambda: taet.train(RUN, out=5), "out: got 5; allowed: a text or a Path or None"),
    "train run": (lambda: taet.train("at"), "run: got 'at'; allowed: a Run, e.g. protocols.taet"),
    "train progress": (
        lambda: taet.train(RUN, progress="bar"),
        "progress: got 'bar'; allowed: a function or True or False or None",
    ),
    "resume": (lambda: taet.resume(None), "folder: got None; allowed: a text or a Path"),
    "evaluate out": (
        lambda: taet.evaluate(network(), X, Y, attacks=["clean"], eps=0.1, out=5),
        "out: got 5; allowed: a text or a path or None",
    ),
    "compare out": (lambda: taet.compare({}, out=[5]), "out: got a list; allowed: a text"),
    "compare spec": (
        lambda: taet.compare({5: 5}, out="c", dry_run=True),
        "unknown field of Grid '5'",
    ),
    "compare time budget": (
        lambda: taet.compare({}, time_budget="1h"),
        "time budget: got '1h'; allowed: a number or None",
    ),
    "export format": (lambda: taet.export("r", 5), "format: got 5; allowed: a text"),
    "results": (lambda: taet.results(None), "results: got a NoneType; allowed: a run folder"),
    "results of a number": (lambda: taet.results([5]), "results: got a int; allowed: a run"),
    "override changes": (lambda: override(RUN, None), "changes: got None; allowed: a mapping"),
    "override a number": (lambda: override(RUN, {5: 5}), "setting 5: got a int; allowed: a dotted"),
    "counts": (lambda: long_tail_counts("x", 5, 2.0), "num classes: got 'x'; allowed: a whole"),
    "indices": (lambda: long_tail_indices(LABELS, 5), "counts: got 5; allowed: a sequence"),
    "validation": (
        lambda: Dataset.from_arrays(IMAGES, LABELS, IMAGES, LABELS, validation=5),
        "validation: got a int; allowed: images and labels",
    ),
    "pgd": (
        lambda: pgd(network(), X, Y, eps=0.1, step_size=0.1, steps=1, start_noise=5),
        "start noise: got 5; allowed: a torch.Tensor or a torch.Generator or a Source or None",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_the_wrong_type_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, message = CALLS[name]
    with one_line(message):
        call()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network().to("meta"), "1.weight on the device meta, which holds no values"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), "allowed: a lazy network after"),
        (with_lock, "model: cannot be copied .*lock.*; allowed: one that copy.deepcopy takes"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_the_run_begins(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with one_line(message):
        taet.train(RUN, model=make(), dataset=dataset(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_without_values_is_not_evaluated() -> None:
    with one_line("1.weight on the device meta"):
        taet.evaluate(network().to("meta"), X, Y, attacks=["clean"], eps=0.1)


@checked_arguments
def example(
    count: int, share: float = 0.5, kind: Literal["a", "b"] = "a", flag: bool = False, free: Any = 0
) -> tuple[Any, ...]:
    return count, share, kind, flag, free


def test_numbers_of_numpy_and_whole_numbers_for_shares_are_taken() -> None:
    assert example(np.int64(3), 1, free=object) == (3, 1, "a", False, object)
    assert example(3, np.float32(0.25), "b", True)[1] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": True}, "count: got True; allowed: a whole number"),
        ({"count": math.nan}, "count: got nan; allowed: a whole number"),
        ({"count": 1, "share": "0.5"}, "share: got '0.5'; allowed: a number"),
        ({"count": 1, "kind": "c"}, "unknown kind 'c'; allowed: a, b"),
        ({"count": 1, "flag": 1}, "flag: got 1; allowed: True or False"),
    ],
)
def test_each_type_has_its_message(arguments: dict[str, Any], message: str) -> None:
    with one_line(message):
        example(**arguments)


def test_a_call_with_unknown_names_is_an_error_of_python() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'count'"):
        example()  # type: ignore[call-arg]
