"""Calls of `taet train` as the runs that they describe."""

import sys
from collections.abc import Sequence
from pathlib import Path

from taet import registry
from taet.cli.train import read
from taet.errors import PLUGIN
from taet.settings import Run


def configure(method: str, words: Sequence[str]) -> tuple[Run, Path | None]:
    """Return the run, and the folder if one is named, that `METHOD [options]` describes; no data are read."""
    request = read([method, *words])
    return request.run(), request.options.out


def forget(kind: registry.Kind, path: Path) -> None:
    """Take back `registry.add`, and what was read of the file, which may have changed."""
    registry._added[:] = [one for one in registry._added if one != (kind, path.resolve())]
    registry._entries.cache_clear()
    sys.modules.pop(f"{PLUGIN}{kind}_{path.stem}", None)
