"""The ball and start noise."""

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from taet.attacks.ball import distance, frozen, projection, refuse_unsound, verify
from taet.attacks.noise import Source, draw_noise
from taet.errors import UserError


def test_project_scales_onto_the_l2_ball_of_each_sample_then_clips() -> None:
    x = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.5], [0.5, 0.5]], dtype=torch.float64)
    far = x + torch.tensor([[3.0, 4.0], [0.03, 0.04], [3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    eps = torch.tensor([0.1, 0.1, 0.2, 0.0], dtype=torch.float64)
    expected = torch.tensor(
        [[0.56, 0.58], [0.53, 0.54], [1.0, 0.5], [0.5, 0.5]], dtype=torch.float64
    )
    torch.testing.assert_close(projection(x, eps, "l2")(far), expected, rtol=0, atol=1e-12)
    assert torch.equal(projection(x, 0.0, "l2")(far), x)


@given(
    grey=st.floats(0, 1, width=32),
    spread=st.floats(0, 2, width=32),
    eps=st.floats(0, 5),
    pixels=st.sampled_from([1, 64, 3 * 224 * 224]),
)
def test_no_rounding_leaves_the_l2_ball_even_of_a_solid_image(
    grey: float, spread: float, eps: float, pixels: int
) -> None:
    x = torch.full((1, pixels), grey)
    for far in (x + spread, x - spread):
        projected = projection(x, eps, "l2")(far)
        assert float((projected.double() - x.double()).norm()) <= eps + 1e-6
        verify("attack", projected, x, eps, "l2")


def test_l2_noise_is_uniform_in_the_ball_of_each_sample() -> None:
    x, eps = torch.zeros(4000, 1, 1, 3), torch.tensor([0.5, 2.0]).repeat(2000)
    sources = (Source(torch.Generator().manual_seed(0)) for _ in range(2))
    noise = draw_noise(x, eps, "uniform", next(sources), "l2").flatten(1).double()
    # of the ball's volume within the point's radius: uniform in [0, 1]
    share = (noise.norm(dim=1) / eps) ** 3
    places = torch.arange(1, 4001) / 4000
    # Kolmogorov-Smirnov at 0.1 %
    assert float((share.sort().values - places).abs().max()) < 1.95 / math.sqrt(4000)
    direction = noise / noise.norm(dim=1, keepdim=True)
    assert float(direction.mean(0).abs().max()) < 0.04
    torch.testing.assert_close(
        direction.T @ direction / 4000, torch.eye(3).double() / 3, rtol=0, atol=0.02
    )
    assert torch.equal(
        draw_noise(x, eps, "positive", next(sources), "l2").flatten(1).double(), noise.abs()
    )


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_draw_has_the_layout_of_the_images_and_the_same_values_in_any(draw: str) -> None:
    x = torch.zeros(4, 3, 5, 5)
    spread = x.contiguous(memory_format=torch.channels_last)
    first, second = (
        getattr(Source(torch.Generator().manual_seed(5), begin=1, total=6), draw)(like)
        for like in (x, spread)
    )
    assert torch.equal(first, second)
    assert first.is_contiguous()
    assert second.is_contiguous(memory_format=torch.channels_last)


def test_verify_refuses_what_left_the_ball_or_the_range_or_is_not_finite() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    verify("good", x + 0.1, x, 0.1)
    verify("good", x + 0.1, x, 0.2, "l2")
    verify("good", x + 0.5, x, None)
    assert distance(x + 0.1, x, "l2").tolist() == pytest.approx([0.2] * 3)
    asked = r"; are the model's gradients finite\?"
    for wrong, eps, why in ((x + 0.11, 0.1, ""), (x * float("nan"), 0.1, asked), (x - 0.51, 1, "")):
        with pytest.raises(
            UserError, match=rf"bad: 3 images left the ball of \S+ or the range 0 to 1{why}$"
        ):
            verify("bad", wrong, x, eps)
    with pytest.raises(UserError, match=r"bad: 3 images left the ball"):
        verify("bad", x + 0.101, x, 0.2, "l2")
    with pytest.raises(UserError, match=r"bad: 1 images left their balls or the range 0 to 1$"):
        verify("bad", x + 0.1, x, torch.tensor([0.1, 0.09, 0.2]))
    for wrong, why in ((x + 0.51, ""), (x * float("nan"), asked)):
        with pytest.raises(UserError, match=rf"bad: 3 images left the range 0 to 1{why}$"):
            verify("bad", wrong, x, None)
    with pytest.raises(UserError, match=r"bad: .* not finite on 1 of 2 images"):
        refuse_unsound("bad", torch.tensor([True, False]))


def test_frozen_restores_modes_that_change_inside_also_of_a_compiled_model() -> None:
    dropout = nn.Dropout()
    for model in (nn.Sequential(dropout), torch.compile(nn.Sequential(dropout), backend="eager")):
        with frozen(model.eval()):
            dropout.train()
        assert not any(module.training for module in model.modules())
        with frozen(model.train()):
            assert not any(module.training for module in model.modules())


def test_threads_that_freeze_one_model_in_turn_leave_it_as_it_was() -> None:
    model = nn.Linear(2, 2).train()
    entered, first_left, results = threading.Event(), threading.Event(), list[bool]()

    def second() -> None:
        with frozen(model):
            entered.set()
            assert first_left.wait(60)
            results.append(not model.training and not model.weight.requires_grad)

    thread = threading.Thread(target=second)
    with frozen(model):
        thread.start()
        assert entered.wait(60)
    first_left.set()
    thread.join()
    assert results == [True]  # the first thread left it frozen for the second
    assert model.training
    assert model.weight.requires_grad
