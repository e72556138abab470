"""`taet cost`: the cost of training on this machine by the cost model of the TAET paper, with the published numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from taet import methods
from taet.cli import flags
from taet.cli.progress import progress
from taet.data import DataFacts, facts, load
from taet.data.long_tail import long_tail_counts
from taet.errors import UserError
from taet.experiments.cost import TimedMethod, Timing, everything, measure
from taet.experiments.cost_tables import CostTable, setting, tables
from taet.experiments.steps import RATIO, TOTAL, Workload
from taet.files import write_json
from taet.formatting import aligned
from taet.settings import Data

EXAMPLES = (
    "taet cost",
    "taet cost --model resnet18 --clean-epochs 60 --methods at trades taet --out cost.json",
    "taet cost --data cifar100-lt --precision float32 --threads 1 --json",
    "taet cost --image-shape 3 64 64 --classes 200 --batch-size 32 --curve 1 2 5 7 10 20",
    "taet cost --methods all",
)
DESCRIPTION = """Measure the cost of training on this machine, in about a minute for a small model: forward and backward
passes of a clean step and of an attack step; gamma, rho, eta and the share of time that TAET saves, predicted and
measured; peak memory of a clean and of an adversarial step; seconds per epoch by PGD steps and by method. Published
numbers are printed next to them. The images are random; the training steps are those of real runs."""
GeneratedSide = Annotated[int, Field(ge=1, le=4096)]
Classes = Annotated[int, Field(ge=2, le=TOTAL // int(RATIO))]  # the smallest class of as many has one image
METHODS = ("at", "robal", "reat", "taet")  # of REAT's table 14, and TAET


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What is measured, and how."""

    model: Annotated[str, tyro.conf.arg(name="model.name", aliases=["--model"])] = Workload.default("model")
    """As in taet train."""
    data: flags.Given = flags.options(Data(name=""), "data", "--data")
    image_shape: tuple[GeneratedSide, GeneratedSide, GeneratedSide] | None = None
    """Channels, height and width. Default: those of --data, or 3 32 32."""
    classes: Classes | None = None
    """Number of classes. The largest has 50,000 / classes images and the smallest a tenth of that, as in CIFAR-10-LT
    and CIFAR-100-LT at imbalance ratio 10. Default: those of --data, or 10."""
    timing: flags.Given = flags.options(Timing())
    methods: tuple[str, ...] = METHODS
    """Methods to measure. all: every method in every variant; no name: only the cost model."""
    json: bool = False
    """Print JSON."""
    out: Path | None = None
    """Write the JSON to this file as well."""


def run(arguments: list[str]) -> None:
    """Measure the cost, print it and write it to the file asked for; mistakes are refused before that."""
    parsed = flags.parse(CostOptions, arguments, "taet cost", DESCRIPTION, EXAMPLES)
    timing, wanted = Timing(**parsed.timing), wanted_methods(parsed.methods)
    if parsed.out is not None and not parsed.out.parent.is_dir():
        raise UserError(f"--out: got {parsed.out}; allowed: a file in a folder that is there")
    workload = _workload(parsed)
    with progress("cost") as report:
        measured = measure(workload, timing, wanted, progress=report)
    found = {**measured, "command": flags.call_text(["cost", *arguments])}
    if parsed.out is not None:
        write_json(parsed.out, found)
    if parsed.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join([setting(found), *map(text, tables(found))]))


def wanted_methods(names: tuple[str, ...]) -> list[TimedMethod]:
    """Return the methods to measure, each with settings."""
    if names == ("all",):
        return everything()
    for name in names:
        methods.find(name)
    return [(name, {}) for name in names]


def _workload(parsed: CostOptions) -> Workload:
    if not parsed.data:
        classes = parsed.classes or len(Workload.default("class_counts"))
        counts = long_tail_counts(classes, TOTAL // classes, RATIO)
        shape = parsed.image_shape or Workload.default("image_shape")
        return Workload(model=parsed.model, image_shape=shape, class_counts=tuple(counts))
    if not parsed.data.get("name"):
        raise UserError("--data.*: got options of a data set without --data NAME")
    if parsed.image_shape or parsed.classes:
        raise UserError("--image-shape, --classes: got them beside --data, which sets both; allowed: either")
    data = Data(**parsed.data)
    known = facts(data) or DataFacts.of(load(data))
    return Workload(model=parsed.model, image_shape=known.image_shape, class_counts=known.class_counts)


def text(table: CostTable) -> str:
    """Return a table as text: the first column aligned left, the others right."""
    lines = aligned((table.heads, *table.rows))
    return "\n".join([table.title, *(f"  {line}".rstrip() for line in lines)])
