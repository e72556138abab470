"""The structure of every model: normalisation, features, a linear or a cosine head, and the
deployed offset."""

import platform
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.network import copied

# features that are all zero have no direction; their cosines are 0, with a finite gradient
TINY = 1e-12


class Classifier(nn.Module):
    """A network with its normalisation inside: logits(x) = head(features(x)) - offset.

    x (N, C, H, W) in [0, 1] -> (N, classes). Normalisation is part of the model, so that
    perturbations are always measured in units of the image. The head computes in float32 also under
    autocast, because class terms and attacks use small differences of logits. `offset` (classes,)
    is zero in training, set afterwards (a post-hoc class prior).

    Example:
        >>> import torch
        >>> from taet.models import Classifier
        >>> body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU())
        >>> model = Classifier(body, torch.nn.Linear(16, 10), num_classes=10, channels=1)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> model.features(x).shape, model(x).shape
        (torch.Size([2, 16]), torch.Size([2, 10]))
    """

    notes: tuple[str, ...] = ()
    """Notes on the origin of its parts and initial weights."""
    still: bool = False
    """Whether the body stays in eval mode in training: see `taet.models.tuning`."""

    def __init__(self, body: nn.Module, head: nn.Module, num_classes: int, channels: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.mean = nn.Buffer(torch.zeros(1, channels, 1, 1))
        self.std = nn.Buffer(torch.ones(1, channels, 1, 1))
        self.offset = nn.Buffer(torch.zeros(num_classes))

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and standard deviation per channel of the input normalisation, in units of
        the image."""
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        self.std.copy_(torch.tensor(std).view_as(self.std))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, D) of images (N, C, H, W) in [0, 1]."""
        # In channels_last on a CPU, mean and std expanded to whole rows take a sixth of the time of
        # one per channel.
        in_rows = x.device.type == "cpu" and x.stride(1) == 1 and x.shape[1] > 1
        mean, std = (
            value.expand(-1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)
            if in_rows
            else value
            for value in (self.mean, self.std)
        )
        return self.body((x - mean) / std)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.offset.dtype)) - self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.still:
            self.body.eval()
        return self


