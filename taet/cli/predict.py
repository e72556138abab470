"""`taet predict RUN IMAGES...`: classify images, and test whether each prediction survives an attack."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.cli.progress import progress
from taet.cli.subject import OfRun, here
from taet.deployment.predict import BATCH_SIZE, Predictions, batches, changes, joined
from taet.errors import UserError
from taet.fields import Count
from taet.files import check_output, make_folder, write_atomically
from taet.models import trusted
from taet.training.folder import RunFolder

EXAMPLES = (
    "taet predict runs/x images/",
    "taet predict runs/x a.png b.jpg --top 3 --format json",
    "taet predict runs/x images/ --attack pgd-20 --out predictions.csv",
    "taet predict runs/x images/ --attack pgd-100:restarts=5,eps=4/255 --batch-size 50",
)
DESCRIPTION = """Print the class of every image and its probability: path,class,probability[,survives][,error] as CSV on
standard output. Images are read as in training and converted to the size and colour of the run; conversions are
reported. The run's data are not needed.

--attack tests for each image whether the predicted class survives that attack, with eps and the settings of the
run. true means that this attack failed; another attack may succeed.

An image that cannot be read gets a reason in the column error; the others are classified, and the exit status is 2.
After an interruption the results so far are written."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(OfRun):
    """A finished run, images, and what to print about them."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, and folders, which are searched recursively; hidden files are ignored."""
    attack: str | None = None
    """Test whether predictions survive this attack (see `taet list attacks`), e.g. pgd-20 or pgd-20:restarts=5."""
    format: Literal["csv", "json"] = "csv"
    """Output format."""
    out: Path | None = None
    """Output file. Default: standard output."""
    force: bool = False
    """Replace an existing output file."""
    top: Count = 1
    """Number of classes to print for each image, most likely first."""
    batch_size: Count = BATCH_SIZE
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(arguments: list[str]) -> int:
    """Classify every image; return 2 if one could not be read."""
    parsed, parts = here(read(arguments)), list[Predictions]()
    _check_place(parsed)
    try:
        with trusted(parsed.trust_model), progress(f"predict {parsed.run}") as report:
            for part in batches(
                parsed.run,
                parsed.images,
                attack=parsed.attack,
                weights=parsed.weights,
                batch_size=parsed.batch_size,
                device=parsed.device,
                progress=report,
            ):
                parts.append(part)
                if len(parts) == 1:
                    record = RunFolder(parsed.run).record
                    for note in changes(parsed.images, record.data.image_shape, record.fit):
                        print(f"taet: {note}", file=sys.stderr)
    finally:  # also the results before an interruption
        if parts:
            _write(joined(parts), parsed)
    unread = sum(part.unread for part in parts)
    if unread:
        count = sum(map(len, parts))
        print(f"taet: {unread} of {count} images could not be read: see the column error", file=sys.stderr)
    return 2 if unread else 0


def read(arguments: list[str]) -> PredictOptions:
    """Parse a call."""
    if flags.options_of(arguments) & {"--certify-attack", "--certify_attack"}:
        raise UserError("--certify-attack is now --attack: surviving an attack is no certificate")
    parsed = flags.parse(PredictOptions, arguments, "taet predict", DESCRIPTION, EXAMPLES)
    if not parsed.images:
        raise UserError(f"which images? taet predict {parsed.run} IMAGES...: files and folders")
    return parsed


def _check_place(parsed: PredictOptions) -> None:
    """Refuse an output file that exists or cannot be written, before any work; create its folder."""
    if parsed.out is None:
        return
    check_output(parsed.out)
    is_file = parsed.out.is_file() and not parsed.out.is_symlink()
    if os.path.lexists(parsed.out) and not (parsed.force and is_file):
        what = "exists" if is_file else "is not a file"
        raise UserError(f"{parsed.out} {what}; allowed: another --out{', or --force' if is_file else ''}")
    make_folder(parsed.out.parent)


def _write(found: Predictions, parsed: PredictOptions) -> None:
    """Write the predictions; a file name that is not valid text keeps its bytes in CSV and is escaped in JSON."""
    text = found.to_json(parsed.top) if parsed.format == "json" else found.to_csv(parsed.top)
    if parsed.out is not None:
        write_atomically(parsed.out, text.encode("utf-8", "surrogateescape"))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stdout.write(text)
