"""RoBal: golden losses and logits, its published constants, and its knobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet import methods
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.errors import UserError
from taet.losses import balanced_softmax
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack
from taet.models import Classifier, Head
from taet.models.heads import build_head
from taet.settings import Outer, Threat

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "methods.json").read_text())
COUNTS = (14, 12, 10, 9, 8, 7, 6, 5, 4, 3)


def build(counts: tuple[int, ...] = COUNTS, outer: Any = "cross-entropy", **knobs: Any) -> Method:
    return methods.build("robal", knobs, Task(counts, (1, 8, 8), epochs=10, steps_per_epoch=1, outer=Outer(name=outer)))


def counts_of(inputs: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in inputs["class_counts"])


def scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """A model whose input is its cosines."""
    return lambda cosines: factor * cosines


@pytest.mark.parametrize("form", ["R", "N"])
def test_golden_loss_with_the_published_constants(form: Any) -> None:
    golden = GOLDEN[f"robal_{form}_cifar10lt"]
    inputs, expected = golden["inputs"], golden["expected"]
    natural, attacked = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("cos_nat", "cos_adv"))
    method = build(counts_of(inputs), form=form)
    loss = method.loss(scaled(inputs["s"]), natural, torch.tensor(inputs["labels"]), Adversarial(attacked))
    close = {"abs": golden["tolerance"]}
    assert loss.parts["label"].item() == pytest.approx(expected["multimargin"], **close)
    assert loss.parts["kl"].item() == pytest.approx(expected["kl_scale1"], **close)
    assert loss.total.item() == pytest.approx(expected["loss"], **close)
    assert torch.equal(loss.logits, 10 * attacked)


def test_golden_logits_of_the_deployed_model() -> None:
    golden = GOLDEN["robal_posthoc_head_scale10_tau0.1"]
    inputs = golden["inputs"]
    method = build(counts_of(inputs), form="N").double()
    assert (method.task.head.scale, method.task.head.gamma) == (inputs["scale"], inputs["gamma"])
    features, weight = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("features", "weight"))
    head = build_head(method.task.head, 4, 3)
    model = Classifier(nn.Flatten(), head, num_classes=3, channels=1).double()
    head.load_state_dict({"weight": weight})
    model.offset.copy_(method.offset())
    expected = torch.tensor(golden["expected"], dtype=torch.float64)
    torch.testing.assert_close(model(features[:, None, None]), expected, rtol=0, atol=golden["tolerance"])


@pytest.mark.parametrize(
    ("form", "classes", "expected"),
    [
        ("R", 10, {"margin": 0.1, "tau_b": 1.5, "tau_m": 0.3, "beta": 6, "gamma": 1 / 32, "tau_p": 0}),
        ("N", 10, {"margin": 0.1, "tau_b": 1.2, "tau_m": 0, "beta": 6, "gamma": 1 / 32, "tau_p": 0.1}),
        ("R", 99, {"margin": 0.1, "tau_b": 1.5, "tau_m": 0.3, "beta": 6, "gamma": 1 / 32, "tau_p": 0}),
        ("R", 100, {"margin": 0.3, "tau_b": 0, "tau_m": 0, "beta": 6, "gamma": 1 / 16, "tau_p": 1.7}),
        ("N", 100, {"margin": 0.2, "tau_b": 0, "tau_m": 0, "beta": 3, "gamma": 1 / 32, "tau_p": 1.5}),
    ],
)
def test_published_constants_by_form_and_number_of_classes(form: str, classes: int, expected: dict[str, float]) -> None:
    method = build(tuple(range(classes + 1, 1, -1)), form=form)
    assert method.constants._asdict() == expected | {"scale": 10}
    assert method.task.head == Head("cosine", scale=10, gamma=expected["gamma"])


def test_a_constant_of_ones_own_replaces_the_published_one_alone() -> None:
    assert build(tau_p=0.5).constants == build().constants._replace(tau_p=0.5)
    assert build(margin=0.0, form="N").constants == build(form="N").constants._replace(margin=0.0)
    assert build(scale=16.0, gamma=0.0).task.head == Head("cosine", scale=16, gamma=0)


def test_the_margin_of_a_class_shrinks_with_its_rarity() -> None:
    """u as the paper writes it, entry by entry."""
    counts, knobs = (100, 20, 5), {"margin": 0.2, "scale": 7.0, "tau_b": 0.4, "tau_m": 0.9}
    method = build(counts, **knobs)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 2, 0])
    u = method.with_margins(logits, y)
    for i, label in enumerate(y.tolist()):
        for c, n in enumerate(counts):
            expected = logits[i, c].item() + 0.4 * math.log(n / 125)
            if c == label:
                expected -= 7 * 0.2 + 0.9 * math.log(n / 5)
            assert u[i, c].item() == pytest.approx(expected, abs=1e-12)


def test_an_outer_loss_of_the_run_takes_the_place_of_the_margin_loss_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    natural, attacked = (2 * torch.rand(6, 3, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    y, counts = torch.tensor([0, 1, 2, 0, 1, 0]), (100, 20, 5)
    ours, balanced = (
        build(counts, outer).loss(scaled(10), natural, y, Adversarial(attacked))
        for outer in ("cross-entropy", "balanced-softmax")
    )
    assert torch.equal(ours.parts["kl"], balanced.parts["kl"])
    expected = balanced_softmax(10 * attacked, y, torch.tensor(counts)).mean()
    torch.testing.assert_close(balanced.parts["label"], expected, rtol=1e-10, atol=0)
    assert ours.parts["label"] != balanced.parts["label"]
    torch.testing.assert_close(balanced.total, balanced.parts["label"] + 6 * balanced.parts["kl"])


@pytest.mark.parametrize("outer", ["cross-entropy", "focal", "class-balanced", "balanced-softmax", "logit-adjustment"])
@pytest.mark.parametrize(("classes", "form", "published"), [(10, "N", 0.1), (100, "R", 1.7)])
def test_the_prior_is_in_the_outer_loss_or_in_the_deployed_logits(
    outer: str, classes: int, form: str, published: float
) -> None:
    counts = tuple(range(classes + 1, 1, -1))
    expected = 0 if outer in ("balanced-softmax", "logit-adjustment") else published
    method = build(counts, outer, form=form)
    assert method.constants == build(counts, form=form).constants._replace(tau_p=expected)
    assert method.offset().any() == (expected > 0)
    assert build(counts, outer, form=form, tau_p=0.5).constants.tau_p == 0.5, "it was asked for"


@pytest.mark.parametrize("knob", ["margin", "tau_b", "tau_m"])
def test_constants_of_the_margin_loss_are_refused_where_another_takes_its_place(knob: str) -> None:
    knobs = {knob: 0.0}
    assert build(**knobs).constants._asdict()[knob] == 0
    words = f"^robal: got {knob} 0 and the outer loss focal, [^\n]+; allowed: with cross-entropy only$"
    with pytest.raises(UserError, match=words):
        build(outer="focal", **knobs)


def test_the_attack_is_the_one_of_the_protocol_on_the_logits_of_the_model(
    network: Callable[..., Classifier], digits: Batch
) -> None:
    method = build()
    model = network(10, head=method.task.head).eval()

    def attack() -> Attack:
        return Attack(Threat(steps=2), Source(torch.Generator().manual_seed(0)))

    found = method.perturb(model, digits.x, digits.y, attack()).x
    assert torch.equal(found, attack()(model, digits.x, digits.y))


def test_a_step_forwards_the_clean_and_the_attacked_images_once(
    network: Callable[..., Classifier], digits: Batch
) -> None:
    method = build()
    model = network(10, head=method.task.head)
    seen: list[Tensor] = []
    model.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attacked = (digits.x + 0.01).clamp(0, 1)
    method.loss(model, digits.x, digits.y, Adversarial(attacked))
    assert len(seen) == 2
    assert torch.equal(seen[0], digits.x)
    assert torch.equal(seen[1], attacked)


def test_a_class_without_an_image_counts_as_one() -> None:
    method = build((10, 0, 2))
    loss = method.loss(scaled(10), torch.zeros(2, 3), torch.tensor([0, 2]), Adversarial(torch.zeros(2, 3)))
    assert torch.isfinite(loss.total)
    assert torch.isfinite(build((10, 0, 2), form="N").offset()).all()


def test_the_offset_is_the_log_prior_where_one_is_published() -> None:
    assert (build().offset() == 0).all()
    expected = [0.1 * math.log(n / sum(COUNTS)) for n in COUNTS]
    assert build(form="N").offset().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("knob", ["margin", "scale", "tau_b", "tau_m", "beta", "gamma", "tau_p"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_nonsense_is_refused_in_one_line_that_names_the_knob(knob: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^method {knob.replace('_', ' ')}: got {value}; allowed: [^\n]+$"):
        build(**{knob: value})


def test_a_scale_of_zero_and_an_unknown_form_are_refused() -> None:
    with pytest.raises(UserError, match=r"^method scale: got 0; allowed: above 0$"):
        build(scale=0.0)
    with pytest.raises(UserError, match=r"^unknown form 'r'; allowed: N, R"):
        build(form="r")
