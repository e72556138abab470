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

NAMED_STATES = ("state_dict", "model_state_dict", "model", "net")  # usual keys of the weights in a file
SETTINGS = ("mean", "std", "offset")  # of a Classifier or Adapter: set by the data and the method of a run
PARTS = ("body.", "head.", "network.")  # prefixes of all their other tensors
FEW = 3  # number of names in a message
MOST_BYTES = 2**36  # size limit of a file of weights
PUBLISHED_BLOCK = re.compile(r"(?:block(?=\d+\.layer)|layer)(?P<group>\d+)\.(?:layer\.)?(?P<block>\d+)\.(?P<rest>.+)")
PUBLISHED_SETTINGS = {"mu": "mean", "sigma": "std"}
RENAMED = (
    ", with RobustBench's names mapped to ours; such a file need not say which input normalisation it expects "
    "(--normalize), so compare the clean accuracy with the published one"
)
DEEPEST = 8  # levels of nested dictionaries that are searched for weights


class StoredWeights(NamedTuple):
    """Names and tensors of a file, the keys above them joined by dots, and the name of the file."""

    tensors: dict[str, Tensor]
    place: str
    path: Path

    @property
    def from_run(self) -> bool:
        """Whether these are the names of a Classifier or Adapter, as in a run folder."""
        return "offset" in self.tensors and all(key in SETTINGS or key.startswith(PARTS) for key in self.tensors)


def read(path: str | Path | StoredWeights) -> StoredWeights:
    """Return the weights in a .safetensors file, or in a file of `torch.save` that holds tensors only.

    They may be under a key such as "state_dict". A file with code is refused; code is never run. Weights that were
    already read are returned unchanged.
    """
    if isinstance(path, StoredWeights):
        return path
    path = Path(path)
    content, place = _content(path), []
    while not _is_state(content):
        inner = {key: value for key, value in content.items() if _holds_state(value)} if _is_mapping(content) else {}
        chosen = [key for key in NAMED_STATES if key in inner] or list(inner)
        if not chosen:
            raise UserError(f"{path} holds no weights; allowed: names and tensors, as model.state_dict() gives them")
        if chosen[0] not in NAMED_STATES and len(chosen) > 1:
            raise UserError(f"{path} holds more than one set of weights: {', '.join(chosen)}; save one alone")
        content = content[chosen[0]]
        place.append(chosen[0])
    return StoredWeights(dict(content), ".".join(place), path)


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
        if code is None:
            reason = f"or is truncated ({type(error).__name__})"
            raise UserError(f"{path} holds no weights that can be read without running code, {reason}") from None
        holds = f"{path} holds pickled code ({code[1]}), which is never run"
        raise UserError(f"{holds}; save model.state_dict() alone") from None


def check_archive(file: IO[bytes]) -> None:
    """Verify the checksum of every member of a zip file, which torch does not do, and refuse compressed ones."""
    with zipfile.ZipFile(file) as archive:
        compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if compressed or archive.testzip() is not None:
            raise zipfile.BadZipFile
    file.seek(0)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_state(value: Any) -> bool:
    return _is_mapping(value) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _holds_state(value: Any, deepest: int = DEEPEST) -> bool:
    if _is_state(value):
        return True
    return deepest > 0 and _is_mapping(value) and any(_holds_state(entry, deepest - 1) for entry in value.values())


def fill(network: nn.Module, state: StoredWeights) -> str:
    """Load all tensors of `state` into `network`, with none missing or left over, and return a note about it."""
    held = network.state_dict()
    renamed = published_names(state.tensors, held) if isinstance(network, Classifier) else None
    prefix, tensors = ("", renamed) if renamed is not None else _without_prefix(state.tensors, held.keys())
    _copy(network, tensors, state.path)
    return _sentence(state, prefix) + ("" if renamed is None else RENAMED)


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
    tensors = state.tensors
    if state.from_run:
        kept = {key: value for key, value in tensors.items() if key not in SETTINGS}
        tensors = {key.removeprefix("network.").removeprefix("body."): value for key, value in kept.items()}
    names = body.state_dict().keys()
    renamed = published_names(tensors, model.state_dict()) if isinstance(model, Classifier) else None
    if renamed is not None:
        tensors = {key.removeprefix("body."): value for key, value in renamed.items() if key not in SETTINGS}
    prefix, tensors = _without_prefix(tensors, names)
    rest = {key: value for key, value in tensors.items() if key not in names}
    head = _layer(rest) if own is not None else {}
    _copy(body, {key: value for key, value in tensors.items() if not (head and key in rest)}, state.path)
    sentence = _sentence(state, prefix) + ("" if renamed is None else RENAMED)
    if own is None or not head:
        return sentence
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    if shapes == {key: value.shape for key, value in head.items()}:
        _copy(own, head, state.path)
        return f"{sentence}, its head included"
    classes = len(head["weight"])
    other = "of another kind" if classes == len(model.offset) else f"for {classes} classes"
    return f"{sentence}; the head is fresh, since that of the file is {other}"


