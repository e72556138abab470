"""`taet compare SPEC`: train and attack a grid of methods, data, imbalance ratios and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from taet.cli.options import POSITIONAL, Command, Options, OutPath, of_part, parse
from taet.errors import UserError
from taet.formatting import duration, join_words, read_duration
from taet.settings import Slurm
from taet.settings.schema import option
from taet.settings.types import Duration, Processes

if TYPE_CHECKING:
    from taet.experiments import Comparison


class Compare(Command):
    """Train and attack every cell of the grid that SPEC, a TOML file, describes, and write a
    report. Finished cells are kept, and started ones continue. Each cell is a run folder in
    OUT/runs; its output is in OUT/logs. Exit status: 1 a cell failed, the others are done; 0
    otherwise. SPEC, for example (see docs/compare.md):

        methods = ["at", "taet", {name = "skip", method = "harl", settings = {absent = "skip"}}]
        data = ["digits-lt"]
        imbalance = [10, 50]
        seeds = [0, 1, 2]
        settings = {model = "resnet8", threat.eps = "8/255"}   # of every run, as in taet train
    """

    examples = (
        "taet compare digits.toml --dry-run",
        "taet compare digits.toml --out runs/digits --jobs 2 --time-budget 2h30m",
        "taet compare digits.toml --out runs/digits --on slurm --slurm.partition gpu --slurm.gpus "
        "1",
    )

    spec: Annotated[Path, POSITIONAL]
    """TOML file."""
    out: OutPath | None = None
    """Folder of the comparison. Default: in the current folder, called as SPEC without its
    suffix."""
    time_budget: Duration | None = None
    """Time after which running cells are saved and stopped, and no others are started."""
    jobs: Processes | Literal["auto"] = 1
    """Cells that run at the same time, spread over the GPUs. auto: one per GPU, or 1 without a
    GPU."""
    on: Literal["slurm"] | None = None
    """Submit the missing cells as a job array to this cluster (needs taet[slurm]); the same call
    shows their states."""
    trust_model: tuple[str, ...] = ()
    """Models of SPEC that are custom code, package.module:callable, which this call may import and
    run."""
    dry_run: bool = False
    """Print every cell with its state, the commands that remain, and how long they will take; a few
    steps are timed, and nothing is written."""


def run(words: list[str]) -> int:
    """Run a comparison; return 1 if a cell failed."""
    command, given = parse(Compare, words, "taet compare", [Options("slurm", Slurm())])
    slurm = None if command.on is None else Slurm(**of_part(given, "slurm"))
    if slurm is None and given:
        raise UserError(f"--{next(iter(given))} goes with --on slurm")
    for name in {"jobs", "time_budget"} & command.model_fields_set if slurm else ():
        raise UserError(
            f"--{option(name)} is for this machine; got --on slurm as well, which has --slurm.* "
            "options"
        )

    from taet.experiments import compare
    from taet.experiments.executor import OPEN
    from taet.models import trusted

    budget = None if command.time_budget is None else read_duration(command.time_budget)
    jobs, dry = command.jobs, command.dry_run
    with trusted(*command.trust_model):
        if command.trust_model:
            planned = compare(command.spec, command.out, slurm=slurm, dry_run=True)
            _refuse_idle_trust(command.trust_model, planned)
        result = compare(
            command.spec,
            command.out,
            jobs=jobs,
            time_budget=budget,
            slurm=slurm,
            dry_run=dry,
            progress=True,
        )
    print(result.text(dry))
    if dry and slurm is None and set(OPEN) & result.counts.keys():
        print(_expected_time(result, jobs))
    if slurm is not None and dry:
        resources = {name: value for name, value in slurm.model_dump().items() if value is not None}
        print(
            "each cell asks SLURM for",
            ", ".join(f"{name} {value}" for name, value in resources.items()),
        )
    return int("failed" in result.counts)


def _expected_time(planned: "Comparison", jobs: int | Literal["auto"]) -> str:
    """Return a line about the time that the remaining cells will take."""
    from taet.experiments.expected_time import comparison_seconds
    from taet.progress import reporting_to, shown

    try:
        with shown("time") as report, reporting_to(report):
            seconds = comparison_seconds(planned, jobs, report)
    except UserError as error:
        return f"time: not known: {error}"
    beside = "" if jobs == 1 else f" with --jobs {jobs}"
    return f"time: {duration(seconds)} on this machine{beside}"


def _refuse_idle_trust(trusted_models: Sequence[str], planned: "Comparison") -> None:
    """Refuse --trust-model for what is no model of the comparison."""
    runs = [outcome.cell.run for outcome in planned.outcomes]
    models = {run.model.name for run in runs if run is not None}
    idle = next((name for name in trusted_models if name not in models), None)
    if idle is not None:
        raise UserError(
            f"--trust-model: got {idle}; allowed: a model of the specification, which has "
            f"{join_words(sorted(models)) or 'none'}"
        )
