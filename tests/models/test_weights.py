"""Files of weights: what is none, or would become other weights in silence, is one line; code is
never run."""

import gzip
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.models import Adapter, Classifier, Head, pretrained
from taet.models.weight_files.loading import load_all, match
from taet.models.weight_files.stored_weights import read
from tests.calls import one_line

SHAPE = (3, 8, 8)
PLAIN = "; its run did not normalise images (--model.normalize none)"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def fill(model: nn.Module, path: Path) -> str:
    stored = read(path)
    return load_all(model, stored, match(stored, model))


def saved(path: Path, tensors: Any) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, " under 'state_dict'"),
        (
            lambda state: {"net": {"model": prefixed(state, "a.")}},
            " under 'net.model', without the prefix 'a.'",
        ),
        (
            lambda state: prefixed(state, "_orig_mod.module."),
            ", without the prefix '_orig_mod.module.'",
        ),
        (
            lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
            ", without the prefix 'module.'",
        ),
        (lambda state: prefixed(state, "module.0."), ", without the prefix 'module.0.'"),
        (lambda state: prefixed(state, "1."), ", without the prefix '1.'"),
    ],
)
def test_weights_are_found_where_scripts_put_them(
    tmp_path: Path, wrap: Callable[..., Any], note: str
) -> None:
    """Floating-point numbers may have another width."""
    source, model, path = network(), network(), tmp_path / "net.pth.tar"
    torch.save(wrap(source.double().state_dict()), path)
    assert fill(model, path) == f"weights: 7 tensors of {path}{note}"
    assert same(model, source.float())


def with_weight(change: Callable[[Tensor], object]) -> Callable[[Path], object]:
    """Write weights of which one tensor is another."""
    state = network().state_dict()
    return lambda path: torch.save({**state, "0.weight": change(state["0.weight"])}, path)


def half(path: Path) -> None:
    torch.save(network().state_dict(), path)
    os.truncate(path, 700)


def damaged_directory(path: Path) -> None:
    """A file of weights whose list of contents does not begin as one."""
    torch.save(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x03", 1))


def flipped(path: Path) -> None:
    state = network().state_dict()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["0.weight"].numpy().tobytes())] ^= 0x40
    path.write_bytes(content)


def arrays_of_numpy(path: Path) -> None:
    arrays = {name: value.numpy() for name, value in network().state_dict().items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def tensors_in_a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(network().state_dict()))


def arrays_of_torch_save(path: Path) -> None:
    torch.save({"weight": np.ones((2, 3)), "bias": np.ones(2)}, path)


