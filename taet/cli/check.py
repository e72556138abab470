"""`taet check`: check this machine, the files of a run, or what would invalidate an evaluation of a model."""

from typing import Annotated

from taet.cli.evaluate import OF_DATA, is_folder, local, opened
from taet.cli.options import POSITIONAL, OfModel, Options, of_part, parse
from taet.errors import UserError
from taet.settings import Data


class CheckCommand(OfModel):
    """Without a model: the installed versions, the device that a run would use, and the folders of data.

    With a run folder: verify that all its files are whole and belong together. Then, as for any model, test it on a
    batch of images, in seconds, before attacks that take hours: input, logits, gradients, determinism, and the time of
    the attacks. ! marks a problem, with a remedy; then the exit status is 1.
    """

    examples = (
        "taet check",
        "taet check runs/x --deep",
        "taet check torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    )

    model: Annotated[str | None, POSITIONAL] = None
    """Run folder, or a model as of taet evaluate --model, which needs --data."""
    attacks: tuple[str, ...] | None = None
    """Attacks whose time is estimated. Default: those of the run, or of the protocol taet."""
    deep: bool = False
    """Attack a randomised model also through the mean of many draws, and several logits of a class together."""


def run(words: list[str]) -> int:
    """Check and print the findings; return 1 if one is a problem."""
    command, given = parse(CheckCommand, words, "taet check", [Options("data", Data(), usual=OF_DATA)])
    data, notes = of_part(given, "data"), list[str]()

    from taet.evaluation import check
    from taet.models import trusted

    if command.model is None and (given or command.model_fields_set - {"device"}):
        raise UserError("check: got options of a model without one; allowed: with RUN, or with MODEL --data NAME")
    how = {name: getattr(command, name) for name in ("deep", "attacks", "device")}
    with trusted(command.trust_model):
        if command.model is None:
            found = check(**how)
        elif is_folder(name := local(command.model)) and not data and command.normalize == "none":
            found = check(name, weights=command.weights or "model", **how)
        else:
            model, dataset, about = opened(name, data, command.weights, command.normalize)
            notes = [*dataset.about(of_training=not is_folder(name))["notes"], *about]
            found = check(model, dataset, **how)
    print("\n".join([str(found), *notes]))
    return 0 if found.ok else 1
