"""`taet predict RUN IMAGES...`: classify images, and test whether each prediction survives an
attack."""

import os
from pathlib import Path
from typing import Annotated

from taet.cli.options import POSITIONAL, Device, OfTrained, OutPath, parse
from taet.cli.trained import open_trained
from taet.errors import UserError
from taet.files import make_folder, write_atomically
from taet.settings.types import Count


class Predict(OfTrained):
    """Print the class of every image and its probability: path,class,probability[,survives][,error]
    as CSV. Images are read as in training and converted to the size and colour of the run.

    --attack tests whether each predicted class survives that attack, with eps and the settings of
    the run; another attack may succeed. An image that cannot be read gets a reason in the column
    error, and the exit status is 2.
    """

    examples = (
        "taet predict runs/x images/",
        "taet predict runs/x a.png b.jpg --top 3",
        "taet predict resnet18 images/ --weights net.pt --classes cat,dog",
        "taet predict runs/x images/ --attack pgd-20 --save attacked/",
        "taet predict runs/x images/ --attack pgd-100:restarts=5,eps=4/255 --out predictions.csv",
    )

    images: Annotated[tuple[Path, ...], POSITIONAL]
    """Image files, and folders, which are searched recursively; hidden files are ignored."""
    attack: str | None = None
    """Test whether predictions survive this attack (see taet list attacks), e.g. pgd-20 or
    pgd-20:restarts=5."""
    save: OutPath | None = None
    """With --attack: folder of PNG files, original, change (ten times as strong, around grey) and
    attacked. They stay adversarial in 8 bits where that is possible, and a line says how often."""
    out: OutPath | None = None
    """Output file. Default: standard output."""
    force: bool = False
    """Replace an existing output file, and files in the folder of --save."""
    top: Count = 1
    """Number of classes to print for each image, most likely first."""
    batch_size: Count = 250
    """Images per batch."""
    device: Device = "auto"


def run(words: list[str]) -> int:
    """Classify every image; return 2 if one could not be read."""
    command, _ = parse(Predict, words, "taet predict")

    from taet.deployment.predict import predict
    from taet.models import trusted
    from taet.progress import say, shown

    if command.out is not None:
        if os.path.lexists(command.out) and not command.force:
            raise UserError(f"{command.out} exists; allowed: another --out, or --force")
        make_folder(command.out.parent)
    if command.save is not None and os.path.lexists(command.save) and not command.force:
        raise UserError(f"{command.save} exists; allowed: another --save, or --force")
    how = {name: getattr(command, name) for name in ("attack", "save", "batch_size", "device")}
    with trusted(command.trust_model), shown(f"predict {command.run}") as report:
        found = predict(
            open_trained(command),
            command.images,
            weights=command.weights or "model",
            progress=report,
            **how,
        )
    text = found.to_csv(command.top)
    if command.out is not None:
        # a file name that is not valid text keeps its bytes
        write_atomically(command.out, os.fsencode(text))
    else:
        print(text, end="")
    if found.survives_rounded is not None:
        say(f"taet: {found}; images: {command.save}")
    for note in found.notes:
        say(f"taet: {note}")
    if found.unread:
        say(f"taet: {found.unread} of {len(found)} images could not be read: see the column error")
    return 2 if found.unread else 0
