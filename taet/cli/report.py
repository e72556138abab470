"""`taet report RUN...`: the report of any number of runs and cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from taet.cli.options import POSITIONAL, Command, parse


class Report(Command):
    """Make one self-contained HTML file from any number of run folders."""

    examples = (
        "taet report runs",
        "taet report results/digits-lt-demo --class-attack pgd-20",
        "taet report runs/at runs/taet --out comparison.html --title 'AT against TAET'",
    )

    runs: Annotated[tuple[Path, ...], POSITIONAL]
    """Run folders; folders with only a result card, evaluation.json, as taet evaluate --model writes them; folders of
    such folders; or result cards as files."""
    out: Path = Path("report.html")
    """File to write."""
    title: str | None = None
    """Title of the page."""
    class_attack: str | None = None
    """Attack of the per-class tables and figures, e.g. pgd-20. Default: the strongest."""


def run(words: list[str]) -> None:
    """Write the report and print its path."""
    command = parse(Report, words, "taet report").command

    from taet.files import check_output
    from taet.report import write

    check_output(command.out, "report.html")

    runs = [run for path in command.runs for run in runs_in(path)]
    print(write(runs, command.out, title=command.title, class_attack=command.class_attack))


def runs_in(path: Path) -> list[Path]:
    """Return the run and card folders directly in a folder that is neither, else its cards, else the folder itself."""
    from taet.report.read import cards_in, is_shown

    if not path.is_dir() or is_shown(path):
        return [path]
    return sorted(filter(is_shown, path.iterdir())) or cards_in(path) or [path]
