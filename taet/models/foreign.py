"""Models of any origin: the callable that builds one, the file of its weights, the normalisation that it expects.

No file ever runs code: weights are safetensors, or what `torch.load` reads with `weights_only=True`. A callable that is
named by its import path is the user's own code, and is run.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import pickle
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from taet import registry
from taet.errors import UserError, unknown
from taet.models.classifier import Adapter
from taet.models.heads import Head
from taet.randomness import seeded

FORMS = ("package.module:callable", "torchvision:NAME", "timm:NAME")
NAMED_STATES = ("state_dict", "model_state_dict", "model", "net")  # what training scripts call the weights in a file
FEW = 3  # names in a message


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, in image units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


NORMALIZATIONS = {
    # The documentation of torchvision's pretrained models.
    "imagenet": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Over all pixels of the 50,000 training images; as in the code of Rice et al., ICML 2020, arXiv:2002.11569.
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    # Over all pixels of the 50,000 training images.
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Normalized(nn.Module):
    """network((x - mean) / std): images (N, C, H, W) in [0, 1] -> logits, so that eps stays in units of the image."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(statistics.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(statistics.std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


class Loaded(NamedTuple):
    """A model, and in words where its weights come from and how its input is normalised."""

    model: nn.Module
    notes: tuple[str, ...]


def load(
    spec: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    weights: Path | None = None,
    normalize: str = "none",
) -> Loaded:
    """Return the model that `spec` names, in eval mode, with its weights and the normalisation it expects inside.

    Args:
        spec: `package.module:callable`, which takes nothing or `num_classes` and returns a Module, or is one (the
            current directory is importable); `torchvision:NAME`; `timm:NAME`; or a name of `taet list models`.
        num_classes: width of the logits that is asked for.
        image_shape: (channels, height, width) of the images.
        weights: .safetensors, or a file of `torch.save` that holds tensors only. The weights may lie under a key such
            as "state_dict", and all their names may share a prefix such as "module.". Not given: what a callable
            returns, else fresh weights drawn from seed 0.
        normalize: none, imagenet, cifar10, cifar100, or MEANS/STDS, one number per channel separated by commas.

    Raises:
        UserError: an unknown name, a callable that fails, a file that holds code or does not fit the model.
    """
    statistics = parse_normalization(normalize, image_shape[0])
    with seeded(0, "weights"):
        network = _build(spec, num_classes, image_shape)
    if weights is not None:
        network, about = _with_weights(network, weights, num_classes)
    elif ":" in spec and not spec.startswith(("torchvision:", "timm:")):
        about = f"weights: as {spec} gives them"
    else:
        about = "weights: none given, so fresh ones drawn from seed 0"
    if statistics is None:
        return Loaded(network.eval(), (about,))
    note = f"normalisation: {normalize}, inside the model"
    return Loaded(Normalized(network, statistics).eval(), (about, note))


# -- normalisation -----------------------------------------------------------------------------------------------------


def parse_normalization(text: str, channels: int) -> Statistics | None:
    """Return the statistics that `text` names or spells out as MEANS/STDS; None for none."""
    if text == "none":
        return None
    if "/" not in text and text not in NORMALIZATIONS:
        raise unknown("normalisation", text, ("none", *NORMALIZATIONS, "M1,M2,M3/S1,S2,S3"))
    statistics = NORMALIZATIONS[text] if text in NORMALIZATIONS else _spelled_out(text)
    if len(statistics.mean) != channels:
        got = f"got {len(statistics.mean)} channels"
        raise UserError(f"normalisation '{text}': {got}; allowed: {channels}, as the images have")
    return statistics


def _spelled_out(text: str) -> Statistics:
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
        if len(mean) != len(std) or not min(std) > 0 or not torch.tensor([*mean, *std]).isfinite().all():
            raise ValueError
    except ValueError:
        example = "0.49,0.48,0.45/0.25,0.24,0.26"
        raise UserError(f"normalisation: got '{text}'; allowed: means / deviations above 0, e.g. {example}") from None
    return Statistics(mean, std)


# -- networks ----------------------------------------------------------------------------------------------------------


def _build(spec: str, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    kind, colon, name = spec.partition(":")
    if not colon:
        known = registry.entries("models")
        if spec not in known:
            raise unknown("model", spec, (*known, *FORMS))
        network: nn.Module = registry.find("models", spec).load().build(spec, num_classes, image_shape, Head())
        return network
    if kind == "torchvision":
        return _from_torchvision(name, num_classes)
    if kind == "timm":
        return _from_timm(name, num_classes, image_shape[0])
    return _from_path(kind, name, num_classes)


def _from_torchvision(name: str, num_classes: int) -> nn.Module:
    models: Any = importlib.import_module("torchvision.models")
    names = models.list_models(module=models)  # classifiers only
    if name not in names:
        raise _unlisted("torchvision", name, names, "torchvision.models.list_models()")
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network


def _from_timm(name: str, num_classes: int, channels: int) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise UserError(f"model 'timm:{name}' needs the package timm: pip install 'taet[timm]'") from None
    names = timm.list_models()
    if name.partition(".")[0] not in names:  # a name may be followed by the tag of its pretraining
        raise _unlisted("timm", name, names, "timm.list_models()")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)
    return network


