"""Losses, weights and examples of every method against numbers of an independent float64
implementation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taet.attacks.noise import Source
from taet.methods.adt import ascend, mean_log
from taet.methods.base import Adversarial, Attack, Loss
from taet.methods.dafa import class_weights
from taet.methods.faal import least_favourable
from taet.methods.gairat import importance
from taet.methods.las_at import LARGEST_LOSS, reinforce
from taet.methods.robust_lt import class_budgets
from taet.models import Classifier
from taet.models.classifier import build_head
from taet.settings import Threat, Training
from taet.training.state import weight_average
from tests.golden_numbers import Golden, double
from tests.methods.conftest import built, loss_on, seen_of

EPS = 8 / 255


# -- losses

OWN = {"trades": {"beta": "beta"}, "mart": {"beta": "beta"}, "he": {"scale": "s", "margin": "m"},
       "las-at": {"label_mass": "factor"}}  # fmt: skip
"""Settings of a method that a golden number gives."""
INPUTS = [
    ("logits_nat", "logits_adv"),
    ("cos_nat", "cos_adv"),
    ("cosines",) * 2,
    ("logits",) * 2,
    ("logits_adv",) * 2,
]
"""Where a golden number has the clean and the attacked logits."""
PREPARE: dict[str, Callable[[Any, Golden], object]] = {
    "dafa": lambda method, g: method.factor.copy_(g["weights"]),
    "cfa": lambda method, _: hits(method, [0.9, 0.5, 0.1]),
    "wat": lambda method, g: method.weights.copy_(g["weights"]),
    "frl": lambda method, g: method.weights.copy_(
        torch.stack([g["weight_natural"], g["weight_boundary"]])
    ),
}
"""What a method has learned before."""


def hits(method: Any, robust: Any, epoch: int = 1) -> None:
    """The start of this epoch, after one in which these shares of ten images were classified
    correctly."""
    labels = torch.arange(len(robust)).repeat_interleave(10)
    right = torch.cat([torch.arange(10) < round(10 * float(share)) for share in robust])
    predicted = torch.where(right, labels, (labels + 1) % len(robust))
    method.rule.observe(epoch - 1, F.one_hot(predicted, len(robust)).float(), labels)
    method.start_epoch(epoch, method.class_counts)


def loss_of(g: Golden, name: str, knobs: dict[str, Any]) -> Loss:
    own = {knob: g[value] for knob, value in OWN.get(name, {}).items()}
    method = built(name, 0, g.counts, **own, **knobs).double()
    PREPARE.get(name, lambda *_: None)(method, g)
    method.enter(9)
    if name == "reat":
        model: Any = SimpleNamespace(
            features=lambda _: g["features"], classify=lambda h: h.new_zeros(len(h), 10)
        )
        x = torch.zeros(len(g["labels"]), 1)
        return method.loss(model, x, g["labels"], Adversarial(x))
    natural, attacked = (
        g.raw.get("s", 1.0) * g[side] for side in next(n for n in INPUTS if n[0] in g.raw)
    )
    info = {"weights": importance(g["kappa"], g["K"], "tanh", g["lam"])} if name == "gairat" else {}
    return loss_on(method, natural, attacked, g["labels"], **info)


MART = {"loss": "total", "bce": "label", "weighted_kl": "kl"}
ROBAL = {"loss": "total", "multimargin": "label", "kl_scale1": "kl"}
COUNTED, OFFICIAL = {"utility": "count-margin"}, {"utility": "count-margin", "absent": "official"}
# A golden number, the method and its settings, and what term each of its values is.
LOSSES: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    (
        "trades_outer_beta6",
        "trades",
        {},
        {"loss": "total", "ce_nat": "label", "kl_batchmean": "kl"},
    ),
    ("mart_outer_beta5", "mart", {}, MART),
    ("mart_outer_beta6", "mart", {}, MART),
    ("he_s15_m0.2", "he", {}, {"": "total"}),
    ("he_attack_s15_m0", "he", {}, {"": "total"}),
    ("robal_R_cifar10lt", "robal", {}, ROBAL),
    ("robal_N_cifar10lt", "robal", {"form": "N"}, ROBAL),
    ("gairat_outer", "gairat", {}, {"loss": "total"}),
    ("las_label_smooth_ce_f0.7", "las-at", {}, {"loss": "total"}),
    ("dafa_losses", "dafa", {"base": "at"}, {"at": "total"}),
    ("dafa_losses", "dafa", {}, {"trades": "total"}),
    ("cfa_ccr_loss", "cfa", {"regulariser": "official"}, {"official": "total"}),
    ("cfa_ccr_loss", "cfa", {}, {"ours": "total"}),
    ("faal_loss_margin", "faal", {}, {"at": "total"}),
    ("faal_loss_margin", "faal", {"form": "trades"}, {"trades": "total"}),
    ("faal_loss_count-margin", "faal", COUNTED, {"at": "total"}),
    ("faal_loss_count-margin", "faal", {**COUNTED, "form": "trades"}, {"trades": "total"}),
    ("faal_loss_absent", "faal", {}, {"skip at": "total"}),
    ("faal_loss_absent", "faal", OFFICIAL, {"official at": "total"}),
    ("wat_loss", "wat", {}, {"": "total"}),
    ("frl_loss", "frl", {}, {"": "total"}),
    ("reat_tail", "reat", {}, {"official_collapsed": "tail"}),
    ("reat_tail", "reat", {"form": "per-pair"}, {"per_pair": "tail"}),
    ("reat_tail_paper", "reat", {"form": "paper"}, {"": "tail"}),
]


@pytest.mark.parametrize(
    ("key", "name", "knobs", "terms"), LOSSES, ids=lambda value: str(value)[:30]
)
def test_losses(key: str, name: str, knobs: dict[str, Any], terms: dict[str, str]) -> None:
    golden = Golden(key)
    found = loss_of(golden, name, knobs)
    for field, term in terms.items():
        golden.check(found.total if term == "total" else found.parts[term], *field.split())


# -- weights and budgets by class


@pytest.mark.parametrize("form", ["tanh", "sigmoid", "discrete"])
def test_weights_of_gairat(form: Any) -> None:
    golden = Golden(f"gairat_weights_{form}")
    found = importance(golden["kappa"], golden["K"], form, golden["lam"])
    golden.check(found * len(found) / found.sum())


@pytest.mark.parametrize("name", ["budget_counts", "budget_counts_equal"])
def test_budgets_by_counts(name: str) -> None:
    golden = Golden(name)
    golden.check(class_budgets(golden["class_counts"], golden["a"]), "factor")


@pytest.mark.parametrize(
    "of", ["lambda1.0", "lambda1.5", "long_tail_lambda1.0", "long_tail_lambda1.5", "ties"]
)
def test_weights_of_dafa(of: str) -> None:
    golden = Golden(f"dafa_weights_{of}")
    golden.check(class_weights(golden["confusion"], golden["lam"], golden["floor"]), "weights")


def test_budgets_and_weights_of_cfa() -> None:
    golden = Golden("cfa_budget_beta")
    own = {name: golden[name] for name in ("lambda_1", "lambda_2")}
    method = built("cfa", counts=(4, 3, 2), task={"epochs": 20}, **own).double()

    def share() -> Tensor:
        return 6 * method.rule.strength / (1 + 6 * method.rule.strength)

    assert share().tolist() == pytest.approx([golden.expected["before_begin"]] * 3, abs=1e-8)
    hits(method, golden["robust"])
    golden.check(method.factor, "eps_factor")
    golden.check(share(), "class_beta")


def test_average_of_the_epochs_that_cfa_admits() -> None:
    golden = Golden("cfa_fawa")
    own = {"average": golden["decay"], "gate": "absolute", "threshold": golden["threshold"]}
    method = built("cfa", counts=(4, 3, 2), task={"epochs": 20}, **own)
    model = nn.Linear(1, 1, bias=False).double()
    average = weight_average(model, Training(), 0, method.average_decay)
    for epoch, (weight, worst) in enumerate(
        zip(golden.raw["weights"], golden.raw["worst_robust"], strict=True)
    ):
        nn.init.constant_(model.weight, weight)
        if method.accepts_epoch(epoch, seen_of(0.9, [0.5, worst, 0.9])):
            average.update_parameters(model)
        found = average.module.weight.item() if average.n_averaged else None
        assert found == pytest.approx(golden.expected["average"][epoch])


@pytest.mark.parametrize(
    "problem", ["r0.0", "r0.01", "r0.1", "r0.5", "r2.0", "absent", "equal", "one_class", "tie"]
)
def test_distributions_of_faal(problem: str) -> None:
    golden = Golden(f"faal_p_{problem}")
    u, q, r = golden["u"], golden["q"], golden["r"]
    p = least_favourable(u, q, r)
    golden.check(p, "p")
    if "kl" in golden.expected:
        assert torch.where(q > 0, q * (q / p).log(), 0.0).sum().item() == pytest.approx(r, abs=1e-9)
        golden.check(p @ u, "objective")


def test_costs_and_weights_of_wat() -> None:
    golden, method = Golden("wat_costs"), built("wat", counts=(4, 3, 2))
    labels, losses = golden["labels"], golden["losses"]
    images = torch.bincount(labels).double()
    sums = torch.zeros(3).double().index_add(0, labels, losses) / images
    half = seen_of(0.0, torch.zeros(3), sums / 2, images)
    # half from each term
    method.feedback(0, type(half)(**{**vars(half), "divergence": sums * images / 12}))
    golden.check(method.costs, "ours")
    golden, method = (
        Golden("wat_weights"),
        built("wat", counts=(4, 3, 2), task={"monitored_epochs": range(100)}).double(),
    )
    for costs, expected in zip(golden["costs"].cumsum(0), golden.expected["weights"], strict=True):
        method.costs.copy_(costs)
        method.feedback(0, seen_of(0.0, torch.zeros(3)))
        assert method.weights.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", ["frl_multipliers", "frl_multipliers_published"])
def test_multipliers_of_frl(name: str) -> None:
    golden = Golden(name)
    own = {
        "rate": golden["rate1"],
        "margin_rate": golden["rate2"],
        "delta": golden["delta"],
        "limit": golden["limit"],
    }
    task = {
        "epochs": 42,
        "milestones": (1,),
        "monitored_epochs": range(1, 41),
    }  # 40 feedbacks, as published
    method = built("frl", counts=(5, 4, 3, 2), task=task, **own).double()
    updates = golden.expected.get("updates", [None, None, golden.expected])
    for error, boundary, expected in zip(
        golden["natural_error"], golden["boundary_error"], updates, strict=True
    ):
        method.feedback(1, seen_of(1 - error, 1 - error - boundary))
        found = {f"lambda{number}": values for number, values in enumerate(method.multipliers)}
        found |= {
            "weight_natural": method.weights[0],
            "weight_boundary": method.weights[1],
            "factor": method.factor,
        }
        for key, values in (expected or {}).items():
            assert found[key].tolist() == pytest.approx(values, abs=1e-8), key


@pytest.mark.parametrize("key", ["reat_rbl", "reat_rbl_zero_count"])
def test_weights_of_reat_after_an_epoch_of_these_predictions(key: str) -> None:
    golden = Golden(key)
    method = built("reat", counts=golden.counts).double()
    before = method.weights
    method.start_epoch(1, golden["adv_pred_counts"])
    assert method.weights is before, "written in place"
    golden.check(method.weights, "weights")


# -- what else


def test_deployed_logits_of_robal() -> None:
    golden = Golden("robal_posthoc_head_scale10_tau0.1")
    method = built("robal", counts=golden.counts, form="N").double()
    assert (method.task.head.scale, method.task.head.gamma) == (golden["scale"], golden["gamma"])
    head = build_head(method.task.head, 4, 3)
    model = Classifier(nn.Flatten(), head, num_classes=3, channels=1).double()
    head.load_state_dict({"weight": golden["weight"]})
    model.offset.copy_(method.offset())
    golden.check(model(golden["features"][:, None, None]))


def test_entropy_of_adt() -> None:
    golden = Golden("adt_exp_entropy")
    noise, sigma = golden["noise"], F.softplus(golden["rho"])
    directions = torch.tanh(golden["mean"] + noise * sigma)
    golden.check(directions, "a")
    entropy = (
        noise.square().flatten(1).mean(1) / 2 + mean_log(sigma) + mean_log(1 - directions.square())
    )
    golden.check(entropy.mean(), "entropy")


@pytest.mark.parametrize(
    ("field", "accumulate"), [("official_accumulating", True), ("reset_each_step", False)]
)
def test_steps_of_the_fit_of_adt(field: str, accumulate: bool) -> None:
    golden = Golden("adt_exp_inner_steps")
    gradients = [-values for values in golden["grads_of_minimised_objective"]]
    for steps, expected in enumerate(golden.expected[field], 1):
        remaining = iter(gradients)
        value = ascend(
            lambda _, r=remaining: next(r), torch.zeros(3).double(), steps, golden["lr"], accumulate
        )
        torch.testing.assert_close(value, double(expected), rtol=0, atol=golden.tolerance)


def test_reinforce_of_las_at() -> None:
    golden, config = Golden("las_reinforce"), built("las-at").config
    reward = double(golden["R1"]).clamp(0, LARGEST_LOSS)
    reward = (
        reward
        + config.robust_reward * golden["rob_acc"]
        + config.clean_reward * golden["clean_acc"]
    )
    assert reward.item() == pytest.approx(golden.expected["reward"], abs=1e-7)
    log_probabilities = [double(logits).log_softmax(1) for logits in golden.raw["head_logits"]]
    golden.check(
        reinforce(log_probabilities, torch.tensor(golden.raw["actions"]).T, reward), "loss"
    )


class Given(Source):
    """A source of noise that gives one recorded draw."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def uniform(self, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        assert (low, high) == (-1, 1)
        return self.values.view(like.shape)

    def normal(self, like: Tensor) -> Tensor:
        return self.values.expand(like.shape)


