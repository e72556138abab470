"""What the probe tells of the first batch, against counting it with the attack itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks import pgd
from taet.attacks.counted import Counted
from taet.evaluation import ResultCard, probe
from taet.evaluation.columns import Bench
from taet.evaluation.perturb import Draws

EPS = 0.05  # which leaves some images of the small network correct
Evaluated = Callable[..., ResultCard]
Task = tuple[nn.Module, np.ndarray, np.ndarray]


class Noisy(nn.Module):
    """A model that draws numbers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.01 * torch.randn_like(x))  # type: ignore[no-any-return]


def bench_of(model: nn.Module, task: Task, batch_size: int = 22) -> Bench:
    _, images, labels = task
    return Bench(Counted(model), images, labels, 4, batch_size, 0, torch.device("cpu"))


def test_the_facts_are_those_of_the_first_batch(task: Task, evaluated: Evaluated) -> None:
    model, images, labels = task
    x, y = torch.from_numpy(images[:20]).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels[:20])
    start = Draws(0, "probe", np.arange(20)).start(x, EPS)

    def survives(factor: float) -> Tensor:
        def objective(logits: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(factor * logits, y, reduction="none")

        x_adv = pgd(model, x, y, eps=EPS, steps=20, step_size=EPS / 8, start_noise=start, objective=objective)
        return model(x_adv).argmax(1) == y

    plain, scaled = survives(1), survives(10)
    facts = evaluated("fgsm", eps=EPS, batch_size=20).probe
    assert facts == {
        "images": 20,
        "seed": 0,
        "repeat_difference": 0,
        "distributions": 0,
        "clean_correct": int((model(x).argmax(1) == y).sum()),
        "zero_gradients": 0,
        "pgd_correct": int(plain.sum()),
        "scaled_pgd_correct": int(scaled.sum()),
        "only_pgd_correct": int((plain & ~scaled).sum()),
        "only_scaled_pgd_correct": int((scaled & ~plain).sum()),
    }
    assert 0 < facts["pgd_correct"] < facts["clean_correct"]
    assert all(type(value) in (int, float) for value in facts.values())


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda model, x: model(x).softmax(1), "distributions"),
        (lambda model, x: model((255 * x).round() / 255), "zero_gradients"),
    ],
)
def test_what_has_no_use_for_gradients_is_counted(
    task: Task, change: Callable[[nn.Module, Tensor], Tensor], fact: str
) -> None:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(task[0], x)

    facts = probe.probe(bench_of(Changed(), task), EPS, None, [].append)
    assert facts[fact] == facts["images" if fact == "distributions" else "clean_correct"] > 0


def test_it_is_kept_for_an_evaluation_that_goes_on(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated("fgsm", state_dir=tmp_path)
    monkeypatch.setattr(probe, "_measure", None)
    assert evaluated("fgsm", state_dir=tmp_path).probe == first.probe


def test_where_nothing_is_attacked_nothing_is_probed(evaluated: Evaluated) -> None:
    card = evaluated("clean")
    assert card.probe == {}
    assert [column.name for column in card.columns] == ["clean"]


def test_a_model_that_draws_numbers_leaves_the_global_generator_alone(task: Task) -> None:
    before = torch.random.get_rng_state()
    bench, seen = bench_of(Noisy(task[0]), task), []
    facts = probe.probe(bench, EPS, None, seen.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert facts["repeat_difference"] > 0
    assert seen == sorted(seen)
    assert seen[-1] == probe.passes(bench) == bench.model.passes
