"""Functions of all benchmarks: rounds of alternating sides, a process for each side, ratios, and
the result file."""

import json
import shlex
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from taet.files import write_json
from taet.machine import bf16_instructions, cpuinfo, environment

RESULTS = Path(__file__).parent / "results"
Measured = TypeVar("Measured")


def alternate(
    sides: Mapping[str, Callable[[], Measured]], rounds: int
) -> dict[str, list[Measured]]:
    """Call every side once per round and return the results of each.

    The order is reversed every round, so that a machine that slows down slows all sides alike. The
    first call of each is not counted: it includes imports, compilation and the first allocations.
    """
    for work in sides.values():
        work()
    done: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            done[name].append(sides[name]())
    return done


def seconds(work: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Return the seconds that `work` takes, including its work on the device."""
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device | str) -> None:
    """Wait until the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def ratio(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Return other / ours, round by round: median, least, largest and number; and the median
    seconds of both.

    A ratio above 1 says how many times as fast ours is.
    """
    ratios = [slow / fast for fast, slow in zip(ours, other, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "n": len(ratios),
        "ours": float(f"{statistics.median(ours):.4g}"),
        "other": float(f"{statistics.median(other):.4g}"),
    }


def arguments(parser: ArgumentParser, out: str) -> None:
    """Add the options of every benchmark of speed."""
    parser.add_argument("--rounds", type=int, default=5, help="number of measurements (5)")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (2)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / out, help=f"file of the result (results/{out})"
    )


def record(
    out: Path,
    device: torch.device | str,
    ratios: Mapping[str, Mapping[str, Any]],
    load: Sequence[float],
    **more: Any,
) -> dict[str, Any]:
    """Write a result and return it; `load` is the load average of the machine before the
    measurement."""
    result = {
        "benchmark": Path(sys.argv[0]).stem,
        "command": command(),
        "environment": environment(torch.device(device)) | processor(),
        "load": [round(value, 2) for value in load],
        "ratios": dict(ratios),
        **more,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return result


def earlier_points(out: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file of points at `out`, or a new one for the environment `here`.

    Points of another device, other versions or another commit do not count, and neither do those
    of files that differ from their commit.
    """
    earlier: dict[str, Any] = json.loads(out.read_bytes()) if out.exists() else {}
    then = earlier.get("environment", {})
    same = all(then.get(name) == here[name] for name in ("versions", "commit", "device"))
    if same and here["commit"] and not here["commit"].endswith("+"):
        return earlier
    return {"environment": dict(here), "points": {}}


def processor() -> dict[str, str]:
    """Return family, model and instructions of the processor: a name such as AMD EPYC has many
    generations."""
    family = (
        (f"family {cpuinfo('cpu family')}, model {cpuinfo('model')}")
        if cpuinfo("cpu family")
        else ""
    )
    bf16 = bf16_instructions(torch.device("cpu")) or "no bf16"
    return {
        "processor": family,
        "instructions": f"{torch.backends.cpu.get_cpu_capability()}, {bf16}",
    }


def command() -> str:
    """Return the command line as typed in the checkout, without --out."""
    given = iter(sys.argv[1:])
    kept = [
        word
        for word in given
        if not word.startswith("--out=") and not (word == "--out" and next(given, ""))
    ]
    return shlex.join(["python", f"performance/{Path(sys.argv[0]).name}", *kept])


def show(result: Mapping[str, Any]) -> None:
    """Print the ratios of a result as a table."""
    print(f"{result['environment']['device']}, torch {result['environment']['versions']['torch']}")
    for name, row in result["ratios"].items():
        low, high = row["spread"]
        print(f"{name:32} {row['ratio']:8.2f}   {low:.2f} to {high:.2f}, n = {row['n']}")


# --- a process for each side, since settings of the memory allocator are a process's own


@contextmanager
def processes(
    sides: Sequence[str], *more: str
) -> Iterator[dict[str, Callable[[], dict[str, Any]]]]:
    """Start this command once per side, with `--side NAME` and `more` added; yield functions that
    run a round of each.

    A process works only during a call of its function: with `alternate`, no two work at once. The
    process itself calls `asked` and `answer` in turn.
    """
    with ExitStack() as stack:
        yield {name: stack.enter_context(_side(name, more)) for name in sides}


@contextmanager
def _side(name: str, more: Sequence[str]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start the process of a side; yield a function that makes it measure once. The end of its
    input ends it."""
    command = [sys.executable, *sys.argv, "--side", name, *more]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:

        def measured() -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            if not (line := process.stdout.readline()):
                sys.exit(f"the process that measures {name} ended with status {process.wait()}")
            found: dict[str, Any] = json.loads(line)
            return found

        yield measured


def asked() -> None:
    """Wait, in the process of a side, for the next round; without one the process ends."""
    if not sys.stdin.readline():
        sys.exit(0)


def answer(measured: Mapping[str, Any]) -> None:
    """Send the result of a round to the main process."""
    print(json.dumps(measured), flush=True)
