"""`taet report RUN...`: one self-contained HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from taet.cli import flags
from taet.report import write

EXAMPLES = ("taet report runs/*", "taet report runs/at runs/taet --out comparison.html --title 'AT against TAET'")


@dataclass(frozen=True)
class ReportOptions:
    """Which runs the report shows, and where it is written."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders that hold a result card alone, evaluation.json, as taet evaluate --model writes them."""
    out: Path = Path("report.html")
    """File to write."""
    title: str | None = None
    """Title of the page."""


def run(arguments: list[str]) -> None:
    """Write the report and print its path."""
    description = "Make one self-contained HTML file from any number of run folders."
    parsed = flags.parse(ReportOptions, arguments, "taet report", description, EXAMPLES)
    print(write(parsed.runs, parsed.out, title=parsed.title))
