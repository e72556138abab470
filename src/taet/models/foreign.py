"""Models of any origin: of this package, of other libraries, and custom models, whose code is run
only with consent.

For training, a network is split into features and head. For evaluation it stays whole, with its own
normalisation.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from taet import registry
from taet.errors import (
    CUSTOM,
    UserError,
    nearest,
    needed,
    prefix_errors,
    unknown,
    wrapping_user_code,
)
from taet.machine import float32_by_default
from taet.models.class_order import Reordered, class_order
from taet.models.classifier import Adapter, Classifier, Head, build_head
from taet.models.normalization import (
    AUTO,
    RGB,
    Normalized,
    Statistics,
    format_statistics,
    parse_normalization,
    same_statistics,
)
from taet.models.trust import is_own
from taet.models.weight_files.loading import load_all, match, pretrained, statistics_of
from taet.models.weight_files.recognition import Recognised
from taet.models.weight_files.stored_weights import StoredWeights, read
from taet.network import check_trainable, copied
from taet.randomness import seeded
from taet.settings.arguments import checked_arguments

FORMS = ("package.module:callable", "torchvision:NAME", "timm:NAME")
LINEAR = Head()

ImageShape = tuple[int, int, int]


@checked_arguments
@float32_by_default()
def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape = (3, 32, 32),
    seed: int = 0,
    head: Head = LINEAR,
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Classifier | Adapter:
    """Return the model called `name`, with weights drawn from `seed`.

    The global random state is left as it was.

    Args:
        name: a name of `taet list models`, torchvision:NAME, timm:NAME, or package.module:callable,
            which takes nothing or `num_classes` and returns a Module, or is one; the current
            directory is importable.
        num_classes: number of classes C, the width of the logits.
        image_shape: (channels, height, width); `forward` maps (N, *image_shape) in [0, 1] to logits
            (N, C).
        seed: seed of the first weights.
        head: the last layer that a method asks for. A network of another origin keeps its own last
            layer where that is a linear one.
        stem: cifar, imagenet, or auto, which is imagenet from 96 pixels on. Only the residual
            networks of this package have a choice.
        weights: a file of pretrained weights, .safetensors or of `torch.save` with tensors only. A
            head for another number of classes stays random. What was done is in the model's
            `notes`.

    Returns:
        A Classifier; or an Adapter, without features, for a custom network whose logits no linear
        layer gives.

    Raises:
        UserError: an unknown name, a network that cannot take the images, a file that does not fit
            or holds code.

    Example:
        >>> import torch
        >>> import taet
        >>> model = taet.models.build("resnet8", num_classes=10)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    model: Classifier | Adapter
    with seeded(seed, "weights"):
        if ":" not in name:
            model = registered(name, num_classes, image_shape, head, stem)
        elif stem == "auto":
            network = external(name, num_classes, image_shape)
            check_trainable(network)
            model = split_head(network, num_classes, image_shape, head)
        else:
            raise UserError(f"model stem: got {stem}; {name} has its own; allowed: auto")
    if weights is not None:
        model.notes = (*model.notes, pretrained(model, weights))
    return model


