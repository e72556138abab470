"""Models of any origin: they are built, filled and normalised, no file ever runs code, and mistakes are one line."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models import Adapter, Classifier, foreign
from taet.models.foreign import NORMALIZATIONS, Normalized, Statistics

SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

def sized(num_classes, depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

def needy(num_classes, width):
    return build()

def broken():
    raise RuntimeError("no such depth")

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 4))

ready = Net()
number = 3
"""


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
    return foreign.load(spec, **{"num_classes": 4, "image_shape": (3, 8, 8), **options})[0]


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


# What a name means


@pytest.mark.parametrize("name", ["build", "sized", "Net", "ready"])
def test_a_callable_or_a_module_in_the_current_directory(own: str, name: str) -> None:
    path = list(sys.path)
    model = load(f"{own}:{name}")
    assert model(images()).shape == (3, 4)
    assert not model.training
    assert sys.path == path


def test_the_number_of_classes_is_given_to_who_takes_it(own: str) -> None:
    assert load(f"{own}:sized", num_classes=7)(images()).shape == (3, 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("OWN:buld", r"unknown callable of own_nets_of_a_test 'buld'; allowed: Net, .*did you mean 'build'\?"),
        ("OWN:needy", r"own_nets_of_a_test:needy failed: TypeError: needy\(\) missing 1 required .* 'width'"),
        ("OWN:broken", "own_nets_of_a_test:broken failed: RuntimeError: no such depth"),
        ("OWN:number", "own_nets_of_a_test:number failed: TypeError: 3 is not a callable object"),
        ("no_such_module_at_all:build", "'no_such_module_at_all' cannot be imported: ModuleNotFoundError: No module"),
        (":build", "model: got ':build'; allowed: package.module:callable, torchvision:NAME"),
        ("torchvision:resnt18", r"unknown torchvision model 'resnt18'; allowed: .*did you mean 'resnet18'\?"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown torchvision model"),
        ("resnet9", r"unknown model 'resnet9'; allowed: package.module:callable, .*did you mean 'resnet8'\?"),
    ],
)
def test_a_wrong_name_is_one_line(own: str, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(spec.replace("OWN", own))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "where"), [("trap:build", "run"), ("run.trap:build", "."), ("run.deep.er.trap:build", ".")]
)
def test_code_in_a_run_folder_is_refused_without_importing_it(
    spec: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / where)
    before = set(sys.modules)
    with pytest.raises(UserError, match=f"got the model '{spec}', which is code .*; allowed: with --trust-"):
        foreign.check_trust(tmp_path / "run", spec)
    with foreign.trusted(spec), pytest.raises(UserError, match=r"allowed: a module elsewhere"):
        foreign.check_trust(tmp_path / "run", spec)
    assert set(sys.modules) == before


@pytest.mark.parametrize("spec", ["OWN:build", "torchvision:resnet18", "resnet8", "no_such_module_at_all.x:build"])
def test_code_elsewhere_is_not_refused(own: str, tmp_path: Path, spec: str) -> None:
    spec = spec.replace("OWN", own)
    with foreign.trusted(spec):
        foreign.check_trust(tmp_path / "run", spec)


def test_torchvision_and_our_own_names_are_built_with_the_classes_of_the_data() -> None:
    state = torch.random.get_rng_state()
    vision = load("torchvision:resnet18", image_shape=(3, 32, 32))
    assert vision(images().repeat(1, 1, 4, 4)).shape == (3, 4)
    ours = load("resnet8", image_shape=(1, 8, 8), num_classes=5)
    assert isinstance(ours, Classifier)
    assert ours(images()[:, :1]).shape == (3, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = load("torchvision:resnet18", image_shape=(3, 32, 32))  # so that an evaluation of it can go on
    assert all(torch.equal(a, b) for a, b in zip(vision.parameters(), again.parameters(), strict=True))


def test_timm_is_asked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int, **settings: Any) -> nn.Module:
        assert (pretrained, in_chans) == (False, 3)
        assert settings == ({"img_size": (8, 8)} if name == "large" else {})  # a transformer asks for one size
        return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    stand_in: Any = types.ModuleType("timm")
    stand_in.list_models, stand_in.create_model = lambda: ["small", "large"], create_model
    stand_in.models = types.SimpleNamespace(get_pretrained_cfg_value=lambda name, _field: name == "large")
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    assert load("timm:small.some_tag")(images()).shape == (3, 4)
    assert load("timm:large")(images()).shape == (3, 4)
    with pytest.raises(UserError, match=r"unknown timm model 'smal'; .*did you mean 'small'\?"):
        load("timm:smal")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"'timm:resnet18' needs the package timm: pip install 'taet\[timm\]'"):
        load("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "shape", "feature"),
    [("resnet18", (1, 32, 32), 512), ("vit_tiny_patch16_224", (3, 32, 48), 192), ("convnext_tiny", (3, 32, 32), 768)],
)
def test_timm_itself(name: str, shape: tuple[int, int, int], feature: int) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    model = models.build(f"timm:{name}", 7, shape)
    assert isinstance(model, Classifier)
    assert model.features(torch.rand(2, *shape)).shape == (2, feature)
    with pytest.raises(UserError, match=rf"timm:{name}.nope failed: RuntimeError: Invalid pretrained tag"):
        models.build(f"timm:{name}.nope", 7, shape)


