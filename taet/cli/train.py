"""`taet train METHOD`: train from the start, or go on where a run stopped."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from taet import methods, models, protocols
from taet.cli import flags
from taet.cli.processes import together, told_once
from taet.cli.progress import progress
from taet.config import Data, Evaluation, Model, Outer, Run, Threat, Training, override
from taet.data import full_name, is_own
from taet.distributed import first
from taet.errors import UserError
from taet.evaluation import evaluate
from taet.evaluation.bundles import check_attacks
from taet.experiments import own_data
from taet.report import write
from taet.training import resume, train
from taet.training.folder import RunFolder
from taet.training.trainer import Trainer, TrainingResult

EXAMPLES = (
    "taet train taet --data digits-lt --model resnet8 --epochs 30",
    "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 --protocol reat",
    "taet train harl --method.absent skip --threat.eps 8/255 --out runs/harl-skip",
    "taet train taet --data folder:./lesions",
    "taet train at --data csv:lesions.csv --data.group patient --data.size 64 --outer balanced-softmax",
    "taet train at-bsl --data cifar10-lt --model vit-small-p4 --recipe vit",
    "taet train --resume runs/harl-skip",
    "torchrun --nproc-per-node 4 -m taet train taet --data cifar10-lt",
)
DESCRIPTION = """Train METHOD. Options --method.* are its own; --data, --model and --outer are short for --data.name,
--model.name and --outer.name.

beside the options below:
  --protocol NAME   sets every other default: taet (default), reat, or official, the settings METHOD was published with
  --recipe vit      AdamW with warm-up and cosine decay, which transformers need, in place of the protocol's SGD
  --resume RUN      go on with a run that stopped; takes no other option but those below
  --evaluate        attack the finished run and write its report.html; --no-evaluate: do not
  --json            print the finished run as JSON

started by torchrun, the processes share every batch: torchrun --nproc-per-node 4 -m taet train METHOD ...

Images of one's own (folder:, csv:, npz: or a path) need no other option: image size, groups, network, epochs and
attacks are chosen by the images and the machine where none is given, all of it is said, and --evaluate is on."""


def run(arguments: list[str]) -> None:
    """Train a new run, or resume one, attack it where that is wanted, and print what came out."""
    with told_once():
        plan = _read(arguments)
    with together(plan.device):
        finished = plan.work()
        show(finished, plan.as_json)
        own = is_own(finished.run.data.name)
        if plan.evaluate or (own and plan.evaluate is None):
            _evaluate(finished, plan.as_json)
        elif not plan.as_json:
            print(f"next: taet evaluate {finished.folder}")


class Plan(NamedTuple):
    """What the words of a call mean."""

    device: str
    work: Callable[[], TrainingResult]
    as_json: bool
    evaluate: bool | None
    """Is the run to be attacked? Not said: if the images are one's own."""


def _read(arguments: list[str]) -> Plan:
    """Return what the words mean; no data are looked at."""
    arguments = list(arguments)
    as_json, wanted, unwanted = (flags.switch(arguments, name) for name in ("--json", "--evaluate", "--no-evaluate"))
    if wanted and unwanted:
        raise UserError("got both --evaluate and --no-evaluate; allowed: one")
    evaluate_it = wanted or (False if unwanted else None)
    folder = flags.take(arguments, "--resume")
    if folder is not None:
        if arguments:
            raise UserError(f"--resume takes everything from the run: got {' '.join(arguments)} as well")
        run = RunFolder(Path(folder)).record.run
        return Plan(run.training.device, partial(_resume, folder), as_json, evaluate_it)
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"} & set(arguments):
            raise UserError("which method? taet train METHOD [options]; see taet list methods")
        arguments = ["at", *arguments]
    run, _ = configure(arguments[0], arguments[1:])
    return Plan(run.training.device, partial(_train, arguments, as_json), as_json, evaluate_it)


def _resume(folder: str) -> TrainingResult:
    with progress(f"resume {folder}") as report:
        return resume(folder, progress=report)


