"""The cheap tier: golden schedules, the order of the targets, closed forms, and what an image costs."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import pgd, quick
from taet.attacks.ball import Norm, lengths, verify
from taet.attacks.catalogue import parse
from taet.attacks.counted import Counted
from taet.attacks.objectives import fooled, nearest_classes, probability_margin
from taet.attacks.quick import MEASURED, margin_lengths, margin_objectives
from tests.golden_numbers import Golden


def test_the_margin_of_probabilities_is_golden_with_its_gradient() -> None:
    golden = Golden("pma_objective")
    logits = golden["logits"].requires_grad_()
    value = probability_margin(logits, golden["labels"])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    golden.check(value, "value")
    golden.check(gradient, "gradient")


def test_step_lengths_are_golden() -> None:
    golden = Golden("pma_steps")
    golden.check([golden["eps"] * length for length in margin_lengths(golden["K"])], "lengths")


@pytest.mark.parametrize("run", [0, 1])
def test_runs_on_the_probability_margin_of_a_linear_model_are_golden(run: int) -> None:
    golden = Golden("pma_linear")
    eps, steps = golden["eps"], golden["K"]
    x_adv = pgd(
        lambda x: x @ golden["W"].T,
        golden["x"],
        golden["labels"],
        eps=eps,
        steps=steps,
        step_size=[eps * length for length in margin_lengths(steps)],
        objective=margin_objectives(steps, run),
        start="gaussian",  # which is not clipped before the first step
        start_noise=golden["start"],
    )
    golden.check(x_adv, f"run{run}")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_order_of_the_nearest_classes_is_golden(norm: Norm) -> None:
    golden = Golden("malt_order")

    def model(x: Tensor) -> Tensor:
        return torch.tanh(x @ golden["W1"].T + golden["b1"]) @ golden["W2"].T + golden["b2"]

    assert nearest_classes(model, golden["x"], golden["labels"], norm).tolist() == golden.expected[norm]
    few = nearest_classes(model, golden["x"], golden["labels"], norm, candidates=2)
    assert sorted(few[0].tolist()) == sorted(golden.expected["by_logit"][0][:2])


def linear(classes: int = 2, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of 20 pixels in the middle of the range, so that no ball is cut, and its own labels."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, classes))
    model[1].weight.data = torch.randn(classes, 20, generator=generator)
    x = 0.4 + 0.2 * torch.rand(60, 1, 4, 5, generator=generator)
    model[1].bias.data = -(model[1].weight.data @ x.flatten(1).mean(0))
    return model, x, model(x).argmax(1)


@pytest.mark.diagonal("norm", "classes")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full), pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_linear_model_falls_where_a_boundary_is_in_the_ball_and_nowhere_else(
    norm: Norm, classes: int, seed: int
) -> None:
    """Images whose nearest boundary is a per mille from the radius may fall or stand: a chain has a last step."""
    model, x, y = linear(classes, seed)
    with torch.no_grad():
        logits, weight = model(x), model[1].weight
        apart = weight[y][:, None] - weight[None]
        size = apart.abs().sum(2) if norm == "linf" else lengths(apart.flatten(0, 1)).view(len(x), -1)
        gaps = logits.gather(1, y[:, None]) - logits
        reach = (gaps / size).masked_fill(torch.nn.functional.one_hot(y, classes).bool(), torch.inf).amin(1)
    eps = float(reach.median())
    clear = (reach / eps - 1).abs() > 1e-3
    x_adv = quick(model, x, y, eps=eps, norm=norm)
    verify("quick", x_adv, x, eps, norm)
    assert torch.equal(fooled(model(x_adv), y)[clear], (reach < eps)[clear])


class Steep(nn.Module):
    """A boundary that no ball of the tests reaches."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total + 5, *(k * 0.1 * total.cos() for k in range(9))], 1)


@pytest.mark.parametrize(("near", "expected"), [(0.3, 92 + 9 + 240), (1.0, 92 + 9 + 240 + 800)])
def test_an_image_that_stands_costs_what_the_page_says(near: float, expected: int) -> None:
    counted, x = Counted(Steep()), torch.full((4, 1, 2, 2), 0.5)
    y = torch.tensor([0, 0, 0, 3])  # the last one is misclassified and costs its one pass
    quick(counted, x, y, eps=0.1, near=near)
    assert counted.passes == 3 * expected + 1
    assert expected + 1 <= parse("quick").passes(10)


class Never(nn.Module):
    """One class for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]


def test_an_iterate_that_only_the_search_calls_fooled_does_not_count() -> None:
    view, x, _ = linear()
    y, counted = torch.zeros(len(x), dtype=torch.int64), Counted(Never(), view)
    x_adv = quick(counted, x, y, eps=0.03, checked=True)
    assert bool(fooled(view(x_adv), y).any())
    assert counted.passes > 100 * len(x), "no image was given up"
    verify("quick", x_adv, x, 0.03)


def test_the_gap_that_is_printed_is_the_one_that_was_measured() -> None:
    rows = json.loads((Path(__file__).parents[2] / "results" / "verdicts.json").read_text(encoding="utf-8"))["quick"]
    gaps = [row["quick"] - row["autoattack"] for row in rows]
    assert {row["attack"].partition(":")[0] for row in rows} == {"quick", "quick-l2"}
    said = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", MEASURED)]
    measured = [len(rows), sum(row["images"] for row in rows), max(gaps), sum(gaps) / len(gaps)]
    assert said == pytest.approx(measured, abs=0.005)