# Weights


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "epoch": 3}, " under 'state_dict'"),
        (lambda state: {"net": {"model": prefixed(state, "a.")}}, " under 'net.model', without the prefix 'a.'"),
        (lambda state: prefixed(state, "_orig_mod.module."), ", without the prefix '_orig_mod.module.'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".pth.tar"])
def test_weights_are_found_where_scripts_put_them(
    own: str, tmp_path: Path, wrap: Callable[..., Any], note: str, suffix: str
) -> None:
    source, path = plain(), tmp_path / f"net{suffix}"
    torch.save(wrap(source.state_dict()), path)
    model, notes = foreign.load(f"{own}:build", num_classes=4, image_shape=(3, 8, 8), weights=path)
    assert torch.equal(model(images()), source(images()))
    assert notes == (f"weights: 2 tensors of {path}{note}",)


def test_a_prefix_that_the_model_has_itself_is_kept(own: str, tmp_path: Path) -> None:
    source, path = nn.Sequential(plain()), tmp_path / "net.safetensors"
    save_file(source.state_dict(), path)
    Path(f"{own}.py").write_text(SOURCE + "ready = nn.Sequential(build())\n")
    assert torch.equal(load(f"{own}:ready", weights=path)(images()), source(images()))


@pytest.mark.parametrize("name", ["resnet8", "OWN:sized", "OWN:build"])
def test_weights_of_a_run_bring_their_normalisation_and_offset(own: str, name: str, tmp_path: Path) -> None:
    """Of a network of this package, of one that was taken apart, and of one that was used whole."""
    name, path = name.replace("OWN", own), tmp_path / "model.safetensors"
    source = Adapter(plain(), 4) if name.endswith("build") else models.build(name, 4, (3, 8, 8), seed=5).eval()
    if isinstance(source, Classifier):
        source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(4.0))
    save_file(source.state_dict(), path)
    assert torch.equal(load(name, weights=path)(images()), source(images()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.bias": None}, r"does not fit the model: 1 missing \(1.bias\)"),
        ({"1.weight": torch.ones(9, 192)}, r"1 of another shape \(1.weight \(9, 192\) for \(4, 192\)\)"),
        (
            {"1.bias": None, "1.weight": None, **{f"x{i}.w": torch.ones(1) for i in range(5)}},
            r"2 missing \(1.weight and 1.bias\); 5 unexpected \(x0.w, x1.w, x2.w and 2 more\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused(own: str, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    state = {key: value for key, value in (plain().state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        load(f"{own}:build", weights=tmp_path / "net.pt")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_never_run(own: str, tmp_path: Path) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    torch.save({"state_dict": plain().state_dict(), "args": Trap(sprung)}, path)
    with pytest.raises(UserError, match=r"holds pickled code \(posix.mkdir\), which is never run"):
        load(f"{own}:build", weights=path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the trap works, so it is the refusal that kept it shut"


# Normalisation


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_a_named_normalisation_is_inside_the_model(own: str, name: str) -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[name])
    model = load(f"{own}:ready", normalize=name)
    assert isinstance(model, Normalized)
    torch.testing.assert_close(model(images()), model.network((images() - mean) / std))


def test_a_normalisation_may_be_spelled_out() -> None:
    assert foreign.parse_normalization("0.1,0.2,.3/1,2,3e0", 3) == Statistics((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert foreign.parse_normalization("none", 3) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", r"unknown normalisation 'imagnet'; .*did you mean 'imagenet'\?"),
        ("0.5/0.5", "normalisation '0.5/0.5': got 1 channels; allowed: 3"),
        *((text, "normalisation: got .*; allowed: means / deviations above 0") for text in
          ("1,1,1/1,0,1", "1,1,1/1,1", "1,1,1/1,1,1/1", "a,b,c/1,1,1", "nan,1,1/1,1,1")),
    ],
)  # fmt: skip
def test_a_normalisation_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign.parse_normalization(text, 3)
