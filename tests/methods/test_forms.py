"""Which methods are one another where a part is off, where the outer loss enters, what is attacked,
what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taet.data.loader import Batch
from taet.errors import UserError
from taet.losses import balanced_softmax, boosted_cross_entropy, kl_divergence
from taet.losses.consistency import misclassification_kl
from taet.models import Classifier
from tests.methods.conftest import (
    COUNTS,
    Network,
    built,
    loss_on,
    make_attack,
    perturb,
    state_of,
    trained_step,
)

One = tuple[str, int, dict[str, Any]]  # name, epoch, settings
NO_HEL = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}

SAME: list[tuple[One, One]] = [
    (("at-bsl", 9, {}), ("at", 9, {"outer": "balanced-softmax"})),
    (("reat", 9, {"rbl": False, "bsl": False, "tail": False}), ("at", 9, {})),
    (("faal", 9, {"radius": 0.0}), ("at", 9, {})),
    (("faal", 5, {}), ("at", 5, {})),
    (("faal", 9, {"radius": 0.0, "form": "trades"}), ("trades", 9, {})),
    (("gairat", 5, {}), ("at", 5, {})),
    (("gairat", 9, {"task": {"milestones": ()}}), ("at", 9, {})),
    (("frl", 5, {}), ("at", 5, {})),
    (("frl", 9, {"beta": 6.0}), ("trades", 9, {})),  # before any feedback
    (("cfa", 0, {}), ("trades", 0, {})),
    (("dafa", 0, {}), ("trades", 0, {})),
    (("class-budget", 0, {"rule": "dafa", "base": "las-at"}), ("las-at", 0, {})),
    (("class-budget", 4, {"base": "at-bsl"}), ("robust-lt", 4, {})),
    (("taet", 0, {"outer": "balanced-softmax"}), ("standard", 0, {"outer": "balanced-softmax"})),
    (("taet", 9, {"outer": "balanced-softmax"}), ("harl", 9, {})),
    (("taet", 9, {**NO_HEL, "clean_share": 0.0, "outer": "balanced-softmax"}), ("at-bsl", 9, {})),
    (("taet", 9, {"absent": "ema", "alpha": 0.3}), ("harl", 9, {"absent": "ema", "alpha": 0.3})),
]


def ids(pairs: list[Any]) -> list[str]:
    return ["-".join([pair[0][0], *map(str, pair[0][2].items())]) for pair in pairs]


@pytest.mark.parametrize(("one", "other"), SAME, ids=ids(SAME))
def test_they_train_alike(one: One, other: One, network: Network, digits: Batch) -> None:
    found = []
    for name, epoch, settings in (one, other):
        method, model = built(name, epoch, **settings), network(10)
        method.start_epoch(epoch, method.class_counts)
        loss = trained_step(method, model, digits)
        found.append([loss.total, loss.logits, *state_of(model).values()])
    rounding = {"rtol": 1e-5, "atol": 1e-6} if one[0] in ("cfa", "frl") else {"rtol": 0, "atol": 0}
    for mine, theirs in zip(*found, strict=True):  # those two weigh both terms
        torch.testing.assert_close(mine, theirs, **rounding)


# -- the outer loss

NUMBERS = torch.tensor((30.0, 6.0, 1.0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 0, 1])
NATURAL, LOGITS = torch.randn(
    2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
)
SOFT = torch.full((6, 3), 0.15).scatter(1, LABELS[:, None], 0.7).double()
WEIGHTS = torch.linspace(1, 2, 6, dtype=torch.float64)


def balanced(logits: Tensor) -> Tensor:
    return balanced_softmax(logits, LABELS, NUMBERS).mean()


def apart(scale: float = 1.0) -> Tensor:
    return kl_divergence(NATURAL / scale, LOGITS / scale).mean()


def lowered(logits: Tensor, margin: float) -> Tensor:
    return logits - margin * F.one_hot(LABELS, 3)


# Under balanced softmax, on logits NATURAL and LOGITS; only terms on labels have the prior.
EXPECTED: list[tuple[str, dict[str, Any], Callable[[], Tensor]]] = [
    ("at", {}, lambda: balanced(LOGITS)),
    ("standard", {}, lambda: balanced(LOGITS)),
    ("trades", {}, lambda: balanced(NATURAL) + 6 * apart()),
    ("mart", {}, lambda: boosted_cross_entropy(LOGITS + NUMBERS.log(), LABELS).mean()
     + 5 * misclassification_kl(NATURAL, LOGITS, LABELS).mean()),
    ("he", {}, lambda: balanced(lowered(LOGITS, 15 * 0.2))),
    ("he", {"variant": "trades"}, lambda: balanced(lowered(NATURAL, 3)) + 6 * apart()),
    ("he", {"variant": "alp", "scale": 2.0},
     lambda: (balanced(lowered(NATURAL, 0.4)) + balanced(lowered(LOGITS, 0.4))) / 2 + 0.5 * ((NATURAL - LOGITS) / 2).square().mean()),  # noqa: E501
    ("robal", {}, lambda: balanced(LOGITS) + 6 * apart(10)),
    ("las-at", {}, lambda: F.cross_entropy(LOGITS + NUMBERS.log(), SOFT)),
    ("gairat", {},
     lambda: (WEIGHTS * balanced_softmax(LOGITS, LABELS, NUMBERS)).sum() / WEIGHTS.sum()),
    ("frl", {}, lambda: balanced(NATURAL) + 1.5 * apart()),
    ("wat", {}, lambda: 2 * (balanced(NATURAL) + 6 * apart())),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "knobs", "expected"), EXPECTED, ids=[f"{n}-{k}" for n, k, _ in EXPECTED]
)
def test_the_outer_loss_replaces_the_terms_on_labels(
    name: str, knobs: dict[str, Any], expected: Any
) -> None:
    method = built(name, 9, (30, 6, 1), "balanced-softmax", **knobs).double()
    loss = loss_on(method, NATURAL, LOGITS, LABELS, weights=WEIGHTS)
    torch.testing.assert_close(loss.total, expected(), rtol=1e-6, atol=0)
    assert loss.logits is LOGITS, "predictions are counted on raw logits"


@pytest.mark.parametrize("name", ["mart", "las-at"])
def test_class_weights_act_on_all_of_a_label_term(name: str) -> None:
    method = built(name, 9, (30, 6, 1), "class-balanced").double()
    weights = method.outer.weights[LABELS] / method.outer.weights[LABELS].mean()
    assert weights.std() > 0.1
    each = (
        boosted_cross_entropy(LOGITS, LABELS)
        if name == "mart"
        else F.cross_entropy(LOGITS, SOFT, reduction="none")
    )
    loss = loss_on(method, NATURAL, LOGITS, LABELS)
    torch.testing.assert_close(
        loss.parts.get("label", loss.total), (weights * each).mean(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("name", ["trades", "mart", "wat", "frl", "cfa"])
def test_gradients_flow_through_both_predictions(name: str) -> None:
    method = built(name, 9, (30, 6, 1)).double()
    natural, logits = (each.clone().requires_grad_() for each in (NATURAL, LOGITS))
    assert torch.autograd.gradcheck(
        lambda a, b: loss_on(method, a, b, LABELS).total, (natural, logits)
    )


# -- the attack

ATTACKED = [("at", {}), ("at-bsl", {}), ("mart", {}), ("harl", {}), ("robal", {}), ("gairat", {}),
            ("he", {}), ("he", {"variant": "alp"}), ("reat", {"rbl": False}), ("trades", {}),
            ("wat", {}), ("frl", {}), ("he", {"variant": "trades"}), ("faal", {"form": "trades"})]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(("name", "knobs"), ATTACKED, ids=map(str, ATTACKED))
def test_the_attack_is_the_protocols_on_the_logits_of_the_model(
    name: str, knobs: dict[str, Any], network: Network, digits: Batch
) -> None:
    """On the cross-entropy without prior and margin, or on the divergence from one clean pass,
    without labels."""
    method = built(name, 9, **knobs)
    model: Classifier = network(10, head=method.task.head).eval()
    passes: list[None] = []
    model.register_forward_hook(lambda *_: passes.append(None))
    found = perturb(method, model, digits, make_attack()).x
    if method.label_attack:
        expected = make_attack()(model, digits.x, digits.y)
    else:
        assert len(passes) == 1 + 2
        natural = model(digits.x).detach()
        expected = make_attack()(
            model, digits.x, 0 * digits.y, lambda logits, _: kl_divergence(natural, logits)
        )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("eps", [8 / 255, 0.6])
def test_n_fgsm_takes_one_gradient_and_goes_up_to_three_eps(
    eps: float, network: Network, digits: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *given, **more: calls.append(1) or grad(*given, **more)
    )
    x = perturb(built("n-fgsm"), network(10), digits, make_attack(eps=eps, steps=7)).x
    assert len(calls) == 1, "whatever the number of steps of the protocol"
    assert min(0.9 * eps, 0.5) < (x - digits.x).abs().max() <= 3 * eps + 1e-6


# -- stages and refusals


@pytest.mark.parametrize(
    ("name", "epochs", "settings", "expected"),
    [
        ("taet", 30, {}, {"clean": 12, "adversarial": 18}),
        ("taet", 1, {}, {"adversarial": 1}),
        ("standard", 10, {}, {"clean": 10}),
        ("gairat", 10, {}, {"burn-in": 6, "weighted": 4}),
        ("frl", 10, {"begin": 0.3}, {"burn-in": 3, "fair": 7}),
        ("robust-lt", 10, {"base": "gairat"}, {"burn-in": 6, "weighted": 4}),
    ],
)
def test_stages(name: str, epochs: int, settings: dict[str, Any], expected: dict[str, int]) -> None:
    stages = built(name, task={"epochs": epochs}, **settings).task.stages
    assert stages == tuple(stage for stage, length in expected.items() for _ in range(length))


REFUSED = [
    (
        "robal",
        {"outer": "focal", "margin": 0.0},
        "robal: got margin 0 and the outer loss focal, .+cross-entropy only",
    ),
    (
        "las-at",
        {"eps": (5, 3)},
        "method eps: got .+; allowed: 2 whole numbers, lowest and highest, within 0 to 255",
    ),
    (
        "taet",
        {"outer": "focal", "clean_share": 0.0},
        "taet: got the outer loss focal; .+ of 10 epochs none is clean",
    ),
    ("harl", NO_HEL, "harl: got alpha, beta and gamma 0, which leaves no loss; allowed: .+"),
    (
        "cfa",
        {"base": "at", "regulariser": "scaled"},
        "method regulariser: got scaled, .+ no divergence to weigh; .+",
    ),
    ("cfa", {"task": {"epochs": 1}}, "method begin: got 0.05 of 1 epochs; allowed: .+"),
    (
        "dafa",
        {"base": "taet", "base_settings": {"clean_share": 0.8}},
        "method warm up: .+ ends without an attack; .+",
    ),
    (
        "frl",
        {"task": {"monitored_epochs": (3, 9)}},
        "frl: got no point of the curve that it could use; allowed: .+",
    ),
    (
        "frl",
        {"begin": 1.0},
        "method begin: got 1 of 10 epochs; allowed: a share that leaves an epoch after it",
    ),
    (
        "robust-lt",
        {"base": "robust-lt"},
        "method base: got 'robust-lt'; allowed: a method that wraps no other",
    ),
    (
        "dafa",
        {"base": "standard"},
        "method base: got standard, which attacks in no epoch; allowed: one that does",
    ),
    (
        "cfa",
        {"base": "trads"},
        r"method base trads: unknown method 'trads'; .+did you mean 'trades'\?",
    ),
    (
        "cfa",
        {"base": "trades", "base_settings": {"bta": 3}},
        "method base trades: unknown field of Config 'bta'; .+",
    ),
]


@pytest.mark.parametrize(
    ("name", "settings", "message"), REFUSED, ids=[f"{n}-{s}" for n, s, _ in REFUSED]
)
def test_what_cannot_be_is_refused_in_one_line(
    name: str, settings: dict[str, Any], message: str
) -> None:
    settings = {"base_settings": {}, **settings} if settings.get("base") == "trads" else settings
    with pytest.raises(UserError, match=f"^{message}$"):
        built(name, **settings)


def test_published_constants_are_those_of_the_form_and_of_many_classes() -> None:
    one, many = COUNTS, (3,) * 100
    assert [built("dafa", counts=counts, base="at").rule.lam for counts in (one, many)] == [
        1.0,
        1.5,
    ]
    found = [
        built("robal", counts=counts, form=form).constants
        for form in "RN"
        for counts in (one, many)
    ]
    assert [c["tau_b"] for c in found] == [1.5, 0, 1.2, 0]
    assert [c["margin"] for c in found] == [0.1, 0.3, 0.1, 0.2]
    assert [c["tau_p"] for c in found] == [0, 1.7, 0.1, 1.5]
    assert [c["beta"] for c in found] == [6, 6, 6, 3]
    assert built("robal", counts=many, tau_p=0.5).constants == {**found[1], "tau_p": 0.5}
    # The prior is in the outer loss or in the deployed logits.
    assert built("robal", counts=many, form="N").offset().mean().item() == pytest.approx(
        -1.5 * math.log(100)
    )
    assert not built("robal", counts=many, outer="balanced-softmax").offset().any()
