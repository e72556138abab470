"""One way from a file to a network: read it safely, find the weights in it, recognise whose names
they are, load them, and say in one line what was recognised.

A file that would make another function of the network is refused.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from taet.errors import UserError, exception_text
from taet.formatting import join_words
from taet.models.classifier import Adapter, Classifier
from taet.models.normalization import Statistics, format_statistics
from taet.models.resnet import RawShortcutBlock, ResidualBody
from taet.models.weight_files.misfit import left_over_error, misfit
from taet.models.weight_files.name_maps import NFGSM, PREACT, known_statistics
from taet.models.weight_files.recognition import COUNTER, SETTINGS, Recognised, recognise
from taet.models.weight_files.shortcut_statistics import shortcut_kind
from taet.models.weight_files.stored_weights import StoredWeights, read

ADDED_PARTS = (".parametrizations.", ".mlp.mlp.")  # of a run with low-rank parts or adapters


def match(stored: StoredWeights, network: nn.Module) -> Recognised:
    """Return which tensors of `network` those of a file are.

    Raises:
        UserError: tensors that are missing, or those of another network with equal names.
    """
    recognised = recognise(stored.tensors, network)
    if recognised is None:
        raise misfit(stored, network)
    return recognised


def describe(stored: StoredWeights, recognised: Recognised) -> str:
    """Return the line that says what was recognised."""
    parts = [f"weights: {len(stored.tensors)} tensors of {stored.path}"]
    if stored.key and not stored.path.endswith(f":{stored.key}"):
        parts.append(f" under '{stored.key}'")
    if recognised.prefix:
        parts.append(f", without the prefix '{recognised.prefix}'")
    if recognised.name_map.whose:
        parts.append(f", with the names of {recognised.name_map.whose}")
    if recognised.of_loss:
        parts.append(f", but for {join_words(recognised.of_loss, most=3)}, of a loss")
    return "".join(parts)


def load_all(network: nn.Module, stored: StoredWeights, recognised: Recognised) -> str:
    """Load all tensors of a file into `network`, with none missing or left over; return a note.

    A normalisation of images in the file is not loaded: see `statistics_of`.
    """
    tensors, left_over = dict(recognised.tensors), dict(recognised.left_over)
    optional: tuple[str, ...] = (COUNTER,)
    if isinstance(network, Classifier) and not stored.is_of_run:
        optional = (COUNTER, *SETTINGS)
        has_head = any(name.startswith("head.") for name in tensors)
        if not has_head:
            tensors |= _head_without_name(network, left_over)
    if left_over:
        raise left_over_error(stored, network, left_over)
    remarks = _remarks(stored, recognised, network)
    _copy(network, tensors, stored, recognised, optional)
    return "; ".join([describe(stored, recognised), *remarks])


def statistics_of(recognised: Recognised, num_classes: int) -> tuple[Statistics | None, str]:
    """Return the normalisation that the network of a file has, and where that is from."""
    if recognised.normalization is not None:
        return recognised.normalization, "as in the file"
    naming = recognised.name_map.naming
    known = None if naming is None else known_statistics(naming, num_classes)
    return known, "as in the code of the network; the file has none"


def pretrained(model: Classifier | Adapter, weights: str | Path) -> str:
    """Load initial weights from a file into `model` and return a note about it.

    They may have the names of the original network, or be weights of a run. The body must fit
    exactly, but for a first layer for colour, which is summed over the colours where images are
    grey. A head of another shape, e.g. for other classes, stays fresh. Normalisation and offset are
    not changed, because data and method set them.

    Raises:
        UserError: a file that holds code, no weights, or the weights of another body.

    Example:
        >>> import taet
        >>> model = taet.models.build("resnet18", num_classes=7)
        >>> taet.models.pretrained(model, "resnet18.safetensors")  # doctest: +SKIP
    """
    stored = read(weights)
    if any(part in name for name in stored.tensors for part in ADDED_PARTS):
        raise UserError(
            f"{stored.path} has added parts; allowed: of low-rank ones, taet export --format "
            "safetensors"
        )
    recognised = match(stored, model)
    left_over = dict(recognised.left_over)
    tensors = {name: value for name, value in recognised.tensors.items() if name not in SETTINGS}
    if stored.is_of_run:
        left_over = {name: left_over[name] for name in left_over if name not in SETTINGS}
    remarks = [*_normalization_remarks(stored, recognised), *_grey(model, tensors)]
    remarks += _remarks(stored, recognised, model)
    if isinstance(model, Classifier):
        about_head, tensors = _head(model, tensors, left_over, stored)
    else:
        about_head = ""
        if left_over:
            raise left_over_error(stored, model, left_over)
    _copy(model, tensors, stored, recognised, (COUNTER, *SETTINGS, "head"))
    return "; ".join([f"{describe(stored, recognised)}{about_head}", *remarks])


def _head(
    model: Classifier,
    tensors: dict[str, Tensor],
    left_over: dict[str, Tensor],
    stored: StoredWeights,
) -> tuple[str, dict[str, Tensor]]:
    """Return what becomes of the head, and the tensors to load, with it where it fits."""
    chosen = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    head = {
        name.removeprefix("head."): value
        for name, value in (tensors | left_over).items()
        if name.startswith("head.")
    }
    left_over = {name: left_over[name] for name in left_over if not name.startswith("head.")}
    if left_over:
        if head or not _is_one_layer(left_over):
            raise left_over_error(stored, model, left_over)
        head = {name.rpartition(".")[2]: value for name, value in left_over.items()}
    if not head:
        return "; the head is fresh", chosen
    expected = {name: value.shape for name, value in model.head.state_dict().items()}
    if expected == {name: value.shape for name, value in head.items()}:
        fitting = {f"head.{name}": value for name, value in head.items()}
        return ", its head included", chosen | fitting
    classes = len(head["weight"])
    other = "of another kind" if classes == len(model.offset) else f"for {classes} classes"
    return f"; the head is fresh, since that of the file is {other}", chosen


def _is_one_layer(tensors: Mapping[str, Tensor]) -> bool:
    layers = {name.rpartition(".")[0] for name in tensors}
    kinds = {name.rpartition(".")[2] for name in tensors}
    return len(layers) == 1 and {"weight"} <= kinds <= {"weight", "bias"}


def _head_without_name(network: Classifier, left_over: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a single layer out of `left_over` as the head of `network`, where it fits."""
    if not _is_one_layer(left_over):
        return {}
    own = network.state_dict()
    head = {f"head.{name.rpartition('.')[2]}": value for name, value in left_over.items()}
    if not all(name in own and own[name].shape == value.shape for name, value in head.items()):
        return {}
    left_over.clear()
    return head


