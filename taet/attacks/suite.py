"""Attacks of several parts, each of which attacks the images that are still correct."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.spec import AttackSpec
from taet.attacks.units import UnitStore
from taet.progress import Progress

Masks = Mapping[str, NDArray[np.bool_]]


class SuiteArguments(TypedDict, total=False):
    """How a suite is run; of these settings only the batch size affects the result."""

    natural: Tensor | None
    """Predictions on the clean images, (N,), if they are known."""
    batch_size: int
    device: torch.device | str | None
    """Device of the model. Default: that of the images."""
    state: UnitStore | None
    """Keeps finished batches."""
    progress: Progress | None
    keep_examples: bool
    """Whether adversarial images are returned and stored, by default yes."""


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """The result of a suite on N examples."""

    x_adv: Tensor | None
    """(N, C, H, W): the example that fooled the model, the clean one if none did; None if examples were not kept."""
    predictions: Tensor
    """(N,): class of the clean example if that is wrong, else of the example that fooled the model, else the label."""
    correct: Tensor
    """(N,): correct on the clean example and under every part."""
    parts: dict[str, Tensor]
    """(N,) still correct after each part, in the order they ran."""
    facts: dict[str, object]
    """What a result card stores about the parts."""
    seconds: float
    """Wall-clock time, summed over batches and so over processes."""
    forwards: int
    backwards: int


class Suite(AttackSpec):
    """An attack of several parts, each of which attacks the images that are still correct."""

    gradient_free_parts: ClassVar[frozenset[str]] = frozenset()
    """Names of the parts that use no gradient."""

    @abstractmethod
    def run_parts(self, model: nn.Module, x: Tensor, y: Tensor, **work: Unpack[SuiteArguments]) -> SuiteResult:
        """Run every part on all images x, uint8 or floating point, with labels y."""

    @abstractmethod
    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return the names of the parts, in the order in which they run."""

    @abstractmethod
    def facts(self, num_classes: int) -> dict[str, object]:
        """Return what a result card stores about the parts, as plain values."""

    @property
    def is_reference(self) -> bool:
        """Whether models are ranked by its result."""
        return False

    def whole(self) -> Suite | None:
        """Return the longer suite that begins with this one, so that its result contains this one's."""
        return None

    def beginning(
        self, parts: Masks, predictions: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int
    ) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.int64]]:
        """Return the parts and predictions of this suite, given those of the longer one that begins with it.

        Args:
            parts: (N,) still correct after each part of the longer suite.
            predictions: (N,) as in `SuiteResult`.
            labels: (N,).
            num_classes: number of logits.
        """
        first = {part: parts[part] for part in self.parts(num_classes)}
        *_, correct = first.values()
        return first, np.where(correct, labels, predictions)
