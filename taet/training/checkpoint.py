"""Files of a run folder: checkpoints, weights, and how a finished run is read; no file in it ever runs code."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from taet import config, methods, models
from taet.config import Run
from taet.data import Dataset, load
from taet.errors import UserError
from taet.files import write_atomically

SCHEMA = 1


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder; a missing or broken one is the user's error, in one line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it holds no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def read_record(folder: Path) -> dict[str, Any]:
    """Read run.json; one that `taet train` did not write, or a newer one did, is refused."""
    path = folder / "run.json"
    info = read_json(path)
    try:
        if info["schema"] > SCHEMA:
            raise UserError(f"{path}: got schema {info['schema']}; allowed: up to {SCHEMA}; a newer taet wrote it")
        for name in ("method_title", "deviations", "selection", "model_given", "head", "threads", "command"):
            info[name]
        info["run"]["method"], info["data"]["arrays"], info["data"]["splits"]["test"]
        for split in info["data"]["splits"].values():
            split["sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} was not written by taet train ({type(error).__name__}: {error})") from None
    return dict(info)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save plain Python and tensors; they are loaded back once before they replace the last good file."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write_atomically(path, buffer.getvalue(), check=_loads)


def _loads(path: Path) -> None:
    torch.load(path, weights_only=True, map_location="cpu")


def load_checkpoint(path: Path, run_hash: str) -> dict[str, Any]:
    """Load a checkpoint of the run with `run_hash`; never runs code from the file (weights_only)."""
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
    if state.get("run_hash") != run_hash:
        raise UserError(f"{path} belongs to another run than {path.parent / 'run.json'}; nothing was changed")
    return state


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save a model's `state` as safetensors with JSON `metadata`."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    write_atomically(path, save(tensors, metadata={"taet": json.dumps(metadata)}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into `model`; another architecture's file is refused in one line."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        held = sorted(found.name for found in path.parent.glob("*.safetensors"))
        finished = held and (path.parent / "done").exists()
        why = f"it has {', '.join(held)}" if finished else "the run is not finished; resume it first"
        raise UserError(f"{path.parent} holds no {path.name}: {why}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file, or is truncated ({error})") from None
    expected = model.state_dict()
    wrong = [
        n
        for n in sorted({*tensors, *expected})
        if n not in tensors or n not in expected or tensors[n].shape != expected[n].shape
    ]
    if wrong:
        raise UserError(f"{path} holds the weights of another model: {wrong[0]} does not fit ({len(wrong)} in all)")
    model.load_state_dict(tensors)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a model's state, in order."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        array: Tensor = value.detach().cpu().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild the Run of a run.json, its method's Config included."""
    settings = values.get("settings")
    run: Run = config.from_json(Run, {**values, "settings": None})
    return config.override(run, {"settings": config.from_json(methods.find(run.method).Config, settings or {})})


def load_model(
    folder: str | Path, weights: str = "model", *, model: nn.Module | None = None
) -> tuple[Run, nn.Module, dict[str, Any]]:
    """Return (run, model with its weights in eval mode, run.json) of a finished run folder; no data are needed.

    `weights` is `model` (what the run delivers), `model-last` or `model-best`. A run that was trained from a module in
    memory needs it again: `model` gets the weights. What a run names as package.module:callable is imported and called;
    code that lies in the folder is refused.
    """
    folder = Path(folder)
    info = read_record(folder)
    run = run_from_json(info["run"])
    check_given(folder, info, "model", model)
    classes, (channels, height, width) = info["data"]["num_classes"], info["data"]["image_shape"]
    if model is None:
        models.refuse_code_in(folder, run.model.name)
        head = models.Head(**info["head"])
        model = models.build(run.model.name, classes, (channels, height, width), head=head, stem=run.model.stem)
    model = models.adapted(model, classes)
    load_weights(folder / f"{weights}.safetensors", model)
    return run, model.eval(), info


def load_run(
    folder: str | Path, weights: str = "model", *, model: nn.Module | None = None, dataset: Dataset | None = None
) -> tuple[Run, nn.Module, Dataset, dict[str, Any]]:
    """Return (run, model with its weights, data set, run.json) of a finished run folder: see `load_model`.

    A run that was trained on arrays in memory needs them again. Other test images than the run's are refused.
    """
    folder = Path(folder)
    info = read_record(folder)
    run = run_from_json(info["run"])
    check_given(folder, info, "dataset", dataset)
    check_given(folder, info, "model", model)  # before the data are read
    dataset = load(**config.to_json(run.data)) if dataset is None else dataset
    recorded = info["data"]["splits"]["test"]["sha256"]
    if dataset.test.sha256 != recorded:
        raise UserError(
            f"the test images of {run.data.name} are not those of {folder}: "
            f"got SHA-256 {dataset.test.sha256[:12]}, the run had {recorded[:12]}"
        )
    run, model, info = load_model(folder, weights, model=model)
    return run, model, dataset, info


def check_given(folder: Path, info: Mapping[str, Any], name: str, given: object) -> None:
    """Refuse a run that was not given the `model` or `dataset` from memory that it needs, or that names its own."""
    needed = {"model": info["model_given"], "dataset": info["data"]["arrays"]}[name]
    if needed and given is None:
        raise UserError(f"{folder} was trained with a {name} from memory: give it again, from Python, as {name}=...")
    if given is not None and not needed:
        raise UserError(f"{folder} names its own {name}: got another as {name}=...")
