"""Models of any origin: they are built, taken apart and normalised, and mistakes are one line."""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.models import Adapter, Classifier, CosineHead, Head, foreign, trust
from taet.models.foreign import split_head
from taet.models.normalization import NORMALIZATIONS, Normalized, parse_normalization
from tests.calls import one_line

SHAPE = (3, 8, 8)
SOURCE = """
import torch
from torch import nn
from taet.models import Classifier

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

def sized(num_classes, depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

def needy(num_classes, width):
    return build()

def classifier(num_classes):
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, nn.Linear(5, num_classes), num_classes, 3)

ready = build()

def exported():
    shapes = ({0: torch.export.Dim("images")},)
    return torch.export.export(build().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=shapes).module()
"""  # noqa: E501


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory."""
    name = "own_nets_of_a_test"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)
    importlib.invalidate_caches()


def load(spec: str, **options: Any) -> nn.Module:
    return foreign.load(
        spec, **{"class_names": "0123", "image_shape": SHAPE, "weights": None, **options}
    )[0]


def images(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["build", "sized", "ready", "exported"])
def test_a_callable_or_a_module_in_the_current_directory(own: str, name: str) -> None:
    path = list(sys.path)
    model = load(f"{own}:{name}")
    assert model(images()).shape == (3, 4)
    assert not model.training
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "OWN:buld",
            "cannot be imported as package.module:callable: AttributeError: .* has no attribute "
            "'buld'",
        ),
        (
            "OWN:needy",
            r"own_nets_of_a_test:needy failed: TypeError: needy\(\) missing 1 required .* 'width'",
        ),
        (
            "no_such_module_at_all:build",
            "cannot be imported as .*: ModuleNotFoundError: No module named 'no_such_m",
        ),
        (
            "torchvision:resnt18",
            r"unknown torchvision model 'resnt18'; allowed: .*did you mean 'resnet18'\?",
        ),
        ("torchvision:vit_b_16", "torchvision:vit_b_16 failed: .*indivisible by patch size"),
    ],
)
def test_a_wrong_name_is_one_line(own: str, spec: str, message: str) -> None:
    with one_line(message):
        load(spec.replace("OWN", own))


@pytest.mark.parametrize(
    ("spec", "where"),
    [("trap:build", "run"), ("run.trap:build", "."), ("run.deep.er.trap:build", ".")],
)
def test_code_in_a_run_folder_is_refused_without_importing_it(
    spec: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / where)
    before = set(sys.modules)
    with one_line(f"got the model '{spec}', which is code .*; allowed: with --trust-"):
        trust.check_trust(tmp_path / "run", spec)
    with trust.trusted(spec), one_line(r"allowed: a module elsewhere"):
        trust.check_trust(tmp_path / "run", spec)
    assert set(sys.modules) == before
    for elsewhere in ("torchvision:resnet18", "resnet8", "no_such_module_at_all.x:build"):
        with trust.trusted(elsewhere):
            trust.check_trust(tmp_path / "other", elsewhere)


def test_timm_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(
        name: str, pretrained: bool, num_classes: int, in_chans: int, **settings: Any
    ) -> nn.Module:
        assert (pretrained, in_chans) == (False, 3)
        # a transformer asks for one size
        assert settings == ({"img_size": (8, 8)} if name == "large" else {})
        return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    stand_in: Any = types.ModuleType("timm")
    stand_in.list_models, stand_in.create_model = lambda: ["small", "large"], create_model
    stand_in.models = types.SimpleNamespace(
        get_pretrained_cfg_value=lambda name, _field: name == "large"
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    assert load("timm:small.some_tag")(images()).shape == (3, 4)
    assert load("timm:large")(images()).shape == (3, 4)
    with one_line(r"unknown timm model 'smal'; .*did you mean 'small'\?"):
        load("timm:smal")
    monkeypatch.setitem(sys.modules, "timm", None)
    with one_line(r"'timm:resnet18' needs the package timm: pip install 'taet\[timm\]'"):
        load("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "shape", "feature"),
    [
        ("torchvision:resnet18", (1, 32, 32), 512),
        ("torchvision:mobilenet_v3_small", (5, 32, 32), 1024),
        pytest.param("torchvision:vit_b_32", (1, 32, 32), 768, marks=pytest.mark.full),
        ("timm:resnet18", (1, 32, 32), 512),
        ("timm:vit_tiny_patch16_224", (3, 32, 48), 192),
    ],
)
def test_libraries(name: str, shape: tuple[int, int, int], feature: int) -> None:
    pytest.importorskip(name.partition(":")[0])
    state = torch.random.get_rng_state()
    model, again = (models.build(name, 7, shape) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(model, Classifier)
    assert model.features(images(shape)).shape == (3, feature)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


# Features and head


def convolved() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Function(nn.Module):
    """A network with one linear layer of four outputs, and something done with it."""

    def __init__(self, end: Callable[[nn.Linear, Tensor], Tensor], **more: nn.Module) -> None:
        super().__init__()
        self.body, self.last, self.end = convolved(), nn.Linear(8, 4), end
        self.more = nn.ModuleDict(more)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last, self.body(x))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(convolved(), nn.Linear(8, 6), nn.Linear(6, 4), nn.Identity()),
        nn.Sequential(convolved(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4, bias=False)),
        Function(lambda last, h: last(h).squeeze(-1)),
        # which gives none of its logits
        Function(lambda last, h: last(h), auxiliary=nn.Linear(8, 4)),
    ],
)
def test_features_and_head_give_the_networks_logits(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(images())
    model = split_head(network, 4, SHAPE)
    assert isinstance(model, Classifier)
    assert model.features(images()).shape == (3, model.head.in_features)
    torch.testing.assert_close(model(images()), expected)
    assert all(module.training for module in model.modules())
    assert model.notes[0].startswith("features: the inputs of the network's last layer, ")
    with torch.no_grad():  # the parts are copies
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_last_layer_of_zeros_is_not_taken_for_any_other() -> None:
    """torchvision's transformers start with one: every logit is zero, whatever the features."""
    same, other = Function(lambda last, h: last(h)), Function(lambda last, h: 2 * last(h.relu()))
    for network in (same, other):
        nn.init.zeros_(network.last.weight)
        nn.init.zeros_(network.last.bias)
    assert isinstance(split_head(other, 4, SHAPE), Adapter)
    assert isinstance(split_head(same, 4, SHAPE), Classifier)


