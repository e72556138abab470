"""`taet predict RUN IMAGES...`: classify images, and test whether each prediction survives an attack."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from taet.cli.options import POSITIONAL, OfRun, parse
from taet.errors import UserError
from taet.fields import Count

if TYPE_CHECKING:
    from taet.deployment.predict import Predictions


class Predict(OfRun):
    """Print the class of every image and its probability: path,class,probability[,survives][,error] as CSV on standard
    output. Images are read as in training and converted to the size and colour of the run; conversions are reported.
    The run's data are not needed.

    --attack tests for each image whether the predicted class survives that attack, with eps and the settings of the
    run. true means that this attack failed; another attack may succeed.

    An image that cannot be read gets a reason in the column error; the others are classified, and the exit status is 2.
    After an interruption the results so far are written.
    """

    examples = (
        "taet predict runs/x images/",
        "taet predict runs/x a.png b.jpg --top 3 --format json",
        "taet predict runs/x images/ --attack pgd-20 --out predictions.csv",
        "taet predict runs/x images/ --attack pgd-100:restarts=5,eps=4/255 --batch-size 50",
    )

    images: Annotated[tuple[Path, ...], POSITIONAL]
    """Image files, and folders, which are searched recursively; hidden files are ignored."""
    attack: str | None = None
    """Test whether predictions survive this attack (see taet list attacks), e.g. pgd-20 or pgd-20:restarts=5."""
    format: Literal["csv", "json"] = "csv"
    """Output format."""
    out: Path | None = None
    """Output file. Default: standard output."""
    force: bool = False
    """Replace an existing output file."""
    top: Count = 1
    """Number of classes to print for each image, most likely first."""
    batch_size: Count = 250
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(words: list[str]) -> int:
    """Classify every image; return 2 if one could not be read."""
    command = parse(Predict, words, "taet predict").command

    from taet.cli.processes import progress, say
    from taet.cli.subject import local
    from taet.deployment.predict import Predictions, batches, changes, joined
    from taet.files import check_output, make_folder
    from taet.models import trusted
    from taet.training.folder import RunFolder

    if command.out is not None:
        check_output(command.out)
        if os.path.lexists(command.out) and not command.force:
            raise UserError(f"{command.out} exists; allowed: another --out, or --force")
        make_folder(command.out.parent)
    parts, folder = list[Predictions](), Path(local(str(command.run)))
    try:
        with trusted(command.trust_model), progress(f"predict {command.run}") as report:
            for part in batches(
                folder,
                command.images,
                attack=command.attack,
                weights=command.weights,
                batch_size=command.batch_size,
                device=command.device,
                progress=report,
            ):
                parts.append(part)
                if len(parts) == 1:
                    record = RunFolder(folder).record
                    for note in changes(command.images, record.data.image_shape, record.fit):
                        say(f"taet: {note}")
    finally:  # also the results before an interruption
        if parts:
            _write(joined(parts), command)
    unread = sum(part.unread for part in parts)
    if unread:
        say(f"taet: {unread} of {sum(map(len, parts))} images could not be read: see the column error")
    return 2 if unread else 0


def _write(found: Predictions, command: Predict) -> None:
    """Write the predictions; a file name that is not valid text keeps its bytes in CSV and is escaped in JSON."""
    from taet.files import write_atomically

    text = found.to_json(command.top) if command.format == "json" else found.to_csv(command.top)
    if command.out is not None:
        write_atomically(command.out, text.encode("utf-8", "surrogateescape"))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stdout.write(text)
