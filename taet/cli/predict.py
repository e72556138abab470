"""`taet predict RUN IMAGES...`: the class of every image, and whether it stands under an attack."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.progress import progress
from taet.deployment.predict import BATCH_SIZE, batches
from taet.deployment.predictions import Predictions, joined
from taet.errors import UserError
from taet.files import write_atomically

EXAMPLES = (
    "taet predict runs/x images/",
    "taet predict runs/x a.png b.jpg --top 3 --format json",
    "taet predict runs/x images/ --certify-attack pgd-20 --out predictions.csv",
    "taet predict runs/x images/ --certify-attack pgd-100:restarts=5,eps=4/255 --batch-size 50",
)
DESCRIPTION = """Say the class of every image, with its probability: path,class,probability[,survives][,error] as CSV
on standard output. Images are read as in training and resized to the run's size; the run's data are not needed.

--certify-attack says for each image whether the predicted class survives that attack, in the ball and with the settings
of the run. It certifies nothing beyond that: true means that this attack failed, not that no other can succeed.

An image that cannot be read has its reason in the column error, the others are answered all the same, and the exit
status is 2. An interruption writes what was found so far."""


@dataclass(frozen=True)
class PredictOptions:
    """A finished run, images, and what is wanted to know."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, and folders, which are searched through; hidden files are left out."""
    certify_attack: str | None = None
    """An attack that the predicted class must survive (see `taet list attacks`), e.g. pgd-20 or pgd-20:restarts=5."""
    format: Literal["csv", "json"] = "csv"
    """Form of the answer."""
    out: Path | None = None
    """File of the answer; standard output if not given."""
    force: bool = False
    """Replace that file if it is there."""
    top: int = 1
    """Classes that are named for each image, the likely ones first."""
    weights: Literal["model", "model-last", "model-best"] = "model"
    """What the run delivers, its last epoch, or its best one."""
    batch_size: int = BATCH_SIZE
    """Images that are in memory at a time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    """Answer for every image; return 2 if one could not be read."""
    parsed, parts = read(arguments), list[Predictions]()
    _check_place(parsed)
    try:
        with progress(f"predict {parsed.run}") as report:
            for part in batches(
                parsed.run,
                parsed.images,
                certify_attack=parsed.certify_attack,
                weights=parsed.weights,
                batch_size=parsed.batch_size,
                device=parsed.device,
                progress=report,
            ):
                parts.append(part)
    finally:  # also what was found before an interruption
        if parts:
            _write(joined(parts), parsed)
    unread = sum(part.unread for part in parts)
    if unread:
        count = sum(map(len, parts))
        print(f"taet: {unread} of {count} images could not be read: see the column error", file=sys.stderr)
    return 2 if unread else 0


def read(arguments: list[str]) -> PredictOptions:
    """Return what the words of the call mean."""
    parsed = flags.parse(PredictOptions, arguments, prog="taet predict", description=DESCRIPTION, examples=EXAMPLES)
    if not parsed.images:
        raise UserError(f"which images? taet predict {parsed.run} IMAGES...: files and folders")
    if parsed.top < 1:
        raise UserError(f"top: got {parsed.top}; allowed: 1 or more")
    return parsed


def _check_place(parsed: PredictOptions) -> None:
    """Refuse a file that could not be written, or that is there, before the work is done; make its folder."""
    if parsed.out is None:
        return
    if parsed.out.exists() and not (parsed.force and parsed.out.is_file()):
        what = "exists" if parsed.out.is_file() else "is no file"
        raise UserError(f"{parsed.out} {what}; allowed: another --out{', or --force' if parsed.out.is_file() else ''}")
    try:
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {parsed.out.parent}: {error.strerror}") from None


def _write(found: Predictions, parsed: PredictOptions) -> None:
    """Write the answer; a name that is no text keeps its bytes in CSV, and is escaped in JSON."""
    as_json = parsed.format == "json"
    text = json.dumps(found.to_json(parsed.top), indent=1) + "\n" if as_json else found.to_csv(parsed.top)
    if parsed.out is not None:
        write_atomically(parsed.out, text.encode("utf-8", "surrogateescape"))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stdout.write(text)
