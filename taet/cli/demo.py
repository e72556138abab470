"""`taet demo`: train, attack and report on data that come with scikit-learn."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from taet.cli.options import Command, OutPath, parse

METHODS = ("at", "at-bsl", "taet")
# The protocol, adapted to the data. Strokes are black on white, so eps is larger than for photographs; the steps are in
# proportion, a quarter of eps in training and an eighth in evaluation. 477 images give few steps per epoch, hence
# batches of 64. The balanced test set has 50 images of the rarest class; the long-tailed one would have 6.
CHANGES = {
    "data.test": "balanced",
    "model.name": "resnet8",
    "data.test_max_count": 50,
    "threat.eps": 0.16,
    "threat.step_size": 0.04,
    "evaluation.step_size": 0.02,
    "evaluation.batch_size": 500,
    "training.precision": "float32",  # some processors only emulate bf16, and float32 is fast enough here
    "training.epochs": 60,
    "training.batch_size": 64,
    "training.monitor_every": 2,
}
WHY = "TAET needs more epochs than the 60 of this demo: its published factors of 0.1 act like a small learning rate."


class Demo(Command):
    """Train AT, AT-BSL and TAET on long-tailed digits, attack them, and write a report."""

    examples = ("taet demo", "taet demo --out somewhere")

    out: OutPath = Path("demo")
    """Folder for the runs and the report; existing runs are used or continued."""


def run(words: list[str]) -> None:
    """Train, attack and report; existing runs are used."""
    command, _ = parse(Demo, words, "taet demo")

    import taet
    from taet.cli.processes import progress
    from taet.report import write
    from taet.settings import override
    from taet.training.folder import RunFolder

    begun, folders = time.monotonic(), [command.out / "runs" / method for method in METHODS]
    for number, folder in enumerate(folders, 1):
        with progress(f"[{number}/6] train {folder.name}") as report:
            if RunFolder(folder).is_run:
                taet.resume(folder, progress=report)
            else:
                run = override(taet.protocols.taet(folder.name), CHANGES)
                taet.train(run, out=folder, progress=report, command="taet demo")
    for number, folder in enumerate(folders, 4):
        if not RunFolder(folder).card().exists():
            with progress(f"[{number}/6] attack {folder.name}") as report:
                print(taet.evaluate(folder, progress=report, command=shlex.join(["taet", "evaluate", str(folder)])))
    path = write(folders, command.out / "report.html", title="AT, AT-BSL and TAET on long-tailed digits")
    print(f"{WHY}\ndone in {time.monotonic() - begun:.0f} seconds; open {path.resolve()}")
