"""`taet report RUN...`: tables and figures of result cards as one file."""

from pathlib import Path
from typing import Annotated

from taet.cli.options import POSITIONAL, Command, parse


class Report(Command):
    """Write the tables and figures of result cards as one file: .html, a page that needs no other
    file; .md and .tex, its main tables; .csv, one line for each card, attack and group of classes.

    Exit status: 1 if --fail-if-worse is given and the new model is worse than OLD beyond chance, on
    clean images or under an attack of OLD; 2 if they cannot be compared; 0 otherwise.
    """

    examples = (
        "taet report runs",
        "taet report runs/at runs/taet --out comparison.html --title 'AT against TAET'",
        "taet report runs --out table.tex --columns clean autoattack tail",
        "taet report runs/candidate --fail-if-worse runs/released",
    )

    runs: Annotated[tuple[str, ...], POSITIONAL]
    """Run folders, result cards, or folders of these."""
    out: Path | None = None
    """File to write: .html, .md, .csv or .tex. A report that is there is replaced. Default:
    report.html, of one run in its folder."""
    force: bool = False
    """Replace a .md, .csv or .tex that is no report, too."""
    title: str | None = None
    """Title. Default: that of the comparison in the folder, else the data sets."""
    columns: tuple[str, ...] = ()
    """Of .md and .tex: write the table of balanced accuracy alone, with these columns."""
    fail_if_worse: str | None = None
    """Result card or run folder of the model in use: exit with status 1 if the new one is worse.
    Nothing is written."""


def _out(command: Report) -> Path:
    """Return the file to write."""
    from taet.run.folder import RunFolder

    if command.out is not None:
        return command.out
    folders = [Path(name) for name in command.runs]
    of_one_run = len(folders) == 1 and RunFolder(folders[0]).is_run
    return folders[0] / "report.html" if of_one_run else Path("report.html")


def run(words: list[str]) -> int:
    """Write the report and print its path, or compare with an older model."""
    command, _ = parse(Report, words, "taet report")

    from taet.report import write
    from taet.report.regression import fail_if_worse

    if command.fail_if_worse is None:
        print(
            write(
                command.runs,
                _out(command),
                command.title,
                columns=command.columns,
                force=command.force,
            )
        )
        return 0
    worse, lines = fail_if_worse(command.runs, command.fail_if_worse)
    print("\n".join([*lines, "fail" if worse else "pass"]))
    return int(worse)
