"""Models of any origin: of this package, of other libraries, and custom models, whose code is run only with consent.

For training, a network is split into features and head. For evaluation it stays whole, with its own normalisation.
"""

import contextlib
import copy
import importlib
import inspect
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from taet import registry
from taet.errors import CUSTOM, UserError, custom_code, located, nearest, needed, unknown
from taet.models.classifier import Adapter, Classifier, Head, build_head
from taet.models.weights import fill, pretrained, read
from taet.randomness import seeded

FORMS = ("package.module:callable", "torchvision:NAME", "timm:NAME")
LINEAR, RGB = Head(), 3
_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())

ImageShape = tuple[int, int, int]
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel, in image units

NORMALIZATIONS: dict[str, Statistics] = {
    # The documentation of torchvision's pretrained models.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Over all pixels of the 50,000 training images; as in the code of Rice et al., ICML 2020, arXiv:2002.11569.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    # Over all pixels of the 50,000 training images.
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Normalized(nn.Module):
    """network((x - mean) / std): images (N, C, H, W) in [0, 1] -> logits, so that eps stays in units of the image."""

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, -1, 1, 1)) for values in statistics)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape = (3, 32, 32),
    seed: int = 0,
    head: Head = LINEAR,
    stem: str = "auto",
    weights: str | Path | None = None,
) -> Classifier | Adapter:
    """Return the model called `name`, its weights drawn from `seed`; the global random state is left as it was.

    Args:
        name: of `taet list models`, torchvision:NAME, timm:NAME, or package.module:callable, which takes nothing or
            `num_classes` and returns a Module, or is one; the current directory is importable.
        num_classes: C, width of the logits.
        image_shape: (channels, height, width); `forward` maps (N, *image_shape) in [0, 1] to logits (N, C).
        seed: of the first weights.
        head: that a method asks for. A network of another origin keeps its own last layer where that is a linear one.
        stem: cifar, imagenet, or auto: imagenet from 96 pixels on. Residual networks of this package have a choice.
        weights: a file of pretrained weights, .safetensors or of `torch.save` with tensors only; a head for another
            number of classes stays fresh. What was done is in the model's `notes`.

    Returns:
        A Classifier; or an Adapter, without features, for a custom network whose logits no linear layer gives.

    Raises:
        UserError: an unknown name, a network that cannot take the images, a file that does not fit or holds code.
    """
    model: Classifier | Adapter
    with seeded(seed, "weights"):
        if ":" not in name:
            model = registered(name, num_classes, image_shape, head, stem)
        elif stem == "auto":
            model = split_head(external(name, num_classes, image_shape), num_classes, image_shape, head)
        else:
            raise UserError(f"model stem: got {stem}; {name} has its own; allowed: auto")
    if weights is not None:
        model.notes = (*model.notes, pretrained(model, weights))
    return model


