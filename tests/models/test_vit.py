"""Vision transformers: the equations of the paper, written out, and the images that they can be given."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from taet import models
from taet.errors import UserError
from taet.models import Head
from taet.models.vit import LAYOUTS, TransformerLayout, vision_transformer


def written_out(state: dict[str, Tensor], x: Tensor, layout: TransformerLayout) -> Tensor:
    """LN(z_L^0) of z_0 = [class; x_p E] + E_pos, z' = MSA(LN(z)) + z, z = MLP(LN(z')) + z' (equations 1 to 4)."""
    count, channels, side, _ = x.shape
    patch, width, across = layout.patch, layout.width, side // layout.patch

    def norm(values: Tensor, name: str) -> Tensor:
        return functional.layer_norm(values, (width,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(values: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
        q, k, v = (values @ weight.T + bias).view(count, -1, 3, layout.heads, width // layout.heads).unbind(2)
        scores = torch.einsum("nihd,njhd->nhij", q, k) / (width // layout.heads) ** 0.5
        return linear(torch.einsum("nhij,njhd->nihd", scores.softmax(-1), v).flatten(2), f"{name}.out_proj")

    patches = (
        x.view(count, channels, across, patch, across, patch).permute(0, 2, 4, 1, 3, 5).reshape(count, across**2, -1)
    )
    embedded = patches @ state["conv_proj.weight"].flatten(1).T + state["conv_proj.bias"]
    z = torch.cat([state["class_token"].expand(count, -1, -1), embedded], 1) + state["encoder.pos_embedding"]
    for number in range(layout.depth):
        layer = f"encoder.layers.encoder_layer_{number}"
        z = attention(norm(z, f"{layer}.ln_1"), f"{layer}.self_attention") + z
        z = linear(functional.gelu(linear(norm(z, f"{layer}.ln_2"), f"{layer}.mlp.0")), f"{layer}.mlp.3") + z
    return norm(z[:, 0], "encoder.ln")


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_the_papers_equations(channels: int) -> None:
    layout = TransformerLayout(4, 24, 3, 4, 40)
    torch.manual_seed(0)
    model = vision_transformer(layout, 5, (channels, 12, 12), Head()).double().eval()
    x = torch.rand(2, channels, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():  # also of the class token and the biases, which start at zero
            parameter.normal_(std=0.3)
        torch.testing.assert_close(model.features(x), written_out(model.body.state_dict(), x, layout))


def test_vit_b16_holds_the_tensors_of_torchvisions() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(weights=None).state_dict()
        body = models.build("vit-b16", 10, (3, 224, 224)).body.state_dict()
    expected = {name: value.shape for name, value in theirs.items() if not name.startswith("heads.")}
    assert {name: value.shape for name, value in body.items()} == expected


@pytest.mark.parametrize(
    ("name", "tokens", "width", "depth", "inner", "head"),
    [("vit-b16", 4, 768, 12, 3072, 64), ("vit-small-p4", 64, 384, 12, 1536, 64), ("vit-mini-p4", 64, 128, 6, 512, 32)],
)
def test_dimensions(name: str, tokens: int, width: int, depth: int, inner: int, head: int) -> None:
    with torch.device("meta"):
        body = models.build(name, 10, (3, 32, 32)).body
    assert body.encoder.pos_embedding.shape == (1, tokens + 1, width)
    assert len(body.encoder.layers) == depth
    assert {layer.mlp[0].out_features for layer in body.encoder.layers} == {inner}
    assert {layer.self_attention.head_dim for layer in body.encoder.layers} == {head}
    assert width // LAYOUTS[name].heads == head


def test_the_initial_weights_are_torchvisions() -> None:
    """Of 3 channels drawn by torchvision itself; of another number alike: sigma^2 = 1 / (channels x patch^2)."""
    for channels in (1, 3):
        model = models.build("vit-small-p4", 10, (channels, 32, 32))
        projection = model.body.conv_proj
        assert projection.weight.std().item() == pytest.approx((channels * 16) ** -0.5, rel=0.05)
        assert not projection.bias.any()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit-b16", (3, 40, 40), "vit-b16: got images of 40 x 40 pixels; allowed: squares .* 16; .* --data.size 32"),
        ("vit-mini-p4", (3, 32, 28), "vit-mini-p4: got images of 32 x 28 pixels; .* --data.size 28"),
        ("vit-b16", (1, 8, 8), "--data.size 16"),
    ],
)  # fmt: skip
def test_images_that_patches_do_not_cover_are_refused(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        models.build(name, 10, shape)
    assert "\n" not in str(caught.value)
