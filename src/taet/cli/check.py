"""`taet check`: check this machine, the files of a run, or what would invalidate an evaluation of a
model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taet.cli.named_model import (
    OF_DATA,
    OF_TRAINING,
    download_or_path,
    is_folder,
    open_model,
    run_named_by,
)
from taet.cli.options import POSITIONAL, OfModel, Options, of_part, parse, refuse_idle_trust
from taet.errors import UserError
from taet.files import Json
from taet.settings import Data

if TYPE_CHECKING:
    from taet.evaluation import Check


class CheckCommand(OfModel):
    """Without a model: the installed versions, the device that a run would use, and the folders of
    data.

    With a file of weights: say what it holds, whose names they are and which network they fit.

    With a run folder: verify that all its files are whole and belong together. Then, as for any
    model, test it on a batch of images, in seconds, before attacks that take hours: input, logits,
    gradients, determinism, and the time of the attacks. ! marks a problem, with a remedy; then the
    exit status is 1.
    """

    examples = (
        "taet check",
        "taet check runs/x --deep",
        "taet check net.pt",
        "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    )

    model: Annotated[str | None, POSITIONAL] = None
    """Run folder, file of weights, or a model as of taet evaluate --model, which needs --data."""
    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    deep: bool = False
    """Attack a randomised model also through the mean of many draws, and several logits of a class
    together."""


def run(words: list[str]) -> int:
    """Check and print the findings; return 1 if one is a problem."""
    command, given = parse(
        CheckCommand,
        words,
        "taet check",
        [Options("data", Data(), usual=OF_DATA, without=OF_TRAINING)],
    )
    data = of_part(given, "data")

    from taet.evaluation import check
    from taet.models import trusted

    if command.model is None and (given or command.model_fields_set - {"device"}):
        raise UserError(
            "check: got options of a model without one; allowed: with RUN, or with MODEL --data "
            "NAME"
        )
    options = {name: getattr(command, name) for name in ("deep", "attacks", "device")}
    refuse_idle_trust(command.trust_model, run_named_by(command.model))
    with trusted(command.trust_model):
        if command.model is None:
            checked, notes = check(**options), list[str]()
        elif not data and (file := _file_of_weights(command)) is not None:
            print("\n".join(described(file)))
            return 0
        else:
            checked, notes = _check_model(command.model, data, command, options)
    print("\n".join([str(checked), *notes]))
    return 0 if checked.ok else 1


def _check_model(
    model_name: str, data: Json, command: CheckCommand, options: Json
) -> tuple[Check, list[str]]:
    """Check a run on its own images, or a model on those of `data`; return notes on these, too."""
    from taet.evaluation import check

    name = download_or_path(model_name)
    if is_folder(name) and not data and command.normalize == "auto":
        return check(name, weights=command.weights or "model", **options), []
    named = open_model(name, data, command)
    about = named.dataset.about(of_training=not is_folder(name))
    return check(named.model, named.dataset, **options), [*about["notes"], *named.notes]


def _file_of_weights(command: CheckCommand) -> str | None:
    """Return the file of weights, or FILE:KEY, in the place of a model, or of --weights."""
    from taet.models.weight_files.location import split_key

    for name in (command.model, command.weights):
        if name is not None and Path(split_key(name)[0]).is_file():
            return name
    return None


def described(file: str) -> list[str]:
    """Return what a file of weights holds, and how its network is attacked."""
    from taet.models.weight_files.identification import describe_file
    from taet.models.weight_files.stored_weights import read

    return describe_file(read(file))
