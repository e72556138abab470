"""What a loss cannot be computed of is said in one line; no label is skipped and no count is spread in silence."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import taet.losses
from taet.errors import UserError

CLASSES = 4
VALUES = torch.linspace(-1, 1, 12).reshape(3, CLASSES)
FUNCTIONS = {
    name: function
    for name in taet.losses.__all__
    if inspect.isfunction(function := getattr(taet.losses, name)) and "labels" in inspect.signature(function).parameters
}
COUNTED = [name for name, function in FUNCTIONS.items() if "class_counts" in inspect.signature(function).parameters]


def call(name: str, labels: Tensor, **settings: Any) -> object:
    given: dict[str, Any] = {"labels": labels, "class_counts": torch.tensor([40, 20, 10, 5])}
    given |= dict.fromkeys(("logits", "cosines", "features", "target_logits"), VALUES)
    function = FUNCTIONS[name]
    return function(**{key: given[key] for key in inspect.signature(function).parameters if key in given} | settings)


def test_there_are_losses_to_look_at() -> None:
    assert {"cross_entropy", "hierarchical_equalization", "tail_margin"} < FUNCTIONS.keys()
    assert len(COUNTED) >= 5
    for name in FUNCTIONS:
        call(name, torch.tensor([0, 1, 3]))


@pytest.mark.parametrize("wrong", [4, 99, -1, -100, 2**62])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_label_that_is_no_class_is_named(name: str, wrong: int) -> None:
    with pytest.raises(UserError, match=rf"labels: got {wrong}; allowed: 0 to 3, one per logit"):
        call(name, torch.tensor([0, wrong, 1]))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "labels", [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1]), torch.eye(3, CLASSES), torch.tensor(0)], ids=str
)
def test_labels_of_another_kind_are_refused(name: str, labels: Tensor) -> None:
    with pytest.raises(UserError, match=r"labels: got torch\.\w+ \(.*\) with values \(3, 4\); allowed: torch.int64"):
        call(name, labels)


@pytest.mark.parametrize("name", sorted(set(COUNTED) - {"tail_margin"}))
@pytest.mark.parametrize("counts", [[5], [5, 4, 3], [5, 4, 3, 2, 1]], ids=str)
def test_counts_of_another_number_of_classes_are_refused(name: str, counts: list[int]) -> None:
    with pytest.raises(UserError, match=rf"class counts: got shape \({len(counts)},\) with logits \(3, 4\); allowed"):
        call(name, torch.tensor([0, 1, 2]), class_counts=torch.tensor(counts))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("focal", "gamma", -1.0),
        ("focal", "gamma", float("nan")),
        ("logit_adjustment", "tau", -0.5),
        ("class_balanced", "beta", 1.0),
        ("ldam", "max_margin", -1.0),
        ("ldam", "scale", 0.0),
    ],
)
def test_a_constant_out_of_its_bounds_is_named(name: str, setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{setting.replace('_', ' ')}: got {value:g}; allowed: "):
        call(name, torch.tensor([0, 1, 2]), **{setting: value})
