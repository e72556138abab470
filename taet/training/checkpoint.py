"""The formats of checkpoints and of weights: plain Python and tensors, which never run code when they are read."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from taet.errors import UserError
from taet.files import write_atomically

SCHEMA = 1
METADATA = "taet"  # the key of a safetensors file's metadata that holds ours, as JSON


class WeightsAbout(NamedTuple):
    """What a file of weights says about itself: the method, the epoch from 1 that it was saved after, and the run."""

    method: str
    epoch: int
    run_hash: str


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save plain Python and tensors; they are loaded back once before they replace the last good file."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write_atomically(
        path, buffer.getvalue(), check=lambda part: torch.load(part, weights_only=True, map_location="cpu")
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint; what is none, is damaged or was written by a newer version is a UserError."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"nothing to resume: {path.parent} holds no {path.name} yet") from None
    except Exception as error:  # torch reports a truncated or foreign file in many types
        raise UserError(f"{path} is no checkpoint of taet, or is truncated ({type(error).__name__})") from None
    if not (isinstance(state, dict) and isinstance(state.get("schema"), int)):
        raise UserError(f"{path} is no checkpoint of taet")
    if state["schema"] > SCHEMA:
        raise UserError(f"{path}: got schema {state['schema']}; allowed: up to {SCHEMA}; a newer taet wrote it")
    return state


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save a model's `state` as safetensors with JSON `metadata`."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    write_atomically(path, save(tensors, metadata={METADATA: json.dumps(metadata)}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into `model`; another architecture's file is a UserError."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file, or is truncated ({error})") from None
    expected = model.state_dict()
    wrong = [
        name
        for name in sorted({*tensors, *expected})
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(f"{path} holds the weights of another model: {wrong[0]} does not fit ({len(wrong)} in all)")
    model.load_state_dict(tensors)


def weights_about(path: Path) -> WeightsAbout:
    """Return the metadata of a file of weights; a file that `taet train` did not write is a UserError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        values = json.loads(metadata[METADATA])
        return WeightsAbout(str(values["method"]), int(values["epoch"]), str(values["run_hash"]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); was the folder copied whole?") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by taet train ({type(error).__name__}: {error})") from None


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a model's state, in order."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        array: Tensor = value.detach().cpu().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