def load(
    spec: str, class_names: Sequence[str], image_shape: ImageShape, weights: str | Path | None, normalize: str = "none"
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model called `spec` in eval mode, with its weights and input normalisation, and notes on their origin.

    `spec` and `image_shape` are those of `taet.models.build`. Without `weights`, which must fit wholly, the model keeps
    those of the callable's module, or gets random ones from seed 0. `normalize` is none, imagenet, cifar10, cifar100 or
    MEANS/STDS, one number per channel separated by commas; with three, the model also gets grey images as colour.
    Weights that say that they are for other images are refused.
    """
    statistics, num_classes = parse_normalization(normalize, image_shape[0]), len(class_names)
    if statistics is not None:
        image_shape = (len(statistics[0]), *image_shape[1:])  # `Normalized` repeats the channel of a grey image
    with seeded(0, "weights"):
        builder: Callable[[str, int, ImageShape], nn.Module] = external if ":" in spec else registered
        network = builder(spec, num_classes, image_shape)
        about = f"weights: {f'as {spec} gives them' if is_own(spec) else 'none given, so fresh ones drawn from seed 0'}"
        if weights is not None:
            state = read(weights)
            state.check_origin(class_names, image_shape)
            if state.from_run and not isinstance(network, Classifier):
                whole = any(key.startswith("network.") for key in state.tensors)
                network = Adapter(network, num_classes) if whole else split_head(network, num_classes, image_shape)
            with custom_code(f"{state.path} cannot be loaded into {spec}"):
                about = fill(network, state)
    notes: tuple[str, ...] = (about,)
    if statistics is not None:
        if isinstance(network, Classifier) and not (network.mean.eq(0).all() and network.std.eq(1).all()):
            raise UserError(f"normalisation: got '{normalize}'; the network brings its own; allowed: none")
        network, notes = Normalized(network, statistics), (*notes, f"normalisation: {normalize}, inside the model")
    for module in network.modules():
        module.training = False  # a graph of torch.export refuses eval()
    return network, notes


def parse_normalization(text: str, channels: int) -> Statistics | None:
    """Return the statistics given by name or as MEANS/STDS; None for none."""
    if text == "none":
        return None
    named = NORMALIZATIONS.get(text)
    try:
        mean, std = named or ([float(number) for number in part.split(",")] for part in text.split("/"))
        valid = len(mean) == len(std) in (channels, RGB) and min(std) > 0 and all(map(math.isfinite, (*mean, *std)))
    except ValueError:
        valid = False
    if not valid:
        number = " or ".join(map(str, sorted({channels, RGB})))
        own = f"or {number} means / as many deviations above 0, e.g. 0.49,0.48,0.45/0.25,0.24,0.26"
        raise UserError(f"normalisation: got '{text}'; allowed: {', '.join(['none', *NORMALIZATIONS, own])}")
    return mean, std


def registered(
    name: str, num_classes: int, image_shape: ImageShape, head: Head = LINEAR, stem: str = "auto"
) -> Classifier:
    """Return the network called `name` in `taet list models`, for images (N, *image_shape)."""
    known = registry.entries("models")
    if name not in known:
        raise unknown("model", name, (*known, *FORMS))
    model = known[name].call("build", Classifier, name, num_classes, image_shape, head, stem)
    if known[name].path is not None:
        with located(str(known[name].path)):
            check_logits(model.eval(), torch.zeros(2, *image_shape), num_classes)
        model.train()
    return model


def external(spec: str, num_classes: int, image_shape: ImageShape) -> nn.Module:
    """Return the network `spec`, KIND:NAME, as its author builds it, for images (N, *image_shape)."""
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
    architecture = name.partition(".")[0] if kind == "timm" else name  # the rest is the tag of a pretraining
    if architecture not in names:
        hint = f"; did you mean '{near}'?" if (near := nearest(architecture, names)) else ""
        raise UserError(f"unknown {kind} model '{name}'; allowed: the {len(names)} names of {kind}{hint}")
    settings: dict[str, object] = {"num_classes": num_classes}
    if kind == "timm":
        if library.models.get_pretrained_cfg_value(architecture, "fixed_input_size"):
            settings["img_size"] = (height, width)
        return _call(library.create_model, spec, name, pretrained=False, in_chans=channels, **settings)
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
        with custom_code(f"model '{spec}' cannot be imported as {FORMS[0]}"), torch.random.fork_rng(devices=[]):
            target = pkgutil.resolve_name(spec)
        if isinstance(target, nn.Module):
            return target
        with custom_code(f"{spec} failed"):
            takes = "num_classes" in inspect.signature(target).parameters
        return _call(target, spec, **({"num_classes": num_classes} if takes else {}))
    finally:
        sys.path[:] = before


def _call(build: Callable[..., object], spec: str, *arguments: object, **settings: object) -> nn.Module:
    """Return the network that `build` returns; its exceptions, e.g. for an image size, become a `UserError`."""
    with custom_code(f"{spec} failed"):
        network = build(*arguments, **settings)
    if not isinstance(network, nn.Module):
        raise UserError(f"{spec}: got a {type(network).__name__}; allowed: a torch.nn.Module, or what returns one")
    return network


def split_head(
    network: nn.Module, num_classes: int, image_shape: ImageShape, head: Head = LINEAR
) -> Classifier | Adapter:
    """Split `network` into features and head: the linear layer that gives its logits, or a cosine head.

    Whether a layer's outputs are the network's logits is tested on two images. Its inputs are then the features, and
    the parts are copies. A network without such a layer is used whole; a Classifier stays as it is.
    """
    images = torch.rand(2, *image_shape)
    check_logits(network.eval(), images, num_classes)
    if isinstance(network, Classifier | Adapter):
        return network.train()
    linear = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    for name in reversed([name for name, part in linear if part.out_features == num_classes]):
        body = copy.deepcopy(network)
        last = cast(nn.Linear, body.get_submodule(name))
        if _remove_head(body, name, last, images):
            layer = last if head.kind == "linear" else build_head(head, last.in_features, num_classes)
            model = Classifier(body, layer, num_classes, image_shape[0])
            model.notes = (f"features: the inputs of the network's last layer, {name}",)
            return model.train()
    whole = Adapter(network, num_classes)
    used = "the network is used whole: no linear layer gives its logits"
    whole.notes = (f"{used}, so it has no features to read, and it gets images as they are, in [0, 1]",)
    return whole.train()


@torch.no_grad()
def _remove_head(body: nn.Module, name: str, last: nn.Linear, images: Tensor) -> bool:
    """Replace the layer `last` of a network by the identity; return whether the network then returns its inputs."""
    # Both signs, and rows that no softmax can give, so that any operation after the layer shows.
    outputs, captured = torch.linspace(-1, 1, 2 * last.out_features).view(2, -1), list[Tensor]()

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
    """Return the logits of a network in eval mode for two `images`; refuse one that returns anything else."""
    with custom_code(f"model: cannot take images of shape {tuple(images.shape[1:])}"), torch.no_grad():
        logits: Tensor = network(images)
    if getattr(logits, "shape", None) != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"model: got {got} for 2 images; allowed: (2, {num_classes}), one logit per class")
    if getattr(network, "aux_logits", False):  # as in torchvision's Inception networks
        raise UserError("model: its auxiliary classifiers give more outputs in training; allowed: one output")
    return logits


def is_own(name: str) -> bool:
    """Whether `name` is a custom model, package.module:callable."""
    return ":" in name and not name.startswith(("torchvision:", "timm:"))


@contextlib.contextmanager
def trusted(*names: str | None) -> Iterator[None]:
    """Let files name the models `names`, package.module:callable: their code is imported and run. None is ignored."""
    before = _trusted.set(frozenset(filter(None, names)))
    try:
        yield
    finally:
        _trusted.reset(before)


def consent(name: str) -> list[str]:
    """Return the options with which a command may open a run whose model is `name`."""
    return ["--trust-model", name] if is_own(name) else []


def check_consent(where: str, name: str) -> None:
    """Refuse the model that a file names if it is custom code that was not named to `trusted` as well."""
    if is_own(name) and name not in _trusted.get():
        allowed = f"with --trust-model {name}, which imports and runs it"
        raise UserError(f"{where}: got the model '{name}', which is code outside this package; allowed: {allowed}")


def check_trust(folder: Path, name: str) -> None:
    """Refuse the model of the run in `folder` without consent, or if its code would be imported from the folder."""
    check_consent(str(folder), name)
    here, package = Path.cwd(), name.partition(":")[0].partition(".")[0]
    places = (here, here / package, here / f"{package}.py")
    if is_own(name) and any(place.resolve().is_relative_to(folder.resolve()) for place in places):
        never = "opening a run never runs code that may have come with it"
        allowed = "a module elsewhere, and another current directory"
        raise UserError(f"model '{name}' is looked for in {folder}, and {never}; allowed: {allowed}")