def quantised(path: Path) -> None:
    """Names and values as torch.ao.quantization gives them."""
    packed = {"0._packed_params._packed_params": (torch.ones(2, 2), torch.ones(2))}
    torch.save(
        {"0.scale": torch.tensor(1.0), "0._packed_params.dtype": torch.qint8, **packed}, path
    )


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "int8": (with_weight(Tensor.char), "0.weight: got torch.int8; allowed: torch.float32 values"),
    "nan": (
        with_weight(lambda value: value * torch.nan),
        "0.weight: got values that are not finite; allowed: finite ones",
    ),
    "sparse": (
        with_weight(Tensor.to_sparse),
        "0.weight: got a tensor that is sparse; allowed: a dense",
    ),
    "without numbers": (
        with_weight(lambda value: value.to("meta")),
        "0.weight: got a tensor that is without numbers",
    ),
    "complex": (
        with_weight(lambda value: value.to(torch.complex64)),
        "0.weight: got a tensor that is torch.complex64",
    ),
    "another shape": (
        with_weight(lambda value: value.expand(10**9, 2, 3)),
        r"does not fit .* \(1000000000, 2, 3\)",
    ),
    "text": (
        with_weight(lambda _: "q"),
        "holds no weights, its keys are 0.weight.*; allowed: names and tensors",
    ),
    "a folder": (Path.mkdir, "allowed: the folder of a finished run"),
    "half a file": (half, "holds no weights that can be read"),
    "an empty file": (Path.touch, "holds no weights: it is empty"),
    "a pointer of Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "it is a pointer of Git LFS; allowed: the file, by git lfs pull",
    ),
    "a web page": (
        lambda path: path.write_text("<!DOCTYPE html><html>Virus scan warning</html>"),
        "it is a web page, as a failed download leaves it",
    ),
    "a compressed file": (
        lambda path: path.write_bytes(gzip.compress(b"weights")),
        "it is compressed; allowed: the file inside it",
    ),
    "a pickle": (tensors_in_a_pickle, "it is a pickle that torch.save did not write"),
    "arrays without dotted names": (
        arrays_of_torch_save,
        r"arrays of NumPy.*torch.from_numpy\(array\)",
    ),
    "a quantised network": (quantised, "a quantised network, which has no gradients"),
    "arrays": (arrays_of_numpy, "it is an archive of NumPy; allowed: tensors by name"),
    "a damaged directory": (damaged_directory, "holds no weights .*BadZipFile"),
    "a flipped bit": (flipped, "holds no weights .*BadZipFile"),
    "a header that lies": (
        lambda path: path.write_bytes((10**17).to_bytes(8, "little") + b"{}"),
        "can be read",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_no_file_of_these_weights_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = FAULTS[case]
    path = tmp_path / ("w.safetensors" if case == "a header that lies" else "w.pt")
    make(path)
    with one_line(message) as caught:
        fill(network(), path)
    assert str(path) in str(caught.value)


class Settings:
    """An object without attributes of its own, which its pickle only names."""


FORMS: dict[str, Callable[[Path], object]] = {
    "a list": lambda path: torch.save([network().state_dict(), {"lr": 0.1}], path),
    "an object beside it": lambda path: torch.save(
        {"model": network().state_dict(), "settings": Settings()}, path
    ),
    "safetensors under another name": lambda path: save_file(network().state_dict(), path),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_other_forms(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "w.pt")
    fill(network(), tmp_path / "w.pt")


ARRAYS: dict[str, Callable[[Tensor], Any]] = {
    "as they are": lambda value: value.numpy(),
    "by columns": lambda value: np.asfortranarray(value.numpy()),
    "not contiguous": lambda value: np.repeat(value.numpy()[..., None], 2, -1)[..., 0],
    "big-endian": lambda value: value.numpy().astype(value.numpy().dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_of_numpy_are_the_same_numbers_as_tensors(
    form: str, protocol: int, tmp_path: Path
) -> None:
    path, model = tmp_path / "net.pt", network()
    state = {name: ARRAYS[form](value) for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path, pickle_protocol=protocol)
    other = network()
    fill(other, path)
    assert same(other, model)
    assert read(path).notes == ()


def test_an_array_of_objects_is_not_run_and_no_weight(tmp_path: Path) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    torch.save({"0.weight": np.array([Trap(sprung)], dtype=object)}, path)
    with one_line("arrays of NumPy"):
        read(path)
    assert not sprung.exists()


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_beside_the_weights_is_not_run_and_said(tmp_path: Path) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    content = {"state_dict": network().state_dict(), "args": Trap(sprung), "best": np.float64(1)}
    torch.save(content, path)
    stored = read(path)
    assert {*stored.tensors} == {*network().state_dict()}
    assert stored.notes[0].startswith("not read, since it is code: posix.mkdir and numpy")
    assert not sprung.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_tensors_beside_code_are_the_same_bits(tmp_path: Path, zipped: bool) -> None:
    path, state = tmp_path / "net.pt", network().half().state_dict()
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    content = {"state_dict": {**state, "a.b": parameter}, "args": Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors = read(path).tensors
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert tensors["a.b"].equal(parameter)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda trap: {"0.weight": torch.ones(2), "1.weight": trap},
            r"pickled code \(posix.mkdir\), which is never run; save model.state_dict\(\) alone",
        ),
        (
            lambda _: network(),
            r"holds a whole model, of the class torch.nn.modules.container.Sequential, .*"
            r"model = torch.load\('net.pt', weights_only=False\); "
            r"torch.save\(model.state_dict\(\), 'net-weights.pt'\); or --model package",
        ),
        (lambda _: {"net": network(), "acc": 1.0}, "holds a whole model under 'net'"),
    ],
    ids=["a weight", "a model", "a model under a key"],
)
def test_weights_that_need_code_are_refused_with_the_remedy(
    tmp_path: Path, content: Callable[[Trap], Any], message: str
) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    torch.save(content(Trap(sprung)), path)
    with one_line(message):
        read(path)
    assert not sprung.exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(network()), path := tmp_path / "net.pt")
    with one_line(r"is TorchScript, which is a program; .*model = torch.jit.load\('net.pt'\)"):
        read(path)


def test_beside_a_quantised_network_its_weights_from_before_are_taken(tmp_path: Path) -> None:
    quantised = {"0._packed_params._packed_params": (1, 2), "0.scale": torch.tensor(1.0)}
    content = {"model": network().state_dict(), "quantised": quantised}
    path = saved(tmp_path / "net.pt", content)
    assert read(path).tensors["0.weight"].equal(content["model"]["0.weight"])
    with one_line("a quantised network"):
        read(f"{path}:quantised")


@pytest.mark.parametrize("protocol", [2, 4])
def test_half_a_file_in_the_old_form_is_no_foreign_pickle(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    old = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
    torch.save(network().state_dict(), path, **old)
    os.truncate(path, path.stat().st_size - 4)
    with one_line("or is truncated"):
        read(path)


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with one_line("holds no weights, its keys are model"):
        read(saved(tmp_path / "net.pt", content))


# Several sets of weights in one file


def two_sets(averaged: str, plain: str) -> dict[str, Any]:
    return {plain: network().state_dict(), averaged: network().state_dict(), "epoch": 3}


@pytest.mark.parametrize(
    ("averaged", "plain"),
    [
        ("ema", "model"),
        ("state_dict_ema", "state_dict"),
        ("model_state_dict", "unaveraged_model_state_dict"),
    ],
)
def test_of_two_sets_the_averaged_one_is_taken_and_both_are_named(
    averaged: str, plain: str, tmp_path: Path
) -> None:
    content = two_sets(averaged, plain)
    stored = read(saved(tmp_path / "net.pt", content))
    assert stored.tensors["0.weight"].equal(content[averaged]["0.weight"])
    assert stored.notes == (
        f"it holds the weights '{averaged}' (taken) and '{plain}'; --weights FILE:KEY takes others",
    )


def test_a_key_after_the_file_chooses_the_weights(tmp_path: Path) -> None:
    content = two_sets("ema", "model")
    path = saved(tmp_path / "net.pt", content)
    assert read(f"{path}:model").tensors["0.weight"].equal(content["model"]["0.weight"])
    with one_line(r"unknown key of weights in .*net.pt 'modl'; allowed: ema, model; did you mean"):
        read(f"{path}:modl")


def test_an_average_of_parameters_alone_is_not_taken(tmp_path: Path) -> None:
    parameters = dict(network().named_parameters())
    content = {"model": network().state_dict(), "ema": parameters}
    assert read(saved(tmp_path / "net.pt", content)).key == "model"


def test_of_two_sets_without_a_usual_name_none_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"a": network().state_dict(), "b": network().state_dict()})
    with one_line("holds the weights 'a' and 'b'; allowed: one of them, as .*net.pt:KEY"):
        read(path)


