"""Files of weights: what is no weights, or would become other weights in silence, is one line."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models.weights import fill, read


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def changed(key: str, change: Callable[[Tensor], Any]) -> dict[str, Any]:
    state: dict[str, Any] = dict(network().state_dict())
    return state | {key: change(state[key])}


def nested(depth: int) -> dict[str, Any]:
    state: dict[str, Any] = dict(network().state_dict())
    for _ in range(depth):
        state = {"inner": state}
    return state


def in_itself() -> dict[str, Any]:
    state: dict[str, Any] = {"epoch": 1}
    state["again"] = state
    return state


def quantised(value: Tensor) -> Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


TENSORS: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
    "sparse": (
        "0.weight",
        Tensor.to_sparse,
        "0.weight: got a tensor of torch.float32 on cpu, sparse_coo; allowed: dense",
    ),
    "compressed": ("0.weight", Tensor.to_sparse_csr, "0.weight: got a tensor of torch.float32 on cpu, sparse_csr"),
    "meta": ("0.weight", lambda value: value.to("meta"), "0.weight: got a tensor of torch.float32 on meta"),
    "quantised": ("0.weight", quantised, "0.weight: got a tensor of torch.qint8 on cpu"),
    "int8": ("0.weight", Tensor.char, "0.weight: got torch.int8; allowed: dense torch.float32"),
    "bool": ("0.weight", Tensor.bool, "0.weight: got torch.bool; allowed"),
    "complex": ("0.weight", lambda value: value + 1j, "0.weight: got torch.complex64; allowed"),
    "float as a counter": ("1.num_batches_tracked", Tensor.float, "tracked: got torch.float32; allowed"),
    "nan": ("0.weight", lambda value: value * torch.nan, "0.weight: got values that are not finite"),
    "infinite": ("1.running_var", lambda value: value / 0, "running_var: got values that are not finite"),
    "another shape": ("0.weight", lambda value: value.expand(10**9, 2, 3), "of another shape (0.weight (1000000000"),
    "text": ("0.weight", lambda _: "q", "holds no weights"),
}
"""What is done to a tensor."""
CONTENTS: dict[str, Callable[[], Any]] = {
    "nothing": dict,
    "a list": lambda: [network().state_dict()],
    "a number": lambda: 5,
    "keys that are no text": lambda: dict(enumerate(network().state_dict().values())),
    "nested too deeply": lambda: nested(50),
    "in itself": in_itself,
}
WRONG = {
    name: (lambda key=key, change=change: changed(key, change), said) for name, (key, change, said) in TENSORS.items()
}
WRONG |= {name: (make, "holds no weights") for name, make in CONTENTS.items()}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_weights_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(UserError) as caught:
        fill(network(), read(tmp_path / "w.pt"))
    assert message in str(caught.value)
    assert str(tmp_path / "w.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_may_have_another_width(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(changed("0.weight", lambda value: value.to(dtype)), tmp_path / "w.pt")
    assert "7 tensors" in fill(network(), read(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("name", "dtype"), [("w.safetensors", torch.int8), ("w.safetensors", torch.bool), ("w.pt", None)]
)
def test_pretrained_weights_of_another_kind(name: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Also those of the head."""
    state = {key: value.clone() for key, value in models.build("resnet8", 10).state_dict().items()}
    state["head.weight"] = state["head.weight"] / 0 if dtype is None else state["head.weight"].to(dtype)
    (torch.save if name == "w.pt" else save_file)(state, tmp_path / name)
    with pytest.raises(UserError, match="weight: got"):
        models.build("resnet8", 10, weights=tmp_path / name)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


PLACES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "an empty file": lambda path: write(path, b""),
    "text": lambda path: write(path, b"weights"),
    "half a file": lambda path: write(path, Path(path.with_name("whole")).read_bytes()[:700]),
    "a pickle of code": lambda path: write(path, pickle.dumps(os.getcwd)),
    "a header that lies": lambda path: write(path, (10**17).to_bytes(8, "little") + b"{}"),
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
    path = tmp_path / "w.pt"
    torch.save(network().state_dict(), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    place = content.index(bytes(network_bytes := torch.load(path)["0.weight"].numpy().tobytes()))
    assert member.file_size == len(network_bytes)
    content[place] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pt holds no weights .*BadZipFile"):
        read(path)