class Adapter(nn.Module):
    """A custom module (images in [0, 1] -> logits) with float32 logits and the deployed offset.

    Example:
        >>> import torch
        >>> from taet.models import Adapter
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> Adapter(network, num_classes=10)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    notes: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.offset = nn.Buffer(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).to(self.offset.dtype) - self.offset


def adapted(model: nn.Module, num_classes: int) -> Classifier | Adapter:
    """Return `model` if it is a Classifier or Adapter, else wrapped in an `Adapter`."""
    return model if isinstance(model, Classifier | Adapter) else Adapter(model, num_classes)


class Head(NamedTuple):
    """The head that a method needs.

    Example:
        >>> from taet.models import Head
        >>> Head("cosine", scale=16.0)
        Head(kind='cosine', scale=16.0, gamma=0.0)
    """

    kind: Literal["linear", "cosine"] = "linear"
    scale: float = 1.0
    """Cosine: factor s of the cosines, in training and evaluation."""
    gamma: float = 0.0
    """Cosine: added to the norm of each class weight (RoBal)."""


class CosineHead(nn.Module):
    """Scaled cosines, z_c = s <h / ||h||, w_c / (||w_c|| + gamma)>, without bias: (N, D) -> (N, C)
    in [-s, s].

    Both normalisations are differentiated. The scale belongs to the model, so that attacks and
    predictions see the same logits. Sources: Pang et al., Boosting Adversarial Training with
    Hypersphere Embedding, NeurIPS 2020, arXiv:2002.08619 (gamma 0; its public code overwrites the
    weights by their normalised values instead); Wu et al., RoBal, CVPR 2021, arXiv:2104.02703
    (gamma 1/32 or 1/16).

    Example:
        >>> import torch
        >>> from taet.models import CosineHead
        >>> head = CosineHead(features=64, num_classes=10, scale=16.0)
        >>> logits = head(torch.randn(5, 64))
        >>> logits.shape, bool((logits.abs() <= 16).all())
        (torch.Size([5, 10]), True)
    """

    def __init__(
        self, features: int, num_classes: int, scale: float = 1.0, gamma: float = 0.0
    ) -> None:
        super().__init__()
        self.scale, self.gamma = scale, gamma
        bound = features**-0.5  # as RoBal's public code draws it
        self.weight = nn.Parameter(torch.empty(num_classes, features).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        directions = functional.normalize(features, dim=1, eps=TINY)
        # The norm of a vanishing weight has no derivative; the clamp gives it the derivative 0.
        weights = self.weight / (self.weight.norm(dim=1, keepdim=True).clamp(min=TINY) + self.gamma)
        return self.scale * functional.linear(directions, weights)


def build_head(head: Head, features: int, num_classes: int) -> nn.Module:
    """Return the module that `head` describes, from `features` to `num_classes`.

    Example:
        >>> from taet.models import Head, build_head
        >>> build_head(Head("linear"), features=64, num_classes=10)
        Linear(in_features=64, out_features=10, bias=True)
    """
    if head.kind == "linear":
        return nn.Linear(features, num_classes)
    return CosineHead(features, num_classes, head.scale, head.gamma)


def part_for_images(network: nn.Module) -> nn.Module:
    """Return the part of a network that its author wrote: it gets the images."""
    if isinstance(network, Classifier):
        return network.body
    return network.network if isinstance(network, Adapter) else network


def _give_ordinary_images(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Not `contiguous`: the strides of grey images satisfy both layouts, and PyTorch guesses from
    # them.
    return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])


def lay_out(network: nn.Module, image_shape: Sequence[int]) -> tuple[str, ...]:
    """Put a network into channels_last; return a line if it cannot compute there and stays as it
    is.

    `.view` of a network's own code needs the ordinary layout. A copy is tried on two images. If
    that fails, a hook passes the images to the network in the ordinary layout.
    """
    trial = copied(network).eval().to(memory_format=torch.channels_last)
    device = next((value.device for value in network.state_dict().values()), torch.device("cpu"))
    images = torch.zeros(2, *image_shape, device=device)
    every_gpu = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(every_gpu), torch.no_grad():
            trial(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        part_for_images(network).register_forward_pre_hook(_give_ordinary_images)
        return (
            "not in channels_last, which its .view does not allow; .flatten(1) or .reshape in its "
            "place may be faster",
        )
    network.to(memory_format=torch.channels_last)
    return ()


def guard_layout(*networks: nn.Module) -> tuple[str, ...]:
    """Keep layers that a CPU cannot train in channels_last in the ordinary layout; return a line
    that names them.

    The gradient of the weights of a 1x1 convolution with a stride, float32 and in channels_last,
    writes outside its memory if it has fewer input channels than a vector register has floats: 8
    with AVX2, 16 with AVX-512. See https://github.com/uxlfoundation/oneDNN/issues/6035, open in
    November 2026. To be called after `network.to(memory_format=...)`; a hook passes these layers
    their input in the ordinary layout.
    """
    floats = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
    names = []
    for name, layer in (pair for network in networks for pair in network.named_modules()):
        strided = (
            isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
        )
        on_cpu = strided and layer.weight.device.type == "cpu" and platform.machine() == "x86_64"
        if on_cpu and 1 < layer.in_channels < floats:
            names.append(name)
            for weight in layer.parameters():
                # Not `contiguous`: the strides of a 1x1 kernel satisfy both layouts, and PyTorch
                # guesses from them.
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    line = (
        "not in channels_last, where their gradient is unsafe on this CPU (oneDNN issue 6035): "
        f"{', '.join(names)}"
    )
    return (line,) if names else ()
