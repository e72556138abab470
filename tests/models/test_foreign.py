"""Models of any origin: they are built, filled and normalised, no file ever runs code, and mistakes are one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickle
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

def _hidden():
    return build()

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
    return foreign.load(spec, **{"num_classes": 4, "image_shape": (3, 8, 8), **options}).model


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


# -- what a name means -------------------------------------------------------------------------------------------------


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
        ("OWN:needy", r"own_nets_of_a_test:needy missing a required argument: 'width'; allowed: a callable of nothing"),
        ("OWN:broken", "own_nets_of_a_test:broken failed: RuntimeError: no such depth"),
        ("OWN:number", "own_nets_of_a_test:number: got a int; allowed: a torch.nn.Module, or what returns one"),
        ("pathlib:Path", "pathlib:Path: pathlib is of Python's standard library; allowed: a module of your own"),
        ("os.path:abspath", "os.path:abspath: os is of Python's standard library"),
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


@pytest.mark.parametrize("build", [load, lambda spec: models.build(spec, 4, (3, 8, 8))], ids=["load", "build"])
def test_nothing_of_the_standard_library_is_imported(build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="this is of Python's standard library"):
        build("this:Zen")
    assert "this" not in sys.modules
    assert capsys.readouterr().out == ""
    importlib.import_module("this")
    assert "The Zen of Python" in capsys.readouterr().out, "the trap works, so it is the refusal that kept it shut"
    del sys.modules["this"]


TRAP = "from pathlib import Path\nPath(__file__).with_suffix('.sprung').touch()\ndef build(): raise SystemExit\n"


@pytest.mark.parametrize(
    ("spec", "file", "where"),
    [
        ("a_trap:build", "run/a_trap.py", "run"),
        ("run.a_trap:build", "run/a_trap.py", "."),
        ("run.deep.er.a_trap:build", "run/deep/er/a_trap.py", "."),
        ("run.nothing:build", "run/__init__.py", "."),
        ("a_package.a_trap:build", "a_package/a_trap.py", "."),  # a link to a folder of the run
        ("elsewhere.a_trap:build", "elsewhere/a_trap.py", "run"),  # the run's folder is the first to be searched
    ],
)
def test_code_in_a_folder_is_refused_without_importing_what_leads_to_it(
    spec: str, file: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "linked").mkdir(parents=True)
    (tmp_path / "a_package").symlink_to(tmp_path / "run" / "linked")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TRAP)
    monkeypatch.chdir(tmp_path / where)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    with pytest.raises(UserError, match=f"got the model '{spec}', which is code .*; allowed: with --trust-"):
        foreign.check_trust(tmp_path / "run", spec)
    with foreign.trusted(spec), pytest.raises(UserError, match=r"allowed: a module elsewhere") as caught:
        foreign.check_trust(tmp_path / "run", spec)
    assert "\n" not in str(caught.value)
    assert set(sys.modules) == before
    assert not path.with_suffix(".sprung").exists()
    importlib.invalidate_caches()
    with contextlib.suppress(ImportError), foreign._importable_here():
        importlib.import_module(spec.partition(":")[0])
    assert path.with_suffix(".sprung").exists(), "the trap works, so it is the refusal that kept it shut"
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("spec", ["OWN:build", "torchvision:resnet18", "resnet8", "no_such_module_at_all.x:build"])
def test_code_elsewhere_is_not_refused(own: str, tmp_path: Path, spec: str) -> None:
    (tmp_path / "run").mkdir()
    spec = spec.replace("OWN", own)
    with foreign.trusted(spec):
        foreign.check_trust(tmp_path / "run", spec)
        foreign.check_trust(Path("run"), spec)


def test_a_module_that_cannot_be_imported_is_one_line(own: str) -> None:
    Path(f"{own}.py").write_text("from torch import nothing_of_this_name\n")
    with pytest.raises(UserError, match=f"module '{own}' cannot be imported: ImportError: cannot import name"):
        load(f"{own}:build")


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


@pytest.mark.parametrize(
    ("name", "shape", "feature"),
    [("resnet18", (1, 32, 32), 512), ("vit_tiny_patch16_224", (3, 32, 48), 192), ("convnext_tiny", (3, 32, 32), 768)],
)
def test_timm_itself(name: str, shape: tuple[int, int, int], feature: int) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    model = models.build(f"timm:{name}", 7, shape)
    x = torch.rand(2, *shape)
    assert isinstance(model, Classifier)
    assert model.features(x).shape == (2, feature)
    assert model(x).shape == (2, 7)
    with pytest.raises(UserError, match=rf"timm:{name}.nope failed: RuntimeError: Invalid pretrained tag"):
        models.build(f"timm:{name}.nope", 7, shape)


def test_timm_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"'timm:resnet18' needs the package timm: pip install 'taet\[timm\]'"):
        load("timm:resnet18")


# -- weights -----------------------------------------------------------------------------------------------------------


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "epoch": 3}, " under 'state_dict'"),
        (lambda state: {"net": state, "ema": state}, " under 'net'"),
        (lambda state: {"ema": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, " under 'ema'"),
        (lambda state: {"best": {"model": prefixed(state, "module.")}}, " under 'best.model', without the prefix"),
        (lambda state: prefixed(state, "module."), ", without the prefix 'module.'"),
        (lambda state: prefixed(state, "_orig_mod.module."), ", without the prefix '_orig_mod.module.'"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth.tar"])
def test_weights_are_found_where_scripts_put_them(
    own: str, tmp_path: Path, wrap: Callable[..., Any], note: str, suffix: str
) -> None:
    source, path = plain(), tmp_path / f"net{suffix}"
    torch.save(wrap(source.state_dict()), path)
    loaded = foreign.load(f"{own}:build", num_classes=4, image_shape=(3, 8, 8), weights=path)
    assert torch.equal(loaded.model(images()), source(images()))
    assert loaded.notes[0].startswith(f"weights: 2 tensors of {path}{note}")


@pytest.mark.parametrize(("prefix", "note"), [("", ""), ("module.", ", without the prefix 'module.'")])
def test_a_prefix_that_the_model_has_itself_is_kept(own: str, tmp_path: Path, prefix: str, note: str) -> None:
    source, path = nn.Sequential(plain()), tmp_path / "net.safetensors"
    save_file(prefixed(source.state_dict(), prefix), path)
    Path(f"{own}.py").write_text(SOURCE + "ready = nn.Sequential(build())\n")
    loaded = foreign.load(f"{own}:ready", num_classes=4, image_shape=(3, 8, 8), weights=path)
    assert torch.equal(loaded.model(images()), source(images()))
    assert loaded.notes == (f"weights: 2 tensors of {path}{note}",)


def test_weights_of_a_run_bring_their_normalisation(tmp_path: Path) -> None:
    source: Classifier = models.build("resnet8", 4, (3, 8, 8), seed=5).eval()
    source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(4.0))
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    assert torch.equal(load("resnet8", weights=path)(images()), source(images()))


def test_weights_of_a_run_that_took_a_network_apart(own: str, tmp_path: Path) -> None:
    source = models.build(f"{own}:sized", 4, (3, 8, 8), seed=5).eval()
    assert isinstance(source, Classifier)
    source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    loaded = load(f"{own}:sized", weights=tmp_path / "model.safetensors")
    assert torch.equal(loaded(images()), source(images()))


def test_weights_of_a_run_that_was_given_a_module(own: str, tmp_path: Path) -> None:
    source = Adapter(plain(), 4)
    source.offset.copy_(torch.arange(4.0))
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    assert torch.equal(load(f"{own}:build", weights=path)(images()), source(images()))


def test_old_files_may_lack_the_counter_of_batch_normalisation(tmp_path: Path) -> None:
    source: Classifier = models.build("resnet8", 4, (3, 8, 8), seed=5).eval()
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pt")
    assert torch.equal(load("resnet8", weights=tmp_path / "net.pt")(images()), source(images()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.bias": None}, r"does not fit the model: 1 missing \(1.bias\)"),
        ({"extra": torch.ones(1)}, r"does not fit the model: 1 unexpected \(extra\)"),
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


@pytest.mark.parametrize(
    ("write", "run", "message"),
    [
        (
            torch.save,
            lambda path: torch.load(path, weights_only=False),
            f"pickled code ({os.name}.mkdir), which is never",
        ),
        (
            lambda content, path: path.write_bytes(pickle.dumps(content["args"], protocol=2)),
            lambda path: pickle.loads(path.read_bytes()),
            f"pickled code ({os.name}.mkdir), which is never run; save model.state_dict() alone",
        ),
        (
            lambda content, path: path.write_bytes(pickle.dumps(content)),
            lambda path: pickle.loads(path.read_bytes()),
            "no weights that can be read without running code",
        ),
    ],
    ids=["torch", "pickle-2", "pickle"],
)
def test_code_in_a_file_is_refused_and_never_run(
    own: str, tmp_path: Path, write: Callable[..., Any], run: Callable[..., Any], message: str
) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    write({"state_dict": plain().state_dict(), "args": Trap(sprung)}, path)
    with pytest.raises(UserError) as caught:
        load(f"{own}:build", weights=path)
    assert message in str(caught.value)
    assert not sprung.exists()
    run(path)
    assert sprung.exists(), "the trap works, so it is the refusal that kept it shut"


def test_a_saved_module_and_saved_options_are_code(own: str, tmp_path: Path) -> None:
    torch.save(plain(), tmp_path / "module.pt")
    torch.save({"state_dict": plain().state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "options.pt")
    with pytest.raises(UserError, match=r"module.pt holds pickled code \(torch.nn.modules.container.Sequential\)"):
        load(f"{own}:build", weights=tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"options.pt holds pickled code \(argparse.Namespace\)"):
        load(f"{own}:build", weights=tmp_path / "options.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pt", b"", "net.pt holds no weights that can be read without running code, or is truncated"),
        (
            "net.pt",
            b"PK\x03\x04 truncated",
            "net.pt holds no weights that can be read without running code, or is truncated",
        ),
        (
            "net.safetensors",
            b"hello",
            "net.safetensors holds no weights that can be read without running code, or is truncated",
        ),
        ("other.pt", None, "weights: got .*other.pt; allowed: a file that exists"),
        ("", None, "allowed: a file that exists"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(
    own: str, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(f"{own}:build", weights=tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds no weights; allowed: names and tensors"),
        ({"epoch": 3, "losses": [1.0]}, "holds no weights"),
        ({}, "holds no weights"),
        ({"student": {"w": torch.ones(1)}, "teacher": {"w": torch.ones(1)}}, "more than one set .*: student, teacher"),
    ],
)
def test_a_file_without_weights_or_with_too_many_is_refused(
    own: str, tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match=message):
        load(f"{own}:build", weights=tmp_path / "net.pt")


# -- normalisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_a_named_normalisation_is_inside_the_model(own: str, name: str) -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[name])
    model = load(f"{own}:ready", normalize=name)
    assert isinstance(model, Normalized)
    torch.testing.assert_close(model(images()), model.network((images() - mean) / std))
    assert not model.training


def test_a_normalisation_may_be_spelled_out() -> None:
    assert foreign.parse_normalization("0.1,0.2,.3/1,2,3e0", 3) == Statistics((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert foreign.parse_normalization("0.5/0.25", 1) == Statistics((0.5,), (0.25,))
    assert foreign.parse_normalization("none", 3) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", r"unknown normalisation 'imagnet'; .*did you mean 'imagenet'\?"),
        ("0.5/0.5", "normalisation '0.5/0.5': got 1 channels; allowed: 3"),
        *((text, "normalisation: got .*; allowed: means / deviations above 0") for text in
          ("1,1,1/1,0,1", "1,1,1/1,1", "1,1,1/1,1,1/1", "a,b,c/1,1,1", "nan,1,1/1,1,1", "1,1,1/1,1,inf")),
    ],
)  # fmt: skip
def test_a_normalisation_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign.parse_normalization(text, 3)


@pytest.mark.data
@pytest.mark.skipif(
    not Path(os.environ.get("TAET_DATA", ""), "cifar10.npz").exists(), reason="TAET_DATA holds no cifar10.npz"
)
def test_the_constants_of_cifar10_are_those_of_its_training_images() -> None:
    from taet.data import load as load_data

    mean, std = load_data("cifar10-lt", imbalance_ratio=1).train.channel_statistics()
    assert mean == pytest.approx(NORMALIZATIONS["cifar10"].mean, abs=1e-4)
    assert std == pytest.approx(NORMALIZATIONS["cifar10"].std, abs=1e-4)
