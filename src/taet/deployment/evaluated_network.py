"""The network of an evaluation, beside its card: how it is built again from its file of weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import nn

from taet.errors import UserError
from taet.files import read_json, write_json
from taet.models import foreign
from taet.models.trust import check_trust
from taet.models.weight_files.location import OF_RUN, split_key
from taet.run.folder import RunFolder, weights_digest
from taet.settings.schema import from_json
from taet.settings.types import Count, Record, Sha256

FILE = "network.json"


class EvaluatedNetwork(Record):
    """A network of any origin, as `taet evaluate` was told of it."""

    network: str
    weights: str | None
    """The file, or FILE:KEY; None: those that the code of the network gives it."""
    normalize: str
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Of the images, which is the order of the outputs."""
    classes: Annotated[tuple[str, ...] | None, Field(strict=False)]
    """Of the file's outputs in order, if they were given."""
    image_shape: Annotated[tuple[Count, Count, Count], Field(strict=False)]
    weights_sha256: Sha256
    """Of the network that was evaluated."""


def absolute(weights: str) -> str:
    """Return a file of weights, FILE or FILE:KEY, as it is named from any folder."""
    if weights.startswith("hf:"):
        return weights
    of_run = OF_RUN if weights.startswith(OF_RUN) else ""
    file, key = split_key(weights.removeprefix(of_run))
    path = of_run + str(Path(file).resolve())
    return path if key is None else f"{path}:{key}"


def keep_network(folder: Path, network: EvaluatedNetwork) -> None:
    """Write how a network is built again into the folder of its card."""
    write_json(folder / FILE, network.model_dump())


def is_evaluated(folder: Path) -> bool:
    """Whether a folder holds the card of a network that is no run."""
    return (folder / FILE).is_file() and not RunFolder(folder).is_run


def read_network(folder: Path) -> EvaluatedNetwork:
    """Return what the folder of a card says of its network."""
    path = folder / FILE
    return from_json(EvaluatedNetwork, read_json(path), str(path))


def rebuilt(folder: Path) -> tuple[nn.Module, Sequence[str]]:
    """Return the network of a card in eval mode, and notes on the origin of its weights.

    Raises:
        UserError: a file of weights that is missing or has changed, or code that was not trusted.
    """
    about = read_network(folder)
    check_trust(folder, about.network)
    network, notes = foreign.load(
        about.network,
        about.class_names,
        about.image_shape,
        about.weights,
        about.normalize,
        about.classes,
    )
    if weights_digest(network) != about.weights_sha256:
        raise UserError(
            f"{about.weights or about.network} has other weights than those that {folder} is "
            "about; allowed: the same, or evaluate again"
        )
    return network, notes
