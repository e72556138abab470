"""The cosine head against its formula and golden numbers, and what a model makes of the head that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from taet import models
from taet.models.heads import CosineHead, Head

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())


def cosine_head(weight: Tensor, scale: float = 1.0, gamma: float = 0.0) -> CosineHead:
    classes, features = weight.shape
    head = CosineHead(features, classes, scale, gamma).to(weight.dtype)
    head.load_state_dict({"weight": weight})
    return head


@pytest.mark.parametrize("key", ["he_head", "robal_cos_head_gamma1_32_scale1"])
def test_golden(key: str) -> None:
    golden = GOLDEN[key]
    features, weight = (torch.tensor(golden["inputs"][name], dtype=torch.float64) for name in ("features", "weight"))
    constants = {name: golden["inputs"][name] for name in ("scale", "gamma") if name in golden["inputs"]}
    expected = torch.tensor(golden["expected"], dtype=torch.float64)
    torch.testing.assert_close(cosine_head(weight, **constants)(features), expected, rtol=0, atol=golden["tolerance"])


def draw(features: int = 6, classes: int = 4, samples: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((samples, features), (classes, features))
    h, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return h, w


def test_logits_are_the_cosines_times_the_scale_whatever_the_lengths() -> None:
    h, w = draw()
    logits = cosine_head(w, scale=15)(h)
    torch.testing.assert_close(logits, 15 * functional.cosine_similarity(h[:, None], w[None], dim=2))
    lengths = torch.tensor([1e-3, 0.1, 1, 7, 1e4], dtype=torch.float64)[:, None]
    torch.testing.assert_close(cosine_head(w * lengths[:4], scale=15)(h * lengths), logits)
    norms = w.norm(dim=1)  # gamma shrinks the logits of short weights
    torch.testing.assert_close(cosine_head(w, 15, 1 / 16)(h), logits * (norms / (norms + 1 / 16)))


def test_both_normalisations_are_differentiated() -> None:
    h, w = draw()
    head = cosine_head(w, scale=3, gamma=1 / 32)
    assert torch.autograd.gradcheck(head, (h.requires_grad_(),))
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(head, {"weight": weight}, (h,)), (w.requires_grad_(),)
    )


@pytest.mark.parametrize("gamma", [0.0, 1 / 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_features_and_zero_weights_have_cosine_zero_and_finite_gradients(gamma: float, dtype: torch.dtype) -> None:
    head = cosine_head(torch.zeros(3, 4, dtype=dtype), scale=10, gamma=gamma)
    with torch.no_grad():
        head.weight[1] = 1
    features = torch.tensor([[0.0] * 4, [2.0] * 4], dtype=dtype, requires_grad=True)
    logits = head(features)
    assert logits.dtype == dtype
    assert (logits[0] == 0).all()
    assert (logits[:, [0, 2]] == 0).all()
    functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in (features, head.weight))


def test_a_cosine_head_bounds_the_logits_of_a_model() -> None:
    model = models.build("resnet8", 4, (1, 8, 8), head=Head("cosine", scale=10)).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.abs().max() <= 10
    assert model.head.weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)  # uniform up to 1 / sqrt(features)
