"""Files of weights: read without running code, and matched to the parameter names of a model."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn

from taet.errors import UserError
from taet.files import read_bytes
from taet.formatting import listed
from taet.models.classifier import Adapter, Classifier
from taet.models.hub import weights_file

NAMED_STATES = ("state_dict", "model_state_dict", "model", "net")  # usual keys of the weights in a file
SETTINGS = ("mean", "std", "offset")  # of a Classifier or Adapter: set by the data and the method of a run
PARTS = ("body.", "head.", "network.")  # prefixes of all their other tensors
FEW = 3  # number of names in a message
MOST_BYTES = 2**36  # size limit of a file of weights


class StoredWeights(NamedTuple):
    """Names and tensors of a file, the keys above them joined by dots, and the name of the file."""

    tensors: dict[str, Tensor]
    place: str
    path: Path

    @property
    def from_run(self) -> bool:
        """Whether these are the names of a Classifier or Adapter, as in a run folder."""
        return "offset" in self.tensors and all(key in SETTINGS or key.startswith(PARTS) for key in self.tensors)

    @property
    def sentence(self) -> str:
        """What was read, for the notes of a model."""
        under = f" under '{self.place}'" if self.place else ""
        return f"weights: {len(self.tensors)} tensors of {self.path}{under}"


def read(path: str | Path | StoredWeights) -> StoredWeights:
    """Return the weights in a file, .safetensors or of `torch.save` with tensors only; code is refused and never run.

    They may be under a key such as "state_dict". `path` may also be a published model, hf:USER/NAME@COMMIT or the
    folder of one. Weights that were already read are returned unchanged.
    """
    if isinstance(path, StoredWeights):
        return path
    content, place = _content(weights_file(path)), list[str]()
    while not _is_state(content):
        key = next((key for key in NAMED_STATES if isinstance(content, Mapping) and key in content), None)
        if key is None:
            under = "as model.state_dict() gives them, alone or under one of"
            raise UserError(f"{path} holds no weights; allowed: names and tensors, {under} {', '.join(NAMED_STATES)}")
        content = content[key]
        place.append(key)
    return StoredWeights(dict(content), ".".join(place), Path(path))


def _content(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"weights: got {path}; allowed: a file that exists (.safetensors, .pt or .pth)")
    try:
        if path.suffix == ".safetensors":
            return load(read_bytes(path, most=MOST_BYTES))  # safetensors cannot open a file whose name is not UTF-8
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about old file formats, which are read or refused anyway
            if zipfile.is_zipfile(file):
                check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # torch reports a truncated or foreign file in many types
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is not None:
            holds = f"{path} holds pickled code ({code[1]}), which is never run"
            raise UserError(f"{holds}; save model.state_dict() alone") from None
        reason = f"or is truncated ({type(error).__name__})"
        raise UserError(f"{path} holds no weights that can be read without running code, {reason}") from None


def check_archive(file: IO[bytes]) -> None:
    """Verify the checksum of every member of a zip file, which torch does not do, and refuse compressed ones."""
    with zipfile.ZipFile(file) as archive:
        compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if compressed or archive.testzip() is not None:
            raise zipfile.BadZipFile
    file.seek(0)


def _is_state(value: Any) -> bool:
    named = isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)
    return named and all(isinstance(entry, Tensor) for entry in value.values())


def fill(network: nn.Module, state: StoredWeights) -> str:
    """Load all tensors of `state` into `network`, with none missing or left over, and return a note about it."""
    without, tensors = _without_prefix(state.tensors, network.state_dict().keys())
    _copy(network, tensors, state.path)
    return state.sentence + without


def pretrained(model: Classifier | Adapter, weights: str | Path | StoredWeights) -> str:
    """Load initial weights, from a file or already read, into `model` and return a note about it.

    They may have the names of the original network, or be weights of a run. The body must fit exactly. A head of
    another shape, e.g. for other classes, stays fresh. Normalisation and offset are not changed, because data and
    method set them.

    Raises:
        UserError: a file that holds code, no weights, or the weights of another body.
    """
    state = read(weights)
    body, own = (model.body, model.head) if isinstance(model, Classifier) else (model.network, None)
    tensors, names = state.tensors, body.state_dict().keys()
    if state.from_run:
        kept = {key: value for key, value in tensors.items() if key not in SETTINGS}
        tensors = {key.removeprefix("network.").removeprefix("body."): value for key, value in kept.items()}
    without, tensors = _without_prefix(tensors, names)
    rest = {key: value for key, value in tensors.items() if key not in names}
    head = _layer(rest) if own is not None else {}
    _copy(body, {key: value for key, value in tensors.items() if not (head and key in rest)}, state.path)
    note = state.sentence + without
    if own is None or not head:
        return note
    if {key: value.shape for key, value in own.state_dict().items()} == {key: head[key].shape for key in head}:
        _copy(own, head, state.path)
        return f"{note}, its head included"
    classes = len(head["weight"])
    other = "of another kind" if classes == len(model.offset) else f"for {classes} classes"
    return f"{note}; the head is fresh, since that of the file is {other}"


def _layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their last names if they form one linear layer, with or without a bias; else empty."""
    places, layer = {key.rpartition(".")[0] for key in state}, {key.rpartition(".")[2]: state[key] for key in state}
    return layer if len(places) == 1 and {"weight"} <= layer.keys() <= {"weight", "bias"} else {}


