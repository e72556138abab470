"""The ball, start noise, and a model that holds still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taet.attacks.ball import distance, draw_noise, frozen, project, verify
from taet.errors import UserError


def test_project_clips_to_the_ball_of_each_sample_and_to_the_image_range() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]] * 2)
    far = torch.tensor([[-1.0, 2.0, 2.0]] * 2)
    projected = project(far, x, torch.tensor([0.125, 0.25]))
    assert projected.tolist() == [[0, 0.625, 1], [0, 0.75, 1]]
    assert project(far, x, 0.25)[0].tolist() == [0, 0.75, 1]


def test_noise_has_its_distribution_and_leaves_the_global_generator_alone() -> None:
    x = torch.zeros(2, 3, 40, 40)
    state = torch.random.get_rng_state()
    assert (draw_noise(x, 0.1, "none") == 0).all()
    uniform = draw_noise(x, torch.tensor([0.1, 0.2]), "uniform")
    assert 0.099 < float(uniform[0].abs().max()) <= 0.1
    assert 0.199 < float(uniform[1].abs().max()) <= 0.2
    assert abs(float(uniform.mean())) < 0.005
    assert float(draw_noise(x, 0.1, "gaussian").std()) == pytest.approx(0.001, rel=0.05)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(draw_noise(x, 0.1, "uniform"), draw_noise(x, 0.1, "uniform"))


def test_frozen_restores_every_mode_and_gradient_flag_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    model[0].eval()
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError), frozen(model):
        model(torch.ones(2, 3))  # the wrong width
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == flags


def test_frozen_with_train_mode_touches_batch_normalisation_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval()
    with frozen(model, bn_mode="train"):
        assert [module.training for module in model] == [True, False]
        model(torch.ones(4, 2))
    assert not model[0].training
    assert (model[0].running_mean != 0).all()


def test_verify_names_what_left_the_ball() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    verify("good", x + 0.1, x, 0.1)
    assert distance(x + 0.1, x).shape == (3,)
    for wrong in (x + 0.11, x * float("nan"), torch.full_like(x, -0.01)):
        with pytest.raises(UserError, match="bad: 3 images left the ball"):
            verify("bad", wrong, x, 0.1 if wrong[0, 0, 0, 0] > 0 else 1)
