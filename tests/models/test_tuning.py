"""Parts of a network that are trained: the logits stay the same at first, only the part moves, and
it can be merged."""

import copy

import pytest
import torch
from torch import nn

from taet import models
from taet.errors import UserError
from taet.models.tuning import LowRank, extend, merge, select, trained
from taet.models.view import make_view

PARTS = {
    "resnet8": ("head", "bias", "lora:2", "all"),
    "vit-mini-p4": ("head", "bias", "lora:4", "adapter:8", "all"),
}
CASES = [(name, tune) for name, tunes in PARTS.items() for tune in tunes]


def made(name: str, tune: str) -> models.Classifier:
    model = models.build(name, 5, (3, 8, 8))
    assert isinstance(model, models.Classifier)
    extend(model, tune)
    return model


@pytest.mark.parametrize(("name", "tune"), CASES)
def test_logits_are_those_of_the_network_and_only_the_part_moves(name: str, tune: str) -> None:
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    before, model = models.build(name, 5, (3, 8, 8)), made(name, tune)
    torch.testing.assert_close(model.eval()(x), before.eval()(x))
    select(model, tune)
    old = copy.deepcopy(model.state_dict())
    for _ in range(2):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        nn.functional.cross_entropy(model.train()(x), torch.arange(5)).backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, old[key])}
    parts = set(trained(model, tune))
    assert parts - moved == set(), "every trained parameter moves"
    statistics = {key for key in old if "running" in key or "batches" in key}
    assert moved - parts == (statistics if tune == "all" else set()), "and nothing else"
    if tune in ("head", "bias"):
        assert all(
            key.startswith("head.") or (tune == "bias" and key.endswith("bias")) for key in parts
        )


def test_a_low_rank_part_adds_b_a_over_r() -> None:
    part, weight = LowRank(torch.zeros(4, 3, 1, 1), rank=2), torch.rand(4, 3, 1, 1)
    nn.init.normal_(part.b)
    torch.testing.assert_close(part(weight)[..., 0, 0], weight[..., 0, 0] + part.b @ part.a / 2)


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
def test_low_rank_parts_merge_into_the_weights(name: str) -> None:
    model, plain = made(name, "lora:3"), models.build(name, 5, (3, 8, 8))
    for part in model.modules():
        if isinstance(part, LowRank):
            nn.init.normal_(part.b, generator=torch.Generator().manual_seed(2))
    x = torch.rand(5, 3, 8, 8)
    logits = model.eval()(x)
    assert not torch.allclose(logits, plain.eval()(x), atol=1e-2)
    merge(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(x), logits, atol=1e-5, rtol=1e-5)


def test_the_attack_sees_the_parts_through_the_view() -> None:
    model = made("resnet8", "lora:2")
    view = make_view(model.eval(), (3, 8, 8))
    for part in model.modules():
        if isinstance(part, LowRank):
            nn.init.normal_(part.b)
    view.refresh()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(view.module(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_part_that_a_network_lacks_is_refused() -> None:
    model = models.Classifier(nn.Flatten(), nn.Linear(12, 5), 5, 3)
    with pytest.raises(UserError, match=r"model tune: got lora:4; .*the network has no attention"):
        extend(model, "lora:4")