def _without_prefix(state: Mapping[str, Tensor], expected: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """Drop prefixes that all names share, e.g. "module." of DataParallel, if more names then match; and say so."""
    candidates = [("", dict(state))]
    while prefix := _shared_prefix(candidates[-1][1]):
        dropped, longer = candidates[-1]
        candidates.append((dropped + prefix, {key.removeprefix(prefix): value for key, value in longer.items()}))
    dropped, kept = max(candidates, key=lambda one: len(one[1].keys() & {*expected}))  # ties: the fewest prefixes
    return (f", without the prefix '{dropped}'" if dropped else ""), kept


def _shared_prefix(names: Collection[str]) -> str:
    """The first part of the names with its dot if all share it; else ""."""
    first, *others = {name.partition(".")[:2] for name in names} or {("", "")}
    return "".join(first) if first[1] and not others else ""


def _copy(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors into the network, or report those that do not fit."""
    held = network.state_dict()
    other = [key for key, value in state.items() if key in held and value.shape != held[key].shape]
    for key in state.keys() & held.keys() - {*other}:
        if not _fits(state[key], held[key]):
            got = f"{state[key].dtype} on {state[key].device}, {state[key].layout}"
            raise UserError(f"{path}: {key}: got {got}; allowed: dense {held[key].dtype} values, all finite")
    keys = network.load_state_dict({key: state[key] for key in state if key not in other}, strict=False)
    missing = [key for key in keys.missing_keys if key not in other]
    if missing or keys.unexpected_keys or other:
        shapes = [f"{key} {tuple(state[key].shape)} for {tuple(held[key].shape)}" for key in other]
        found = (("missing", missing), ("unexpected", keys.unexpected_keys), ("of another shape", shapes))
        parts = [f"{len(names)} {kind} ({listed(names, FEW)})" for kind, names in found if names]
        theirs = {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys() and "conv1.weight" not in held
        hint = "; the names are torchvision's: --model torchvision:NAME" if theirs else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(parts)}{hint}")


def _fits(value: Tensor, held: Tensor) -> bool:
    """Whether a tensor is dense, finite and of the kind of `held`; floating-point numbers may have another width."""
    if value.is_quantized or value.layout != torch.strided or value.device.type != "cpu":
        return False
    same = value.dtype == held.dtype or (value.is_floating_point() and held.is_floating_point())
    return same and bool(value.isfinite().all())