@float32_by_default()
def load(
    spec: str,
    class_names: Sequence[str],
    image_shape: ImageShape,
    weights: str | Path | None,
    normalize: str = AUTO,
    classes: Sequence[str] | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model called `spec` in eval mode, with its weights, and notes on their origin.

    Without `weights`, the model keeps those of the callable's module, or gets random ones from
    seed 0.

    Args:
        spec: as of `taet.models.build`.
        class_names: of the data; the outputs of the model are brought into this order.
        image_shape: of the data, (channels, height, width).
        weights: as of `taet.models.weight_files.stored_weights.read`. They must fit wholly.
        normalize: auto (as in the file of weights, or as in the code of its network, else none),
            none, imagenet, cifar10, cifar100 or MEANS/STDS, one number per channel separated by
            commas; with three, the model also gets grey images as colour.
        classes: names of the network's outputs in order. By default as in a file of weights that
            this package wrote, else those of the data.

    Raises:
        UserError: weights that do not fit, or are for other images or classes; a normalisation
            that the file contradicts.
    """
    stored = None if weights is None else read(weights)
    in_file = None
    if stored is not None:
        in_file = stored.class_names()
        stored.check_size(image_shape)
    order = class_order(class_names, classes, in_file, spec if stored is None else stored.path)
    with seeded(0, "weights"):
        loaded = _load_network(spec, order.outputs, image_shape, stored, normalize)
    network, notes = loaded.network, [loaded.about]
    if loaded.statistics is not None:
        network = Normalized(network, loaded.statistics)
        notes.append(f"normalisation: {loaded.normalized}, inside the model")
    if not order.is_given:
        network = Reordered(network, order.positions)
    if stored is not None:
        notes.append(order.note)
    for module in network.modules():
        module.training = False  # a graph of torch.export refuses eval()
    return network, tuple(notes)


class _LoadedNetwork(NamedTuple):
    network: nn.Module
    statistics: Statistics | None
    normalized: str
    """Name and origin of the statistics."""
    about: str
    """Where the weights are from."""


def _load_network(
    spec: str,
    outputs: int,
    image_shape: ImageShape,
    stored: StoredWeights | None,
    normalize: str,
) -> _LoadedNetwork:
    """Return a network with its weights, for images that are normalised by the statistics."""
    build_network: Callable[[str, int, ImageShape], nn.Module] = (
        external if ":" in spec else registered
    )
    statistics, normalized = None, normalize
    if normalize != AUTO:
        statistics = parse_normalization(normalize, image_shape[0])
    # `Normalized` repeats the channel of a grey image
    shape = _with_channels(image_shape, statistics)
    network = build_network(spec, outputs, shape)
    if stored is None:
        about = f"as {spec} gives them" if is_own(spec) else "none given, so fresh ones of seed 0"
        return _LoadedNetwork(network, statistics, normalized, f"weights: {about}")
    network = _as_in_run(network, stored, outputs, shape)
    recognised = match(stored, network)
    if normalize == AUTO:
        statistics, origin = statistics_of(recognised, outputs)
        if statistics is not None:
            normalized = f"{format_statistics(statistics)}, {origin}"
        if _with_channels(image_shape, statistics) != shape:
            shape = _with_channels(image_shape, statistics)
            network = _as_in_run(build_network(spec, outputs, shape), stored, outputs, shape)
    else:
        _check_contradiction(stored, recognised, normalize, statistics)
        statistics = None if stored.is_of_run else statistics  # of a run, they are in the model
    with wrapping_user_code(f"{stored.path} cannot be loaded into {spec}"):
        about = load_all(network, stored, recognised)
    return _LoadedNetwork(network, statistics, normalized, about)


def _with_channels(shape: ImageShape, statistics: Statistics | None) -> ImageShape:
    return shape if statistics is None else (len(statistics[0]), *shape[1:])


def _as_in_run(
    network: nn.Module, stored: StoredWeights, outputs: int, image_shape: ImageShape
) -> nn.Module:
    """Return `network` with the parts that the weights of a run have."""
    if not stored.is_of_run or isinstance(network, Classifier):
        return network
    if any(name.startswith("network.") for name in stored.tensors):
        return Adapter(network, outputs)
    return split_head(network, outputs, image_shape)


def _check_contradiction(
    stored: StoredWeights, recognised: Recognised, normalize: str, statistics: Statistics | None
) -> None:
    """Refuse a normalisation that is not the one in the file."""
    in_file = recognised.normalization
    if "mean" in stored.tensors and "std" in stored.tensors and stored.is_of_run:
        mean, std = (stored.tensors[name].flatten().tolist() for name in ("mean", "std"))
        in_file = (mean, std)
    if in_file is None or (statistics is not None and same_statistics(statistics, in_file)):
        return
    if statistics is None and not any(in_file[0]) and {*in_file[1]} == {1.0}:
        return
    raise UserError(
        f"normalisation: got '{normalize}'; {stored.path} brings its own, "
        f"{format_statistics(in_file)}; allowed: {AUTO}"
    )


def registered(
    name: str, num_classes: int, image_shape: ImageShape, head: Head = LINEAR, stem: str = "auto"
) -> Classifier:
    """Return the network called `name` in `taet list models`, for images (N, *image_shape)."""
    known = registry.entries("models")
    if name not in known:
        raise unknown("model", name, (*known, *FORMS))
    model = known[name].call("build", Classifier, name, num_classes, image_shape, head, stem)
    if known[name].path is not None:
        with prefix_errors(str(known[name].path)):
            check_logits(model.eval(), torch.zeros(2, *image_shape), num_classes)
        model.train()
    return model


def external(spec: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Return the network `spec`, KIND:NAME, as its author builds it, for images (N,
    *image_shape)."""
    kind, _, name = spec.partition(":")
    channels, height, width = image_shape
    library: Any
    if kind == "timm":
        library = needed("timm", f"model '{spec}'", "timm")
        names = library.list_models()
    elif kind == "torchvision":
        library = importlib.import_module("torchvision.models")
        names = library.list_models(module=library)  # classifiers only
    else:
        return _custom(spec, num_classes)
    # the rest is the tag of a pretraining
    architecture = name.partition(".")[0] if kind == "timm" else name
    if architecture not in names:
        hint = f"; did you mean '{near}'?" if (near := nearest(architecture, names)) else ""
        raise UserError(
            f"unknown {kind} model '{name}'; allowed: the {len(names)} names of {kind}{hint}"
        )
    settings: dict[str, object] = {"num_classes": num_classes}
    if kind == "timm":
        if library.models.get_pretrained_cfg_value(architecture, "fixed_input_size"):
            settings["img_size"] = (height, width)
        return _call(
            library.create_model, spec, name, pretrained=False, in_chans=channels, **settings
        )
    if name.startswith("vit_"):
        settings["image_size"] = height
    elif name.startswith("maxvit_"):
        settings["input_size"] = (height, width)
    network = _call(library.get_model, spec, name, weights=None, **settings)
    if channels != RGB:  # a first convolution with fresh weights of the same standard deviation
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        shape = (first.out_channels, channels, *first.kernel_size)
        first.weight = nn.Parameter(torch.empty(shape).normal_(std=first.weight.std().item()))
        first.in_channels = channels
    return network


def _custom(spec: str, num_classes: int) -> nn.Module:
    before = [*sys.path]
    CUSTOM.add(re.split("[.:]", spec)[0])
    sys.path.insert(0, str(Path.cwd()))
    try:
        # Random draws during the import must not shift other draws.
        with (
            wrapping_user_code(f"model '{spec}' cannot be imported as {FORMS[0]}"),
            torch.random.fork_rng(devices=[]),
        ):
            target = pkgutil.resolve_name(spec)
        if isinstance(target, nn.Module):
            return target
        with wrapping_user_code(f"{spec} failed"):
            takes = "num_classes" in inspect.signature(target).parameters
        return _call(target, spec, **({"num_classes": num_classes} if takes else {}))
    finally:
        sys.path[:] = before


def _call(
    build: Callable[..., object], spec: str, *arguments: object, **settings: object
) -> nn.Module:
    """Return the network that `build` returns; its exceptions, e.g. for an image size, become a
    `UserError`."""
    with wrapping_user_code(f"{spec} failed"):
        network = build(*arguments, **settings)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{spec}: got a {type(network).__name__}; allowed: a torch.nn.Module, or what returns "
            "one"
        )
    return network


