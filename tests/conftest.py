"""Short runs, the comparison of two of them, and which cases of a product `make test` leaves
out."""

import json
import multiprocessing
import runpy
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from taet import protocols, registry
from taet.registry import Kind
from taet.settings import Run, override
from tests.calls import PATIENCE, forget, share

# No example fails because the machine is slow; all else stays as it is here or in CI.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# A shell that starts the tests in the background lets them, and the processes that they start,
# ignore Ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

MEASURED = ("seconds", "images_per_second", "peak_memory_mb")
TINY = {
    "data.max_count": 20,
    "model.name": "resnet8",
    "threat.eps": 0.05,
    "threat.step_size": 0.025,
    "threat.steps": 1,
    "training.epochs": 2,
    "training.batch_size": 32,
    "training.lr": 0.02,
    "training.monitor_steps": 1,
    "training.precision": "bf16",
    "training.threads": 1,
    "evaluation.batch_size": 100,
}

PRELOADED = [
    "taet.cli.train",
    "taet.cli.evaluate",
    "taet.training.train",
    "taet.evaluation",
    "taet.models.resnet",
]
PRELOADED += ["pytest", "torch._dynamo"]  # the first optimiser imports it


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies off the diagonal of a product, or outside the sample of a list of cases, as
    `full`.

    sample(n): of every n cases that follow each other the first is run. diagonal("a", "b"): with
    the values of a and b counted from 0, the cases (t mod n, t mod m) of n and m values, so that
    every value is run at least once.

    Files with a test that is marked `full` itself, mostly long runs, come first, so that the last
    to end are short.
    """
    long = {item.path for item in items if item.get_closest_marker("full")}
    items.sort(key=lambda item: item.path not in long)
    products: dict[str, list[tuple[pytest.Item, tuple[str, ...]]]] = {}
    met: Counter[str] = Counter()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if (sample := item.get_closest_marker("sample")) and not item.get_closest_marker("full"):
            if met[function] % sample.args[0]:
                item.add_marker("full")
            met[function] += 1
        if mark := item.get_closest_marker("diagonal"):
            values = tuple(str(item.callspec.params[name]) for name in mark.args)  # type: ignore[attr-defined]
            products.setdefault(function, []).append((item, values))
    for cases in products.values():
        lists = [
            list(dict.fromkeys(column))
            for column in zip(*(values for _, values in cases), strict=True)
        ]
        wanted = {
            tuple(values[t % len(values)] for values in lists) for t in range(max(map(len, lists)))
        }
        for item, values in cases:
            if values not in wanted:
                item.add_marker("full")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Fail a test that leaves torch on another number of threads, which would change the last bits
    of later ones."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured and stored during the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def plugged() -> Callable[..., AbstractContextManager[None]]:
    """Register files of plug-ins of a kind inside a block, and forget them after it."""

    @contextmanager
    def inside(kind: Kind, *paths: Path) -> Iterator[None]:
        for path in paths:
            registry.add(kind, path)
        try:
            yield
        finally:
            for path in paths:
                forget(kind, path)

    return inside


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Run]:
    """Return a run of two epochs of three steps each on 78 digits; changes are dotted fields."""

    def build(method: str = "at", changes: dict[str, Any] | None = None) -> Run:
        return override(protocols.taet(method), TINY | (changes or {}))

    return build


def write_lesions(folder: Path) -> Path:
    """Write twelve images of a naevus and five of a melanoma, noise of 12 x 12 pixels."""
    draw = np.random.default_rng(0)
    for name, count in (("naevus", 12), ("melanoma", 5)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """A folder of the user's own images."""
    return write_lesions(tmp_path / "lesions")


@pytest.fixture(scope="session")
def fork() -> Callable[..., BaseProcess]:
    """Start `python -m taet ARGUMENTS`, or the share of a test file, as a process that holds the
    packages already.

    A server imports them once and forks; a process of its own would need three seconds to begin.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(program: str, *arguments: str | Path) -> BaseProcess:
        module = program == "taet"
        target, given = (
            (runpy.run_module, (program, None, "__main__"))
            if module
            else (share, (program, *arguments))
        )
        process = context.Process(target=target, args=given)
        with pytest.MonkeyPatch.context() as patch:  # the process takes these over
            patch.setattr(sys, "argv", [program, *map(str, arguments)])
            patch.setattr(
                sys, "path", sys.path if module else [str(Path(program).parent), *sys.path]
            )
            # the server takes this over
            patch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
            process.start()
        return process

    return start


@pytest.fixture(scope="session")
def side_by_side(fork: Callable[..., BaseProcess]) -> Callable[[str, Path, int], None]:
    """Let several processes do `work(rank, folder)` of a test file, over the loopback."""

    def run(script: str, folder: Path, processes: int) -> None:
        started = [fork(script, rank, folder) for rank in range(processes)]
        try:
            for process in started:
                process.join(PATIENCE)
        finally:
            for process in started:
                process.kill()
        assert [process.exitcode for process in started] == [0] * processes, (
            "their output is the captured one"
        )

    return run


@pytest.fixture(scope="module")
def two_processes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    side_by_side: Callable[[str, Path, int], None],
) -> list[Any]:
    """What each of two processes, which work on the file of the test, saved as RANK.pt."""
    folder = tmp_path_factory.mktemp("processes")
    side_by_side(str(request.path), folder, 2)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Return the rows of metrics.jsonl without times, speeds and memory."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [
            {name: value for name, value in row.items() if name not in MEASURED} for row in lines
        ]

    return read


@pytest.fixture(scope="session")
def assert_same(rows: Callable[[Path], list[dict[str, Any]]]) -> Callable[[Path, Path], None]:
    """Assert that two finished runs have the same files, bit-equal weights and the same curve."""

    def check(folder: Path, expected: Path) -> None:
        names = sorted(path.name for path in expected.iterdir())
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in (name for name in names if name.endswith(".safetensors")):
            tensors, wanted = load_file(folder / name), load_file(expected / name)
            assert tensors.keys() == wanted.keys()
            assert all(torch.equal(tensors[key], wanted[key]) for key in wanted), name
        assert rows(folder) == rows(expected)

    return check
