"""`taet demo`: train, attack and report on data that come with scikit-learn."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from taet.cli.options import Command, parse

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
WHY = """TAET needs more epochs than the 60 of this demo: its published factors of 0.1 act like a small learning rate.
On such digits four times the epochs brought it from 23 to 48 % under AutoAttack (one seed, see results/README.md)."""


class Demo(Command):
    """Train AT, AT-BSL and TAET on long-tailed digits, attack them with FGSM, PGD and AutoAttack, and write a
    report.
    """

    examples = ("taet demo", "taet demo --out somewhere")

    out: Path = Path("demo")
    """Folder for the runs and the report; existing runs are used or continued."""


def run(words: list[str]) -> None:
    """Train, attack and report; existing runs are used."""
    command = parse(Demo, words, "taet demo").command

    from taet import protocols
    from taet.cli.processes import progress
    from taet.evaluation import evaluate
    from taet.files import check_output
    from taet.report import write
    from taet.settings import override
    from taet.training import resume, train
    from taet.training.folder import RunFolder

    check_output(command.out)
    begun = time.monotonic()
    folders = [command.out / "runs" / method for method in METHODS]
    steps = 2 * len(METHODS)
    for number, (method, folder) in enumerate(zip(METHODS, folders, strict=True)):
        with progress(f"[{number + 1}/{steps}] train {method}") as report:
            if RunFolder(folder).is_run:
                resume(folder, progress=report)
            else:
                run = override(protocols.taet(method), CHANGES)
                train(run, out=folder, progress=report, command="taet demo")
    for number, folder in enumerate(folders):
        if RunFolder(folder).card().exists():
            continue
        with progress(f"[{len(METHODS) + number + 1}/{steps}] attack {folder.name}") as report:
            print(evaluate(folder, progress=report, command=shlex.join(["taet", "evaluate", str(folder)])))
    path = write(folders, command.out / "report.html", title="AT, AT-BSL and TAET on long-tailed digits")
    print(" ".join(WHY.split()))
    print(f"done in {time.monotonic() - begun:.0f} seconds; open {path.resolve()}")