def linear(golden: Golden) -> tuple[Any, Tensor, Tensor]:
    """A linear model, images and labels."""
    weight = golden["W"]
    return lambda x: x.flatten(1) @ weight.T, golden["x"][:, None, None], golden["labels"]


def test_attack_of_las_at() -> None:
    golden = Golden("las_masked_pgd_linear")
    (model, x, y), method = linear(golden), built("las-at", counts=(3, 2, 1))
    units = {
        name: [int(text.split("/")[0]) for text in golden.raw[name]] for name in ("eps", "alpha")
    }
    levels = [*zip(units["eps"], golden.raw["iters"], units["alpha"], strict=True)]
    choices = torch.tensor(levels) - torch.tensor([low for low, _ in method.ranges])
    attack: Any = Attack(Threat(eps=EPS), Given(golden["start"] / EPS))
    golden.check(method.attacked_by(model, x, y, attack, choices).x.flatten(1))


def test_examples_of_n_fgsm() -> None:
    golden = Golden("n_fgsm_linear")
    (model, x, y), eps = linear(golden), golden["eps"]
    attack: Any = Attack(Threat(eps=eps), Given(golden["uniform"]))
    found = (
        built("n-fgsm", counts=(4, 3, 2), noise=golden["k"]).double().perturb(model, x, y, attack).x
    )
    golden.check(found.flatten(1), "x_adv")
    assert ((found - x).abs().flatten(1).amax(1) / eps).tolist() == pytest.approx(
        golden.expected["radius_over_eps"]
    )


def test_examples_of_dafa() -> None:
    golden = Golden("dafa_attack_linear")
    model, x, y = linear(golden)
    eps, alpha = golden["eps"], golden["alpha"]
    method = built("dafa", counts=(5, 4, 3), base="at", task={"epochs": 11}).double()
    method.factor.copy_(golden["weights"])
    threat = Threat(eps=eps, step_size=alpha, steps=golden["K"], start="gaussian")
    attack: Any = Attack(threat, Given(double(1000 * golden["start"])))
    found = method.perturb(model, x, y, attack).x  # a Gaussian start takes a thousandth of the draw
    golden.check(found.flatten(1), "ours")
    assert ((found - x).abs().flatten(1).amax(1) <= golden["weights"] * eps + 1e-9).all()
