"""Class-balanced sampling for your own `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from taet.data.loader import class_balanced
from taet.data.source import checked_labels
from taet.fields import LongSeed, Whole, check_value
from taet.randomness import generator


class ClassBalancedSampler(Sampler[int]):
    """Draw N positions with replacement, a class first and then one of its images: P(image i) = 1 / (K n_{y_i}).

    K is the number of classes that are present, n_c the number of images of class c. It does the same as `--sampling
    class-balanced` for your own loader, `DataLoader(data, batch_size=128, sampler=ClassBalancedSampler(labels))`. Every
    pass draws new positions, seeded by (seed, epoch). Labels are integers (N,), 0 or more, as a tensor, an array or a
    list. Do not combine it with a loss that corrects the class prior as well, such as `balanced_softmax`.

    Raises:
        UserError: no labels, labels that are not integers (N,), or negative labels.

    Source: class-balanced sampling, e.g. Kang et al., "Decoupling representation and classifier for long-tailed
    recognition", ICLR 2020, arXiv:1910.09217, section 3, q = 0.
    """

    def __init__(self, labels: torch.Tensor | ArrayLike, *, seed: int = 0) -> None:
        check_value("seed", seed, LongSeed)
        given = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else labels
        self.labels = torch.from_numpy(checked_labels("labels", given))
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        drawn = class_balanced(self.labels, generator("cpu", self.seed, "order", self.epoch))
        self.epoch += 1
        return iter(drawn.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Continue at `epoch`, counted from 0, e.g. after an interruption."""
        check_value("epoch", epoch, Whole)
        self.epoch = epoch
