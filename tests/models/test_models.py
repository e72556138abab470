"""Models: their size, their parts, their arithmetic, and that building one leaves the caller's randomness alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taet import models, registry
from taet.errors import UserError
from taet.models import Adapter, Classifier
from taet.models.resnet import BasicBlock

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
every_model = pytest.mark.parametrize("name", sorted(registry.entries("models")))


def images(shape: tuple[int, int, int] = (3, 32, 32), count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_resnet18_has_the_published_number_of_parameters() -> None:
    assert parameters(models.build("resnet18", 10)) == 11_173_962


def test_resnet8_has_the_number_of_parameters_counted_by_hand() -> None:
    stem = 3 * 16 * 9 + 2 * 16
    first = 2 * (16 * 16 * 9 + 2 * 16)
    second = (16 + 32) * 32 * 9 + 16 * 32 + 3 * 2 * 32  # two 3x3 convolutions, a 1x1 shortcut, three normalisations
    third = (32 + 64) * 64 * 9 + 32 * 64 + 3 * 2 * 64
    head = 64 * 10 + 10
    assert stem + first + second + third + head == 78_042
    assert parameters(models.build("resnet8", 10)) == 78_042


@pytest.mark.parametrize("shape", SHAPES)
def test_resnet8_takes_the_image_shape_of_the_data(shape: tuple[int, int, int]) -> None:
    model = models.build("resnet8", 7, shape)
    logits = model(images(shape))
    assert logits.shape == (2, 7)
    assert model.features(images(shape)).shape == (2, 64)
    grey = shape[0] == 1
    assert parameters(model) == 78_042 - (2 * 16 * 9 if grey else 0) - 3 * 65


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64)])
def test_resnet18_takes_the_image_shape_of_the_data(shape: tuple[int, int, int]) -> None:
    model = models.build("resnet18", 3, shape).eval()
    with torch.no_grad():
        assert model(images(shape, 1)).shape == (1, 3)
        assert model.features(images(shape, 1)).shape == (1, 512)


def test_the_side_halves_at_every_width_after_the_first() -> None:
    sides = []
    model = models.build("resnet8", 10).eval()
    for module in model.modules():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda _module, _inputs, output: sides.append(tuple(output.shape[1:])))
    model(images())
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_basic_block_adds_its_input() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    assert isinstance(block.shortcut, nn.Identity)
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    with torch.no_grad():  # a rectifier follows the sum
        assert (block(-x) == 0).all()


@every_model
def test_logits_are_the_head_of_the_features_minus_the_offset(name: str) -> None:
    model = models.build(name, 5, (1, 8, 8)).eval()
    x = images((1, 8, 8))
    logits = model(x)
    assert (model.offset == 0).all()
    torch.testing.assert_close(logits, model.head(model.features(x)), rtol=0, atol=0)
    offset = torch.arange(5.0)
    model.offset.copy_(offset)
    torch.testing.assert_close(model(x), logits - offset, rtol=0, atol=1e-6)
    assert "offset" in model.state_dict()


@every_model
def test_normalising_inside_is_normalising_outside(name: str) -> None:
    inside, outside = (models.build(name, 5, (3, 8, 8)).eval() for _ in range(2))
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
    inside.normalize_by(mean, std)
    x = images((3, 8, 8))
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(x), outside(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(inside(x), outside(x))
    fresh = models.build(name, 5, (3, 8, 8)).eval()  # the normalisation travels with the weights
    fresh.load_state_dict(inside.state_dict())
    assert torch.equal(fresh(x), inside(x))


@every_model
def test_logits_are_float32_under_autocast(name: str) -> None:
    model = models.build(name, 5, (1, 8, 8)).eval()
    x = images((1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced, features = model(x), model.features(x)
    assert features.dtype == torch.bfloat16
    assert reduced.dtype == torch.float32
    # The head itself works in float32: its result is not one that bfloat16 could hold.
    assert not torch.equal(reduced, reduced.bfloat16().float())
    torch.testing.assert_close(reduced, model.head(features.float()), rtol=0, atol=0)
    torch.testing.assert_close(reduced, model(x), rtol=0.1, atol=0.1)


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = models.build(name, 5, (1, 8, 8))
    model(images((1, 8, 8), 4)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


@every_model
def test_weights_come_from_the_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first = models.build(name, 4, (1, 8, 8), seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (models.build(name, 4, (1, 8, 8), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.random.set_rng_state(state)


def test_convolutions_start_with_the_variance_that_rectifiers_need() -> None:
    model = models.build("resnet18", 10)
    (widening,) = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.shape == (512, 256, 3, 3)]
    assert widening.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # 2 / fan-out


def test_an_unknown_model_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet-18'.*did you mean 'resnet18'\?"):
        models.build("resnet-18", 10)


def test_an_adapter_gives_float32_logits_and_the_offset() -> None:
    model = Adapter(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 3)
    x = images((1, 8, 8))
    assert torch.equal(model(x), model.network(x))
    model.offset.copy_(torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(model(x), model.network(x) - torch.tensor([0.0, 1.0, 2.0]), rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.network(x).dtype == torch.bfloat16
        assert model(x).dtype == torch.float32


def test_a_model_may_be_float64() -> None:
    model: Classifier = models.build("resnet8", 3, (1, 8, 8)).double().eval()
    assert model(images((1, 8, 8)).double()).dtype == torch.float64