def _normalization_remarks(stored: StoredWeights, recognised: Recognised) -> list[str]:
    """Say how images were normalised in the training of the file, which this one may not do."""
    if stored.is_of_run:
        std = stored.tensors.get("std")
        if std is not None and bool(std.eq(1).all()):
            return ["its run did not normalise images (--model.normalize none)"]
        return []
    if recognised.normalization is None and recognised.name_map.naming is None:
        return []
    statistics = recognised.normalization
    if statistics is None:
        return ["the file holds no normalisation of images: --model.normalize none, or a name"]
    return [f"images were normalised: --model.normalize {format_statistics(statistics)}"]


def _grey(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Sum a first layer for colour over the colours where the model's images are grey."""
    remarks = []
    for name, value in model.state_dict().items():
        if value.ndim != 4 or value.shape[1] != 1 or name not in tensors:
            continue
        if tensors[name].shape == (value.shape[0], 3, *value.shape[2:]):
            tensors[name] = tensors[name].sum(1, keepdim=True)
            remarks.append("made for colour, it reads a grey image as all three")
    return remarks


def _remarks(stored: StoredWeights, recognised: Recognised, network: nn.Module) -> list[str]:
    """Refuse what computes another function under equal names; return what the names leave open."""
    remarks = list(stored.notes)
    naming = recognised.name_map.naming
    if naming is not None and naming.normalizes:
        remarks.append("the file does not say whether its network has ReLU or Swish (-swish)")
    body = network.body if isinstance(network, Classifier) else None
    if naming in (PREACT, NFGSM) and isinstance(body, ResidualBody):
        remarks += _shortcut_remarks(stored, recognised, body)
    return remarks


def _shortcut_remarks(
    stored: StoredWeights, recognised: Recognised, body: ResidualBody
) -> list[str]:
    tensors = {name.removeprefix("body."): value for name, value in recognised.tensors.items()}
    takes_raw = body.layout.block is RawShortcutBlock
    other = "preact-resnet18" if takes_raw else "nfgsm-preact-resnet18"
    whose = PREACT.whose if takes_raw else NFGSM.whose
    kind = shortcut_kind(tensors, body.layout.blocks)
    if kind == ("activated" if takes_raw else "raw"):
        way = "normalised and rectified" if takes_raw else "as they are"
        raise UserError(
            f"{stored.path} holds another function under the same names: its running means are "
            f"those of shortcuts that take their inputs {way}, as of {whose}; allowed: --model "
            f"{other}"
        )
    if kind is None:
        return [f"{whose} has the same names, and the file does not tell: --model {other}"]
    return []


def _copy(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    stored: StoredWeights,
    recognised: Recognised,
    optional: tuple[str, ...],
) -> None:
    """Copy tensors into the network, or report the first that does not fit.

    Tensors whose first or last part is `optional` may be missing, as batch counters in old files.
    """
    kept = {
        name: value
        for name, value in network.state_dict().items()
        if name.rpartition(".")[2] in optional or name.partition(".")[0] in optional
    }
    state = {**kept, **tensors}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise misfit(stored, network, recognised, exception_text(error)) from None
    for name, value in network.state_dict().items():
        given = state.get(name, value)  # a network may rename or drop what it loads
        if given.is_floating_point() != value.is_floating_point():
            allowed = f"{value.dtype} values"
            raise UserError(f"{stored.path}: {name}: got {given.dtype}; allowed: {allowed}")
        if not value.isfinite().all():
            raise UserError(
                f"{stored.path}: {name}: got values that are not finite; allowed: finite ones"
            )
