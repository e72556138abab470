"""`taet data show NAME` and `taet data prepare NAME`: print what a data set holds; download and check its files.

`taet data list` is `taet list data`.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from taet import protocols
from taet.cli import flags
from taet.cli import list as listing
from taet.cli.progress import progress
from taet.data import is_own, load
from taet.data.dataset import Dataset
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
    "taet data prepare cifar10-lt --layout taet-npy --out cifar10lt_10",
    "taet data prepare dermamnist --layout folder --out dermamnist_png",
)
HELP = f"""usage: taet data show NAME [options]
       taet data prepare NAME [options]
       taet data list

show     print class counts of every split, imbalance ratio, checksums and notes, as a run would use the set;
         --out FILE.png draws them, --json prints JSON
prepare  download the official files (without a network: print which file to put where), check, unpack and read them;
         --layout npz, folder (PNG images) or taet-npy also writes the set with these options for other programs
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
    """A data set and how to write it."""

    data: flags.Given = flags.options(Data())
    layout: Literal["npz", "folder", "taet-npy"] | None = None
    """Also write the set with these options: one .npz with MedMNIST's keys, a folder of PNG images (train/CLASS/...),
    or the folder of arrays that TAET's repository reads."""
    out: Path | None = None
    """Where --layout writes; nothing is overwritten. Default: in this folder, named as by TAET, e.g. cifar10lt_10."""


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


def _default_out(dataset: Dataset, layout: str) -> Path:
    """Return the name with the imbalance ratio as in TAET's repository: cifar10lt_10 for cifar10-lt cut to 10."""
    kind, _, path = dataset.name.partition(":")
    stem = Path(path).stem if path else kind.replace("-", "")
    ratio = f"{round(dataset.imbalance_ratio, 1):g}"
    return Path(stem + (f"_{ratio}" if ratio != "1" else "") + {"npz": ".npz", "folder": "_png"}.get(layout, ""))


def _prepare(arguments: list[str]) -> None:
    from taet.data import layouts
    from taet.data.prepare import prepare

    if not arguments:
        raise UserError("which data set? taet data prepare NAME; see taet list data")
    description = "Download the official files of a data set, check them, and print what the set holds."
    parsed = _parse(PrepareOptions, "prepare", arguments, description, PREPARE)
    if parsed.out is not None and parsed.layout is None:
        raise UserError(f"--out {parsed.out} needs --layout npz, folder or taet-npy")
    if parsed.out is not None:
        layouts.check_free(parsed.out)  # before any download or read
    data = Data(**parsed.data)
    with progress("prepare") as report:
        dataset, done = prepare(data, report)
    counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    about = f"{counts} images of {dataset.num_classes} classes, imbalance {dataset.imbalance_ratio:.4g}"
    print("\n".join([*done, f"{dataset.name}: {about}"]))
    if parsed.layout is None:
        print(f"next: taet train taet {_options(data)}")
        return
    out = parsed.out or _default_out(dataset, parsed.layout)
    with progress("write") as report:
        layouts.write(dataset, parsed.layout, out, report)
    print(f"written: {out}")
    if not dataset.mirror:
        print(
            "note: mirrored images of this set lose their labels, which no layout records; train with --data.mirror no"
        )
    grouped = any(split.groups is not None for split in dataset.splits.values())
    if grouped and parsed.layout == "taet-npy":
        print("note: this layout does not record groups of images; npz and folder keep each group in one split")
    option = " --group folder" if grouped and parsed.layout == "folder" else ""
    print(f"next: taet data show {shlex.quote(f'{parsed.layout}:{out}')}{option}")


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
