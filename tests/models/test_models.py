"""What every model promises: its size, its parts, its arithmetic, and that building one leaves other draws alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taet import models, registry
from taet.attacks.ball import frozen
from taet.errors import UserError
from taet.models import Adapter, Classifier

NAMES = sorted(registry.entries("models"))
SMALL = ["resnet8", "resnet20", "vit-mini-p4", "preact-resnet18"]  # one of each kind: the others differ in numbers only
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
LARGE = ("vit-b16", "wrn-28-10", "wrn-34-10")  # 36 to 86 million parameters
EVERY = [pytest.param(name, marks=pytest.mark.full if name in LARGE else ()) for name in NAMES]
every_model = pytest.mark.parametrize("name", EVERY)
every_kind = pytest.mark.parametrize("name", SMALL)


def images(shape: tuple[int, int, int] = (3, 32, 32), count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -- size, counted by hand ---------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2


def norm(width: int) -> int:
    return 2 * width


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def basic(inputs: int, width: int) -> int:
    change = conv(inputs, width, 1) + norm(width) if inputs != width else 0
    return conv(inputs, width, 3) + norm(width) + conv(width, width, 3) + norm(width) + change


def bottleneck(inputs: int, width: int) -> int:
    change = conv(inputs, 4 * width, 1) + norm(4 * width) if inputs != 4 * width else 0
    inner = conv(inputs, width, 1) + norm(width) + conv(width, width, 3) + norm(width)
    return inner + conv(width, 4 * width, 1) + norm(4 * width) + change


def preact(inputs: int, width: int) -> int:
    change = conv(inputs, width, 1) if inputs != width else 0
    return norm(inputs) + conv(inputs, width, 3) + norm(width) + conv(width, width, 3) + change


def wide(depth: int, k: int) -> int:
    further = (depth - 4) // 6 - 1
    groups = [(16, 16 * k), (16 * k, 32 * k), (32 * k, 64 * k)]
    blocks = sum(preact(inputs, width) + further * preact(width, width) for inputs, width in groups)
    return conv(3, 16, 3) + blocks + norm(64 * k) + linear(64 * k, 10)


def transformer(side: int, patch: int, width: int, depth: int, inner: int) -> int:
    tokens = (side // patch) ** 2 + 1
    attention = linear(width, 3 * width) + linear(width, width)
    layer = norm(width) + attention + norm(width) + linear(width, inner) + linear(inner, width)
    return linear(3 * patch**2, width) + width + tokens * width + depth * layer + norm(width) + linear(width, 10)


STEM = conv(3, 64, 3) + norm(64)
COUNTED = {
    "resnet8": conv(3, 16, 3) + norm(16) + basic(16, 16) + basic(16, 32) + basic(32, 64) + linear(64, 10),
    "resnet20": conv(3, 16, 3) + norm(16) + 3 * basic(16, 16)
    + basic(16, 32) + 2 * basic(32, 32) + basic(32, 64) + 2 * basic(64, 64) + linear(64, 10),
    "resnet18": STEM + 2 * basic(64, 64) + basic(64, 128) + basic(128, 128) + basic(128, 256) + basic(256, 256)
    + basic(256, 512) + basic(512, 512) + linear(512, 10),
    "resnet50": STEM + bottleneck(64, 64) + 2 * bottleneck(256, 64) + bottleneck(256, 128) + 3 * bottleneck(512, 128)
    + bottleneck(512, 256) + 5 * bottleneck(1024, 256) + bottleneck(1024, 512) + 2 * bottleneck(2048, 512)
    + linear(2048, 10),
    "preact-resnet18": conv(3, 64, 3) + 2 * preact(64, 64) + preact(64, 128) + preact(128, 128) + preact(128, 256)
    + preact(256, 256) + preact(256, 512) + preact(512, 512) + norm(512) + linear(512, 10),
    "wrn-28-10": wide(28, 10),
    "wrn-34-10": wide(34, 10),
    "vit-b16": transformer(224, 16, 768, 12, 3072),
    "vit-small-p4": transformer(32, 4, 384, 12, 1536),
    "vit-mini-p4": transformer(32, 4, 128, 6, 512),
}  # fmt: skip
# As published, or from what torchvision documents for 1000 classes, or (vit-small-p4, vit-mini-p4) the sum above.
EXPECTED = {
    "resnet8": 78_042,
    "resnet20": 269_722 + 2_752,  # with option A, and four tensors of option B: 16 x 32 + 64 + 32 x 64 + 128
    "resnet18": 11_173_962,
    "resnet50": 25_557_032 - linear(2048, 1000) + linear(2048, 10) - conv(3, 64, 7) + conv(3, 64, 3),
    "preact-resnet18": 11_172_170,
    "wrn-28-10": 36_479_194,
    "wrn-34-10": 46_160_474,
    "vit-b16": 86_567_656 - linear(768, 1000) + linear(768, 10),
    "vit-small-p4": 21_342_346,
    "vit-mini-p4": 1_205_898,
}
TRANSFORMERS = {"vit-b16", "vit-small-p4", "vit-mini-p4"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_number_of_parameters_is_the_sum_by_hand_and_what_is_published(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, 10, (3, 224, 224) if name == "vit-b16" else (3, 32, 32))
    assert parameters(model) == COUNTED[name] == EXPECTED[name]


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.sample(3)
@every_model
def test_forward_and_backward(name: str) -> None:
    shape, count = ((3, 32, 32), 1) if name == "vit-b16" else ((3, 8, 8), 2)
    model = models.build(name, 5, shape)
    x = images(shape, count)
    features = model.features(x)
    logits = model(x)
    assert features.ndim == 2
    assert logits.shape == (count, 5)
    torch.testing.assert_close(logits, model.head(features), rtol=1e-3, atol=1e-4)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_takes_the_image_shape_of_the_data(shape: tuple[int, int, int], name: str) -> None:
    model = models.build(name, 7, shape).eval()
    with torch.no_grad():
        assert model(images(shape)).shape == (2, 7)
        assert model.features(images(shape)).shape == (2, {"resnet8": 64, "vit-mini-p4": 128}[name])


@every_kind
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


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_gives_the_same_bits_in_any_layout_and_keeps_it(channels: int) -> None:
    model = models.Classifier(nn.Identity(), nn.Identity(), 5, channels)
    model.normalize_by([0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.7][:channels])
    x = images((channels, 8, 6))
    spread = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.features(x), model.features(spread))
    assert model.features(spread).stride() == spread.stride()
    assert model.features(x).stride() == x.stride()


@every_kind
def test_normalising_inside_is_normalising_outside(name: str) -> None:
    inside, outside = (models.build(name, 5, (3, 8, 8)).eval() for _ in range(2))
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
    inside.normalize_by(mean, std)
    x = images((3, 8, 8))
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(x), outside(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(inside(x), outside(x))
    outside.load_state_dict(inside.state_dict())  # the normalisation travels with the weights
    assert torch.equal(outside(x), inside(x))


@every_kind
def test_logits_are_float32_under_autocast(name: str) -> None:
    model = models.build(name, 5, (1, 8, 8)).eval()
    x = images((1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced, features = model(x), model.features(x)
    assert reduced.dtype == torch.float32
    # The head itself works in float32: its result is not one that bfloat16 could hold.
    assert not torch.equal(reduced, reduced.bfloat16().float())
    torch.testing.assert_close(reduced, model.head(features.float()), rtol=0, atol=0)
    torch.testing.assert_close(reduced, model(x), rtol=0.1, atol=0.1)
    assert not torch.equal(reduced, model(x)), "autocast changed nothing: it was not on"


@every_kind
def test_a_frozen_model_gives_the_same_logits_with_and_without_gradients_in_any_layout(name: str) -> None:
    """Attention has another path where no gradient is asked for, and an attack compares logits of both."""
    model = models.build(name, 5, (3, 16, 16))
    x = images((3, 16, 16), 3)
    with frozen(model):
        inputs = x.clone().requires_grad_()
        logits = model(inputs)
        (gradient,) = torch.autograd.grad(logits.square().sum(), inputs)
        with torch.no_grad():
            torch.testing.assert_close(model(x), logits, rtol=1e-5, atol=1e-5)
            spread = x.to(memory_format=torch.channels_last)
            torch.testing.assert_close(model(spread), logits, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).any(1).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@every_kind
def test_a_model_may_be_float64(name: str) -> None:
    model = models.build(name, 3, (1, 8, 8)).double().eval()
    inputs = images((1, 8, 8)).double().requires_grad_()
    logits = model(inputs)
    assert logits.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), logits, rtol=1e-12, atol=1e-12)


@every_kind
def test_weights_come_from_the_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first = models.build(name, 4, (1, 8, 8), seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = (models.build(name, 4, (1, 8, 8), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.random.set_rng_state(state)


@pytest.mark.parametrize(
    "name", [case for case in EVERY if case.values[0] in EXPECTED and "vit" not in str(case.values[0])]
)
def test_convolutions_start_with_the_variance_that_rectifiers_need(name: str) -> None:
    model = models.build(name, 10)
    widest = max((m for m in model.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel())
    fan_out = widest.out_channels * widest.kernel_size[0] ** 2
    assert widest.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.01)


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


def test_a_model_without_batch_normalisation_is_averaged_and_frozen_as_any() -> None:
    model: Classifier = models.build("vit-mini-p4", 3, (1, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.optim.swa_utils.update_bn([images((1, 8, 8))], model)
    with frozen(model, "train"):
        model(images((1, 8, 8)))
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "side", "asked", "expected"),
    [
        ("resnet18", 32, "auto", "cifar"),
        ("wrn-28-10", 96, "auto", "imagenet"),
        ("preact-resnet18", 32, "imagenet", "imagenet"),
        ("vit-mini-p4", 32, "auto", None),
        ("torchvision:resnet18", 32, "auto", None),
    ],
)
def test_which_stem_a_model_has_is_known(name: str, side: int, asked: str, expected: str | None) -> None:
    assert models.stem(name, (3, side, side), asked) == expected