# To train from


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4", "torchvision:shufflenet_v2_x0_5"])
def test_a_run_of_other_classes_gives_its_body(name: str, tmp_path: Path) -> None:
    source = models.build(name, 10, SHAPE, seed=1)
    source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(10.0))
    path = saved(tmp_path / "model.safetensors", source.state_dict())
    fresh, model = (
        models.build(name, 4, SHAPE, seed=2),
        models.build(name, 4, SHAPE, seed=2, weights=path),
    )
    assert same(model.body, source.body)
    assert same(model.head, fresh.head)
    assert not model.offset.any()
    assert not model.mean.any()
    says = (
        f"weights: {len(source.state_dict())} tensors of {path}; the head is fresh, since that of "
        "the file is for 10"
    )
    assert model.notes == (*fresh.notes, f"{says} classes")


def test_a_run_of_as_many_classes_gives_its_head_as_well(tmp_path: Path) -> None:
    for head, other in ((Head(), Head("cosine")), (Head("cosine", scale=10), Head())):
        source = models.build("resnet8", 4, SHAPE, seed=1, head=head)
        path = saved(tmp_path / "model.pt", {"state_dict": source.state_dict()})
        model = models.build("resnet8", 4, SHAPE, seed=2, head=head, weights=str(path))
        assert same(model, source)
        assert model.notes[0].endswith(
            f"tensors of {path} under 'state_dict', its head included{PLAIN}"
        )
        note = pretrained(models.build("resnet8", 4, SHAPE, head=other), path)
        assert note.endswith(f"the head is fresh, since that of the file is of another kind{PLAIN}")


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
def test_a_network_for_colours_reads_grey_images_as_all_three(name: str, tmp_path: Path) -> None:
    source = models.build(name, 4, SHAPE, seed=1).eval()
    path = saved(tmp_path / "model.safetensors", source.state_dict())
    model = models.build(name, 4, (1, *SHAPE[1:]), seed=2, weights=path).eval()
    grey = torch.rand(3, 1, *SHAPE[1:])
    torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)))
    assert "made for colour, it reads a grey image as all three" in model.notes[-1]
    if name.startswith("vit"):
        with one_line("made for images of another size: --data.size"):
            models.build(name, 4, (3, 64, 64), weights=path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("classes", "head"), [(1000, "is fresh, since that of the file is for 1000 classes"), (4, "")]
)
def test_a_file_of_the_library_gives_its_body(
    tmp_path: Path, prefix: str, classes: int, head: str
) -> None:
    """As torchvision's files: names without those of a Classifier, 1,000 classes, and, if old, no
    counters."""
    source = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    tensors = {
        key: value
        for key, value in source.state_dict().items()
        if not prefix or "batches" not in key
    }
    path = saved(tmp_path / "net.pth", prefixed(tensors, prefix))
    model = models.build("torchvision:shufflenet_v2_x0_5", 4, SHAPE, weights=path).eval()
    x = torch.rand(2, *SHAPE)
    assert isinstance(model, Classifier)
    source.eval().fc = nn.Identity() if head else source.fc
    assert torch.equal(model.features(x) if head else model(x), source(x))
    assert model.notes[-1].endswith(head or ", its head included")
    assert ("without the prefix 'module.'" in model.notes[-1]) == bool(prefix)


