"""The formats of checkpoints and of weights: data that never run code."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from taet.errors import UserError, located
from taet.fields import Count, Record
from taet.files import MOST_JSON_BYTES, opened, parse_json, read_bytes, write_atomically
from taet.models.weights import MOST_BYTES, check_archive
from taet.settings import from_json

SCHEMA = 1
METADATA = "taet"  # the key of a safetensors file's metadata that holds ours, as JSON


class WeightsAbout(Record):
    """What a file of weights says about itself."""

    method: str
    epoch: Count
    """The epoch after which they were saved, from 1."""
    run_hash: str
    weights_sha256: str = ""
    """`tensors_digest` of the weights; '' in files of older versions."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save plain Python and tensors; the file is loaded back once before it replaces the last good one."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write_atomically(
        path, buffer.getvalue(), check=lambda part: torch.load(part, weights_only=True, map_location="cpu")
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint; a file that is damaged, foreign or written by a newer version raises a UserError."""
    if not path.exists():
        raise UserError(f"nothing to resume: {path.parent} holds no {path.name} yet")
    with opened(path) as file:
        try:
            check_archive(file)
            state = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # torch reports a truncated or foreign file in many types
            raise UserError(f"{path} is not a checkpoint of taet, or is truncated ({type(error).__name__})") from None
    if not (isinstance(state, dict) and isinstance(state.get("schema"), int)):
        raise UserError(f"{path} is not a checkpoint of taet")
    if state["schema"] > SCHEMA:
        raise UserError(f"{path}: got schema {state['schema']}; allowed: up to {SCHEMA}; a newer taet wrote it")
    if not all(tensor.layout == torch.strided and tensor.device.type == "cpu" for tensor in _tensors(state)):
        raise UserError(f"{path} is not a checkpoint of taet: it holds tensors without stored values")
    return state


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(entry)


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save a model's `state` as safetensors with JSON `metadata`."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    write_atomically(path, save(tensors, metadata={METADATA: json.dumps(metadata)}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into `model`; a file of another architecture, or a damaged one, raises a UserError."""
    try:  # from bytes, because safetensors cannot open a file whose name is not UTF-8
        tensors = load(read_bytes(path, most=MOST_BYTES))
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is truncated ({error})") from None
    held, wanted = (
        {(name, value.shape, value.dtype) for name, value in state.items()} for state in (tensors, model.state_dict())
    )
    if wrong := sorted({name for name, *_ in held ^ wanted}):
        raise UserError(f"{path} holds the weights of another model: {wrong[0]} does not fit ({len(wrong)} in all)")
    if infinite := [name for name, value in tensors.items() if not torch.isfinite(value).all()]:
        raise UserError(f"{path}: {infinite[0]}: got values that are not finite; allowed: finite weights")
    model.load_state_dict(tensors)


def weights_about(path: Path) -> WeightsAbout:
    """Return the metadata of a file of weights; a file that `taet train` did not write raises a UserError."""
    with opened(path) as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, MOST_JSON_BYTES):
            raise UserError(f"{path} cannot be read (it is not a safetensors file); was the folder copied whole?")
        values = parse_json(file.read(length), f"{path} cannot be read")
    metadata = values.get("__metadata__") if isinstance(values, dict) else None
    text = metadata.get(METADATA) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path} was not written by taet train: it does not name its run")
    with located(f"{path} was not written by taet train"):
        return from_json(WeightsAbout, parse_json(text.encode(), METADATA))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a model's state, in order."""
    return tensors_digest(model.state_dict())


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of tensors, in order."""
    total = hashlib.sha256()
    for name, value in state.items():
        array: Tensor = value.detach().cpu().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
