"""Replacements for operations without a useful gradient: what is found, and what takes its
place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.differentiable import CHOICES, Replaced, find

X = torch.tensor([[0.1, 0.3, 0.7, 0.9], [0.6, 0.2, 0.4, 0.8]]).view(2, 1, 2, 2)


class Through(nn.Module):
    """A function of the pixels (N, 4); the sum of its outputs has the derivatives of each
    pixel's."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.call(x.flatten(1))


@pytest.mark.parametrize(
    ("call", "found", "expected"),
    [
        (lambda x: (5 * x).round() / 5, {"round"}, 1.0),
        (lambda x: torch.floor(4 * x), {"floor"}, 4.0),
        (lambda x: (x - 0.5).sign(), {"sign"}, 1.0),
        (lambda x: (x > 0.5).float(), {"gt"}, 1.0),
        (lambda x: (x < 0.5).float(), {"lt"}, -1.0),
        (lambda x: torch.where(x > 0.5, 3.0, 1.0), {"gt"}, 2.0),
        (lambda x: (5 * x).round_() / 5, {"round"}, 1.0),
        (lambda x: (x.new_zeros(1).type(x.type()) + 5 * x).round(), {"round"}, 5.0),
        (lambda x: x.round().where(x.detach() > 0.1, x), {"round"}, 1.0),
        (lambda x: x.detach().where(x > 0.5, 3.0 * x.detach()), {"gt"}, None),
        (lambda x: (255 * x).to(torch.uint8).float() / 255, {"to"}, 1.0),
        (lambda x: x * (x >= x.topk(2).values[:, -1:]), {"topk", "ge"}, None),
        (lambda x: x.relu().tanh() + (x.detach() > 0.5), set(), None),
        (lambda x: x + (1.0 if x.max() > 0.5 else 0.0), set(), 1.0),
    ],
)
def test_an_operation_is_found_and_keeps_its_answers_with_a_derivative(
    call: Callable[[Tensor], Tensor], found: set[str], expected: float | None
) -> None:
    model, x = Through(call), X.clone().requires_grad_()
    sites = find(model, X)
    assert set(sites) == found
    assert {name for name, calls in sites.items() if calls} == found - CHOICES
    answers = Replaced(model)(x)
    torch.testing.assert_close(answers.detach(), model(X).detach())
    if expected is not None:
        (gradient,) = torch.autograd.grad(answers.sum(), x)
        torch.testing.assert_close(gradient.flatten(1), torch.full((2, 4), expected))


def test_smooth_operations_are_what_the_documents_say() -> None:
    h = X.flatten(1)
    width = 0.1 * (h - 0.5).std(correction=0)
    above = Replaced(Through(lambda x: (x > 0.5).float()), "smooth")(X.clone().requires_grad_())
    torch.testing.assert_close(above.detach(), ((h - 0.5) / width).sigmoid())
    rounded = Replaced(Through(lambda x: x.round()), "smooth")(X.clone().requires_grad_())
    torch.testing.assert_close(rounded.detach(), h)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda x: torch.arange(4.0)[(3 * x).long()], "long"),
        (lambda x: ((x > 0.2) & (x > 0.1)).float(), "gt"),
    ],
)
def test_what_cannot_be_replaced_is_told(call: Callable[[Tensor], Tensor], found: str) -> None:
    assert find(Through(call), X) == {found: 0}
