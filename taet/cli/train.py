"""`taet train METHOD`: train from the start, or go on where a run stopped."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import field, make_dataclass
from typing import Annotated, Any

import tyro

from taet import methods, protocols
from taet.cli import flags
from taet.cli.progress import progress
from taet.config import Data, Evaluation, Model, Outer, Run, Threat, Training
from taet.errors import UserError
from taet.evaluation.attack import check_attacks
from taet.training import resume, train
from taet.training.trainer import TrainingResult

EXAMPLES = (
    "taet train taet --data digits-lt --model resnet8 --epochs 30",
    "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 --protocol reat",
    "taet train harl --method.absent skip --threat.eps 8/255 --out runs/harl-skip",
    "taet train at --data folder:./lesions --data.size 32 --outer balanced-softmax",
    "taet train --resume runs/harl-skip",
)
DESCRIPTION = """Train METHOD. Options --method.* are its own; --data, --model and --outer are short for --data.name,
--model.name and --outer.name.

beside the options below:
  --protocol NAME   sets every other default: taet (default), reat, or official, the settings METHOD was published with
  --resume RUN      go on with a run that stopped; takes no other option but --json
  --json            print the finished run as JSON"""


def run(arguments: list[str]) -> None:
    """Train a new run, or resume one, and print what came out."""
    as_json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    folder = flags.take(arguments, "--resume")
    if folder is not None:
        if arguments:
            raise UserError(f"--resume takes everything from the run: got {' '.join(arguments)} as well")
        with progress(f"resume {folder}") as report:
            return show(resume(folder, progress=report), as_json)
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"} & set(arguments):
            raise UserError("which method? taet train METHOD [options]; see taet list methods")
        arguments = ["at", *arguments]
    chosen, out = configure(arguments[0], arguments[1:])
    with progress(chosen.method) as report:
        command = shlex.join(["taet", "train", *arguments])
        show(train(chosen, out=out, progress=report, command=command), as_json)
    return None


def configure(method: str, arguments: list[str]) -> tuple[Run, str | None]:
    """Return the run, and the folder if one is named, that `METHOD [options]` describes."""
    arguments = list(arguments)
    config = methods.find(method).Config
    start = protocols.start(flags.take(arguments, "--protocol") or "taet", method)
    parts = [
        ("data", Data, start.data),
        ("model", Model, start.model),
        ("threat", Threat, start.threat),
        ("outer", Outer, start.outer),
        ("training", Annotated[Training, tyro.conf.arg(name="")], start.training),
        ("evaluation", Evaluation, start.evaluation),
        ("method", config, start.settings or config()),
    ]
    seed = Annotated[int, tyro.conf.arg(help="Seed of weights, batches, augmentation and attack starts.")]
    folder = Annotated[str | None, tyro.conf.arg(help="Folder of the run, which must be new.")]
    kind: Any = make_dataclass(
        "Flags",
        [(name, type_, field(default=value)) for name, type_, value in parts]
        + [("seed", seed, 0), ("out", folder, None)],
        frozen=True,
    )
    parsed = flags.parse(kind, arguments, prog=f"taet train {method}", description=DESCRIPTION, examples=EXAMPLES)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
    settings, out = values.pop("method"), values.pop("out")
    check_attacks(values["evaluation"])  # now, not when the training is over
    return dataclasses.replace(start, settings=settings, **values), out


def show(result: TrainingResult, as_json: bool) -> None:
    """Print a finished run, for people or as JSON."""
    if as_json:
        print(json.dumps({"run": str(result.folder), "epochs": len(result.history), "last": result.history[-1]}))
    else:
        print(result)
        print(f"next: taet evaluate {result.folder}")
