"""The cheap tier: golden schedules, the order of the targets, closed forms, and what an image
costs."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import pgd, quick
from taet.attacks.ball import Norm, verify
from taet.attacks.catalogue import parse
from taet.attacks.counting_model import CountingModel
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

    assert (
        nearest_classes(model, golden["x"], golden["labels"], norm).tolist()
        == golden.expected[norm]
    )
    few = nearest_classes(model, golden["x"], golden["labels"], norm, candidates=2)
    assert sorted(few[0].tolist()) == sorted(golden.expected["by_logit"][0][:2])


class Wavy(nn.Module):
    """A network of waves, on which runs end in different places, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.first, self.second = (
            torch.randn(shape, generator=draws).double() for shape in ((48, 16), (16, 5))
        )
        self.first *= torch.logspace(-0.5, 0.5, 16)
        self.visited = torch.zeros(48).double()  # sum of the images with a gradient

    def forward(self, x: Tensor) -> Tensor:
        self.visited += x.detach().flatten(1).sum(0) if x.requires_grad else 0
        return (x.flatten(1) @ self.first).sin() @ self.second


class Fooled(Exception):
    """An iterate fools the model."""


def naive_quick(
    model: nn.Module,
    x: Tensor,
    y: int,
    eps: float,
    targets: int,
    near: float,
    noise: Iterator[Tensor],
) -> tuple[Tensor, int]:
    """One image (1, ...) in the L2 ball, word for word; also the number of its last run, -1 without
    one."""
    rivals, number = [k for k in range(5) if k != y], -1

    def gap(values: Tensor) -> Tensor:
        return torch.stack([values[k] for k in rivals]).max() - values[y]

    def inside(delta: Tensor, radius: float) -> Tensor:
        return (x + delta * min(1.0, radius / float(delta.norm()))).clamp(0, 1)

    def ascend(
        x_adv: Tensor, value: Callable[[Tensor], Tensor], length: float, radius: float
    ) -> Tensor:
        leaf = x_adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(model(leaf)[0]), leaf)
        return inside(x_adv + length * gradient / gradient.norm() - x, radius)

    def fall(steps: int) -> list[float]:
        return [eps * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]

    def run(values: list[Any], lengths: list[float], wide: bool = False) -> float:
        nonlocal number, x_adv, least
        number, delta, closest = number + 1, (3 if wide else 1) * next(noise), math.inf
        for ratio in (3, 2) if wide else ():
            x_adv = inside(delta, ratio * eps)
            for length in fall(12):
                x_adv = ascend(x_adv, values[0], ratio * length, ratio * eps)
            delta = x_adv - x
        x_adv, kept = inside(delta, eps), None
        for value, length in zip(values, lengths, strict=True):
            closest = min(closest, left := -float(gap(model(x_adv)[0])))
            kept = x_adv if left < 0 and kept is None else kept
            x_adv = ascend(x_adv, value, length, eps)
        if kept is not None:
            x_adv = kept
            raise Fooled
        least = min(least, closest)
        return closest

    def towards(target: int) -> Callable[[Tensor], Tensor]:
        return lambda z: z[target] - z[y]

    x_adv, clean = x, -float(gap(model(x)[0]))
    least, half = clean, fall(10)
    own, margins = [lambda z: z.softmax(0)[y]], [lambda z: gap(z.softmax(0))] * 10
    lower, rise = (
        [lambda z: -z.softmax(0)[y]] * 9,
        [lambda z: max(z.softmax(0)[k] for k in rivals)] * 9,
    )
    two_falls = [half[1], *half, *half[:9]]
    with contextlib.suppress(Fooled):
        if clean < 0:
            raise Fooled
        run([gap] * 5, fall(5))
        run([*own, *lower, *margins], two_falls)
        run([*own, *rise, *margins], two_falls)
        z = model(leaf := x.clone().requires_grad_())[0]
        reach = {
            k: (z[y] - z[k]) / torch.autograd.grad(z[y] - z[k], leaf, retain_graph=True)[0].norm()
            for k in rivals
        }
        order = sorted(rivals, key=lambda k: float(reach[k].detach()))[:targets]
        reached = {k: run([towards(k)] * 16, fall(16), wide=True) for k in order}
        nearest = towards(min(order, key=lambda k: reached[k]))
        short = [length / 2 for length in two_falls]
        rounds = [
            ([nearest] * 40, fall(40), False),
            ([gap] * 16, fall(16), True),
            ([*own, *lower, *margins], short, False),
        ]
        for part in rounds * 4:
            if least <= near * clean:
                run(*part)
            else:
                next(noise)
    return x_adv, number


@pytest.mark.full
def test_quick_in_l2_does_to_each_image_of_a_batch_what_a_loop_does_to_one() -> None:
    model, draws, eps, targets, near = Wavy(), torch.Generator().manual_seed(1), 0.05, 2, 0.25
    x = torch.rand(40, 3, 4, 4, generator=draws, dtype=torch.float64)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    noise = torch.randn(3 + targets + 12, *x.shape, generator=draws, dtype=torch.float64)
    noise *= eps / noise.flatten(2).norm(dim=2)[..., None, None, None]
    x_adv = quick(
        model, x, y, eps=eps, norm="l2", targets=targets, near=near, noise=lambda run: noise[run]
    )
    ends, visited, model = set(), model.visited, Wavy()
    for i in range(len(x)):
        expected, end = naive_quick(
            model, x[i : i + 1], int(y[i]), eps, targets, near, iter(noise[:, i : i + 1])
        )
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-7)
        ends.add(end)
    torch.testing.assert_close(model.visited, visited, rtol=1e-9, atol=0)
    # misclassified, broken, far from the border, close to it
    assert ends >= {-1, 0, 2 + targets, 14 + targets}


class Steep(nn.Module):
    """A boundary that no ball of the tests reaches."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        return torch.cat([total + 5, *(k * 0.1 * total.cos() for k in range(9))], 1)


@pytest.mark.parametrize(("near", "expected"), [(0.3, 92 + 9 + 240), (1.0, 92 + 9 + 240 + 800)])
def test_an_image_that_stands_costs_what_the_page_says(near: float, expected: int) -> None:
    counted, x = CountingModel(Steep()), torch.full((4, 1, 2, 2), 0.5)
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
    view.weight.data, view.bias.data = (
        torch.tensor([[1.0], [-1.0]]).expand(2, 20).clone(),
        torch.tensor([-10.0, 10.0]),
    )
    y, counted = torch.zeros(len(x), dtype=torch.int64), CountingModel(Never(), view)
    x_adv = quick(counted, x, y, eps=0.03, checked=True)
    assert bool(fooled(view(x_adv), y).any())
    assert counted.passes > 100 * len(x), "no image was given up"
    verify("quick", x_adv, x, 0.03)


def test_the_gap_that_is_printed_is_the_one_that_was_measured() -> None:
    rows = json.loads(
        (Path(__file__).parents[2] / "results" / "verdicts.json").read_text(encoding="utf-8")
    )["quick"]
    gaps = [row["quick"] - row["autoattack"] for row in rows]
    assert {row["attack"].partition(":")[0] for row in rows} == {"quick", "quick-l2"}
    said = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", MEASURED)]
    measured = [len(rows), sum(row["images"] for row in rows), max(gaps), sum(gaps) / len(gaps)]
    assert said == pytest.approx(measured, abs=0.005)