def test_a_network_that_is_used_whole_takes_all_of_its_weights_or_none(tmp_path: Path) -> None:
    source, model = (Adapter(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), 4) for _ in range(2))
    path = saved(tmp_path / "net.pt", source.state_dict())
    assert pretrained(model, path).startswith(f"weights: 3 tensors of {path}")
    assert same(model, source)
    other = Adapter(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), 5)
    with one_line(r"2 of 3 tensors, .*0.weight: got \(4, 3, 8, 8\); allowed: \(5, 3, 8, 8\)"):
        pretrained(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"the first 0.weight: got no such tensor; allowed: \(\d+, 3, 3, 3\)"),
        ({"head.weight": torch.ones(4, 64, dtype=torch.int8)}, "weight: got torch.int8"),
        (
            {
                "conv1.weight": torch.ones(1),
                "layer1.0.conv1.weight": torch.ones(1),
                "fc.weight": torch.ones(1),
            },
            "names are torchvision's: --model t",
        ),
    ],
)
def test_a_body_or_a_head_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = models.build("resnet8", 4, SHAPE)
    head = prefixed(source.head.state_dict(), "head.")
    tensors = {
        name: value
        for name, value in (source.body.state_dict() | head | change).items()
        if value is not None
    }
    with one_line(message):
        models.build("resnet8", 4, SHAPE, weights=saved(tmp_path / "net.pt", tensors))
