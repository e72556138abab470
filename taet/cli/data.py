"""`taet data show NAME` and `taet data prepare NAME`: print what a data set holds; download and check its files.

`taet data list` is `taet list data`.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from taet import protocols
from taet.cli import flags
from taet.cli import list as listing
from taet.cli.progress import progress
from taet.data import is_own, load
from taet.data.description import describe, draw, render
from taet.errors import UserError, unknown
from taet.experiments import own_images
from taet.progress import reporting_to
from taet.settings import Data, override
from taet.training.choices import Chosen, choice_lines

SHOW = (
    "taet data show digits-lt",
    "taet data show cifar10-lt --root ~/data --imbalance-ratio 50",
    "taet data show folder:./lesions --size 32 --json",
    "taet data show cifar100-lt --out counts.png",
)
PREPARE = (
    "taet data prepare cifar10-lt",
    "taet data prepare tiny-imagenet-lt --root ~/data",
    "taet data prepare dermamnist --size 64",
)
HELP = f"""usage: taet data show NAME [options]
       taet data prepare NAME [options]
       taet data list

show     print class counts of every split, imbalance ratio, checksums and notes, as a run would use the set;
         --out FILE.png draws them, --json prints JSON
prepare  download the official files (without a network: print which file to put where), check, unpack and read them
list     print the names, as taet list data

For the options: taet data show --help and taet data prepare --help.

examples:
{chr(10).join(f"  {example}" for example in (*SHOW, *PREPARE))}"""
PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class ShowOptions:
    """A data set and how to show it."""

    data: flags.Given = flags.options(Data())
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Draw the images of each class in each split into this .png, .pdf or .svg file."""


@dataclass(frozen=True)
class PrepareOptions:
    """A data set."""

    data: flags.Given = flags.options(Data())


def _parse(
    kind: type[flags.T], action: str, arguments: list[str], description: str, examples: tuple[str, ...]
) -> flags.T:
    named = ["--name", *arguments] if arguments and not arguments[0].startswith("-") else arguments
    words = [argument.replace("--data.", "--", 1) for argument in named]
    return flags.parse(kind, words, f"taet data {action} NAME", description, examples)


def _show(arguments: list[str]) -> None:
    parsed = _parse(ShowOptions, "show", arguments, "Show what a data set holds as a run would use it.", SHOW)
    if parsed.out is not None and parsed.out.suffix.lower() not in PICTURES:
        raise UserError(f"--out: got '{parsed.out}'; allowed: a file that ends in {', '.join(PICTURES)}")
    data = Data(**parsed.data)
    choices: dict[str, Chosen] = {}
    with progress("read") as report, reporting_to(report):
        if is_own(data.name):  # as in taet train
            plan = own_images.planned(override(protocols.taet(), {"data": data}))
            given = {f"data.{name}": value for name, value in parsed.data.items()}
            run = override(plan.run, given)
            choices = {name: made for name, made in plan.followed(run).items() if name.startswith("data.")}
            data = run.data
        dataset = load(data)
    choices |= own_images.mirroring(data, dataset)
    if choices:
        print("\n".join(["decided; each can be set by its option:", *choice_lines(choices)]), file=sys.stderr)
    print(json.dumps(describe(dataset), indent=1) if parsed.json else render(dataset))
    if parsed.out is not None:
        draw(dataset, parsed.out)
        print(f"written: {parsed.out}", file=sys.stderr if parsed.json else sys.stdout)


def _options(data: Data) -> str:
    """Return the options of `taet train` that give `data`."""
    words = []
    for name, field in Data.model_fields.items():
        value = getattr(data, name)
        if name != "name" and value != field.default:
            text = f"{value:.10g}" if isinstance(value, float) else str(value)
            words.append(f"--data.{name.replace('_', '-')} {shlex.quote(text)}")
    return " ".join([f"--data {shlex.quote(data.name)}", *words])


def _prepare(arguments: list[str]) -> None:
    from taet.data.prepare import prepare

    if not arguments:
        raise UserError("which data set? taet data prepare NAME; see taet list data")
    description = "Download the official files of a data set, check them, and print what the set holds."
    parsed = _parse(PrepareOptions, "prepare", arguments, description, PREPARE)
    data = Data(**parsed.data)
    with progress("prepare") as report:
        dataset, done = prepare(data, report)
    counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    about = f"{counts} images of {dataset.num_classes} classes, imbalance {dataset.imbalance_ratio:.4g}"
    print("\n".join([*done, f"{dataset.name}: {about}"]))
    print(f"next: taet train taet {_options(data)}")


def run(arguments: list[str]) -> None:
    """Show or prepare a data set, or list all."""
    if not arguments:
        raise UserError("which data set? taet data show NAME or taet data prepare NAME; see taet list data")
    actions = {"list": lambda rest: listing.run(["data", *rest]), "prepare": _prepare, "show": _show}
    action, *rest = arguments
    if action in ("-h", "--help"):
        print(HELP)
    elif action not in actions:
        raise unknown("action of taet data", action, actions)
    else:
        actions[action](rest)
