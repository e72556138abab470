"""The sample that is tried is even over the classes; what a batch tells is counted image by image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.counted import Counted
from taet.errors import UserError
from taet.evaluation import trial
from taet.evaluation.trial import Trial, attempt, difference


class Mean(nn.Module):
    """Two logits, the mean of an image and its opposite, with something done to them."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) - 0.5
        return self.change(torch.stack([-mean, mean], 1))


def tried(model: nn.Module, count: int = 8) -> Trial:
    x = torch.linspace(0, 1, count)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return attempt(Counted(model), x, (x[:, 0, 0, 0] > 0.5).long())


def test_a_trial_takes_as_many_passes_as_it_says() -> None:
    first = tried(Mean())
    assert first.model.passes == 8 * trial.PASSES
    assert first.repeat_difference() == first.batch_difference() == 0
    assert first.model.passes == 8 * (trial.PASSES + 2)


@pytest.mark.parametrize("change", [lambda z: z - z.mean(0), lambda z: z + z[:1], lambda z: z + torch.ones(2) * len(z)])
def test_answers_that_depend_on_the_batch_are_seen(change: Callable[[Tensor], Tensor]) -> None:
    assert tried(Mean(change)).batch_difference() > 0.01
    assert tried(Mean(change)).repeat_difference() == 0
    assert tried(Mean(change), 3).batch_difference() == 0, "too few to be divided"


def test_images_whose_logits_or_gradient_are_not_finite_are_counted() -> None:
    # Of the root at 0 only the gradient, of a division by 0 the logit too is not finite.
    assert tried(Mean(lambda z: z + (z - z.detach()).abs().sqrt())).nonfinite.all()
    one = tried(Mean(lambda z: z / (z.abs() < 0.499).float().amin(1, keepdim=True)))
    assert one.nonfinite.tolist() == [True, *[False] * 6, True]


def test_a_difference_is_a_number_whatever_the_answers_are() -> None:
    plain, broken = torch.tensor([[3.0, 4.0]]), torch.tensor([[float("nan"), float("inf")]])
    assert difference(broken, broken) == 0
    assert difference(plain, -7 * plain) == pytest.approx(2)
    assert 0 < difference(plain, broken) <= 2


class Picky(nn.Module):
    """Raises something of its own kind on more than two images."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise self.error
        return x.flatten(1)


def test_whatever_a_model_raises_is_told_in_one_line() -> None:
    for error, reason in ((KeyError("x\ny"), r"'x"), (AssertionError(), "AssertionError"), (ValueError("a\nb"), "a")):
        with pytest.raises(UserError, match=rf"model: fails on a batch of 8 images \({reason}") as caught:
            tried(Picky(error))
        assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt):
        tried(Picky(KeyboardInterrupt()))
