"""The cheap tier: golden schedules, the order of the targets, closed forms, and what an image costs."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import pgd, quick
from taet.attacks.ball import Norm, verify
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
    x = 0.4 + 0.2 * torch.rand(60, 20, generator=torch.Generator().manual_seed(0))
    view = nn.Linear(20, 2)
    view.weight.data, view.bias.data = torch.tensor([[1.0], [-1.0]]).expand(2, 20).clone(), torch.tensor([-10.0, 10.0])
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
