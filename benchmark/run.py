"""Run the long-tail robustness benchmark: the next missing runs, in the order of the protocol.

    python benchmark/run.py --dry-run         what is there, what is missing, how long it takes
    python benchmark/run.py --minutes 60      the next runs, for an hour; a later call goes on
    python benchmark/run.py --command at-bsl cifar10-lt-ir50 1
                                              the commands of one run, to repeat it

Data are found in TAET_DATA (cifar10.npz, cifar100.npz, gtsrb32.npz or the official files, and
ham10000_32.npz). Run folders lie in --work; the cards of finished runs are copied to
results/benchmark and count as done from then on, on every machine; a run that diverged is over, and
a file there says so. Each call uses one core; calls
that work at the same time share the runs, so start one for each core.
"""

import argparse
import csv
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from filelock import FileLock, Timeout

from plan import (
    ATTACKED_ROWS,
    ATTACKED_SETS,
    AUTOATTACK,
    BEST_OTHERS,
    COLUMNS,
    RESULTS,
    BenchmarkRun,
    all_runs,
    main_runs,
    protocol,
    runs_of,
    tuning_runs,
)
from taet.card.card import ResultCard
from taet.errors import UserError
from taet.files import DIVERGED, write_atomically
from taet.run.folder import RunFolder
from taet.settings.schema import flat, option_words

LEDGER = RESULTS / "core-seconds.csv"
KEPT = ("run.json", "model.safetensors", "done", "metrics.jsonl", "evaluation.json")
"""The files of a run folder that are committed with the weights of replicate 1."""
GRACE_SECONDS = 60  # for a command to save before it is killed
INTERRUPTED = 130  # exit status of a command that has saved its work


class Step(NamedTuple):
    """One command of a run: to train it, or to attack it."""

    name: str
    words: list[str]


class LedgerLine(NamedTuple):
    """The core-seconds of one command of a run."""

    run: str
    step: str
    core_seconds: int


# ---- what is there


def keeps_weights(run: BenchmarkRun) -> bool:
    """Whether the run's folder is committed with its weights, so that anybody can attack them."""
    return run.stage == "main" and run.replicate == 1 and run.data_set.weights_may_be_shared


def card_path(run: BenchmarkRun) -> Path:
    """Return where the run's card is committed."""
    folder = RESULTS / run.place / run.name
    return folder / "evaluation.json" if keeps_weights(run) else folder.with_suffix(".json")


def missing_attacks(run: BenchmarkRun) -> list[str]:
    """Return the attacks of the run that its committed card lacks; all without a card."""
    path = card_path(run)
    if not path.exists():
        return [*run.attacks]
    card = json.loads(path.read_bytes())
    there = {column["name"] for column in card["columns"]}
    return [attack for attack in run.attacks if attack not in there]


@functools.cache
def load(path: Path) -> ResultCard:
    """Return the card in a file, which is read once."""
    return ResultCard.load(path)


def card_of(run: BenchmarkRun) -> ResultCard:
    """Return the card of a run; one of another method, or of other settings than the plan has, is
    a UserError."""
    card = load(card_path(run))
    config = card.run["config"]
    stored = {**config, **dict(flat(config)), **dict(flat(config["settings"], "method."))}
    planned = {"method": run.row.method, **run.settings()}
    del planned["evaluation.attacks"]  # the card's columns say which were run
    for name, value in planned.items():
        found = stored.get(name)
        found = tuple(found) if isinstance(found, list) else found
        if found != value:
            raise UserError(f"{card_path(run)}: {name}: got {found!r}; planned: {value!r}")
    return card


def divergence_path(run: BenchmarkRun) -> Path:
    """Return the file that says that the run diverged, which is its result then."""
    return RESULTS / run.place / f"{run.name}.diverged.json"


def is_over(run: BenchmarkRun) -> bool:
    """Whether nothing is left to do: the run has every attack, or it diverged."""
    return divergence_path(run).exists() or not missing_attacks(run)


