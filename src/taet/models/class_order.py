"""The order of a network's outputs beside the order of the classes of the data."""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taet.errors import UserError, shortened, unknown
from taet.files import read_bytes
from taet.formatting import plural

IMAGENET = "imagenet"
MOST_BYTES = 2**24


class Reordered(nn.Module):
    """A network whose outputs are brought into the order of the classes of the data."""

    def __init__(self, network: nn.Module, positions: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.positions = nn.Buffer(torch.tensor(positions))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits[:, self.positions]


class ClassOrder(NamedTuple):
    """Which output of a network is each class of the data."""

    outputs: int
    """How many outputs the network has."""
    positions: tuple[int, ...]
    """The output of each class."""
    note: str

    @property
    def is_given(self) -> bool:
        """Whether the outputs already are the classes of the data, in order."""
        return self.positions == tuple(range(self.outputs))


def read_classes(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a network's outputs, in order.

    Args:
        given: the names; or a,b,c; or imagenet, for the 1,000 classes in the order of torchvision;
            or a file, with a name a line, or JSON: a list, {name: number} or {number: name}.
    """
    if not isinstance(given, str):
        return tuple(given)
    if given == IMAGENET:
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    path = Path(given)
    if not path.is_file():
        names = [name.strip() for name in given.split(",")]
        if len(names) == 1 or "" in names:
            allowed = "a file with a name a line, names as a,b,c, or imagenet"
            raise UserError(f"classes: got {shortened(given)!r}; allowed: {allowed}")
        return _without_repeats(names, given)
    text = read_bytes(path, most=MOST_BYTES).decode(errors="replace")
    if path.suffix == ".json":
        return _without_repeats(_from_json(text, path), given)
    return _without_repeats([line.strip() for line in text.splitlines() if line.strip()], given)


def _from_json(text: str, path: Path) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no JSON") from None
    if isinstance(content, list):
        return [str(name) for name in content]
    if isinstance(content, Mapping):
        if all(isinstance(number, int) for number in content.values()):
            content = {number: name for name, number in content.items()}
        by_number = {str(number): name for number, name in content.items()}
        numbers = [str(number) for number in range(len(by_number))]
        if by_number.keys() == {*numbers}:
            return [str(by_number[number]) for number in numbers]
    raise UserError(f"{path}: allowed: a list of names, {{name: number}} or {{number: name}}")


def _without_repeats(names: Sequence[str], where: str) -> tuple[str, ...]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"classes {shortened(where)}: got '{repeated[0]}' twice; allowed: once")
    return tuple(names)


def class_order(
    class_names: Sequence[str],
    given: Sequence[str] | None,
    in_file: Sequence[str] | None,
    where: str,
) -> ClassOrder:
    """Return which output of a network is each class of the data.

    Args:
        class_names: of the data, in order.
        given: the names of the outputs as the user says, or None.
        in_file: the same as the file of weights says, or None.
        where: the name of the file of weights, or of the network, for messages.

    Raises:
        UserError: a class of the data that is no output.
    """
    numbers = [str(number) for number in range(len(class_names))]
    if given is not None:
        return _by_name(class_names, given, "as in --classes")
    if in_file is not None:
        if [*class_names] == numbers and {*in_file} != {*numbers} and len(in_file) == len(numbers):
            # data without names of classes
            return _by_position(class_names, "the data have numbers as names")
        if {*map(_normal, in_file)} != {*map(_normal, class_names)}:
            allowed, got = (shortened(", ".join(names)) for names in (in_file, class_names))
            raise UserError(f"{where}: got data of the classes {got}; allowed: {allowed}")
        return _by_name(class_names, in_file, f"as in {where}")
    if {*class_names} == {*numbers}:
        return _by_name(class_names, numbers, "the number of each class")
    return _by_position(class_names, "--classes gives another order")


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _by_name(class_names: Sequence[str], outputs: Sequence[str], why: str) -> ClassOrder:
    position = {_normal(name): number for number, name in enumerate(outputs)}
    for name in class_names:
        if _normal(name) not in position:
            raise unknown("class of the data", name, outputs)
        if [*outputs].count(name) > 1:
            raise UserError(f"classes: got '{name}' twice among the outputs; allowed: once")
    positions = tuple(position[_normal(name)] for name in class_names)
    note = f"classes: outputs are matched by name, {why}"
    if len(outputs) > len(class_names):
        note += f"; {plural(len(outputs) - len(class_names), 'output')} of other classes left out"
    return ClassOrder(len(outputs), positions, note)


def _by_position(class_names: Sequence[str], why: str) -> ClassOrder:
    count = len(class_names)
    first = f"0 is {class_names[0]}, {count - 1} is {class_names[-1]}"
    note = f"classes: outputs are matched by position ({shortened(first, 80)}); {why}"
    return ClassOrder(count, tuple(range(count)), note)
