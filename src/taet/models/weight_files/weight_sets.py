"""The weights in a checkpoint: one or more sets of named tensors among everything else."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from taet.errors import UserError, unknown
from taet.formatting import join_words
from taet.models.weight_files.checkpoint_file import Checkpoint, StandIn, to_state_dict
from taet.models.weight_files.stored_array import StoredArray

USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net")
AVERAGED = re.compile(r"(?<!un)(?<!non)(ema|averag|swa)")
"""In the key of weights that are averaged over the training."""
NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng")
"""In the key of a mapping that may hold tensors, and is no network."""
WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts into the names of a part that is compiled, sharded or checkpointed."""
QUANTISED = "._packed_params"
DEEPEST = 6  # mappings inside mappings that are searched
NOT_OF_A_NETWORK = "n_averaged"  # the counter of torch's AveragedModel


class WeightSet(NamedTuple):
    """Tensors by name, where they are in a checkpoint, and what was seen there."""

    tensors: dict[str, Tensor]
    key: str
    """The keys of the mappings that hold them, joined by dots; empty at the top."""
    notes: tuple[str, ...] = ()


def find_weights(checkpoint: Checkpoint, path: str, key: str | None = None) -> WeightSet:
    """Return the weights of a checkpoint; `path` is the name of its file, for messages.

    Of several sets, `key` names one. Without it, averaged weights come before the others if they
    are as many, and the usual keys before all others.

    Raises:
        UserError: no weights, weights that need code, several sets of which none is the usual one,
            an unknown key.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    quantised: list[str] = []
    _collect(checkpoint.content, (), sets, quantised, path, set())
    if any(_has_dotted_names(tensors) for tensors in sets.values()):
        # such as the mean and deviation of a normalisation
        sets = {key: tensors for key, tensors in sets.items() if _has_dotted_names(tensors)}
    if quantised and (not sets or key in quantised):
        raise UserError(
            f"{path} holds a quantised network, which has no gradients to attack it by; allowed: "
            "its weights from before it was quantised"
        )
    if not sets:
        raise _no_weights(checkpoint.content, path)
    chosen = _usual_key(sets, path) if key is None else _named_key(sets, key, path)
    for name, value in sets[chosen].items():
        _check_is_plain(name, value, path)
    notes = []
    others = [other for other in sets if other != chosen]
    if others:
        found = join_words([f"'{chosen}' (taken)", *(f"'{other}'" for other in others)], most=5)
        notes.append(f"it holds the weights {found}; --weights FILE:KEY takes others")
    if checkpoint.unread:
        notes.append(f"not read, since it is code: {join_words(checkpoint.unread, most=3)}")
    return WeightSet(sets[chosen], chosen, tuple(notes))


def _collect(
    content: object,
    keys: tuple[str, ...],
    sets: dict[str, dict[str, Tensor]],
    quantised: list[str],
    path: str,
    seen: set[int],
) -> None:
    """Add every set of named tensors in `content` to `sets`, and the keys of quantised networks to
    `quantised`."""
    if isinstance(content, StandIn) and content.is_module:
        where = f" under '{'.'.join(keys)}'" if keys else ""
        raise UserError(
            f"{path} holds a whole model{where}, of the class {content.origin}, whose code is "
            f"never run; {to_state_dict(Path(path))}"
        )
    if isinstance(content, list | tuple):  # e.g. of a network and its optimiser
        content = {str(place): value for place, value in enumerate(content)}
    if not isinstance(content, Mapping) or id(content) in seen or len(keys) > DEEPEST:
        return
    seen.add(id(content))
    if any(isinstance(name, str) and QUANTISED in name for name in content):
        quantised.append(".".join(keys))
        return
    tensors = _named_tensors(content, path)
    if tensors is not None:
        sets[".".join(keys)] = tensors
        return
    for key, value in content.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key.lower()):
            _collect(value, (*keys, key), sets, quantised, path, seen)


def _named_tensors(content: Mapping[object, object], path: str) -> dict[str, Tensor] | None:
    """Return the tensors of a mapping if it is a set of weights, else None.

    Beside tensors with dotted names, a script may have put an epoch or an accuracy. Arrays of
    numbers are tensors where their names have a dot.
    """
    tensors, others = {}, []
    for name, stored in content.items():
        value = stored
        if isinstance(stored, StoredArray) and isinstance(name, str) and "." in name:
            value = stored.tensor
        if isinstance(name, str) and isinstance(value, Tensor):
            inner = WRAPPERS.sub("", name)
            if inner in tensors or (inner != name and inner in content):
                raise UserError(
                    f"{path} holds {inner} and {name}, which are one name without what torch puts "
                    "into it; allowed: one of them"
                )
            tensors[inner] = value
        else:
            others.append((str(name), value))
    has_dotted_names = _has_dotted_names(tensors)
    if not tensors or (others and not has_dotted_names):
        return None
    for name, value in others:
        if "." in name and isinstance(value, StandIn):
            raise UserError(
                f"{path} holds pickled code ({value.origin}), which is never run; save "
                "model.state_dict() alone"
            )
        if "." in name and not name.endswith("_extra_state"):
            return None
    if has_dotted_names:
        return {name: tensors[name] for name in tensors if name != NOT_OF_A_NETWORK}
    return tensors


def _check_is_plain(name: str, value: Tensor, path: str) -> None:
    """Refuse a tensor that holds no plain numbers, such as a sparse one."""
    kinds = {
        "quantised": value.is_quantized,
        "sparse": value.layout != torch.strided,
        "without numbers (meta)": value.is_meta,
        str(value.dtype): value.dtype.is_complex or "bits" in str(value.dtype),
    }
    kind = next((kind for kind, applies in kinds.items() if applies), None)
    if kind is not None:
        raise UserError(
            f"{path}: {name}: got a tensor that is {kind}; allowed: a dense one of numbers"
        )


def _has_dotted_names(tensors: Mapping[str, Tensor]) -> bool:
    return any("." in name for name in tensors)


def _usual_key(sets: Mapping[str, Mapping[str, Tensor]], path: str) -> str:
    if len(sets) == 1:
        return next(iter(sets))
    plain = [key for key in sets if not AVERAGED.search(key.lower())]
    averaged = [key for key in sets if AVERAGED.search(key.lower())]
    usual = [key for name in USUAL_KEYS for key in plain if key.split(".")[-1] == name]
    most = max(len(tensors) for tensors in sets.values())
    whole_averages = [key for key in averaged if len(sets[key]) == most]
    if len(whole_averages) == 1:
        return whole_averages[0]
    if usual:
        return usual[0]
    if len(plain) == 1:
        return plain[0]
    raise UserError(
        f"{path} holds the weights {_listed(sets)}; allowed: one of them, as {path}:KEY"
    )


def _named_key(sets: Mapping[str, Mapping[str, Tensor]], key: str, path: str) -> str:
    if key not in sets:
        raise unknown(f"key of weights in {path}", key, sets)
    return key


def _listed(keys: Iterable[str]) -> str:
    return join_words([f"'{key}'" for key in keys], most=6)


def _holds_arrays(content: object, depth: int = 0) -> bool:
    """Whether mappings of arrays of NumPy are all that may be weights in a checkpoint."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return False
    return any(
        isinstance(value, StoredArray) or _holds_arrays(value, depth + 1)
        for value in content.values()
    )


def _no_weights(content: object, path: str) -> UserError:
    under = f"alone or under one of {', '.join(USUAL_KEYS)}"
    keys = [str(key) for key in content] if isinstance(content, Mapping) else []
    got = f", its keys are {join_words(keys, most=4)}" if keys else ""
    if _holds_arrays(content):
        return UserError(
            f"{path} holds arrays of NumPy{got}; allowed: tensors by name, as "
            "torch.save({name: torch.from_numpy(array)}) writes them"
        )
    return UserError(
        f"{path} holds no weights{got}; allowed: names and tensors, as model.state_dict() gives "
        f"them, {under}"
    )
