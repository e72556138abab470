"""The weights in a file, found in it without running code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from taet.errors import UserError
from taet.files import RUN, parse_json, read_json
from taet.models.weight_files.checkpoint_file import SAFETENSORS, read_checkpoint
from taet.models.weight_files.location import split_key, weights_file
from taet.models.weight_files.recognition import is_of_run
from taet.models.weight_files.weight_sets import find_weights


class StoredWeights(NamedTuple):
    """The tensors of a file by name, and where they were."""

    tensors: dict[str, Tensor]
    key: str
    """The keys above them in the file, joined by dots."""
    path: str
    """As given."""
    file: Path
    """On this machine."""
    notes: tuple[str, ...] = ()

    @property
    def is_of_run(self) -> bool:
        """Whether these are the weights of a run of this package."""
        return is_of_run(self.tensors)

    def about(self) -> Mapping[str, object]:
        """Return the metadata of an exported file, or of the run that the file belongs to."""
        if self.file.suffix != SAFETENSORS:
            return {}
        # by the format's layout: its library opens no name that is not UTF-8
        with self.file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(length), self.path)
        text = header.get("__metadata__", {}).get("taet", "{}")
        about: Mapping[str, object] = parse_json(text.encode(), self.path)
        run = self.file.with_name(RUN)
        if "class_names" not in about and "run_hash" in about and run.is_file():
            about = read_json(run)["data"]
        return about

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of the outputs, in order, where the file has them."""
        names = self.about().get("class_names")
        return tuple(map(str, names)) if isinstance(names, Sequence) else None

    def image_shape(self) -> tuple[int, int, int] | None:
        """Return (C, H, W) of the images of its network, where the file has it."""
        shape = self.about().get("image_shape")
        if not isinstance(shape, Sequence) or len(shape) != 3:
            return None
        channels, height, width = map(int, shape)
        return channels, height, width

    def last_outputs(self) -> int:
        """Return the number of outputs of the last layer in the file, by its order."""
        layers = [value for value in self.tensors.values() if value.ndim == 2]
        if not layers:
            raise UserError(f"{self.path}: got no linear layer; allowed: with the names of classes")
        return len(layers[-1])

    def check_size(self, image_shape: Sequence[int]) -> None:
        """Refuse weights of an exported file or a run for images of another size."""
        shape = self.image_shape()
        if shape is not None and [*shape[1:]] != [*image_shape[1:]]:
            allowed, got = (" x ".join(map(str, one[1:])) for one in (shape, image_shape))
            raise UserError(
                f"{self.path}: got images of {got} pixels; allowed: {allowed}, as in its training "
                "(--data.size)"
            )


def read(path: str | Path) -> StoredWeights:
    """Return the weights in a file, .safetensors or of `torch.save`; no code in it is run.

    Args:
        path: a file, FILE:KEY where it has several sets of weights, the folder of a run or of a
            published model, or hf:USER/NAME@COMMIT.

    Raises:
        UserError: no such file, one without weights, or whose weights need code.
    """
    file = weights_file(path)
    name, key = split_key(path)
    found = find_weights(read_checkpoint(file), name, key)
    return StoredWeights(found.tensors, found.key, str(path), file, found.notes)
