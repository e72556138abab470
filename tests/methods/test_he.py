"""Hypersphere embedding: golden losses, what its three forms attack and minimise, and its knobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from taet import methods
from taet.attacks import pgd
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.losses import balanced_softmax, cross_entropy, kl_divergence
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack
from taet.models import Classifier, Head
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)
THREAT = Threat(steps=2)
VARIANTS = ("pgd", "trades", "alp")
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(
    counts: tuple[int, ...] = COUNTS, outer: Any = "cross-entropy", weighting: str = "none", **knobs: Any
) -> Method:
    task = Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, outer=Outer(name=outer), weighting=weighting)
    return methods.build("he", knobs, task)


def noise() -> Source:
    return Source(torch.Generator().manual_seed(0))


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """A model whose input is its cosines."""
    return lambda cosines: factor * cosines


@pytest.mark.parametrize("key", ["he_s15_m0.2", "he_attack_s15_m0"])
def test_golden(key: str) -> None:
    golden = GOLDEN[key]
    inputs = golden["inputs"]
    cosines, y = torch.tensor(inputs["cosines"], dtype=torch.float64), torch.tensor(inputs["labels"])
    method = build((3, 2, 1), scale=inputs["s"], margin=inputs["m"])
    loss = method.loss(scaled(inputs["s"]), cosines, y, Adversarial(cosines))
    assert loss.total.item() == pytest.approx(golden["expected"], abs=golden["tolerance"])


def test_the_attack_raises_the_loss_without_the_margin(network: Callable[..., Classifier], digits: Batch) -> None:
    """The golden attack loss is plain cross-entropy on what the model says."""
    golden = GOLDEN["he_attack_s15_m0"]
    logits = 15 * torch.tensor(golden["inputs"]["cosines"], dtype=torch.float64)
    labels = torch.tensor(golden["inputs"]["labels"])
    assert cross_entropy(logits, labels).mean().item() == pytest.approx(golden["expected"], abs=golden["tolerance"])
    method, model = build(margin=0.5), network(10, head=build().task.head)
    expected = pgd(
        model, digits.x, digits.y, eps=THREAT.eps, steps=2, step_size=THREAT.step_size, start="gaussian",
        start_noise=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for variant in ("pgd", "alp"):
        method = build(variant=variant, margin=0.5)
        assert torch.equal(method.perturb(model.eval(), digits.x, digits.y, Attack(THREAT, noise())).x, expected)


def test_trades_attacks_the_divergence_from_the_clean_prediction(
    network: Callable[..., Classifier], digits: Batch
) -> None:
    method, model = build(variant="trades"), network(10, head=build().task.head).eval()
    natural = model(digits.x).detach()
    expected = Attack(THREAT, noise())(model, digits.x, digits.y, lambda logits, _: kl_divergence(natural, logits))
    assert torch.equal(method.perturb(model, digits.x, digits.y, Attack(THREAT, noise())).x, expected)
    labels = torch.zeros_like(digits.y)
    assert torch.equal(method.perturb(model, digits.x, labels, Attack(THREAT, noise())).x, expected), "labels unused"


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Clean and attacked cosines (N, C), labels."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = (2 * torch.rand(6, 3, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    return clean, attacked, torch.tensor([0, 1, 2, 0, 1, 0])


def he(cosines: Tensor, y: Tensor, s: float, m: float) -> float:
    """The loss as the paper writes it, sample by sample."""
    values = []
    for row, label in zip(cosines.tolist(), y.tolist(), strict=True):
        above = math.exp(s * (row[label] - m))
        values.append(-math.log(above / (above + sum(math.exp(s * v) for c, v in enumerate(row) if c != label))))
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("variant", "beta"), [("pgd", None), ("trades", None), ("trades", 0.7), ("alp", None), ("alp", 0.7)]
)
def test_the_loss_is_the_one_of_the_paper(variant: Any, beta: float | None) -> None:
    clean, attacked, y = draw()
    s, m = 4.0, 0.3
    loss = build((3, 2, 1), variant=variant, scale=s, margin=m, beta=beta).loss(
        scaled(s), clean, y, Adversarial(attacked)
    )
    if variant == "pgd":
        expected = he(attacked, y, s, m)
    elif variant == "trades":
        factor = 6 if beta is None else beta
        expected = he(clean, y, s, m) + factor * kl_divergence(s * clean, s * attacked).mean().item()
    else:
        factor = 0.5 if beta is None else beta
        expected = (he(clean, y, s, m) + he(attacked, y, s, m)) / 2
        expected += factor * ((clean - attacked) ** 2).mean().item()
    assert loss.total.item() == pytest.approx(expected, abs=1e-12)
    assert list(loss.parts) == {"pgd": [], "trades": ["label", "kl"], "alp": ["label", "mse"]}[variant]
    assert torch.equal(loss.logits, s * attacked)


@every_variant
def test_the_outer_loss_of_the_run_sees_the_margin_and_the_divergence_does_not_see_it(variant: Any) -> None:
    clean, attacked, y = draw()
    counts = (30, 5, 1)
    methods_ = [build(counts, outer, variant=variant) for outer in ("cross-entropy", "balanced-softmax")]
    plain, balanced = (method.loss(scaled(15), clean, y, Adversarial(attacked)) for method in methods_)
    margins = 3 * torch.eye(3, dtype=torch.float64)[y]
    inputs = {"pgd": [attacked], "trades": [clean], "alp": [clean, attacked]}[variant]
    expected = [balanced_softmax(15 * cosines - margins, y, torch.tensor(counts)).mean() for cosines in inputs]
    found = balanced.parts.get("label", balanced.total)
    torch.testing.assert_close(found, sum(expected) / len(expected), rtol=1e-10, atol=0)
    if variant != "pgd":
        tie = {"trades": "kl", "alp": "mse"}[variant]
        assert torch.equal(plain.parts[tie], balanced.parts[tie])


def test_it_asks_for_a_cosine_head_of_its_scale_under_every_outer_loss() -> None:
    assert build().task.head == Head("cosine", scale=15, gamma=0)
    assert build(scale=20).task.head == Head("cosine", scale=20, gamma=0)
    ldam = build((40, 2), "ldam")
    assert ldam.task.head == Head("cosine", scale=15, gamma=0)
    logits = torch.tensor([[3.0, -6.0]])  # margins of the rarest class: LDAM's 0.5 and 0.2, times 15
    assert ldam.margin_loss(logits, torch.tensor([1])).item() == pytest.approx(19.5, rel=1e-4)


def test_a_weighting_of_the_attack_is_refused_with_trades_alone() -> None:
    for variant in ("pgd", "alp"):
        build(variant=variant, weighting="brw")
    with pytest.raises(UserError, match=r"^he: got the weighting brw; [^\n]*trades[^\n]*only none$"):
        build(variant="trades", weighting="brw")


@pytest.mark.parametrize(
    "knobs",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"margin": -0.1},
        {"margin": 2.1},
        {"margin": math.nan},
        {"variant": "trades", "beta": -1.0},
        {"variant": "alp", "beta": math.inf},
        {"beta": 6.0},
    ],
    ids=str,
)
def test_nonsense_is_refused_in_one_line_that_names_the_knob(knobs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^method {list(knobs)[-1]}: got [^\n]+$"):
        build(**knobs)


def test_an_unknown_variant_is_refused_with_those_allowed() -> None:
    with pytest.raises(UserError, match=r"^unknown variant 'trade'; allowed: alp, pgd, trades; did you mean 'trades'"):
        build(variant="trade")
