"""Files of weights: what is none, or would become other weights in silence, is one line; a fresh head is said."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models import Adapter, Classifier, Head, pretrained
from taet.models.weights import fill, read

SHAPE = (3, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(path: Path, tensors: Any) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


TENSORS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (Tensor.to_sparse, r"0.weight: got torch.float32 on cpu, torch.sparse_coo; allowed: dense"),
    "meta": (lambda value: value.to("meta"), "0.weight: got torch.float32 on meta"),
    "int8": (Tensor.char, "0.weight: got torch.int8.*; allowed: dense torch.float32"),
    "complex": (lambda value: value + 1j, "0.weight: got torch.complex64"),
    "nan": (lambda value: value * torch.nan, "allowed: dense torch.float32 values, all finite"),
    "another shape": (lambda value: value.expand(10**9, 2, 3), r"of another shape \(0.weight \(1000000000"),
    "text": (lambda _: "q", "holds no weights"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_tensor_of_another_kind_is_one_line(case: str, tmp_path: Path) -> None:
    change, message = TENSORS[case]
    state: dict[str, Any] = dict(network().state_dict())
    path = saved(tmp_path / "w.pt", state | {"0.weight": change(state["0.weight"])})
    with pytest.raises(UserError, match=message) as caught:
        fill(network(), read(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, [network().state_dict()], 5, {"student": network().state_dict()}])
def test_content_without_weights_is_one_line(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights; allowed: names and tensors"):
        read(saved(tmp_path / "w.pt", content))


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "nothing": Path.exists,
    "text": lambda path: path.write_bytes(b"weights"),
    "half a file": lambda path: path.write_bytes(path.with_name("whole").read_bytes()[:700]),
    "a pickle of code": lambda path: path.write_bytes(pickle.dumps(os.getcwd)),
    "a header that lies": lambda path: path.write_bytes((10**17).to_bytes(8, "little") + b"{}"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_file_of_weights_is_one_line(case: str, suffix: str, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "whole")
    path = tmp_path / f"w{suffix}"
    PLACES[case](path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_pt_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", network().state_dict())
    content = bytearray(path.read_bytes())
    content[content.index(torch.load(path)["0.weight"].numpy().tobytes())] ^= 0x40
    path.write_bytes(content)
    assert zipfile.is_zipfile(path)
    with pytest.raises(UserError, match=r"w\.pt holds no weights .*BadZipFile"):
        read(path)


def test_floating_point_numbers_may_have_another_width_and_counters_may_be_missing(tmp_path: Path) -> None:
    state = {key: value for key, value in network().state_dict().items() if not key.endswith("num_batches_tracked")}
    path = saved(tmp_path / "w.pt", {key: value.to(torch.float64) for key, value in state.items()})
    assert "6 tensors" in fill(network(), read(path))


# To train from


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4", "torchvision:shufflenet_v2_x0_5"])
def test_a_run_of_other_classes_gives_its_body(name: str, tmp_path: Path) -> None:
    source = models.build(name, 10, SHAPE, seed=1)
    source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(10.0))
    path = saved(tmp_path / "model.safetensors", source.state_dict())
    fresh, model = models.build(name, 4, SHAPE, seed=2), models.build(name, 4, SHAPE, seed=2, weights=path)
    assert same(model.body, source.body)
    assert same(model.head, fresh.head)
    assert not model.offset.any()
    assert not model.mean.any()
    count = len(source.state_dict())
    says = f"weights: {count} tensors of {path}; the head is fresh, since that of the file is for 10 classes"
    assert model.notes == (*fresh.notes, says)


@pytest.mark.parametrize("head", [Head(), Head("cosine", scale=10)])
def test_a_run_of_as_many_classes_gives_its_head_as_well(head: Head, tmp_path: Path) -> None:
    source = models.build("resnet8", 4, SHAPE, seed=1, head=head)
    path = saved(tmp_path / "model.pt", {"state_dict": source.state_dict()})
    model = models.build("resnet8", 4, SHAPE, seed=2, head=head, weights=str(path))
    assert same(model, source)
    count = len(source.state_dict())
    assert model.notes == (f"weights: {count} tensors of {path} under 'state_dict', its head included",)
    other = models.build("resnet8", 4, SHAPE, head=Head("linear" if head.kind == "cosine" else "cosine"))
    assert pretrained(other, path).endswith("the head is fresh, since that of the file is of another kind")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("classes", "head"), [(1000, "is fresh, since that of the file is for 1000 classes"), (4, "")])
def test_a_file_of_the_library_gives_its_body(tmp_path: Path, prefix: str, classes: int, head: str) -> None:
    """As torchvision's own files are: names without those of a Classifier, and a thousand classes."""
    source = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    path = saved(tmp_path / "net.pth", {prefix + name: value for name, value in source.state_dict().items()})
    model = models.build("torchvision:shufflenet_v2_x0_5", 4, SHAPE, weights=path).eval()
    x = torch.rand(2, *SHAPE)
    assert isinstance(model, Classifier)
    source.eval().fc = nn.Identity() if head else source.fc
    assert torch.equal(model.features(x) if head else model(x), source(x))
    assert model.notes[-1].endswith(head or ", its head included")
    assert ("without the prefix 'module.'" in model.notes[-1]) == bool(prefix)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_that_is_used_whole_takes_all_of_its_weights_or_none(tmp_path: Path, wrapped: bool) -> None:
    source, model = (Adapter(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), 4) for _ in range(2))
    path = saved(tmp_path / "net.pt", (source if wrapped else source.network).state_dict())
    assert pretrained(model, path).startswith(f"weights: {3 if wrapped else 2} tensors of {path}")
    assert same(model, source)
    other = Adapter(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), 5)
    with pytest.raises(UserError, match=r"2 of another shape \(0.weight \(4, 3, 8, 8\) for \(5, 3, 8, 8\) and 0.bias"):
        pretrained(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"does not fit the model: 1 missing \(0.weight\)"),
        ({"0.weight": torch.ones(16, 1, 3, 3)}, r"1 of another shape \(0.weight \(16, 1, 3, 3\) for \(16, 3, 3, 3\)\)"),
        ({"extra.weight": torch.ones(1)}, r"3 unexpected \(head.weight, head.bias and extra.weight\)"),
        ({"head.weight": torch.ones(4, 64, dtype=torch.int8)}, "weight: got torch.int8"),
    ],
)
def test_a_body_or_a_head_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = models.build("resnet8", 4, SHAPE)
    head = {f"head.{name}": value for name, value in source.head.state_dict().items()}
    tensors = {name: value for name, value in (source.body.state_dict() | head | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        models.build("resnet8", 4, SHAPE, weights=saved(tmp_path / "net.pt", tensors))


def test_torchvisions_names_are_known_where_they_do_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path / "theirs.pth", torchvision.models.resnet18(num_classes=3).state_dict())
    with pytest.raises(UserError, match=r"does not fit the model: .*; the names are torchvision's: --model torchv"):
        models.build("resnet18", 3, (3, 96, 96), weights=path)