def _unlisted(package: str, name: str, names: Collection[str], listing: str) -> UserError:
    """The error for a name that is not among very many."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {package} model '{name}'; allowed: the {len(names)} names of {listing}{hint}")


def _from_path(module_name: str, name: str, num_classes: int) -> nn.Module:
    """Import a module and call what is named in it."""
    spec = f"{module_name}:{name}"
    if not (module_name and name):
        raise UserError(f"model: got '{spec}'; allowed: {', '.join(FORMS)}, or a name of taet list models")
    with _importable_here():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever the user's file raises
            raise UserError(f"module '{module_name}' cannot be imported: {type(error).__name__}: {error}") from error
        if not hasattr(module, name):
            own = (key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise unknown(f"callable of {module_name}", name, own)
        made = getattr(module, name)
        network = made if isinstance(made, nn.Module) else _call(made, spec, num_classes)
    if not isinstance(network, nn.Module):
        raise UserError(f"{spec}: got a {type(network).__name__}; allowed: a torch.nn.Module, or what returns one")
    return network


@contextlib.contextmanager
def _importable_here() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path[:] = before


def _call(build: Any, spec: str, num_classes: int) -> Any:
    """Call what the user named, with `num_classes` if it takes that."""
    if not callable(build):
        return build
    try:
        signature = inspect.signature(build)
        arguments = {"num_classes": num_classes} if "num_classes" in signature.parameters else {}
        signature.bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: no signature, as of some built-in functions
        raise UserError(f"{spec} {error}; allowed: a callable of nothing, or of num_classes") from None
    try:
        return build(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{spec} failed: {type(error).__name__}: {error}") from error


# -- weights -----------------------------------------------------------------------------------------------------------


def _with_weights(network: nn.Module, path: Path, num_classes: int) -> tuple[nn.Module, str]:
    """Return the network with the weights of a file, and in words what was done."""
    state, place = _state(path, _read(path))
    if "offset" in state and all(key == "offset" or key.startswith("network.") for key in state):
        network = Adapter(network, num_classes)  # the form in which a run keeps the weights of a Module it was given
    prefix, fitted = _without_prefix(state, network.state_dict().keys())
    _fill(network, fitted, path)
    under = f" under '{place}'" if place else ""
    without = f", without the prefix '{prefix}'" if prefix else ""
    return network, f"weights: {len(state)} tensors of {path}{under}{without}"


def _read(path: Path) -> Any:
    """Return what a file holds; code in it is refused, never run."""
    if not path.is_file():
        raise UserError(f"weights: got {path}; allowed: a file that exists (.safetensors, .pt or .pth)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the form of old files, which are read or refused all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a truncated or foreign file in many types
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            reason = f"or is truncated ({type(error).__name__})"
            raise UserError(f"{path} holds no weights that can be read without running code, {reason}") from None
        holds = f"{path} holds pickled code ({code[1]}), which is never run"
        raise UserError(f"{holds}; save model.state_dict() alone") from None


def _state(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the names and tensors in a file's content, and the keys that they lie under, joined by dots."""
    place: list[str] = []
    while not _is_state(content):
        inner = {key: value for key, value in content.items() if _holds_state(value)} if _is_mapping(content) else {}
        chosen = [key for key in NAMED_STATES if key in inner] or list(inner)
        if not chosen:
            raise UserError(f"{path} holds no weights; allowed: names and tensors, as model.state_dict() gives them")
        if chosen[0] not in NAMED_STATES and len(chosen) > 1:
            raise UserError(f"{path} holds more than one set of weights: {', '.join(chosen)}; save one alone")
        content = content[chosen[0]]
        place.append(chosen[0])
    return dict(content), ".".join(place)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_state(value: Any) -> bool:
    return _is_mapping(value) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())


def _holds_state(value: Any) -> bool:
    return _is_state(value) or (_is_mapping(value) and any(_holds_state(entry) for entry in value.values()))


def _without_prefix(state: dict[str, Tensor], expected: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """Drop first parts that all names share, as "module." of DataParallel, where more of the names fit without them."""
    candidates = [("", state)]
    while prefix := _shared_prefix(candidates[-1][1]):
        dropped, longer = candidates[-1]
        shorter = {key.removeprefix(prefix): value for key, value in longer.items()}
        candidates.append((dropped + prefix, shorter))
    return max(candidates, key=lambda candidate: len(candidate[1].keys() & set(expected)))  # of equals the fewest


def _shared_prefix(names: Collection[str]) -> str:
    """The first part of the names with its dot, where all share it; else nothing."""
    parts = {name.partition(".")[:2] for name in names}
    first, dot = parts.pop()
    return f"{first}." if dot and not parts else ""


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors into the network, or say which do not fit."""
    held = network.state_dict()
    other = [key for key, value in state.items() if key in held and value.shape != held[key].shape]
    keys = network.load_state_dict({key: state[key] for key in state if key not in other}, strict=False)
    missing = [key for key in keys.missing_keys if key not in other]
    unexpected = keys.unexpected_keys
    if missing or unexpected or other:
        shapes = [f"{key} {tuple(state[key].shape)} for {tuple(held[key].shape)}" for key in other]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in found if names]
        raise UserError(f"{path} does not fit the model: {'; '.join(parts)}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
