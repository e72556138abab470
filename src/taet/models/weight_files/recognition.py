"""Whose names the tensors of a file are, and which of a network's tensors each of them is."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from taet.models.classifier import Adapter, Classifier
from taet.models.normalization import Statistics
from taet.models.resnet import ResidualBody
from taet.models.weight_files.name_maps import Naming, namings_of

SETTINGS = ("mean", "std", "offset")
"""Tensors of a Classifier or Adapter that the data and the method of a run set."""
PARTS = ("body.", "head.", "network.")
"""First parts of the names of all their other tensors."""
COUNTER = "num_batches_tracked"  # that old files lack, and no evaluation uses
MEANS = re.compile(r"(^|[._])(mean|means|mu)$")
DEVIATIONS = re.compile(r"(^|[._])(std|stds|sd|sigma)$")
MOST_CHANNELS = 4
OF_LOSS = re.compile(r"(?P<outer>(\w+\.)*?)(criterion|loss(_fn|_func|_function)?|\w+_loss)\.\w+")
"""A tensor of a loss beside a network, in a module that holds both; such are class weights."""


class NameMap(NamedTuple):
    """Names in a file of the tensors of a network."""

    whose: str
    """Whose names they are; empty for the network's own."""
    names: Mapping[str, str]
    """A name in the file -> the name in the network's state dict."""
    head: Mapping[str, str] = {}
    """The same for the last layer, where it has a name of its own."""
    naming: Naming | None = None


class Recognised(NamedTuple):
    """The tensors of a file that are those of a network, and what else the file holds."""

    tensors: dict[str, Tensor]
    """By the names of the network's state dict."""
    prefix: str
    """Before the names in the file."""
    name_map: NameMap
    normalization: Statistics | None
    left_over: dict[str, Tensor]
    """What is no tensor of the network, by the names in the file without the prefix."""
    of_loss: tuple[str, ...] = ()
    """Names in the file of tensors of a loss, which no image passes."""


def is_of_run(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a Classifier or Adapter, as in a run folder."""
    return "offset" in tensors and all(
        name in SETTINGS or name.startswith(PARTS) for name in tensors
    )


def name_maps(network: nn.Module) -> Iterator[NameMap]:
    """Yield the ways in which a file may name the tensors of `network`, its own names first."""
    own = network.state_dict()
    yield NameMap("", {name: name for name in own})
    if isinstance(network, Adapter):
        yield NameMap("", _below(own, "network."))
    if isinstance(network, Classifier):
        yield NameMap("", _below(own, "body."))
        if isinstance(network.body, ResidualBody):
            head = network.head.state_dict()
            for naming, names in namings_of(network.body):
                yield NameMap(
                    naming.whose,
                    {theirs: f"body.{ours}" for theirs, ours in names.items()},
                    {f"{naming.head}.{name}": f"head.{name}" for name in head},
                    naming,
                )


def _below(own: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in own if name.startswith(prefix)}


def recognise(tensors: Mapping[str, Tensor], network: nn.Module) -> Recognised | None:
    """Return the tensors of a file that are those of `network`; None if some are missing.

    The names may have a prefix of any depth, and the network may be beside a normalisation, or
    beside a copy of itself. A head may be missing.
    """
    for name_map in name_maps(network):
        prefix = next(_prefixes(tensors, name_map.names), None)
        if prefix is not None:
            return _recognised(tensors, prefix, name_map)
    return None


def _prefixes(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[str]:
    """Yield each prefix under which a file has all of `names`, the shortest first."""
    needed = [name for name in names if not name.endswith(COUNTER)]
    if not needed:
        return
    first = needed[0]
    prefixes = {
        name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")
    }
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        if all(prefix + name in tensors for name in needed):
            yield prefix


def _recognised(tensors: Mapping[str, Tensor], prefix: str, name_map: NameMap) -> Recognised:
    """Sort the tensors of a file into those of the network, its normalisation and the others."""
    of_network, others, of_loss = {}, {}, list[str]()
    names = {**name_map.names, **name_map.head}
    for name, value in tensors.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner in names:
            of_network[names[inner]] = value
        elif _is_of_loss(name, value, prefix):
            of_loss.append(name)
        elif not _is_unused(inner, name_map.naming):
            others[inner] = value
    left_over = {
        name: value for name, value in others.items() if not _is_copy(name, value, prefix, tensors)
    }
    normalization = None
    if not name_map.names.keys() & {"mean", "std"}:
        normalization, left_over = _take_normalization(left_over)
    return Recognised(of_network, prefix, name_map, normalization, left_over, tuple(of_loss))


def _is_of_loss(name: str, value: Tensor, prefix: str) -> bool:
    """Whether a tensor is that of a loss beside the network under `prefix`: class weights, and no
    network or layer of the loss."""
    found = OF_LOSS.fullmatch(name)
    if found is None or value.ndim > 1:
        return False
    is_inside_network = prefix != "" and name.startswith(prefix)
    return prefix.startswith(found["outer"]) and not is_inside_network


def _is_unused(name: str, naming: Naming | None) -> bool:
    return naming is not None and name.split(".")[0] in naming.unused


def _is_copy(name: str, value: Tensor, prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is one of the network's a second time, under another prefix.

    An attack that is part of a model, as in MadryLab's robustness, holds the model once more.
    """
    parts = name.split(".")
    for start in range(1, len(parts)):
        original = tensors.get(prefix + ".".join(parts[start:]))
        if original is not None:
            return original.shape == value.shape and bool((original == value).all())
    return False


def _take_normalization(
    tensors: Mapping[str, Tensor],
) -> tuple[Statistics | None, dict[str, Tensor]]:
    """Return the mean and deviation among `tensors`, equal pairs once, and the other tensors."""
    means = {name: value for name, value in tensors.items() if _is_statistic(MEANS, name, value)}
    stds = {
        name: value for name, value in tensors.items() if _is_statistic(DEVIATIONS, name, value)
    }
    pairs = {
        (tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))
        for mean, std in zip(means.values(), stds.values(), strict=False)
    }
    if len(pairs) != 1 or len(means) != len(stds):
        return None, dict(tensors)
    (statistics,) = pairs
    if len(statistics[0]) != len(statistics[1]) or min(statistics[1]) <= 0:
        return None, dict(tensors)
    rest = {
        name: value for name, value in tensors.items() if name not in means and name not in stds
    }
    return statistics, rest


def _is_statistic(pattern: re.Pattern[str], name: str, value: Tensor) -> bool:
    return bool(pattern.search(name)) and 1 <= value.numel() <= MOST_CHANNELS
