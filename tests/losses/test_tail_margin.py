"""TAIL against golden numbers and a loop over pairs, in value and gradient, and what its three
forms do."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from taet.losses import tail_margin
from taet.losses.tail_margin import Form, tail_classes
from taet.metrics import accuracies

FORMS: tuple[Form, ...] = get_args(Form)
# Neither sorted nor without a tie: ranks, not labels, decide. By size: 3, 0, 5, 1 and 4 and 6, 2.
COUNTS = torch.tensor([300.0, 60.0, 4.0, 900.0, 60.0, 150.0, 60.0])
TAIL = {"official": {2, 6}, "per-pair": {2, 6}, "paper": {2, 4, 6}}


def draw(seed: int, samples: int = 9, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = 2 * torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return features, torch.randint(len(COUNTS), (samples,), generator=generator)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum()


def naive(features: Tensor, labels: Tensor, form: Form) -> Tensor:
    """The formulas as they stand: a loop over tail examples, and one over all."""
    p = features.softmax(1)
    held = p.detach()
    omega = (COUNTS.sum() / COUNTS.double()).sqrt()
    number, width = features.shape
    of_tail = [i for i in range(number) if int(labels[i]) in TAIL[form]]
    total = 0 * features.sum()
    for i in of_tail:
        signed = [
            (-1 if labels[i] == labels[j] else 1) * (omega[labels[i]] + omega[labels[j]])
            for j in range(number)
        ]
        if form == "official":
            scalar = sum(kl(held[i], p[j]) for j in range(number)) / (number * width)
            total = total + scalar * sum(signed) / number
        elif form == "per-pair":
            total = total + sum(signed[j] * kl(held[i], p[j]) for j in range(number)) / number
        else:
            total = total - sum(signed[j] * kl(p[j], p[i]) for j in range(number)) / number
    return total / max(1, len(of_tail))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_those_of_a_loop_over_pairs(form: Form, seed: int) -> None:
    features, labels = draw(seed)
    labels[0] = 2
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    value, expected = tail_margin(ours, labels, COUNTS, form), naive(theirs, labels, form)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (gradient,), (wanted,) = torch.autograd.grad(value, ours), torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("classes", "code", "paper"),
    [
        (2, [1], [1]),
        (3, [], [1, 2]),
        (4, [3], [2, 3]),
        (10, [7, 8, 9], [6, 7, 8, 9]),
        (100, range(67, 100), range(66, 100)),
    ],
)
def test_which_classes_are_tail(classes: int, code: list[int], paper: list[int]) -> None:
    counts = torch.arange(classes, 0, -1)
    for form, expected in (("official", code), ("per-pair", code), ("paper", paper)):
        assert tail_classes(counts, form).nonzero().flatten().tolist() == list(expected)  # type: ignore[arg-type]
    assert (
        tail_classes(counts, "paper").nonzero().flatten().tolist()
        == accuracies.class_groups(counts.tolist())["tail"]
    )


@pytest.mark.parametrize("form", FORMS)
def test_without_a_tail_example_it_is_zero_and_so_is_its_gradient(form: Form) -> None:
    features, _ = draw(4, samples=5)
    features.requires_grad_()
    for counts, labels in (
        (COUNTS, torch.tensor([0, 0, 3, 5, 1])),
        (torch.tensor([9.0, 3.0]), torch.zeros(5, dtype=torch.int64)),
        *(
            [(torch.tensor([9.0, 3.0, 1.0]), torch.tensor([0, 1, 2, 2, 1]))]
            if form != "paper"
            else []
        ),
    ):
        value = tail_margin(features, labels, counts, form)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, features)
        assert torch.equal(gradient, torch.zeros_like(features))
