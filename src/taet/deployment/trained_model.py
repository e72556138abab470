"""A trained model with what its images need: that of a finished run, or a network of any origin."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from taet import protocols, registry
from taet.data.augmentation import to_unit
from taet.data.image_files import BACKGROUNDS
from taet.deployment.evaluated_network import is_evaluated, read_network, rebuilt
from taet.deployment.input_images import ImageSource, list_images, read_images
from taet.errors import UserError
from taet.formatting import join_words
from taet.models import foreign
from taet.models.class_order import read_classes
from taet.models.foreign import ImageShape
from taet.models.normalization import AUTO
from taet.models.weight_files.identification import model_of
from taet.models.weight_files.location import download_or_path, split_key
from taet.models.weight_files.stored_weights import read
from taet.run.folder import DELIVERED, folder_of, weights_digest
from taet.run.loading import load_model
from taet.settings import Run
from taet.settings.arguments import checked_arguments

PUBLISHED = ("hf:", "folder:")  # before the name of a published run
SIDE = 32  # pixels of images where neither a file nor a caller says more


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """A network in eval mode, the classes of its outputs, and the form of its images.

    Example:
        >>> import taet
        >>> trained = taet.load("runs/example")
        >>> digits = taet.data.load("digits-lt")
        >>> x = trained.preprocess(digits.test.images[:4])
        >>> trained.model(x).shape
        torch.Size([4, 10])
    """

    model: nn.Module
    """Images (N, C, H, W) in [0, 1], as `preprocess` makes them, -> logits (N, classes)."""
    class_names: tuple[str, ...]
    """The class of each output, in order."""
    image_shape: ImageShape
    """(C, H, W) of its images."""
    resizes: bool
    """Whether images of other sizes were resized for its training."""
    run: Run
    """The settings of its training; of another origin, those of the protocol taet."""
    notes: tuple[str, ...] = ()
    """Where its weights are from."""
    about: Mapping[str, object] = field(default_factory=dict)
    """Metadata of a file that it is exported to."""

    @property
    def background(self) -> int | None:
        """The grey level behind transparent pixels of files, where its training set one."""
        colour = self.run.data.transparent
        return None if colour is None else BACKGROUNDS[colour]

    def preprocess(self, images: ImageSource) -> Tensor:
        """Return images as the model takes them, (N, C, H, W) in [0, 1].

        Args:
            images: files and folders, or an array uint8 (N, H, W, C). They are resized as in
                training, and converted to grey or colour.

        Raises:
            UserError: no image, or one that cannot be read.
        """
        found = []
        listed = list_images(images).images
        for image in read_images(listed, self.image_shape, self.background):
            if isinstance(image, str):
                raise UserError(image)
            found.append(image)
        return to_unit(torch.from_numpy(np.stack(found)))

    def __repr__(self) -> str:
        names = join_words(self.class_names, most=6)
        shape = " x ".join(map(str, self.image_shape))
        parameters = sum(value.numel() for value in self.model.parameters())
        return f"{parameters:,} parameters, images of {shape}, classes: {names}"


def is_model_name(name: str) -> bool:
    """Whether `name` is that of a network, such as resnet18 or torchvision:NAME, and no run."""
    if name.startswith((*PUBLISHED, "run:")) or is_file_of_weights(name):
        return False
    return ":" in name or (name in registry.entries("models") and not Path(name).is_dir())


def is_file_of_weights(name: str) -> bool:
    """Whether `name` is a file, or FILE:KEY, in the place of a run or a network."""
    file, _ = split_key(name)
    return Path(file).is_file()


@checked_arguments
def load(
    source: str | os.PathLike[str],
    weights: str | os.PathLike[str] = DELIVERED,
    *,
    classes: str | Sequence[str] | None = None,
    image_shape: ImageShape | None = None,
    normalize: str = AUTO,
    model: nn.Module | None = None,
) -> TrainedModel:
    """Return the model of a finished run, or of a file of weights, ready for images.

    Args:
        source: a finished run, a published one (hf:USER/NAME@COMMIT), the folder in which `taet
            evaluate` wrote the card of a network, the name of a network, as of
            `taet.models.build`, or a file of weights of a residual network of this package.
        weights: of a run: model (what it delivers), model-last or model-best; of a network: a file,
            as of `taet evaluate --weights`.
        classes: of a network: names of its outputs, in order, or as of `--classes`. By default as
            in the file, else their numbers.
        image_shape: of a network: (C, H, W) of its images. By default as in the file, else
            (3, 32, 32).
        normalize: of a network: as of `taet evaluate --normalize`.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: a run that is not finished, a file that does not fit, a model whose code was not
            trusted (`taet.models.trusted`).

    Example:
        >>> import taet
        >>> trained = taet.load("runs/example")
        >>> trained.image_shape, len(trained.class_names)
        ((1, 8, 8), 10)
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if is_model_name(text):
        if weights == DELIVERED:
            raise UserError(f"{text}: got no weights; allowed: a file of weights, or a run")
        return _load_network(text, os.fspath(weights), classes, image_shape, normalize)
    if is_file_of_weights(text):
        return _load_network(model_of(read(text)), text, classes, image_shape, normalize)
    if classes is not None or image_shape is not None or normalize != AUTO:
        raise UserError(
            f"{text}: got classes, image shape or normalisation; allowed: with the name of a "
            "network, because a run has its own"
        )
    folder = folder_of(download_or_path(text) if text.startswith(PUBLISHED) else source)
    if is_evaluated(folder.path):
        return _load_evaluated(folder.path, os.fspath(weights))
    run, network, record = load_model(folder.path, os.fspath(weights), model=model)
    return TrainedModel(
        network,
        record.data.class_names,
        record.data.image_shape,
        record.data.resized,
        run,
        record.model_notes,
        folder.weights_about(os.fspath(weights)).model_dump(),
    )


def _load_evaluated(folder: Path, weights: str) -> TrainedModel:
    """Return the network that the card in `folder` is about."""
    if weights != DELIVERED:
        raise UserError(f"weights: got {weights}; {folder} has one network; allowed: {DELIVERED}")
    about = read_network(folder)
    network, notes = rebuilt(folder)
    metadata = {"weights_sha256": about.weights_sha256, "model": about.network}
    run = protocols.start("taet", "standard")
    return TrainedModel(
        network, about.class_names, about.image_shape, True, run, tuple(notes), metadata
    )


def _load_network(
    name: str,
    weights: str,
    classes: str | Sequence[str] | None,
    image_shape: ImageShape | None,
    normalize: str,
) -> TrainedModel:
    stored = read(weights)
    names = stored.class_names()
    if classes is not None:
        names = read_classes(classes)
    if names is None:
        names = tuple(str(number) for number in range(stored.last_outputs()))
    shape = image_shape or stored.image_shape() or (3, SIDE, SIDE)
    network, notes = foreign.load(name, names, shape, weights, normalize)
    about = {"weights_sha256": weights_digest(network), "model": name}
    run = protocols.start("taet", "standard")
    return TrainedModel(network, names, shape, True, run, notes, about)
