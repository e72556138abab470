"""A sampler for an own loader: every class equally often, anew in every epoch, and the same again with its seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from taet.data import ClassBalancedSampler
from taet.errors import UserError

LABELS = torch.tensor([0] * 90 + [1] * 9 + [3])  # no image of class 2


def test_every_class_that_is_there_is_drawn_equally_often() -> None:
    sampler = ClassBalancedSampler(LABELS.repeat(100))
    drawn = LABELS.repeat(100)[list(sampler)]
    assert len(drawn) == len(sampler) == 10_000
    shares = drawn.bincount(minlength=4) / len(drawn)
    # Five standard errors of a share of 1/3 of 10,000 draws, sqrt(2/9/10,000) = 0.0047.
    assert shares.sub(torch.tensor([1, 1, 0, 1]) / 3).abs().max() < 0.024


def test_each_image_of_a_class_is_as_likely_as_another() -> None:
    sampler = ClassBalancedSampler(LABELS)
    drawn = torch.tensor([place for _ in range(300) for place in sampler])
    times = drawn.bincount(minlength=100)[90:99].double()
    assert 0.8 < times.min() / times.mean() < times.max() / times.mean() < 1.2  # 1,111 times, standard error 33


def test_epochs_differ_and_are_the_same_again() -> None:
    sampler, again = ClassBalancedSampler(LABELS, seed=3), ClassBalancedSampler(LABELS.tolist(), seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert [list(again), list(again)] == [first, second]
    again.set_epoch(1)
    assert list(again) == second
    other = ClassBalancedSampler(LABELS.numpy(), seed=4)
    assert list(other) != first


def test_a_loader_takes_it() -> None:
    data = TensorDataset(torch.arange(100), LABELS)
    batches = list(DataLoader(data, batch_size=32, sampler=ClassBalancedSampler(LABELS)))
    assert [len(x) for x, _ in batches] == [32, 32, 32, 4]
    assert all(torch.equal(LABELS[x], y) for x, y in batches)


@pytest.mark.parametrize("labels", [[], [0.0, 1.0], [[0, 1]], [0, -1], torch.eye(3), np.array(["a"])], ids=str)
def test_labels_of_another_kind_are_refused(labels: Any) -> None:
    with pytest.raises(UserError, match=r"^labels: got .*; allowed: (whole numbers from 0|\(N,\))"):
        ClassBalancedSampler(labels)
