"""What the probe tells of its sample, against counting it with the attack itself."""

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
from taet.attacks.draws import Draws
from taet.data.long_tail import even_sample
from taet.evaluation import ResultCard, probe
from taet.evaluation.runner import Runner

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


def bench_of(model: nn.Module, task: Task, batch_size: int = 22) -> Runner:
    _, images, labels = task
    return Runner(Counted(model), images, labels, 4, batch_size, 0, torch.device("cpu"))


def changed(model: nn.Module, change: Callable[[nn.Module, Tensor], Tensor], task: Task) -> dict[str, int | float]:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(model, x)

    return probe.probe(bench_of(Changed(), task), EPS, 22, [].append)


def test_the_facts_are_those_of_a_sample_of_the_images(task: Task, evaluated: Evaluated) -> None:
    model, images, labels = task
    rows = even_sample(labels, 20, 0)
    x, y = torch.from_numpy(images[rows]).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels[rows])
    start = Draws(0, "probe", rows).start(x, EPS)

    def survives(factor: float) -> Tensor:
        def objective(logits: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(factor * logits, y, reduction="none")

        x_adv = pgd(model, x, y, eps=EPS, steps=20, step_size=EPS / 8, start_noise=start, objective=objective)
        return model(x_adv).argmax(1) == y

    largest = model(x).detach().topk(2).values
    gap = float((largest[:, 0] - largest[:, 1]).median())
    plain, scaled = survives(1), survives(10 / gap)
    facts = evaluated("fgsm", "pgd-20", "pgd-50", eps=EPS, batch_size=20).probe
    assert facts.pop("batch_difference") < 1e-5
    assert facts.pop("logit_gap") == pytest.approx(gap, rel=1e-5)
    assert facts == {
        "images": 20,
        "seed": 0,
        "repeat_difference": 0,
        "later_difference": 0,
        "distributions": 0,
        "clean_correct": int((model(x).argmax(1) == y).sum()),
        "zero_gradients": 0,
        "nonfinite_gradients": 0,
        "pgd_correct": int(plain.sum()),
        "scaled_pgd_correct": int(scaled.sum()),
        "only_pgd_correct": int((plain & ~scaled).sum()),
        "only_scaled_pgd_correct": int((scaled & ~plain).sum()),
        "gradient_difference": 0,
        "sites": 0,
        "replaced": 0,
        "straight_pgd_correct": 0,
        "only_straight_pgd_correct": 0,
        "smooth_pgd_correct": 0,
        "only_smooth_pgd_correct": 0,
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
    facts = changed(task[0], change, task)
    assert facts[fact] == facts["images" if fact == "distributions" else "clean_correct"] > 0


def grey(x: Tensor) -> Tensor:
    """How far each pixel is from a grey level of 8 bits, in levels."""
    return (255 * x - (255 * x).round()).abs()


@pytest.mark.parametrize(
    "change",
    [
        lambda model, x: model(x) + (0 * x).sqrt().sum(),  # the gradient is nan everywhere
        lambda model, x: model(x) / (grey(x).amax((1, 2, 3)) < 0.01)[:, None],  # logits off the grid of test images
        lambda model, x: model(x) + ((0 * x).sqrt().sum() if grey(x).max() > 0.01 else 0),  # the gradient there
    ],
)
def test_what_is_not_finite_is_counted_also_on_the_way_of_pgd(
    task: Task, change: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    assert changed(task[0], change, task)["nonfinite_gradients"] == 22


def test_a_model_that_changes_between_calls_is_seen(task: Task) -> None:
    calls = []

    def drifting(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x) + len(calls) // 10 * torch.arange(4.0)

    facts = changed(task[0], drifting, task)
    assert facts["repeat_difference"] == 0 < facts["later_difference"]


def test_a_model_that_looks_at_the_whole_batch_is_seen(task: Task) -> None:
    facts = changed(task[0], lambda model, x: model(x) - model(x).mean(0), task)
    assert facts["repeat_difference"] == facts["later_difference"] == 0 < 0.01 < facts["batch_difference"]


def test_it_is_kept_for_an_evaluation_that_goes_on(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated("fgsm", state_dir=tmp_path)
    monkeypatch.setattr(probe, "_measure", None)
    assert evaluated("fgsm", state_dir=tmp_path).probe == first.probe


def test_it_takes_no_more_than_the_attacks_unless_they_are_very_short(evaluated: Evaluated, task: Task) -> None:
    number = len(task[2])
    assert evaluated("fgsm", batch_size=number).probe["images"] == probe.FEWEST < number
    runner = bench_of(task[0], task, batch_size=number)
    assert [probe.count(runner, probe.passes(runner) * images) for images in (0, 18, number, 10**6)] == [
        16,
        18,
        number,
        number,
    ]


def test_fewer_images_of_an_earlier_probe_are_not_enough(evaluated: Evaluated) -> None:
    facts = evaluated("fgsm", batch_size=22).probe
    assert probe.is_of(facts, 0, probe.FEWEST)
    assert not probe.is_of(facts, 0, probe.FEWEST + 1)


def test_without_it_a_flag_says_so(evaluated: Evaluated) -> None:
    card = evaluated("fgsm", probe=False)
    assert card.probe == {}
    assert "not-probed" in {flag["flag"] for flag in card.flags}
    assert "not-probed" not in {flag["flag"] for flag in evaluated("clean", probe=False).flags}


def test_few_images_are_said_unless_they_are_all(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    short = evaluated("fgsm", batch_size=20)
    (text,) = (flag["text"] for flag in short.flags if flag["flag"] == "probe-small")
    assert text.startswith(f"The probe used only 16 of {len(short.labels)} images")
    monkeypatch.setattr(probe, "FEWEST", len(short.labels))
    whole = evaluated("fgsm", batch_size=len(short.labels))
    assert whole.probe["images"] == len(short.labels)
    assert "probe-small" not in {flag["flag"] for flag in whole.flags}


def test_where_nothing_is_attacked_nothing_is_probed(evaluated: Evaluated) -> None:
    card = evaluated("clean")
    assert card.probe == {}
    assert [column.name for column in card.columns] == ["clean"]


def test_a_model_that_draws_numbers_leaves_the_global_generator_alone(task: Task) -> None:
    before = torch.random.get_rng_state()
    runner, seen = bench_of(Noisy(task[0]), task), []
    facts = probe.probe(runner, EPS, 22, seen.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert facts["repeat_difference"] > 0
    assert seen == sorted(seen)
    assert seen[-1] == 22 * probe.passes(runner) == runner.model.passes
