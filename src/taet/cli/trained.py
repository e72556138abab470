"""The model of `taet predict` and `taet export`: a run, a network with weights, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from taet.cli.named_model import download_or_path
from taet.cli.options import OfTrained, Weights, refuse_idle_trust
from taet.errors import UserError
from taet.settings.types import check_value

if TYPE_CHECKING:
    from taet.deployment import TrainedModel

OWN_OPTIONS = {"--data.size": "--size", "--model.normalize": "--normalize", "--model ": "RUN "}
"""What takes the place of an option of `taet evaluate` in a command about a trained model."""


def open_trained(command: OfTrained) -> Path | TrainedModel:
    """Return the folder of a run, or the loaded model of another origin."""
    from taet.deployment.trained_model import is_file_of_weights, is_model_name, load

    name, size = str(command.run), command.size
    is_file = is_file_of_weights(name)
    if not is_file and not is_model_name(name):
        if command.classes is not None or size is not None or command.normalize != "auto":
            raise UserError(
                f"--classes, --size and --normalize go with a network and --weights; {name} is a "
                "run, which has its own"
            )
        check_value("weights", command.weights or "model", Weights)
        folder = Path(download_or_path(name))
        refuse_idle_trust(command.trust_model, folder)
        return folder
    refuse_idle_trust(command.trust_model, None)
    if is_file == (command.weights is not None):
        got = f"the file {name} and --weights" if is_file else f"{name} without weights"
        raise UserError(f"got {got}; allowed: NAME --weights FILE, the FILE alone, or a run folder")
    try:
        return load(
            name,
            command.weights or "model",
            classes=command.classes,
            image_shape=None if size is None else (3, size, size),
            normalize=command.normalize,
        )
    except UserError as error:
        message = str(error)
        for option, own in OWN_OPTIONS.items():
            message = message.replace(option, own)
        raise UserError(message) from None
