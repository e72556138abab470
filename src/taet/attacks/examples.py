"""The few adversarial images that an attack keeps to be looked at, chosen by a fixed rule."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.metrics.accuracies import Ints


class ExampleKind(NamedTuple):
    """A group of classes, and whether the model withstands the attack."""

    group: int
    survives: bool


class Example(NamedTuple):
    """What an attack made of one image."""

    row: int  # of the test images
    x_adv: NDArray[np.float32]  # (C, H, W)
    probability: float  # of the class that is predicted for it


@dataclass(eq=False)
class Examples:
    """For each group of classes the first image that survives an attack, and the first that breaks.

    Both are recognised without the attack, and first means first in the order of the test images.
    A batch gives away only images of kinds that no earlier batch of this process had, so that an
    attack holds at most two images for each group, however many it attacks.
    """

    groups: Ints  # (N,): the group of each test image
    labels: Ints  # (N,)
    natural: Ints  # (N,): classes predicted without attack
    _seen: set[ExampleKind] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.recognised = self.natural == self.labels

    def of_batch(self, rows: Ints, x_adv: Tensor, logits: Tensor) -> dict[str, NDArray[Any]]:
        """Return the images of a batch that are kept, as arrays of its unit of work."""
        predictions = logits.max(1).indices.cpu().numpy()
        chosen = []
        for index, (row, predicted) in enumerate(zip(rows, predictions, strict=True)):
            kind = self._kind(row, predicted)
            if self.recognised[row] and kind not in self._seen:
                self._seen.add(kind)
                chosen.append(index)
        indices = torch.tensor(chosen, dtype=torch.int64, device=x_adv.device)
        probabilities = logits[indices].softmax(1).amax(1)
        return {
            "example_rows": rows[chosen],
            "examples": x_adv[indices].cpu().numpy(),
            "example_probabilities": probabilities.cpu().numpy(),
        }

    def first(self, examples: Iterable[Example], predictions: Ints) -> list[Example]:
        """Return the first example of each kind; `predictions` (N,) are those under the attack."""
        by_kind: dict[ExampleKind, Example] = {}
        for example in sorted(examples, key=lambda example: example.row):
            by_kind.setdefault(self._kind(example.row, predictions[example.row]), example)
        return list(by_kind.values())

    def survivors(self, predictions: Ints) -> list[int]:
        """Return the row of the first image of each group that survives."""
        rows: dict[int, int] = {}
        for row in np.flatnonzero(self.recognised & (predictions == self.labels)):
            rows.setdefault(int(self.groups[row]), int(row))
        return list(rows.values())

    def _kind(self, row: int, predicted: int) -> ExampleKind:
        return ExampleKind(int(self.groups[row]), bool(predicted == self.labels[row]))


@dataclass(eq=False)
class EveryExample(Examples):
    """Every image, as the attack left it; of a suite, those that it breaks."""

    def of_batch(self, rows: Ints, x_adv: Tensor, logits: Tensor) -> dict[str, NDArray[Any]]:
        """Return all images of a batch, as arrays of its unit of work."""
        return {
            "example_rows": rows,
            "examples": x_adv.cpu().numpy(),
            "example_probabilities": logits.softmax(1).amax(1).cpu().numpy(),
        }

    def first(self, found: Iterable[Example], predictions: Ints) -> list[Example]:
        """Return the example of each image."""
        return sorted(found, key=lambda example: example.row)


def stored_examples(units: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[Example]:
    """Yield the examples of finished batches; those of an attack that kept none have none."""
    for unit in units:
        if "examples" not in unit:
            continue
        fields = unit["example_rows"], unit["examples"], unit["example_probabilities"]
        for row, x_adv, probability in zip(*fields, strict=True):
            yield Example(int(row), x_adv, float(probability))