def published_names(state: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors of a network of RobustBench under the names that a Classifier holds; None for other names.

    These are the WideResNets of TRADES' code, with an unused `sub_block1`, and the PreActResNets that normalise before
    the last layer; others lack `bn` and are refused like any network that does not fit. Buffers `mu` and `sigma` are
    the input normalisation. Counters and normalisation may be missing in a file and then keep their values in `held`.
    """
    if "body.1.bn1.weight" not in held:  # not one of our networks of pre-activation blocks
        return None
    while (prefix := _shared_prefix(state)) and "conv1.weight" not in state:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    norm, head = ("bn1.", "fc.") if "block1.layer.0.conv1.weight" in state else ("bn.", "linear.")
    places = {key: found for key in state if (found := PUBLISHED_BLOCK.match(key))}
    if not places or not {"conv1.weight", f"{norm}weight", f"{head}weight"} <= state.keys():
        return None
    blocks = sorted({(int(found["group"]), int(found["block"])) for found in places.values()})
    number = {block: place for place, block in enumerate(blocks, 1)}
    firsts = {"conv1.": "body.0.", norm: f"body.{len(blocks) + 1}.", head: "head."}
    renamed = {key: value for key, value in held.items() if key in SETTINGS or key.endswith("num_batches_tracked")}
    for key, value in state.items():
        if found := places.get(key):
            rest = re.sub(r"^(convShortcut|shortcut\.0)\.", "shortcut.", found["rest"])
            renamed[f"body.{number[int(found['group']), int(found['block'])]}.{rest}"] = value
        elif key in PUBLISHED_SETTINGS:
            renamed[PUBLISHED_SETTINGS[key]] = value.reshape(1, -1, 1, 1)
        elif not key.startswith("sub_block1."):
            first = next((first for first in firsts if key.startswith(first)), "")
            renamed[firsts.get(first, "") + key.removeprefix(first)] = value
    return renamed


def _layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their last names if they form one linear layer, with or without a bias; else empty."""
    places, layer = {key.rpartition(".")[0] for key in state}, {key.rpartition(".")[2]: state[key] for key in state}
    return layer if len(places) == 1 and {"weight"} <= layer.keys() <= {"weight", "bias"} else {}


def _sentence(state: StoredWeights, prefix: str) -> str:
    under = f" under '{state.place}'" if state.place else ""
    without = f", without the prefix '{prefix}'" if prefix else ""
    return f"weights: {len(state.tensors)} tensors of {state.path}{under}{without}"


def _without_prefix(state: dict[str, Tensor], expected: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """Drop prefixes that all names share, e.g. "module." of DataParallel, if more names then match."""
    candidates = [("", state)]
    while prefix := _shared_prefix(candidates[-1][1]):
        dropped, longer = candidates[-1]
        shorter = {key.removeprefix(prefix): value for key, value in longer.items()}
        candidates.append((dropped + prefix, shorter))
    return max(candidates, key=lambda candidate: len(candidate[1].keys() & set(expected)))  # ties: the fewest prefixes


def _shared_prefix(names: Collection[str]) -> str:
    """The first part of the names with its dot if all share it; else ""."""
    first, *others = {name.partition(".")[:2] for name in names} or {("", "")}
    return "".join(first) if first[1] and not others else ""


def _copy(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors into the network, or report those that do not fit."""
    held = network.state_dict()
    other = [key for key, value in state.items() if key in held and value.shape != held[key].shape]
    for key in state.keys() & held.keys() - {*other}:
        if wrong := _kind(state[key], held[key]):
            raise UserError(f"{path}: {key}: got {wrong}; allowed: dense {held[key].dtype} values, all finite")
    keys = network.load_state_dict({key: state[key] for key in state if key not in other}, strict=False)
    missing = [key for key in keys.missing_keys if key not in other]
    unexpected = keys.unexpected_keys
    if missing or unexpected or other:
        shapes = [f"{key} {tuple(state[key].shape)} for {tuple(held[key].shape)}" for key in other]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        parts = [f"{len(names)} {kind} ({listed(names, FEW)})" for kind, names in found if names]
        theirs = {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys() and "conv1.weight" not in held
        hint = "; the names are torchvision's: --model torchvision:NAME" if theirs else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(parts)}{hint}")


def _kind(value: Tensor, held: Tensor) -> str:
    """Describe why the type or the values of a tensor do not fit `held`; "" if they do.

    Floating-point numbers may have another width. Any other cast would change values silently.
    """
    if value.is_quantized or value.layout != torch.strided or value.device.type != "cpu":
        return f"a tensor of {value.dtype} on {value.device.type}, {str(value.layout).removeprefix('torch.')}"
    if value.dtype != held.dtype and not (value.is_floating_point() and held.is_floating_point()):
        return str(value.dtype)
    return "" if bool(value.isfinite().all()) else "values that are not finite"
