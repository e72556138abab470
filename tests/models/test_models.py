"""What every model promises: its size, its tensors, its arithmetic, and that building one leaves
other draws alone."""

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from taet import models, registry
from taet.files import digest
from taet.methods.las_at import Strategy
from taet.models.classifier import CosineHead
from taet.models.resnet import PreActBlock
from tests.calls import one_line
from tests.golden_numbers import Golden

# one of each kind: the others differ in numbers only
SMALL = ["resnet8", "vit-mini-p4", "preact-resnet18"]
LARGE = (
    "vit-b16",
    "wrn-28-10",
    "wrn-34-10",
    "dm-wrn-28-10",
    "dm-wrn-28-10-swish",
)  # 36 to 86 million parameters
EVERY = [
    pytest.param(name, marks=pytest.mark.full if name in LARGE else ())
    for name in sorted(registry.entries("models"))
]
every_kind = pytest.mark.parametrize("name", SMALL)


def images(shape: tuple[int, int, int] = (3, 32, 32), count: int = 2) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# As published, or from what torchvision documents for 1000 classes, and the names and shapes that
# weights of version 0.1 have.
EXPECTED = {
    "resnet8": (78_042, "7b3f8b7f68d0"),
    "resnet20": (269_722 + 2_752, "54242edec00f"),  # with option A, and four tensors of option B
    "resnet18": (11_173_962, "504a341b8dfd"),
    "resnet50": (25_557_032 - 990 * 2049 - 3 * 64 * (49 - 9), "4266743d3d51"),
    "preact-resnet18": (11_172_170, "9f2656351c3c"),
    "wrn-28-10": (36_479_194, "418c163d70d6"),
    "wrn-34-10": (46_160_474, "fa1747f19676"),
    "nfgsm-preact-resnet18": (11_172_170, "9f2656351c3c"),
    "dm-preact-resnet18": (12_548_426, "4defaaef409e"),  # with shortcuts of 3x3 in place of 1x1
    "dm-preact-resnet18-swish": (12_548_426, "4defaaef409e"),
    "dm-wrn-28-10": (36_479_194, "418c163d70d6"),
    "dm-wrn-28-10-swish": (36_479_194, "418c163d70d6"),
    "vit-b16": (86_567_656 - 990 * 769, "3320af66d755"),
    "vit-small-p4": (21_342_346, "f821f1999719"),
    "vit-mini-p4": (1_205_898, "adb2f269a34c"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_are_as_many_as_published_and_old_weights_fit(name: str) -> None:
    with torch.device("meta"):
        model = models.build(name, 10, (3, 224, 224) if name == "vit-b16" else (3, 32, 32))
    named = digest([[key, list(value.shape)] for key, value in model.state_dict().items()])
    assert (parameters(model), named[:12]) == EXPECTED[name]


def test_the_strategy_network_is_resnet18_with_a_head_per_choice() -> None:
    body = EXPECTED["resnet18"][0] - 10 * 513
    assert parameters(Strategy((13, 12, 5), 64, 3)) == body + (13 + 12 + 5) * 513
    for shape in ((1, 4, 4), (3, 32, 32)):
        assert [z.shape for z in Strategy((13, 1, 5), 2, shape[0])(images(shape))] == [
            (2, 13),
            (2, 1),
            (2, 5),
        ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_the_imagenet_stem_it_is_torchvisions_network(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    ours = models.build(name, 10, (3, 64, 64), stem="imagenet").eval()
    own = {
        key: value
        for key, value in ours.state_dict().items()
        if key not in ("mean", "std", "offset")
    }
    # Parameters and statistics are registered in the same order under other names.
    for value, other in zip(own.values(), theirs.state_dict().values(), strict=True):
        value.copy_(other)
    with torch.no_grad():
        torch.testing.assert_close(ours(images((3, 64, 64))), theirs(images((3, 64, 64))))


def test_preactivation_is_its_formula() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for outputs, stride in ((4, 1), (6, 2)):
        block = PreActBlock(4, outputs, stride)
        active = functional.batch_norm(x, None, None, training=True).relu()
        inner = functional.conv2d(active, block.conv1.weight, stride=stride, padding=1)
        inner = functional.batch_norm(inner, None, None, training=True).relu()
        shortcut = block.shortcut
        straight = (
            x if shortcut is None else functional.conv2d(active, shortcut.weight, stride=stride)
        )
        assert (shortcut is None) == (outputs == 4)
        expected = functional.conv2d(inner, block.conv2.weight, padding=1) + straight
        torch.testing.assert_close(block(x), expected)  # no rectifier after the sum


@pytest.mark.parametrize(
    ("name", "shape", "asked", "expected"),
    [
        ("resnet8", (3, 95, 200), "auto", "cifar"),
        ("preact-resnet18", (3, 96, 96), "auto", "imagenet"),
        ("resnet8", (3, 32, 32), "imagenet", "imagenet"),
    ],
)
def test_the_stem_goes_by_the_shorter_side_or_as_asked(
    name: str, shape: tuple[int, int, int], asked: str, expected: str
) -> None:
    with torch.device("meta"):
        first = models.build(name, 10, shape, stem=asked).body[0]
    assert (first.kernel_size, first.stride) == (
        ((7, 7), (2, 2)) if expected == "imagenet" else ((3, 3), (1, 1))
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", EVERY)
def test_forward_and_backward(name: str) -> None:
    shape, count = ((3, 32, 32), 1) if name == "vit-b16" else ((3, 8, 8), 2)
    model = models.build(name, 5, shape)
    logits = model(images(shape, count))
    assert logits.shape == (count, 5)
    logits.square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in model.parameters()
    )


@every_kind
def test_logits_are_the_head_of_the_features_in_float32_minus_the_offset(name: str) -> None:
    model = models.build(name, 5, (1, 8, 8)).eval()
    x = images((1, 8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced, features = model(x), model.features(x)
    assert reduced.dtype == torch.float32
    # The head itself works in float32: its result is not one that bfloat16 could hold.
    assert not torch.equal(reduced, reduced.bfloat16().float())
    torch.testing.assert_close(reduced, model.head(features.float()), rtol=0, atol=0)
    logits, offset = model(x), torch.arange(5.0)
    assert not torch.equal(reduced, logits), "autocast changed nothing: it was not on"
    torch.testing.assert_close(logits, model.head(model.features(x)), rtol=0, atol=0)
    model.offset.copy_(offset)
    torch.testing.assert_close(model(x), logits - offset, rtol=0, atol=1e-6)
    assert model.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_gives_the_same_bits_in_any_layout_and_keeps_it(channels: int) -> None:
    model = models.Classifier(nn.Identity(), nn.Identity(), 5, channels)
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.25, 0.7][:channels]
    model.normalize_by(mean, std)
    x = images((channels, 8, 6))
    spread = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.features(x), model.features(spread))
    assert model.features(spread).stride() == spread.stride()
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(channels)], dim=1)
    torch.testing.assert_close(model.features(x), by_hand)


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
    ("name", "shape", "stem", "message"),
    [
        (
            "vit-b16",
            (3, 40, 40),
            "auto",
            "vit-b16: got images of 40 x 40 pixels; .* squares .* 16; .* --data.size 32",
        ),
        (
            "vit-mini-p4",
            (3, 32, 32),
            "imagenet",
            "model stem: got imagenet; vit-mini-p4 begins with patches; allowed",
        ),
        (
            "torchvision:resnet18",
            (3, 32, 32),
            "cifar",
            "model stem: got cifar; torchvision:resnet18 has its own",
        ),
    ],
)
def test_what_no_model_can_be_built_from_is_one_line(
    name: str, shape: tuple[int, int, int], stem: str, message: str
) -> None:
    with one_line(message):
        models.build(name, 10, shape, stem=stem)


# The cosine head


def cosine_head(weight: Tensor, scale: float = 1.0, gamma: float = 0.0) -> CosineHead:
    classes, features = weight.shape
    head = CosineHead(features, classes, scale, gamma).to(weight.dtype)
    head.load_state_dict({"weight": weight})
    return head


@pytest.mark.parametrize("key", ["he_head", "robal_cos_head_gamma1_32_scale1"])
def test_golden(key: str) -> None:
    golden = Golden(key)
    constants = {name: golden[name] for name in ("scale", "gamma") if name in golden.raw}
    golden.check(cosine_head(golden["weight"], **constants)(golden["features"]))


def draw(features: int = 6, classes: int = 4, samples: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((samples, features), (classes, features))
    h, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return h, w


def test_both_normalisations_are_differentiated() -> None:
    h, w = draw()
    head = cosine_head(w, scale=3, gamma=1 / 32)
    assert torch.autograd.gradcheck(head, (h.requires_grad_(),))
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(head, {"weight": weight}, (h,)),
        (w.requires_grad_(),),
    )


@pytest.mark.parametrize("gamma", [0.0, 1 / 32])
def test_zero_features_and_zero_weights_have_cosine_zero_and_finite_gradients(gamma: float) -> None:
    head = cosine_head(torch.zeros(3, 4), scale=10, gamma=gamma)
    with torch.no_grad():
        head.weight[1] = 1
    features = torch.tensor([[0.0] * 4, [2.0] * 4], requires_grad=True)
    logits = head(features)
    assert (logits[0] == 0).all()
    assert (logits[:, [0, 2]] == 0).all()
    functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(
        value.grad is not None and value.grad.isfinite().all() for value in (features, head.weight)
    )
