"""Many image files are read by several processes, which give what one process gives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import Image

from taet import progress
from taet.data import image_files, load, reading, sources
from taet.data.image_files import decode_where_possible, survey
from taet.errors import UserError
from taet.progress import counted, reporting_to

LIMIT = 5  # seconds in which an interruption ends everything


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return the files of small images of several kinds, and of what cannot be read."""
    draws, made = np.random.default_rng(0), list[Path]()
    for number in range(40):
        suffix = ("png", "jpg", "gif", "tif")[number % 4]
        made.append(tmp_path / f"{number:02}.{suffix}")
        shape = (6, 5) if number % 3 else (6, 5, 3)
        Image.fromarray(draws.integers(0, 256, shape, np.uint8)).save(made[-1])
    made[4].write_bytes(made[4].read_bytes()[:60])
    made[17].unlink()
    made[18].unlink()
    os.mkfifo(made[18])
    return made


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let two processes read any number of files; return those that were started."""
    workers = list[subprocess.Popen[bytes]]()
    start = reading._start

    def recorded() -> subprocess.Popen[bytes]:
        workers.append(start())
        return workers[-1]

    monkeypatch.setattr(reading, "_start", recorded)
    monkeypatch.setattr(image_files, "FILES_OF_A_PROCESS", 1)
    monkeypatch.setattr(image_files, "idle_cores", lambda: 2)
    yield workers
    assert all(worker.poll() is not None for worker in workers), "none is left"


def as_text(decoded: Iterator[tuple[Any, Any]]) -> list[tuple[str, str]]:
    return [
        (str(file), image if isinstance(image, str) else f"{image.shape} {image.tobytes()!r}")
        for file, image in decoded
    ]


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_two_processes_give_the_pixels_and_the_reasons_of_one(
    size: tuple[int, int] | None,
    files: list[Path],
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = as_text(decode_where_possible(files, size))
    assert len(started) == 2
    monkeypatch.setattr(image_files, "idle_cores", lambda: 1)
    assert several == as_text(decode_where_possible(files, size))
    assert len(started) == 2


def test_two_processes_survey_as_one_does(
    files: list[Path], started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = survey(files, 4, skip=True)
    monkeypatch.setattr(image_files, "idle_cores", lambda: 1)
    single = survey(files, 4, skip=True)
    assert len(started) == 2
    assert (several.files, several.unreadable) == (single.files, single.unreadable)
    assert np.array_equal(several.sizes, single.sizes)
    assert np.array_equal(several.grey, single.grey)


def test_few_files_start_no_process(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError

    monkeypatch.setattr(reading, "_start", refused)
    monkeypatch.setattr(image_files, "idle_cores", lambda: 2)
    assert len(survey(files, 4, skip=True).files) == 38


def test_the_settings_of_pillow_hold_in_every_process(
    files: list[Path],
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    reasons = [reason for _, reason in as_text(decode_where_possible(files[:2], None))]
    assert all("exceeds limit of 20 pixels" in reason for reason in reasons)
    assert len(started) == 2


def test_a_process_that_is_killed_is_named(
    files: list[Path], started: list[subprocess.Popen[bytes]]
) -> None:
    decoded = decode_where_possible(files * 100, None)
    next(decoded)
    for worker in started:
        worker.kill()
    with pytest.raises(UserError, match=r"has ended with status -9; allowed: OMP_NUM_THREADS=1"):
        list(decoded)


@pytest.fixture
def folder(cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes with ten images each, which count as many."""
    monkeypatch.setattr(sources, "MANY_FILES", 20)
    draws, whole = np.random.default_rng(0), cached.parent / "folder"
    for number in range(20):
        place = whole / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (6, 6, 3), np.uint8)).save(place)
    return whole


def refuse_to_decode(*_: object, **__: object) -> None:
    raise AssertionError


def test_many_files_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(f"folder:{folder}", seed=0)
    plain = load(f"folder:{folder}", seed=0, storage="memory")
    assert first.train.sha256 == plain.train.sha256
    assert not isinstance(first.train.images, np.memmap)
    monkeypatch.setattr(image_files, "decode_where_possible", refuse_to_decode)
    again = load(f"folder:{folder}", seed=1)
    assert {split.images.shape[0] for split in again.splits.values()} == {16, 4}
    assert again.train.sha256 != first.train.sha256


def test_a_file_that_has_changed_is_decoded_again(folder: Path) -> None:
    first = load(f"folder:{folder}", seed=0)
    for path in folder.rglob("*.png"):
        Image.new("RGB", (6, 6), (1, 2, 3)).save(path)
    assert (load(f"folder:{folder}", seed=0).train.images == [1, 2, 3]).all()
    assert (first.train.images != [1, 2, 3]).any()


def test_without_a_cache_that_can_be_written_files_are_decoded_each_time(
    folder: Path, cached: Path
) -> None:
    cached.write_bytes(b"no folder")
    assert len(load(f"folder:{folder}", seed=0).train) == 16


INTERRUPTED = """
import signal, time
from taet.data.reading import in_processes
signal.signal(signal.SIGTERM, signal.default_int_handler)
for number, _ in enumerate(in_processes(time.sleep, [0.05] * 10000, 2)):
    if number == 0:
        print("reading", flush=True)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.full)]
)
def test_an_interruption_ends_all_processes(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"reading\n"
    begun = time.monotonic()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - begun < LIMIT
    assert error.strip().endswith(b"KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_the_first_report_says_how_long_all_files_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    told = list[str]()
    with reporting_to(lambda *report: told.append(report[2])):
        assert list(counted([0.0], 1, "image files")) == [0.0]
    assert told == ["1 image files: about 10 seconds\n", "image files", "image files"]
