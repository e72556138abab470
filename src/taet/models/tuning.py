"""Which parameters of a pretrained network are trained: all, the head, biases, or small parts added
to the body.

Sources: biases: Ben Zaken et al., BitFit, ACL 2022, arXiv:2106.10199; low rank: Hu et al., LoRA,
ICLR 2022, arXiv:2106.09685; adapters: Chen et al., AdaptFormer, NeurIPS 2022, arXiv:2205.13535.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from taet.errors import UserError
from taet.models.classifier import Adapter, Classifier
from taet.randomness import seeded


class LowRank(nn.Module):
    """W + B A / r for a weight W (out, ...): A (r, in) is drawn as a linear layer's weight, and B
    (out, r) is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, weight[0].numel()))
        self.b = nn.Parameter(torch.zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight) / len(self.a)


class BesideMLP(nn.Module):
    """mlp(h) + s W_up relu(W_down h) of normalised tokens h (N, T, D): W_up is zero, and s is
    learnt from 1."""

    def __init__(self, mlp: nn.Module, first: nn.Linear, inner: int) -> None:
        super().__init__()
        self.mlp, self.scale = mlp, nn.Parameter(torch.ones(()))
        self.down, self.up = (
            nn.Linear(first.in_features, inner),
            nn.Linear(inner, first.in_features),
        )
        for value in self.up.parameters():
            nn.init.zeros_(value)

    def forward(self, h: Tensor) -> Tensor:
        return self.mlp(h) + self.scale * self.up(self.down(h).relu())


def extend(model: Classifier | Adapter, tune: str, seed: int = 0) -> None:
    """Add the low-rank parts or adapters of `tune` to the body, drawn from `seed`; the logits stay
    the same.

    `tune` is that of `taet.settings.Model`. Low-rank parts go to the projections of attention or,
    without any, to the convolutions of 1x1 and 3x3; adapters beside the MLP of every transformer
    block. A network without such layers, or with such parts already, is a `UserError`.
    """
    kind, _, size = tune.partition(":")
    if any(isinstance(module, LowRank | BesideMLP) for module in model.modules()):
        raise UserError("model: got a network to which parts were added; allowed: as it was before")
    places = low_rank_places(model) if kind == "lora" else []
    with seeded(seed, "tune"):
        for layer, name in places:
            weight: Tensor = getattr(layer, name)
            parametrize.register_parametrization(layer, name, LowRank(weight, int(size)).to(weight))
        for block in [*model.modules()] if kind == "adapter" else []:
            mlp = dict(block.named_children()).get("mlp", nn.Identity())
            layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
            if layers:
                block.mlp = BesideMLP(mlp, layers[0], int(size)).to(layers[0].weight)
                places.append((block, "mlp"))
    if size and not places:
        other = " or lora:N" if kind != "lora" and low_rank_places(model) else ""
        lacks = (
            ("attention and no convolutions of 1x1 or 3x3")
            if kind == "lora"
            else "transformer blocks"
        )
        raise UserError(
            f"model tune: got {tune}; the network has no {lacks}; allowed: head, bias, all{other}"
        )


def low_rank_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the weights that get a low-rank part, as (module, name); attention may be
    torchvision's or timm's."""
    places: list[tuple[nn.Module, str]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            places += [(module, "in_proj_weight"), (module.out_proj, "weight")]
        elif isinstance(module, nn.Linear) and "attn" in name.split("."):
            places.append((module, "weight"))
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    return places or [
        (layer, "weight") for layer in layers if layer.kernel_size in ((1, 1), (3, 3))
    ]


def trained(model: nn.Module, tune: str) -> dict[str, nn.Parameter]:
    """Return the parameters that `tune` trains, by name."""
    kind = tune.partition(":")[0]
    parts = [part for part in model.modules() if isinstance(part, LowRank | BesideMLP)]
    added = {
        p for part in parts for name, p in part.named_parameters() if not name.startswith("mlp.")
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if kind == "all"
        or name.startswith("head.")
        or parameter in added
        or (kind == "bias" and name.endswith("bias"))
    }


def select(model: Classifier | Adapter, tune: str, *, keep_statistics: bool = True) -> None:
    """Let only the parameters of `tune` require a gradient; unless `tune` is all, the body can stay
    in eval mode.

    With `keep_statistics` it does: batch normalisation then keeps its statistics, and there is no
    dropout.
    """
    model.requires_grad_(False)
    for parameter in trained(model, tune).values():
        parameter.requires_grad_()
    if isinstance(model, Classifier):
        model.still = tune != "all" and keep_statistics


def merge(model: nn.Module) -> None:
    """Add the low-rank parts to the weights: the network has its original layers and names, and the
    same logits."""
    for layer in [*model.modules()]:
        for name in [*getattr(layer, "parametrizations", ())]:
            if any(isinstance(part, LowRank) for part in layer.parametrizations[name]):  # type: ignore[index]
                parametrize.remove_parametrizations(layer, name)
