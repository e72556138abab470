"""The probe finds what fools attacks, in models that are known to do so, and nothing in one that is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import taet
from taet.attacks import pgd
from taet.attacks.counted import Counted
from taet.evaluation import ResultCard, probe
from taet.evaluation.columns import Bench

EPS = 0.15
TRAIN = 1000
FLAGS = {"randomised", "softmax-outputs", "zero-gradients", "logit-scale"}


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images / 16).float()[:, None], torch.from_numpy(data.target)


class Network(nn.Module):
    """A small network; with a scale, its logits are cosines of features and class vectors times that scale."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU()
        )
        self.head, self.scale = nn.Linear(64, 10, bias=False), scale

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body(x)
        if self.scale is None:
            return self.head(features)  # type: ignore[no-any-return]
        return self.scale * functional.linear(functional.normalize(features), functional.normalize(self.head.weight))


@functools.cache
def trained(scale: float | None = None) -> Network:
    """Adversarial training on scikit-learn's digits."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network(scale)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(150):
            rows = torch.randint(0, TRAIN, (64,))
            x_adv = pgd(model, x[rows], y[rows], eps=EPS, steps=4, step_size=EPS / 3)
            optimizer.zero_grad()
            functional.cross_entropy(model(x_adv), y[rows]).backward()
            optimizer.step()
    return model


class Through(nn.Module):
    """The trained model with something before or behind it."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = trained(), call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


def evaluate(model: nn.Module, count: int = 400, state_dir: Path | None = None) -> ResultCard:
    x, y = (tensor[TRAIN : TRAIN + count] for tensor in digits())
    return taet.evaluate(model, x, y, attacks="fgsm", eps=EPS, batch_size=400, state_dir=state_dir)


def raised(model: nn.Module) -> set[str]:
    return {flag["flag"] for flag in evaluate(model).flags} & FLAGS


@pytest.mark.parametrize("scale", [None, 16.0])
def test_plain_adversarial_training_raises_nothing(scale: float | None) -> None:
    assert raised(trained(scale)) == set()


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (lambda model, x: model(x + 0.01 * torch.randn_like(x)), "randomised"),
        (lambda model, x: model((16 * x).round() / 16), "zero-gradients"),
        (lambda model, x: 100 * model(x), "zero-gradients"),
        (lambda model, x: 1000 * model(x), "zero-gradients"),
        (lambda model, x: model(x).softmax(1), "softmax-outputs"),
    ],
)
def test_what_fools_attacks_is_named(call: Callable[[nn.Module, Tensor], Tensor], flag: str) -> None:
    assert flag in raised(Through(call))


def test_cosines_at_scale_one_mask_gradients() -> None:
    model = Network(1.0)
    model.load_state_dict(trained(16.0).state_dict())
    assert raised(model) == {"logit-scale"}


def test_the_facts_are_those_of_the_first_batch() -> None:
    x, y = digits()
    facts = evaluate(trained()).probe
    logits = trained()(x[TRAIN : TRAIN + 400])
    assert facts["images"] == 400
    assert facts["clean_correct"] == int((logits.argmax(1) == y[TRAIN : TRAIN + 400]).sum())
    assert facts["pgd_correct"] - facts["scaled_pgd_correct"] == (
        facts["only_pgd_correct"] - facts["only_scaled_pgd_correct"]
    )
    assert 0 < facts["pgd_correct"] < facts["clean_correct"]
    assert all(type(value) in (int, float) for value in facts.values())


def test_the_probe_is_kept_for_an_evaluation_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(trained(), 20, tmp_path)
    monkeypatch.setattr(probe, "_measure", None)
    assert evaluate(trained(), 20, tmp_path).probe == first.probe


def test_where_nothing_is_attacked_nothing_is_probed() -> None:
    x, y = digits()
    card = taet.evaluate(trained(), x[:4], y[:4], attacks="clean")
    assert card.probe == {}
    assert [column.name for column in card.columns] == ["clean"]


def test_a_model_that_draws_numbers_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    model = Through(lambda model, x: model(x + 0.01 * torch.randn_like(x)))
    x, y = (tensor[:20].numpy() for tensor in digits())
    bench = Bench(Counted(model), x, y, EPS, EPS / 8, 20, 0, torch.device("cpu"))
    seen: list[float] = []
    facts = probe.probe(bench, None, seen.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert facts["repeat_difference"] > 0
    assert seen == sorted(seen)
    assert seen[-1] == probe.passes(bench)
    assert np.isfinite(list(facts.values())).all()