def tuning_score(run: BenchmarkRun) -> float | None:
    """Return the balanced accuracy by which a setting is chosen; None before its card is there, and
    0 of a run that diverged, so that it is chosen last."""
    if divergence_path(run).exists():
        return 0.0
    if missing_attacks(run):
        return None
    card = card_of(run)
    attack = "clean" if run.row.method == "standard" else "quick"
    return float(card.summary(attack).balanced)


def chosen_settings(tier: str) -> dict[str, int]:
    """Return the setting of each row that has the highest score; rows whose four runs are not all
    there are left out."""
    scores: dict[str, list[float | None]] = {}
    for run in tuning_runs(tier):
        scores.setdefault(run.row.name, []).append(tuning_score(run))
    chosen = {}
    for row, found in scores.items():
        known = [score for score in found if score is not None]
        if len(known) == len(found):
            chosen[row] = known.index(max(known))
    return chosen


def best_others(tier: str, chosen: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the rows by set that have the highest balanced accuracy under `quick`, the mean of
    replicates 1 to 3, among those that AutoAttack does not attack anyway; nothing for a set whose
    runs are not all there."""
    others = [name for name in protocol().rows if name not in (*ATTACKED_ROWS, "standard")]
    found = {}
    for name in ATTACKED_SETS:
        runs = [*main_runs(tier, chosen, others, [name], [1, 2, 3])]
        if len(runs) < 3 * len(others) or not all(is_over(run) for run in runs):
            continue
        scores = dict.fromkeys(others, 0.0)
        for run in runs:
            if not missing_attacks(run):
                scores[run.row.name] += card_of(run).summary("quick").balanced
        found[name] = sorted(others, key=lambda row: -scores[row])[:BEST_OTHERS]
    return found


# ---- one run


def train_words(run: BenchmarkRun, folder: Path) -> list[str]:
    """Return the arguments of `taet` that train a run."""
    words = ["train", run.row.method]
    for name, value in run.settings().items():
        words += option_words(name.replace("method.", "settings."), value)
    if not run.data_set.published:  # images of one's own are attacked after training otherwise
        words.append("--no-evaluate")
    return [*words, "--out", str(folder)]


def run_folder(run: BenchmarkRun) -> Path:
    """Return the folder of a run, relative to the working folder: cards hold this name."""
    return Path("runs", "benchmark") / run.place / run.name


def next_step(run: BenchmarkRun, work: Path) -> Step | None:
    """Return the next command of a run; None if its card can be copied."""
    folder = run_folder(run)
    held = RunFolder(work / folder)
    committed = card_path(run).parent
    if not held.is_run and keeps_weights(run) and (committed / "done").exists():
        shutil.copytree(committed, work / folder)  # only attacks are missing
    if not held.is_run:
        return Step("train", train_words(run, folder))
    if not held.is_done:
        return Step("train", ["train", "--resume", str(folder)])
    path = held.card()
    there: set[str] = set()
    if path.exists():
        there = {column["name"] for column in json.loads(path.read_bytes())["columns"]}
    if set(run.attacks) <= there:
        return None
    return Step("evaluate", ["evaluate", str(folder), "--attacks", *run.attacks])


def keep(run: BenchmarkRun, work: Path) -> None:
    """Copy what is committed of a finished run to results/benchmark."""
    folder, target = work / run_folder(run), card_path(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not keeps_weights(run):
        copy(RunFolder(folder).card(), target)
        return
    for name in KEPT:
        copy(folder / name, target.parent / name)


def copy(source: Path, target: Path) -> None:
    """Copy a file, so that a kill leaves either the whole copy or none."""
    write_atomically(target, source.read_bytes())


def keep_divergence(run: BenchmarkRun, work: Path) -> None:
    """Copy to results/benchmark that a run diverged, and where."""
    target = divergence_path(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    copy(work / run_folder(run) / DIVERGED, target)


def ledger_name(run: BenchmarkRun) -> str:
    """Return what the ledger calls a run."""
    return (run.place / run.name).as_posix()


def record_seconds(run: BenchmarkRun, step: str, seconds: float) -> None:
    """Append to the ledger the processor time of a command, which no other program lengthens."""
    LEDGER.parent.mkdir(parents=True, exist_ok=True)
    is_new = not LEDGER.exists()
    with LEDGER.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(LedgerLine._fields)
        writer.writerow(LedgerLine(ledger_name(run), step, round(seconds)))


def processor_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def execute(step: Step, work: Path, deadline: float) -> int:
    """Run a command of taet until it ends or the deadline comes, when it saves; return its exit
    status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "taet", *step.words]
    process = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL)
    try:
        return process.wait(timeout=max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        end(process)
        return INTERRUPTED
    except KeyboardInterrupt:
        end(process)
        raise


def end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command, which then saves its work; kill it if that takes too long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def work_on(run: BenchmarkRun, work: Path, deadline: float) -> bool:
    """Do the commands of a run until it is done or the time is over; return whether it is done."""
    while (step := next_step(run, work)) is not None:
        if time.monotonic() >= deadline:
            return False
        print(f"{step.name} {run.place / run.name}", flush=True)
        before = processor_seconds()
        status = execute(step, work, deadline)
        record_seconds(run, step.name, processor_seconds() - before)
        if status == INTERRUPTED:
            return False
        if status == 2 and RunFolder(work / run_folder(run)).has_diverged:
            keep_divergence(run, work)
            return True
        if status != 0:
            command = shlex.join(["taet", *step.words])
            raise UserError(f"{run.place / run.name}: exit status {status} of: {command}")
    keep(run, work)
    return True


# ---- all runs


def read_ledger() -> list[LedgerLine]:
    """Return the commands of all runs so far."""
    if not LEDGER.exists():
        return []
    with LEDGER.open(encoding="utf-8") as file:
        return [
            LedgerLine(line["run"], line["step"], int(line["core_seconds"]))
            for line in csv.DictReader(file)
        ]


class UsualSeconds(NamedTuple):
    """Core-seconds of the steps of a run."""

    image_pass: float = 5e-4
    """Of a training, for one pass of one image."""
    evaluate: float = 300.0
    autoattack: float = 1800.0


def usual_seconds(tier: str) -> UsualSeconds:
    """Return the medians of the ledger."""
    seconds_of: Counter[tuple[str, str]] = Counter()
    for line in read_ledger():
        seconds_of[line.run, line.step] += line.core_seconds
    runs = {ledger_name(run): run for run in planned_runs(tier, ())}
    of_a_pass = [
        seconds / runs[run].image_passes
        for (run, step), seconds in seconds_of.items()
        if step == "train" and run in runs
    ]
    of_evaluations = [seconds for (_, step), seconds in seconds_of.items() if step == "evaluate"]
    usual = UsualSeconds()
    if of_a_pass:
        usual = usual._replace(image_pass=median(of_a_pass))
    if of_evaluations:
        usual = usual._replace(evaluate=median(of_evaluations))
    return usual


def spent_seconds() -> int:
    """Return the core-seconds of all commands so far."""
    return sum(line.core_seconds for line in read_ledger())


def expected_seconds(run: BenchmarkRun, missing: Sequence[str], usual: UsualSeconds) -> float:
    """Return about how long one core takes for the missing attacks of a run."""
    seconds = 0.0
    if "clean" in missing:
        seconds += usual.image_pass * run.image_passes
    if set(missing) & set(COLUMNS):
        seconds += usual.evaluate
    if "autoattack" in missing:
        seconds += usual.autoattack
    return seconds


class RunState(NamedTuple):
    """Whether a run is there, and the seconds of one core that it still takes."""

    is_done: bool
    seconds_left: float


def tell(tier: str, wanted: Sequence[str]) -> None:
    """Print what is there, what is missing, and about how many hours of one core it takes."""
    usual, chosen = usual_seconds(tier), chosen_settings(tier)
    states_of = defaultdict[str, list[RunState]](list)
    for run in planned_runs(tier, wanted):
        missing = [] if is_over(run) else missing_attacks(run)
        state = RunState(not missing, expected_seconds(run, missing, usual))
        states_of[kind_of(run)].append(state)
    for kind, states in states_of.items():
        done = sum(state.is_done for state in states)
        hours = sum(state.seconds_left for state in states) / 3600
        print(f"{kind:<45} {done:>3} of {len(states):>3} runs, {hours:6.1f} core-hours left")
    waiting = [name for name in wanted or protocol().rows if name not in chosen]
    if waiting:
        print(f"not tuned yet, so no other runs are planned: {', '.join(waiting)}")


def kind_of(run: BenchmarkRun) -> str:
    """Return what runs are counted together: those of one stage on one set, and of one replicate
    where all three are planned."""
    if run.attacks == AUTOATTACK:
        return "autoattack"
    kind = f"{run.stage} {run.data_set.name}"
    is_main = run.stage == "main" and run.attacks == COLUMNS
    return f"{kind}, replicate {run.replicate}" if is_main else kind


def planned_runs(tier: str, rows: Sequence[str]) -> Iterator[BenchmarkRun]:
    """Return the runs of some rows, or all runs, in their order; rows that are tuned meanwhile have
    more of them."""
    chosen = chosen_settings(tier)
    if rows:
        return runs_of(rows, tier, chosen)
    return all_runs(tier, chosen, best_others(tier, chosen))


def claim(run: BenchmarkRun, work: Path) -> FileLock | None:
    """Take a run for this process until the lock is released; None if another process has it."""
    path = work / "claims" / run.place / f"{run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, timeout=0)
    try:
        held.acquire()
    except Timeout:
        return None
    return held


def claim_next(
    tier: str, work: Path, rows: Sequence[str], failed: Collection[Path] = ()
) -> tuple[BenchmarkRun, FileLock] | None:
    """Take the next missing run that no other process works on and that did not fail in this call;
    None if there is none."""
    for run in planned_runs(tier, rows):
        if is_over(run) or run_folder(run) in failed:
            continue
        held = claim(run, work)
        if held is None:
            continue
        if not is_over(run):  # its card may have come before the lock was free
            return run, held
        held.release()
    return None


def work_through(tier: str, work: Path, minutes: float, rows: Sequence[str]) -> int:
    """Do the next missing runs for so many minutes; return how many of them failed."""
    deadline = time.monotonic() + 60 * minutes
    failed: set[Path] = set()
    while time.monotonic() < deadline:
        claimed = claim_next(tier, work, rows, failed)
        if claimed is None:
            print("every other run is there, or another process works on it")
            break
        run, held = claimed
        try:
            if not work_on(run, work, deadline):
                break
        except UserError as error:
            print(f"error: {error}; the next run begins", file=sys.stderr, flush=True)
            failed.add(run_folder(run))
        finally:
            held.release()
    return len(failed)


def commands(tier: str, row: str, data_set: str, replicate: str) -> list[str]:
    """Return the commands that repeat one run."""
    own_row, own_set = protocol().row(row), protocol().data_set(data_set)
    if not replicate.isdecimal():
        raise UserError(f"replicate: got '{replicate}'; allowed: a whole number, 1 or more")
    chosen = chosen_settings(tier)
    if row not in chosen:
        raise UserError(f"{row}: its four tuning runs are not all there")
    run = BenchmarkRun("main", tier, own_set, own_row, int(replicate), chosen[row])
    folder = run_folder(run)
    return [
        shlex.join(["taet", *train_words(run, folder)]),
        shlex.join(["taet", "evaluate", str(folder)]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the call, and do what it asks for."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=[*protocol().network], default="small")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to work (60)")
    parser.add_argument("--work", type=Path, default=Path(), help="where runs/ lies (here)")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is")
    parser.add_argument(
        "--command", nargs=3, metavar=("ROW", "SET", "REPLICATE"), help="print, and run nothing"
    )
    parser.add_argument("--rows", nargs="+", default=[], help="only these rows")
    options = parser.parse_args(arguments)
    try:
        status = do(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # its reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next call goes on", file=sys.stderr)
        return INTERRUPTED


def do(options: argparse.Namespace) -> int:
    """Print a command, or what there is, or do the next runs; return the exit status."""
    for row in options.rows:
        protocol().row(row)
    if options.command is not None:
        row, data_set, replicate = options.command
        print("\n".join(commands(options.tier, row, data_set, replicate)))
        return 0
    if options.dry_run:
        tell(options.tier, options.rows)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    # a call in the background of a script ignores Ctrl-C, and so would its commands
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = work_through(options.tier, options.work, options.minutes, options.rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
