"""Watch a training in TensorBoard or Weights & Biases while it runs.

    pip install tensorboard       # or wandb
    python examples/live.py --to tensorboard --out runs/live
    tensorboard --logdir taet-runs

`taet.train` calls `progress` several times an epoch. `LiveLog` is such a callback: it reads the
epochs that the run folder has got since the last call, and hands their numbers to a tracker.
examples/track.py copies a run that has ended.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import taet
from taet.settings import flat, override

Log = Callable[[dict[str, float], int], object]
"""Called as log({name: value}, epoch)."""


class LiveLog:
    """A progress callback that hands every finished epoch of a run folder to `log`."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.metrics = folder / "metrics.jsonl"
        self.log = log
        self.logged = 0

    def __call__(self, done: float = 0, total: float = 0, label: str = "") -> None:
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines()[self.logged :]:
            values = dict(flat(json.loads(line)))
            numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
            finite = {name: v for name, v in numbers.items() if math.isfinite(v)}
            self.log(finite, int(values["epoch"]))
            self.logged += 1


def tensorboard_log(name: str) -> Log:
    """Return a function that writes numbers into the folder taet-runs/NAME."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(f"taet-runs/{name}")

    def log(numbers: dict[str, float], epoch: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, epoch)
        writer.flush()

    return log


def wandb_log(name: str) -> Log:
    """Return a function that logs to a run of W&B (WANDB_MODE=offline writes only files)."""
    import wandb

    run = wandb.init(project="taet-runs", name=name)
    return lambda numbers, epoch: run.log(numbers, step=epoch)


TRACKERS = {"tensorboard": tensorboard_log, "wandb": wandb_log}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train AT-BSL on digits, watched by the tracker that `arguments` name."""
    parser = argparse.ArgumentParser(description="Watch a training while it runs.")
    parser.add_argument("--to", choices=TRACKERS, default="tensorboard")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/live"))
    given = parser.parse_args(arguments)
    changes = {"model.name": "resnet8", "training.epochs": given.epochs}
    run = override(taet.protocols.taet("at-bsl"), changes)
    live = LiveLog(given.out, TRACKERS[given.to](given.out.name))
    taet.train(run, out=given.out, progress=live)
    live()  # the last epoch is written after the last report
    return given.out


if __name__ == "__main__":
    main()
