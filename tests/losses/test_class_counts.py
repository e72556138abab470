"""Class counts that say to which class they belong, as pandas counts them."""

import numpy as np
import pandas as pd
import pytest
import torch

from taet import losses
from taet.losses.long_tail import rebalancing_weights
from taet.metrics.counts_in_order import in_class_order
from tests.calls import one_line

NAMES = ("akiec", "mel", "nv")
LABELS = pd.Series(["nv"] * 67 + ["mel"] * 11 + ["akiec"] * 3)
NUMBERS = LABELS.map({name: number for number, name in enumerate(NAMES)})


@pytest.mark.parametrize("counts", [[3, 11, 67], (3, 11, 67), np.array([3, 11, 67]), None])
def test_counts_in_the_order_of_the_classes_stay(counts):
    assert in_class_order(counts) is counts


def test_counts_by_number_are_sorted():
    assert in_class_order(NUMBERS.value_counts()) == [3, 11, 67]
    assert in_class_order({2: 67, 0: 3, 1: 11}) == [3, 11, 67]


def test_counts_by_name_follow_the_names():
    assert in_class_order(LABELS.value_counts(), NAMES) == [3, 11, 67]
    assert in_class_order({"nv": 67, "akiec": 3, "mel": 11}, NAMES) == [3, 11, 67]


@pytest.mark.parametrize(
    ("counts", "names", "message"),
    [
        ({"nv": 1}, None, "got counts by name, e.g. of 'nv'; allowed: by the number of the class"),
        ({"nv": 1, "mle": 2}, NAMES, "unknown class of the class counts 'mle'.*did you mean 'mel'"),
        ({"nv": 1, "mel": 2}, NAMES, "got counts of mel, nv; allowed: one for each class, akiec,"),
        ({0: 1, 2: 2}, None, "got counts of 0, 2; allowed: one for each class, 0, 1$"),
        ({0: 1, 1: 2}, NAMES, "got counts of 0, 1; allowed: one for each class, 0, 1, 2$"),
    ],
)
def test_counts_of_other_classes_are_refused(counts, names, message):
    with one_line(message):
        in_class_order(counts, names)


@pytest.mark.parametrize(
    "loss",
    [losses.balanced_softmax, losses.class_balanced, losses.logit_adjustment, losses.ldam],
)
def test_losses_take_value_counts_by_the_number_of_the_class(loss):
    logits, labels = torch.zeros(3, 3), torch.arange(3)
    expected = loss(logits, labels, torch.tensor([3, 11, 67]))
    assert torch.equal(loss(logits, labels, NUMBERS.value_counts()), expected)


def test_class_weights_take_value_counts_by_the_number_of_the_class():
    counts, predicted = torch.tensor([3, 11, 67]), torch.tensor([4, 10, 60])
    expected = losses.effective_number_weights(counts, 0.99)
    assert torch.equal(losses.effective_number_weights(NUMBERS.value_counts(), 0.99), expected)
    expected = rebalancing_weights(counts, predicted)
    assert torch.equal(rebalancing_weights(NUMBERS.value_counts(), predicted), expected)
