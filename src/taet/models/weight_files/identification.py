"""Which network of this package a file of weights is for, by its names and shapes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taet.errors import UserError
from taet.formatting import join_words, plural
from taet.models.classifier import Classifier
from taet.models.normalization import format_statistics
from taet.models.resnet import (
    LAYOUTS,
    PreActBlock,
    RawShortcutBlock,
    ResidualBlock,
    ResidualLayout,
    residual_body,
)
from taet.models.weight_files.recognition import Recognised, recognise
from taet.models.weight_files.shortcut_statistics import shortcut_kind
from taet.models.weight_files.stored_weights import StoredWeights

HEAD_TENSORS = 2  # weight and bias
MOST_NAMES = 4  # of classes, or of tensors, in a line
NETWORKS = "torchvision:NAME, timm:NAME or package.module:callable"


def fitting_models(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the residual networks of this package whose names and shapes a file has."""
    return [name for name, layout in LAYOUTS.items() if _fitting(tensors, layout) is not None]


def _fitting(tensors: Mapping[str, Tensor], layout: ResidualLayout) -> Recognised | None:
    """Return which tensors of a residual network those of a file are, if all shapes fit."""
    for large in (False, True):
        with torch.device("meta"):
            body = residual_body(layout, 3, large=large)
        model = Classifier(body, nn.Identity(), 1, 3)
        recognised = recognise(tensors, model)
        if recognised is None or len(recognised.left_over) > HEAD_TENSORS:
            continue
        own = model.state_dict()
        bodies = {
            name: value for name, value in recognised.tensors.items() if name.startswith("body.")
        }
        if all(own[name].shape == value.shape for name, value in bodies.items()):
            return recognised
    return None


def model_of(stored: StoredWeights) -> str:
    """Return the name of the one network of this package that a file is for.

    Raises:
        UserError: no such network, or several with the same names and shapes.
    """
    names = networks_of(stored)
    if len(names) == 1:
        return names[0]
    if not names:
        first = join_words([*stored.tensors], most=MOST_NAMES)
        raise UserError(
            f"{stored.path}: got the weights {first}, of no residual network of taet list models; "
            f"allowed: the name of its network ({NETWORKS}), and --weights {stored.path}"
        )
    raise UserError(
        f"{stored.path} has the names and shapes of {join_words(names)}, and does not tell which; "
        f"allowed: the name of its network, and --weights {stored.path}"
    )


def networks_of(stored: StoredWeights) -> list[str]:
    """Return the residual networks that a file may be of; running means tell two of them apart."""
    kinds: dict[type[ResidualBlock], str] = {PreActBlock: "activated", RawShortcutBlock: "raw"}
    names = []
    for name, layout in LAYOUTS.items():
        recognised = _fitting(stored.tensors, layout)
        if recognised is None:
            continue
        kind = None
        if layout.block in kinds:
            body = {key.removeprefix("body."): value for key, value in recognised.tensors.items()}
            kind = shortcut_kind(body, layout.blocks)
        if kind is None or kind == kinds[layout.block]:
            names.append(name)
    return names


def describe_file(stored: StoredWeights) -> list[str]:
    """Return lines on a file: its tensors, whose names they have, what else it holds, and how its
    network is attacked."""
    numbers = sum(value.numel() for value in stored.tensors.values())
    under = f" under '{stored.key}'" if stored.key else ""
    shapes = [
        f"{name} {' x '.join(map(str, value.shape)) or '(a number)'}"
        for name, value in stored.tensors.items()
    ]
    lines = [
        f"weights: {plural(len(stored.tensors), 'tensor')}{under}, {numbers:,} numbers",
        f"tensors: {shapes[0]}, ..., {shapes[-1]}",
        *stored.notes,
    ]
    if not all(value.isfinite().all() for value in stored.tensors.values()):
        return [*lines, "not to be used: some of these numbers are not finite"]
    names = networks_of(stored)
    has_head = True
    if stored.is_of_run:
        lines.append("names: those of a run of taet")
    if names:
        layout = LAYOUTS[names[0]]
        recognised = _fitting(stored.tensors, layout)
        if recognised is not None:
            lines += _about_names(recognised)
            has_head = stored.is_of_run or _has_head(recognised, layout)
    classes = stored.class_names()
    if classes is not None:
        lines.append(f"classes: {join_words(classes, most=MOST_NAMES)}")
    lines.append(f"network: {' or '.join(names) or f'not recognised; {NETWORKS}'}")
    network = names[0] if names else "NAME"
    if has_head:
        use = f"attack it: taet evaluate --model {network} --weights {stored.path}"
    else:
        lines.append("last layer: not in the file, so it classifies nothing yet")
        use = f"train it: taet train METHOD --model {network} --model.weights {stored.path}"
    return [*lines, f"to {use} --data NAME"]


def _has_head(recognised: Recognised, layout: ResidualLayout) -> bool:
    """Whether a file has a last layer beside the body: a matrix for as many features."""
    features = layout.block.expansion * layout.widths[-1]
    return any(
        value.ndim == 2 and value.shape[1] == features for value in recognised.left_over.values()
    )


def _about_names(recognised: Recognised) -> list[str]:
    lines = []
    if recognised.name_map.whose:
        prefix = f", after '{recognised.prefix}'" if recognised.prefix else ""
        lines.append(f"names: those of {recognised.name_map.whose}{prefix}")
    if recognised.normalization is not None:
        lines.append(f"normalisation: {format_statistics(recognised.normalization)}, in the file")
    return lines
