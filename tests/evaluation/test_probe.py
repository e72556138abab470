"""What a sample of images tells of a model, against counting it with the attack itself."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks import pgd
from taet.attacks.counting_model import CountingModel
from taet.attacks.noise import Draws
from taet.card.facts import ModelFacts
from taet.data.long_tail import even_sample
from taet.evaluation.probe import probe
from taet.evaluation.runner import Runner
from tests.evaluation.conftest import Change, Changed, Evaluated, Task, unit

EPS = 0.05  # which leaves some images of the small network correct


def changed(change: Change, task: Task) -> ModelFacts:
    """What the probe finds on the changed model."""
    runner = Runner(
        CountingModel(Changed(change, task[0])), task[1], task[2], 4, 22, 0, torch.device("cpu")
    )
    x, y = runner.batch(np.arange(22))
    with runner.frozen_and_exact():
        noise = Draws(0, "probe", np.arange(22)).start(x, EPS)
        return probe(runner.model, x, y, noise, EPS, runner.sites)


def test_the_facts_are_those_of_a_sample_of_the_images(task: Task, evaluated: Evaluated) -> None:
    model, images, labels = task
    rows = even_sample(labels, 20, 0)
    x, y = unit(images[rows]), torch.from_numpy(labels[rows])
    start = Draws(0, "probe", rows).start(x, EPS)

    def survives(factor: float) -> Tensor:
        def objective(logits: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(factor * logits, y, reduction="none")

        x_adv = pgd(
            model,
            x,
            y,
            eps=EPS,
            steps=20,
            step_size=EPS / 8,
            start_noise=start,
            objective=objective,
        )
        return model(x_adv).argmax(1) == y

    largest = model(x).detach().topk(2).values
    gap = float((largest[:, 0] - largest[:, 1]).median())
    plain, scaled = survives(1), survives(10 / gap)
    found = evaluated("fgsm", "pgd-20", "pgd-50", eps=EPS, batch_size=20).probe
    expected = {
        "images": 20,
        "seed": 0,
        "clean_correct": int((model(x).argmax(1) == y).sum()),
        "pgd_correct": int(plain.sum()),
        "scaled_pgd_correct": int(scaled.sum()),
        "only_pgd_correct": int((plain & ~scaled).sum()),
        "only_scaled_pgd_correct": int((scaled & ~plain).sum()),
    }
    assert found["logit_gap"] == pytest.approx(gap, rel=1e-5)
    assert found["batch_difference"] < 1e-5
    others = {*ModelFacts.__dataclass_fields__} - {
        *expected,
        "batch_size",
        "batch_difference",
        "logit_gap",
    }
    assert {name: found[name] for name in expected} == expected
    assert {found[name] for name in others} == {0}
    assert 0 < found["pgd_correct"] < found["clean_correct"]
    assert all(type(value) in (int, float) for value in found.values())


def grey(x: Tensor) -> Tensor:
    """How far each pixel is from a grey level of 8 bits, in levels."""
    return (255 * x - (255 * x).round()).abs()


@pytest.mark.parametrize(
    ("change", "fact", "count"),
    [
        (lambda model, x: model(x).softmax(1), "distributions", 22),
        (lambda model, x: model((255 * x).round() / 255), "zero_gradients", 22),
        # the gradient, everywhere
        (lambda model, x: model(x) + (0 * x).sqrt().sum(), "nonfinite_gradients", 22),
        # Logits off the grid of test images, and the gradient there: on the way of PGD.
        (
            lambda model, x: model(x) / (grey(x).amax((1, 2, 3)) < 0.01)[:, None],
            "nonfinite_gradients",
            22,
        ),
        (
            lambda model, x: model(x) + ((0 * x).sqrt().sum() if grey(x).max() > 0.01 else 0),
            "nonfinite_gradients",
            22,
        ),
    ],
)
def test_what_misleads_gradients_is_counted(
    task: Task, change: Change, fact: str, count: int
) -> None:
    assert getattr(changed(change, task), fact) == count


def test_a_model_that_changes_between_calls_or_draws_numbers_is_seen(task: Task) -> None:
    calls = []

    def drifting(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x) + len(calls) // 10 * torch.arange(4.0)

    before, found = torch.random.get_rng_state(), changed(drifting, task)
    assert found.repeat_difference == 0 < found.later_difference
    random = changed(
        lambda model, x: model(x + 0.01 * torch.randn_like(x)).index_fill(1, torch.tensor(0), -1e9),
        task,
    )
    # not hidden by the large logit of a class that is masked
    assert random.repeat_difference > 1e-3
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_takes_no_more_than_the_attacks_unless_they_are_very_short(evaluated: Evaluated) -> None:
    short = evaluated("fgsm", batch_size=20)
    assert short.probe["images"] == 16
    (text,) = (flag["text"] for flag in short.flags if flag["flag"] == "probe-small")
    assert text.startswith("The probe used only 16 of 22 images")
    assert evaluated("fgsm", "pgd-50", batch_size=22).probe["images"] == 22


def test_without_it_a_flag_says_so_and_without_attacks_there_is_none(evaluated: Evaluated) -> None:
    card = evaluated("fgsm", probe=False)
    assert card.probe == evaluated("clean").probe == {}
    assert "not-probed" in {flag["flag"] for flag in card.flags}
    assert "not-probed" not in {flag["flag"] for flag in evaluated("clean", probe=False).flags}
