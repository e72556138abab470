"""Losses with one value per sample: golden numbers, loops over samples, gradients, examples, wrong
inputs."""

import doctest
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import taet.losses
from taet.losses import (
    balanced_softmax,
    boosted_cross_entropy,
    class_balanced,
    cross_entropy,
    effective_number_weights,
    focal,
    hierarchical_equalization,
    kl_divergence,
    ldam,
    logit_adjustment,
    rebalancing_weights,
)
from taet.losses.consistency import misclassification_kl, runner_up_penalty
from taet.losses.ldam import ldam_margins
from taet.losses.outer import OuterLoss
from taet.settings import Outer
from tests.calls import one_line
from tests.golden_numbers import Golden

COUNTS = torch.tensor([400.0, 90.0, 25.0, 10.0, 3.0])
Inputs = dict[str, Any]

# (logits, labels, class_counts, other logits) -> (N,)
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda z, y, _, __: cross_entropy(z, y),
    "balanced_softmax": lambda z, y, n, _: balanced_softmax(z, y, n),
    "logit_adjustment": lambda z, y, n, _: logit_adjustment(z, y, n, 0.7),
    "focal-softmax": lambda z, y, _, __: focal(z, y),
    "focal-softmax-half": lambda z, y, _, __: focal(z, y, 0.5),
    "focal-sigmoid": lambda z, y, _, __: focal(z, y, form="sigmoid"),
    "focal-sigmoid-half": lambda z, y, _, __: focal(z, y, 0.5, "sigmoid"),
    "class_balanced": lambda z, y, n, _: class_balanced(z, y, n),
    "ldam": lambda z, y, n, _: ldam(z, y, n),
    "kl": lambda z, _, __, p: kl_divergence(p, z),
    "misclassification-kl": lambda z, y, _, p: misclassification_kl(p, z, y),
    "boosted": lambda z, y, _, __: boosted_cross_entropy(z, y),
    "runner-up": lambda z, y, _, __: runner_up_penalty(z, y),
}


def outer(i: Inputs, scale: float = 1.0, drw_from: int | None = None, **settings: Any) -> Tensor:
    """The mean of the outer loss with these settings, on logits or on cosines times a scale."""
    loss = OuterLoss(Outer(**settings), i["class_counts"], scale, drw_from)
    return loss(scale * i.get("logits", i.get("cosines")), i["labels"]).mean()


def effective(i: Inputs) -> Tensor:
    return effective_number_weights(i["class_counts"], i["beta"])[i["labels"]]


def rebalanced(i: Inputs) -> Tensor:
    weights = rebalancing_weights(i["class_counts"], i["adv_pred_counts"])[i["labels"]]
    return (weights * cross_entropy(i["logits"], i["labels"])).sum() / weights.sum()


def focal_by_class(i: Inputs) -> Tensor:
    return outer(i, name="focal", focal_form="sigmoid", drw=True, drw_from=0, divide_by="batch")