@pytest.mark.parametrize(
    "network",
    [
        Function(lambda last, h: last(h).log_softmax(1)),
        Function(lambda last, h: last(h) + last(h.flip(1))),
        Function(lambda last, h: nn.functional.linear(h, nn.functional.normalize(last.weight))),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(
            nn.Flatten(2), nn.Linear(64, 4), nn.AdaptiveMaxPool2d((1, None)), nn.Flatten()
        ),
    ],
    ids=["log-softmax", "twice", "weight", "no-linear", "of-tokens"],
)
def test_another_network_is_used_whole(network: nn.Module) -> None:
    expected = network(images())
    model = split_head(network, 4, SHAPE)
    assert isinstance(model, Adapter)
    assert model.network is network
    assert torch.equal(model(images()), expected)
    assert model.notes[0].startswith("the network is used whole: no linear layer gives its logits")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 4, 3), r"model: cannot take images of shape \(3, 8, 8\): RuntimeError:"),
        (
            nn.Flatten(),
            r"model: got \(2, 192\) for 2 images; allowed: \(2, 4\), one logit per class",
        ),
        (
            torchvision.models.googlenet(num_classes=4, init_weights=False),
            "its auxiliary classifiers give more",
        ),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_one_line(network: nn.Module, message: str) -> None:
    with one_line(message):
        split_head(network, 4, (3, 32, 32) if "auxiliary" in message else SHAPE)


def test_a_module_of_ones_own_is_copied_and_a_classifier_used_with_weights_of_the_seed(
    own: str,
) -> None:
    model = models.build(f"{own}:ready", 4, SHAPE, head=Head("cosine", scale=10))
    assert isinstance(model.head, CosineHead)
    first = models.build(f"{own}:ready", 4, SHAPE)
    expected = first(images())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert torch.equal(models.build(f"{own}:ready", 4, SHAPE)(images()), expected)
    first, again, other = (
        models.build(f"{own}:classifier", 6, SHAPE, seed=seed) for seed in (1, 1, 2)
    )
    assert first.features(images()).shape == (3, 5)
    assert torch.equal(first(images()), again(images()))
    assert not torch.equal(first(images()), other(images()))


# Weights and normalisation


@pytest.mark.parametrize("name", ["resnet8", "OWN:sized", "OWN:build"])
def test_weights_of_a_run_bring_their_normalisation_and_offset(
    own: str, name: str, tmp_path: Path
) -> None:
    """Of a network of this package, of one that was taken apart, and of one that was used whole."""
    name, path = name.replace("OWN", own), tmp_path / "model.safetensors"
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    source = (
        Adapter(plain, 4) if name.endswith("build") else models.build(name, 4, SHAPE, seed=5).eval()
    )
    if isinstance(source, Classifier):
        source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(4.0))
    save_file(source.state_dict(), path)
    assert torch.equal(load(name, weights=path)(images()), source(images()))


def test_a_normalisation_is_inside_the_model(own: str) -> None:
    for name, (means, deviations) in NORMALIZATIONS.items():
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (means, deviations))
        model = load(f"{own}:ready", normalize=name)
        assert isinstance(model, Normalized)
        torch.testing.assert_close(model(images()), model.network((images() - mean) / std))
    assert parse_normalization("0.1,0.2,.3/1,2,3e0", 3) == (
        [0.1, 0.2, 0.3],
        [1.0, 2.0, 3.0],
    )


def test_a_network_for_colour_gets_a_grey_image_in_all_three_channels(tmp_path: Path) -> None:
    grey, options = images((1, 32, 32)), {"spec": "torchvision:resnet18", "normalize": "imagenet"}
    model, colour = (
        load(image_shape=(1, 32, 32), **options),
        load(image_shape=(3, 32, 32), **options),
    )
    torch.testing.assert_close(model(grey), colour(grey.expand(-1, 3, -1, -1)))
    torch.save(colour.network.state_dict(), tmp_path / "net.pt")
    with one_line("grey images fit it with --normalize of three channels"):
        load("torchvision:resnet18", image_shape=(1, 32, 32), weights=tmp_path / "net.pt")


def test_a_normalisation_that_is_none_is_refused() -> None:
    for text in (
        "1,1,1/1,0,1",
        "1,1,1/1,1",
        "1,1,1/1,1,1/1",
        "a,b,c/1,1,1",
        "nan,1,1/1,1,1",
        "0.5/0.5",
        "imagnet",
    ):
        with one_line(r"allowed: auto, none, imagenet, .* or 3 means / as many deviations above 0"):
            parse_normalization(text, 3)
    with one_line("or 1 or 3 means"):
        parse_normalization("1,1/1,1", 1)