def _train(arguments: list[str], as_json: bool) -> TrainingResult:
    chosen, out, decided = first(lambda: _planned(arguments[0], arguments[1:]))

    def announce(trainer: Trainer) -> None:
        if not as_json:
            print(introduction(trainer, decided), file=sys.stderr, flush=True)  # what comes out is the run

    with progress(chosen.method) as report:
        command = shlex.join(["taet", "train", *arguments])
        return train(chosen, out=out, progress=report, command=command, announce=announce)


def _evaluate(finished: TrainingResult, as_json: bool) -> None:
    folder, device = finished.folder, finished.run.training.device
    command = shlex.join(["taet", "evaluate", str(folder)])
    with progress(f"attack {folder.name}") as report:
        card = evaluate(folder, device=device, progress=report, command=command)
    path = first(lambda: write([folder], folder / "report.html"))
    if not as_json:
        print(card)
        print(f"report: {path}")
        print(f"next: taet predict {folder} IMAGES, taet export {folder} --format onnx")


def introduction(trainer: Trainer, decided: Sequence[str]) -> str:
    """Say what the data are, what was decided for them, and how long training will take."""
    dataset, run = trainer.dataset, trainer.run
    counts, names = dataset.class_counts, dataset.class_names
    most, least = int(counts.argmax()), int(counts.argmin())
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    spread = f"{counts[most]:,} '{names[most]}' to {counts[least]:,} '{names[least]}'"
    if counts[most] == counts[least]:
        spread = f"{counts[most]:,} of each"
    lines = [
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {spread} to train on",
        *(f"  {note}" for note in dataset.notes),
    ]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    _, height, width = dataset.image_shape
    mirrored = "mirrored at random" if trainer.loader.mirror else "never mirrored"
    stem = models.stem(run.model.name, dataset.image_shape, run.model.stem)
    lines += [
        f"{run.method}: {run.training.epochs} epoch{'' if run.training.epochs == 1 else 's'} of {run.model.name}, "
        f"{parameters:,} parameters, "
        f"{f'{stem} stem, ' if stem else ''}on {width}x{height} pixels, {mirrored}",
        *(f"  {note}" for note in getattr(trainer.model, "notes", ())),
        *(f"  {text}" for text in trainer.method.warnings(counts.tolist(), run.training.batch_size)),
    ]
    if decided:
        lines += ["decided, each changed by its option:", *(f"  {sentence}" for sentence in decided)]
        lines += [f"training will take {duration(trainer.expected_seconds())}, the attacks after it not counted"]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Say about how long something takes."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"about {max(round(seconds, -1), 10):.0f} seconds"
    return f"about {minutes} minutes" if minutes < 120 else f"about {seconds / 3600:.1f} hours"


def configure(method: str, arguments: list[str]) -> tuple[Run, str | None]:
    """Return the run, and the folder if one is named, that `METHOD [options]` describes; no data are looked at."""
    start, rest = _start(method, arguments)
    return _parsed(start, rest)


def _planned(method: str, arguments: list[str]) -> tuple[Run, str | None, list[str]]:
    """As `configure`, with what is decided for images of one's own, and that in words.

    The options are read twice there: for the images, and then over what is decided for them.
    """
    start, rest = _start(method, arguments)
    run, out = _parsed(start, rest)
    if not is_own(run.data.name):
        return run, out, []
    made = own_data.planned(dataclasses.replace(start, data=run.data))
    run, out = _parsed(made.run, rest)
    run = override(run, {"data.name": full_name(run.data.name)})  # what a bare path means does not depend on the folder
    return run, out, made.sentences(run)


def _start(method: str, arguments: list[str]) -> tuple[Run, list[str]]:
    """The run that the protocol prescribes, and the other options."""
    rest = list(arguments)
    protocol, recipe = flags.take(rest, "--protocol"), flags.take(rest, "--recipe")
    return protocols.start(protocol or "taet", method, recipe), rest


def _parsed(start: Run, arguments: list[str]) -> tuple[Run, str | None]:
    """The run that the options make of `start`."""
    method, config = start.method, methods.find(start.method).Config
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