# What each golden number is, from its inputs i; the key may end in /field of what is expected.
NUMBERS: dict[str, Callable[[Inputs], Tensor]] = {
    "at_ce_mean": lambda i: cross_entropy(i["logits"], i["labels"]).mean(),
    "balanced_softmax": lambda i: balanced_softmax(
        i["logits"], i["labels"], i["class_counts"]
    ).mean(),
    "logit_adjust_train_tau1.0": lambda i: logit_adjustment(**i).mean(),
    "logit_adjust_train_tau1.5": lambda i: logit_adjustment(**i).mean(),
    "focal_softmax_gamma2": lambda i: focal(**i).mean(),
    "focal_sigmoid_gamma2": lambda i: focal(**i, form="sigmoid").mean(),
    "cb_weights_beta0.9999": lambda i: effective_number_weights(**i),
    "cb_softmax/divide_by_B": lambda i: class_balanced(**i).mean(),
    "cb_softmax/divide_by_sum_w": lambda i: class_balanced(**i).sum() / effective(i).sum(),
    "cb_focal_sigmoid_beta0.9999_gamma2": focal_by_class,
    "ldam_s30_m0.5/margins": lambda i: ldam_margins(i["class_counts"], i["max_m"]),
    "ldam_s30_m0.5/loss": lambda i: ldam(
        i["cosines"], i["labels"], i["class_counts"], i["max_m"], i["s"]
    ).mean(),
    "ldam_drw_s30_m0.5": lambda i: outer(i, 30.0, name="ldam", drw=True, drw_from=0),
    "harl_all_present": lambda i: hierarchical_equalization(**i).total,
    "harl_absent_class/loss_official": lambda i: hierarchical_equalization(**i).total,
    "harl_absent_class/loss_present_only": lambda i: (
        hierarchical_equalization(**i, absent="skip").total
    ),
    "reat_rbl/loss": rebalanced,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("key", NUMBERS)
def test_golden(key: str, dtype: torch.dtype) -> None:
    name, _, field = key.partition("/")
    golden = Golden(name)
    inputs = {what: golden[what] for what in golden.raw}
    inputs |= {
        what: value.to(dtype)
        for what, value in inputs.items()
        if getattr(value, "dtype", 0) == torch.float64
    }
    expected = torch.tensor(golden.expected[field] if field else golden.expected, dtype=dtype)
    exact = dtype == torch.float64
    tolerance = {"atol": golden.tolerance, "rtol": 0} if exact else {"atol": 0, "rtol": 1e-5}
    torch.testing.assert_close(NUMBERS[key](inputs), expected, **tolerance)


def batch(samples: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, those of another prediction, labels."""
    generator = torch.Generator().manual_seed(5)
    logits, other = 3 * torch.randn(
        2, samples, len(COUNTS), generator=generator, dtype=torch.float64
    )
    return logits, other, torch.randint(len(COUNTS), (samples,), generator=generator)


def softmax(z: list[float]) -> list[float]:
    return [math.exp(v) / sum(map(math.exp, z)) for v in z]


def softmax_of_prior(z: list[float], n: list[int], power: float) -> list[float]:
    """The softmax of logits to which power times the logarithm of the counts is added."""
    return softmax([v + power * math.log(c) for v, c in zip(z, n, strict=True)])


def divergence(p: list[float], q: list[float], tiny: float = 0.0) -> float:
    return sum(a * (math.log(a) - math.log(b + tiny)) for a, b in zip(p, q, strict=True))


def test_losses_agree_with_loops_over_samples_and_classes() -> None:
    logits, other, labels = batch()
    losses = {name: loss(logits, labels, COUNTS, other) for name, loss in LOSSES.items()}
    n = COUNTS.tolist()
    weights = [1e-4 / (1 - 0.9999**c) for c in n]
    margins = [0.5 * c**-0.25 / 3**-0.25 for c in n]
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        p = softmax(other[i].tolist())
        q = softmax(z)
        binary = [1 / (1 + math.exp(-v if c == y else v)) for c, v in enumerate(z)]
        moved = [30 * (v - margins[c] * (c == y)) for c, v in enumerate(z)]
        runner_up = max(v for c, v in enumerate(q) if c != y)
        penalty = -math.log(1.0001 - runner_up + 1e-12)
        expected = {
            "cross_entropy": -math.log(q[y]),
            "balanced_softmax": -math.log(softmax_of_prior(z, n, 1.0)[y]),
            "logit_adjustment": -math.log(softmax_of_prior(z, n, 0.7)[y]),
            "focal-softmax": -((1 - q[y]) ** 2) * math.log(q[y]),
            "focal-softmax-half": -((1 - q[y]) ** 0.5) * math.log(q[y]),
            "focal-sigmoid": sum(-((1 - v) ** 2) * math.log(v) for v in binary),
            "focal-sigmoid-half": sum(-((1 - v) ** 0.5) * math.log(v) for v in binary),
            "class_balanced": -5 * weights[y] / sum(weights) * math.log(q[y]),
            "ldam": math.log(sum(math.exp(v - moved[y]) for v in moved)),
            "kl": divergence(p, q),
            "misclassification-kl": divergence(p, q, tiny=1e-12) * (1.0000001 - p[y]),
            "boosted": -math.log(q[y]) + penalty,
            "runner-up": penalty,
        }
        assert expected.keys() == losses.keys()
        for name, value in expected.items():
            assert losses[name][i].item() == pytest.approx(value, rel=1e-8, abs=1e-12), name


def test_no_value_of_a_label_decides_a_branch_of_the_cross_entropy() -> None:
    logits, _, labels = batch()
    whole = torch.compile(cross_entropy, fullgraph=True, backend="eager")
    assert torch.equal(
        torch.func.vmap(cross_entropy)(logits[None], labels[None])[0], whole(logits, labels)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences_in_all_predictions(name: str) -> None:
    logits, other, labels = batch(samples=3)
    inputs = (logits.requires_grad_(), other.requires_grad_("kl" in name))
    assert torch.autograd.gradcheck(
        lambda z, p: LOSSES[name](z, labels, COUNTS, p), inputs, check_undefined_grad=False
    )


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment", "class_balanced", "ldam"])
def test_a_class_without_a_training_image_counts_as_one(name: str) -> None:
    logits, labels = torch.zeros(2, 3), torch.tensor([2, 0])
    none, one = (LOSSES[name](logits, labels, np.array([4, 2, last]), logits) for last in (0, 1))
    assert torch.isfinite(none).all()
    torch.testing.assert_close(none, one)


# -- what users meet

FUNCTIONS = {
    name: f for name in taet.losses.__all__ if inspect.isfunction(f := getattr(taet.losses, name))
}
LABELLED = [
    name
    for name, function in FUNCTIONS.items()
    if "labels" in inspect.signature(function).parameters
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_the_docstring_runs_and_prints_what_it_says(name: str) -> None:
    function = FUNCTIONS[name]
    found = doctest.DocTestFinder(recurse=False).find(
        function, name, module=importlib.import_module(function.__module__)
    )
    examples = [example for test in found for example in test.examples]
    assert f"from taet.losses import {name}" in "".join(example.source for example in examples)
    assert any(example.want for example in examples), "it prints something"
    assert sum(doctest.DocTestRunner().run(test).failed for test in found) == 0


def call(name: str, labels: Tensor, **settings: Any) -> object:
    given: Inputs = {"labels": labels, "class_counts": torch.tensor([40, 20, 10, 5])}
    given |= dict.fromkeys(
        ("logits", "cosines", "features", "target_logits"), torch.linspace(-1, 1, 12).reshape(3, 4)
    )
    wanted = inspect.signature(FUNCTIONS[name]).parameters
    return FUNCTIONS[name](**{key: given[key] for key in wanted if key in given} | settings)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_no_classes_are_refused(name: str) -> None:
    call(name, torch.tensor([0, 1, 3]))
    for wrong in (4, -1, -100):
        for form in ({}, {"form": "sigmoid"}) if name == "focal" else ({},):
            with one_line(rf"labels: got {wrong}; allowed: 0 to 3, one per logit"):
                call(name, torch.tensor([0, wrong, 1]), **form)
    for labels in (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1]), torch.eye(3, 4)):
        with one_line(r"labels: got torch\.\w+ \(.*\) with values \(3, 4\); allowed: torch.int64"):
            call(name, labels)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("focal", {"gamma": -1.0}, "gamma: got -1; allowed: "),
        ("focal", {"form": "soft"}, r"unknown focal form 'soft'.*did you mean 'softmax'\?"),
        ("logit_adjustment", {"tau": -0.5}, "tau: got -0.5; allowed: "),
        (
            "tail_margin",
            {"form": "perpair"},
            r"unknown tail margin 'perpair'.*did you mean 'per-pair'\?",
        ),
        (
            "hierarchical_equalization",
            {"absent": "drop"},
            "unknown absent 'drop'; allowed: ema, skip, zero",
        ),
        (
            "ldam",
            {"class_counts": torch.tensor([5])},
            r"class counts: got shape \(1,\) with logits \(3, 4\); allowed",
        ),
    ],
)
def test_a_constant_out_of_its_bounds_is_named(name: str, settings: Inputs, message: str) -> None:
    with one_line(f"^{message}"):
        call(name, torch.tensor([0, 1, 2]), **settings)
