"""Replaced operations keep the model's answers and get the derivatives that are promised; all of them are found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.differentiable import Replaced, find
from taet.errors import UserError

X = torch.tensor([[0.1, 0.3, 0.7, 0.9], [0.6, 0.2, 0.4, 0.8]]).view(2, 1, 2, 2)


class Through(nn.Module):
    """A function of the pixels (N, 4); the sum of its outputs has the derivatives of each pixel's."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.call(x.flatten(1))


def derivative(model: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    return gradient.flatten(1)


def assign(x: Tensor) -> Tensor:
    x = 1 * x
    x[x < 0.5] = 0
    return x


@pytest.mark.parametrize(
    ("call", "found", "expected"),
    [
        (lambda x: (5 * x).round() / 5, {"round"}, 1.0),
        (lambda x: torch.floor(4 * x), {"floor"}, 4.0),
        (lambda x: x // 0.25, {"floordiv"}, 4.0),
        (lambda x: torch.floor_divide(x, 0.25), {"floor_divide"}, 4.0),
        (lambda x: (x - 0.5).sign(), {"sign"}, 1.0),
        (lambda x: (x > 0.5).float(), {"gt"}, 1.0),
        (lambda x: (x < 0.5).float(), {"lt"}, -1.0),
        (lambda x: 1.0 * ~(x >= 0.5), {"ge"}, -1.0),
        (lambda x: torch.where(x > 0.5, 3.0, 1.0), {"gt"}, 2.0),
        (lambda x: torch.zeros_like(x).masked_fill(x > 0.5, 2.0), {"gt"}, 2.0),
        (lambda x: ((x > 0.2) & (x > 0.1)).float(), {"gt"}, None),
        (lambda x: (255 * x).to(torch.uint8).float() / 255, {"to"}, 1.0),
        (assign, {"lt"}, None),
        (lambda x: x * (x >= x.topk(2).values[:, -1:]), {"topk", "ge"}, None),
        (lambda x: x.relu().tanh() + (x.detach() > 0.5), set(), None),
        (lambda x: x + (1.0 if x.max() > 0.5 else 0.0), set(), 1.0),
    ],
)
def test_an_operation_is_found_and_keeps_its_answers_with_a_derivative(
    call: Callable[[Tensor], Tensor], found: set[str], expected: float | None
) -> None:
    model = Through(call)
    sites = find(model, X)
    assert set(sites) == found
    assert all(sites.values())
    torch.testing.assert_close(Replaced(model)(X.clone().requires_grad_()).detach(), model(X).detach())
    if expected is not None:
        torch.testing.assert_close(derivative(Replaced(model)), torch.full((2, 4), expected))


def test_smooth_operations_are_what_the_documents_say() -> None:
    h = X.flatten(1)
    width = 0.1 * (h - 0.5).std(correction=0)
    smooth = Replaced(Through(lambda x: (x > 0.5).float()), "smooth")(X.clone().requires_grad_())
    torch.testing.assert_close(smooth.detach(), ((h - 0.5) / width).sigmoid())
    rounded = Replaced(Through(lambda x: x.round()), "smooth")(X.clone().requires_grad_())
    torch.testing.assert_close(rounded.detach(), h)
    divided = Replaced(Through(lambda x: x // 0.25), "smooth")(X.clone().requires_grad_())
    torch.testing.assert_close(divided.detach(), 4 * h)


class Winner(nn.Module):
    """Passes the largest value."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), h.amax(1, keepdim=True))


def test_a_layer_that_passes_the_largest_gets_a_gate_halfway_to_the_next() -> None:
    layer = Winner()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.winner, self.weight = layer, nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * self.winner(x.flatten(1))

    model = Network()
    assert find(model, X) == {"argmax": 1, "winner (Winner)": 1}
    h = X.flatten(1)
    distance = h - torch.tensor([[0.8], [0.7]])
    expected = h * (distance / (0.1 * distance.std(correction=0))).sigmoid()
    torch.testing.assert_close(Replaced(model, "smooth")(X.clone().requires_grad_()).detach(), expected)
    torch.testing.assert_close(derivative(Replaced(model)), torch.ones(2, 4))
    assert not layer._forward_hooks


def test_what_cannot_be_replaced_is_told() -> None:
    table = torch.arange(4.0)
    assert find(Through(lambda x: table[(3 * x).long()]), X) == {"long": 0}


def test_an_unknown_replacement_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'smooth'"):
        Replaced(nn.Identity(), "smoth")  # type: ignore[arg-type]
