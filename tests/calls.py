"""Calls of `taet train` as the runs that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taet.cli.train import read
from taet.settings import Run


def configure(method: str, words: Sequence[str]) -> tuple[Run, Path | None]:
    """Return the run, and the folder if one is named, that `METHOD [options]` describes; no data are read."""
    request = read([method, *words])
    return request.run(), request.options.out
