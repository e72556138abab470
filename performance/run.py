"""Run the benchmarks of the CPU, write performance/results/*.json, and report every ratio that
fell.

A ratio is compared with that of the last commit or, outside a checkout, with the previous file. If
one fell by more than 15 %, or a benchmark failed, the command ends with status 1.

    python performance/run.py                       all: less than 15 minutes on two idle cores
    python performance/run.py evaluation            some of them
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import RESULTS

COMMANDS = (
    "training.py --model resnet18 --rounds 5",
    "training.py --model resnet8 --rounds 5 --steps 8",
    "evaluation.py --images 100 --batch-size 25 --rounds 3",
)
FALL = 0.15  # of a ratio, that is reported

Result = Mapping[str, Any]


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(dict.fromkeys(map(script, COMMANDS)))} (all)"
    )
    names = parser.parse_args().names
    before = {path.name: committed(path) for path in RESULTS.glob("*.json")}
    failed = []
    for command in [command for command in COMMANDS if not names or script(command) in names]:
        print(f"\npython performance/{command}", flush=True)
        began = time.perf_counter()
        file, *arguments = command.split()
        status = subprocess.run(
            [sys.executable, str(RESULTS.with_name(file)), *arguments], check=False
        ).returncode
        print(f"{time.perf_counter() - began:.0f} s", flush=True)
        failed += [f"{command}: ended with status {status}"] if status else []
    fallen = [
        f"{path.stem}: {line}"
        for path in sorted(RESULTS.glob("*.json"))
        for line in falls(before.get(path.name) or {}, json.loads(path.read_text(encoding="utf-8")))
    ]
    print("\n" + "\n".join([*failed, *fallen] or ["no ratio fell by more than 15 %"]))
    return int(bool(failed or fallen))


def script(command: str) -> str:
    """Return the name of a command."""
    return command.split()[0].removesuffix(".py")


def committed(path: Path) -> Result | None:
    """Return the result in the last commit or, without one, the one on disk."""
    words = ["git", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = path.read_text(encoding="utf-8")
    result: Result = json.loads(found)
    return result


def falls(before: Result, now: Result) -> Iterator[str]:
    """Yield lines about ratios that fell by more than 15 %; they say so if the machine is
    another."""
    machines = [result.get("environment", {}).get("device") for result in (before, now)]
    for name, row in now.get("ratios", {}).items():
        old = before.get("ratios", {}).get(name)
        if old is None or row["ratio"] >= (1 - FALL) * old["ratio"]:
            continue
        share = 1 - row["ratio"] / old["ratio"]
        other = (
            ""
            if machines[0] == machines[1]
            else (f"; but measured on {machines[0]} before, now on {machines[1]}")
        )
        yield f"{name} fell by {100 * share:.0f} %, from {spelled(old)} to {spelled(row)}{other}"


def spelled(row: Mapping[str, Any]) -> str:
    """Return a ratio with its spread in words."""
    low, high = row["spread"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}, n = {row['n']})"


if __name__ == "__main__":
    sys.exit(main())
