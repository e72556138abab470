"""Heads: golden cosines, what scale and gamma do, and that nothing divides by zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taet import models
from taet.models.heads import CosineHead, Head, build_head

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())


def cosine_head(weight: Tensor, scale: float = 1.0, gamma: float = 0.0) -> CosineHead:
    classes, features = weight.shape
    head = CosineHead(features, classes, scale, gamma).to(weight.dtype)
    head.load_state_dict({"weight": weight})
    return head


def tensors(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(inputs[name], dtype=torch.float64) for name in ("features", "weight"))


@pytest.mark.parametrize("key", ["he_head", "robal_cos_head_gamma1_32_scale1"])
def test_golden(key: str) -> None:
    golden = GOLDEN[key]
    features, weight = tensors(golden["inputs"])
    constants = {name: golden["inputs"][name] for name in ("scale", "gamma") if name in golden["inputs"]}
    found = cosine_head(weight, **constants)(features)
    expected = torch.tensor(golden["expected"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=golden["tolerance"])


def draw(features: int = 6, classes: int = 4, samples: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((samples, features), (classes, features))
    h, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return h, w


def test_logits_are_the_cosines_times_the_scale_whatever_the_lengths() -> None:
    h, w = draw()
    logits = cosine_head(w, scale=15)(h)
    for i in range(len(h)):
        for c in range(len(w)):
            torch.testing.assert_close(logits[i, c], 15 * functional.cosine_similarity(h[i], w[c], dim=0))
    lengths = torch.tensor([1e-3, 0.1, 1, 7, 1e4], dtype=torch.float64)[:, None]
    torch.testing.assert_close(cosine_head(w * lengths[:4], scale=15)(h * lengths), logits)
    assert logits.abs().max() <= 15


def test_gamma_shrinks_the_logits_of_short_weights() -> None:
    h, w = draw()
    plain, shrunk = cosine_head(w)(h), cosine_head(w, gamma=1 / 16)(h)
    norms = w.norm(dim=1)
    torch.testing.assert_close(shrunk, plain * (norms / (norms + 1 / 16)))


def test_both_normalisations_are_differentiated() -> None:
    h, w = draw()
    head = cosine_head(w, scale=3, gamma=1 / 32)
    h.requires_grad_()
    assert torch.autograd.gradcheck(head, (h,))
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(head, {"weight": weight}, (h,)), (w.requires_grad_(),)
    )
    # Growing longer changes no cosine: the gradient has no part along the features.
    (gradient,) = torch.autograd.grad(head(h)[:, 1].sum(), h)
    torch.testing.assert_close((gradient * h).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1 / 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_features_and_zero_weights_have_cosine_zero_and_finite_gradients(gamma: float, dtype: torch.dtype) -> None:
    head = cosine_head(torch.zeros(3, 4, dtype=dtype), scale=10, gamma=gamma)
    with torch.no_grad():
        head.weight[1] = 1
    features = torch.zeros(2, 4, dtype=dtype)
    features[1] = 2
    features.requires_grad_()
    logits = head(features)
    assert logits.dtype == dtype
    assert (logits[0] == 0).all()
    assert (logits[:, [0, 2]] == 0).all()
    functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert features.grad is not None
    assert head.weight.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_the_head_that_is_asked_for_is_built() -> None:
    linear, cosine = build_head(Head(), 64, 10), build_head(Head("cosine", scale=15, gamma=0.25), 64, 10)
    assert isinstance(linear, nn.Linear)
    assert linear.bias is not None
    assert isinstance(cosine, CosineHead)
    assert [name for name, _ in cosine.named_parameters()] == ["weight"], "no bias"
    assert (cosine.scale, cosine.gamma) == (15, 0.25)
    assert repr(cosine) == "CosineHead(64, 10, scale=15, gamma=0.25)"
    assert cosine.weight.abs().max() <= 1 / 8
    assert cosine.weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)  # uniform on both sides


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_weights_of_a_head_come_from_the_seed(kind: Any) -> None:
    head = Head(kind, scale=10)
    first, again, other = (models.build("resnet8", 4, (1, 8, 8), seed=seed, head=head) for seed in (3, 3, 4))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_cosine_head_bounds_the_logits_of_a_model_and_leaves_its_offset_alone() -> None:
    model = models.build("resnet8", 4, (1, 8, 8), head=Head("cosine", scale=10)).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.abs().max() <= 10
    offset = torch.tensor([0.0, 20.0, -20.0, 1.0])
    model.offset.copy_(offset)
    torch.testing.assert_close(model(x), logits - offset)


def test_cosines_are_computed_in_float32_under_autocast() -> None:
    model = models.build("resnet8", 4, (1, 8, 8), head=Head("cosine", scale=10)).eval()
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.features(x)
        logits = model.classify(features)
    assert features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.head(features.float()), rtol=0, atol=0)
