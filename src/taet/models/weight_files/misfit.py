"""Why a file of weights does not fit a network, and what may help."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from taet.errors import UserError, shortened
from taet.models.classifier import Adapter, Classifier
from taet.models.normalization import RGB
from taet.models.resnet import PreActBlock, ResidualBody
from taet.models.weight_files.identification import fitting_models
from taet.models.weight_files.name_maps import namings_of
from taet.models.weight_files.recognition import COUNTER, SETTINGS, NameMap, Recognised, name_maps
from taet.models.weight_files.stored_weights import StoredWeights

TORCHVISION = {"conv1.weight", "layer1.0.conv1.weight", "fc.weight"}
"""Names that each of its ResNets has."""

Shapes = Mapping[str, tuple[int, ...]]


def left_over_error(
    stored: StoredWeights, network: nn.Module, tensors: Mapping[str, Tensor]
) -> UserError:
    """Return the error for `tensors` of a file that a network lacks."""
    first = next(iter(tensors))
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    hint = _hint(stored, network, {})
    return UserError(
        f"{stored.path} does not fit the model: it also has {shortened(first, 80)}{more}; allowed: "
        f"no tensor that the model lacks{hint}"
    )


def misfit(
    stored: StoredWeights,
    network: nn.Module,
    recognised: Recognised | None = None,
    error: str = "",
) -> UserError:
    """Return the error for tensors that are not those of `network`, with the nearest naming."""
    name_map, prefix = (
        _nearest(stored.tensors, network)
        if recognised is None
        else (recognised.name_map, recognised.prefix)
    )
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    names = {**name_map.names, **name_map.head}
    allowed = {theirs: own[ours] for theirs, ours in names.items()}
    got = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in stored.tensors.items()
        if name.startswith(prefix)
    }
    faults = [
        f"{shortened(name, 80)}: got {got.get(name, 'no such tensor')}; allowed: "
        f"{allowed.get(name, 'no such tensor')}"
        for name in allowed | got
        if allowed.get(name) != got.get(name) and not _may_differ(name, got, network)
    ]
    text = shortened(error, 400)
    if faults:
        text = f"{len(faults)} of {len(allowed | got)} tensors, the first {faults[0]}"
    hint = _hint(stored, network, allowed)
    return UserError(f"{stored.path} does not fit the model: {text}{hint}")


def _may_differ(name: str, got: Shapes, network: nn.Module) -> bool:
    """Whether a tensor may be missing, or is set by the data and the method of a run."""
    is_missing_counter = name.endswith(COUNTER) and name not in got
    return is_missing_counter or (name in SETTINGS and isinstance(network, Classifier | Adapter))


def _nearest(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[NameMap, str]:
    """Return the naming, and the prefix, with most of a network's names in a file."""
    best, most = (NameMap("", {name: name for name in network.state_dict()}), ""), 0
    for name_map in name_maps(network):
        for prefix in _possible_prefixes(tensors, name_map):
            found = sum(prefix + name in tensors for name in name_map.names)
            if found > most:
                best, most = (name_map, prefix), found
    return best


def _possible_prefixes(tensors: Mapping[str, Tensor], name_map: NameMap) -> set[str]:
    prefixes = {""}
    for ours in [*name_map.names][:2]:
        prefixes |= {name.removesuffix(ours) for name in tensors if name.endswith(f".{ours}")}
    return prefixes


def _hint(stored: StoredWeights, network: nn.Module, allowed: Shapes) -> str:
    """Return what may help: another model whose names these are, another size, another form."""
    names = [*stored.tensors]
    grey = [
        name
        for name, shape in allowed.items()
        if shape[1:2] == (1,)
        and name in stored.tensors
        and tuple(stored.tensors[name].shape) == (shape[0], RGB, *shape[2:])
    ]
    if grey and "mean" not in stored.tensors:
        return "; grey images fit it with --normalize of three channels"
    if any("pos_embed" in name for name in allowed) and any("pos_embed" in name for name in names):
        return "; made for images of another size: --data.size"
    if fitting := fitting_models(stored.tensors):
        return f"; the names are those of --model {' or '.join(fitting)}"
    if _lacks_last_norm(stored.tensors, network):
        return (
            "; its network does not normalise before its last layer, as RobustBench's "
            "PreActResNet: another function; allowed: --model package.module:callable"
        )
    if {name.removeprefix("module.") for name in names} >= TORCHVISION:
        return "; the names are torchvision's: --model torchvision:NAME"
    return ""


def _lacks_last_norm(tensors: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Return whether tensors have all names of a PreActResNet but those of its last norm."""
    body = network.body if isinstance(network, Classifier) else None
    if not isinstance(body, ResidualBody) or not issubclass(body.layout.block, PreActBlock):
        return False
    for naming, names in namings_of(body):
        others = [name for name in names if not name.startswith(f"{naming.norm}.")]
        has_norm = len(others) < len(names)
        if has_norm and all(_has_suffix(tensors, name) for name in others):
            return True
    return False


def _has_suffix(names: Iterable[str], suffix: str) -> bool:
    return any(name.endswith(suffix) for name in names)
