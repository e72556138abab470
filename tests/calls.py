"""Runs that calls of `taet train` describe, refusals of one line, plug-ins that are taken back,
processes that meet."""

import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from taet import registry
from taet.cli.train import read
from taet.errors import PLUGIN, UserError
from taet.settings import Run

# seconds that a test waits for a process: some machines are ten times slower than others
PATIENCE = 1200


def configure(method: str, words: Sequence[str]) -> tuple[Run, Path | None]:
    """Return the run, and the folder if one is named, that `METHOD [options]` describes; no data
    are read."""
    request = read([method, *words])
    return request.run(), request.options.out


@contextmanager
def one_line(match: str | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Inside, what is asked for is refused, in one line that has these words."""
    with pytest.raises(UserError, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def forget(kind: registry.Kind, path: Path) -> None:
    """Take back `registry.add`, and what was read of the file, which may have changed."""
    registry._added[:] = [one for one in registry._added if one != (kind, path.resolve())]
    registry._entries.cache_clear()
    sys.modules.pop(f"{PLUGIN}{kind}_{path.stem}", None)


def share(script: str, rank: int, folder: Path) -> None:
    """Do what `work` of a test file does on the process of this rank, in the folder that the
    processes share."""
    runpy.run_path(script)["work"](rank, folder)


@contextmanager
def met(folder: Path, number: int, size: int = 2) -> Iterator[None]:
    """Inside, be one of so many processes of one thread; they meet through a file and talk over the
    loopback."""
    torch.set_num_threads(1)
    place = (folder / f"meeting-point-{size}").as_uri()
    patience = timedelta(seconds=PATIENCE)
    dist.init_process_group(
        "gloo", init_method=place, rank=number, world_size=size, timeout=patience
    )
    yield
    dist.destroy_process_group()