def split_head(
    network: nn.Module, num_classes: int, image_shape: ImageShape, head: Head = LINEAR
) -> Classifier | Adapter:
    """Split `network` into features and head: the linear layer that gives its logits, or a cosine
    head.

    Whether a layer's outputs are the network's logits is tested on two images. Its inputs are then
    the features, and the parts are copies. A network without such a layer is used whole; a
    Classifier stays as it is.

    Example:
        >>> import torch
        >>> from taet.models import split_head
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)
        >>> network = torch.nn.Sequential(*layers)
        >>> split = split_head(network, num_classes=10, image_shape=(1, 8, 8))
        >>> split.features(torch.rand(2, 1, 8, 8)).shape, split.head
        (torch.Size([2, 16]), Linear(in_features=16, out_features=10, bias=True))
    """
    network = getattr(network, "_orig_mod", network)  # of torch.compile, which hides the layers
    images = torch.rand(2, *image_shape)
    parameter = next(network.parameters(), None)
    if parameter is not None:
        images = images.to(parameter.device)
    check_logits(network.eval(), images, num_classes)
    if isinstance(network, Classifier | Adapter):
        return network.train()
    linear = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    for name in reversed([name for name, part in linear if part.out_features == num_classes]):
        body = copied(network)
        last = cast(nn.Linear, body.get_submodule(name))
        if _remove_head(body, name, last, images):
            layer = (
                last if head.kind == "linear" else build_head(head, last.in_features, num_classes)
            )
            model = Classifier(body, layer, num_classes, image_shape[0])
            model.notes = (f"features: the inputs of the network's last layer, {name}",)
            return model.train()
    whole = Adapter(network, num_classes)
    used = "the network is used whole: no linear layer gives its logits"
    whole.notes = (
        f"{used}, so it has no features to read, and it gets images as they are, in [0, 1]",
    )
    return whole.train()


@torch.no_grad()
def _remove_head(body: nn.Module, name: str, last: nn.Linear, images: Tensor) -> bool:
    """Replace the layer `last` of a network by the identity; return whether the network then
    returns its inputs."""
    # Both signs, and rows that no softmax can give, so that any operation after the layer shows.
    outputs = torch.linspace(-1, 1, 2 * last.out_features, device=images.device).view(2, -1)
    captured = list[Tensor]()

    def replace_outputs(_layer: nn.Module, inputs: tuple[Tensor, ...], _outputs: Tensor) -> Tensor:
        captured.extend(inputs)
        return outputs

    hook = last.register_forward_hook(replace_outputs)
    try:
        logits = body(images)
        body.set_submodule(name, nn.Identity())
        features = body(images)
    except Exception:  # the network may use the layer in other ways than by calling it
        return False
    hook.remove()
    once = len(captured) == 1 and captured[0].shape == (2, last.in_features)
    return once and torch.equal(logits, outputs) and torch.allclose(features, captured[0])


def check_logits(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Return the logits of a network in eval mode for two `images`; refuse one that returns
    anything else."""
    with (
        wrapping_user_code(f"model: cannot take images of shape {tuple(images.shape[1:])}"),
        torch.no_grad(),
    ):
        logits: Tensor = network(images)
    if getattr(logits, "shape", None) != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        allowed = f"(2, {num_classes}), one logit per class"
        if num_classes == 2 and isinstance(logits, Tensor) and logits.numel() == len(images):
            allowed += "; one logit z of a binary network is torch.cat([torch.zeros_like(z), z], 1)"
        raise UserError(f"model: got {got} for 2 images; allowed: {allowed}")
    if getattr(network, "aux_logits", False):  # as in torchvision's Inception networks
        raise UserError(
            "model: its auxiliary classifiers give more outputs in training; allowed: one output"
        )
    return logits
