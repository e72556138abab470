"""Evaluation of any model on any images: every attack on all images, and bad input refused in one line."""

import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import taet
from taet import statistics
from taet.attacks import fgsm
from tests.calls import one_line
from tests.evaluation.conftest import EPS, Changed, Evaluated, Task, unit

ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


def test_every_attack_faces_all_images_and_the_columns_say_what_was_done(evaluated: Evaluated, task: Task) -> None:
    model, images, labels = task
    card = evaluated(*ATTACKS, class_names=["a", "b", "c", "d"], train_class_counts=[9, 5, 3, 1])
    x, y = unit(images), torch.from_numpy(labels)
    assert [column.name for column in card.columns] == list(ATTACKS)
    clean, one_step, pgd, suite = card.columns
    np.testing.assert_array_equal(clean.predictions, model(x).argmax(1).numpy())
    np.testing.assert_array_equal(one_step.predictions, model(fgsm(model, x, y, eps=EPS)).argmax(1).numpy())
    assert suite.correct.sum() <= pgd.correct.sum() < clean.correct.sum()
    assert list(suite.parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (clean.forwards, clean.backwards) == (22, 0)
    assert (one_step.forwards, one_step.backwards) == (44, 22)
    assert (pgd.forwards, pgd.backwards) == (6 * 22, 5 * 22)
    assert pgd.parameters == {"steps": 5, "step_size": EPS / 2, "start": "uniform", "restarts": 1, "seed": 0}
    assert suite.parameters["note"] == "attacks all 3 other classes; the standard suite attacks 9"
    assert (clean.norm, clean.eps, clean.bounded) == (None, None, False)
    assert (pgd.norm, pgd.eps, pgd.bounded) == ("linf", EPS, True)
    assert card.summary("clean").groups["head"] >= 0
    assert {flag["flag"] for flag in card.flags} >= {"few-images-per-class", "small-test-set"}


def test_an_image_that_was_wrong_before_has_no_distance_also_where_a_margin_moves_it(task: Task) -> None:
    model, images, labels = task
    attack = "cw-l2:kappa=9,c=10,steps=9"
    card = taet.evaluate(model, images, np.where(labels == 0, 1, labels), attacks=["clean", attack], probe=False)
    column = card.column(attack)
    assert column.bounded is False
    assert not column.distances[~card.clean.correct].any()


def test_flags_depend_neither_on_the_order_of_attacks_nor_on_batches_nor_on_the_form_of_images(
    evaluated: Evaluated, task: Task
) -> None:
    model, images, labels = task
    forwards = evaluated("clean", "pgd-5", "fgsm")
    how: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "batch_size": 5}
    backwards = taet.evaluate(model, unit(images), torch.from_numpy(labels), ["fgsm", "pgd-5", "clean"], **how)
    for name in ("clean", "pgd-5", "fgsm"):
        np.testing.assert_array_equal(forwards.column(name).correct, backwards.column(name).correct)


def test_the_model_is_given_back_as_it_was(evaluated: Evaluated, task: Task) -> None:
    model = task[0].train()
    state = torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluated(*ATTACKS, model=model)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    model.eval()


def test_progress_never_goes_back_and_ends_at_its_total_once(
    monkeypatch: pytest.MonkeyPatch, evaluated: Evaluated
) -> None:
    monkeypatch.setattr("taet.attacks.counted.TICK_SECONDS", 0.0)  # at every pass
    seen: list[tuple[int, int, str]] = []
    evaluated(*ATTACKS, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert [done >= total for done, total, _ in seen] == [False] * (len(seen) - 1) + [True]
    (outlook,) = (label for _, _, label in seen if label.endswith("\n"))
    assert outlook.startswith("all attacks: about ")
    assert {label.partition(":")[0] for _, _, label in seen} == {*ATTACKS, "probe", "all attacks"}


@pytest.mark.parametrize(("threads", "expected"), [(3, [3]), (None, [5, 4, 3])])
def test_every_pass_has_the_threads_asked_for_or_those_that_are_idle(
    threads: int | None, expected: list[int], task: Task, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, seen = iter([5, 4, 3]), dict[int, None]()
    monkeypatch.setattr(sys.modules["taet.evaluation.evaluate"], "idle_threads", lambda: (next(idle), ""))
    task[0].register_forward_pre_hook(lambda *_: seen.setdefault(torch.get_num_threads()))
    evaluated("clean", "pgd-2", threads=threads)  # and the probe
    before = torch.get_num_threads()  # of the model's check
    assert [number for number in seen if number != before] == expected
    with one_line(r"threads: got 0; allowed: a whole number, 1 to 1024"):
        evaluated("clean", threads=0)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("attacks", "said"), [("pgd-2", False), ("quick", False), ("autoattack", True)])
def test_hours_name_the_quick_suite_where_it_is_shorter(
    attacks: str, said: bool, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taet.evaluation.runner.seconds_of", lambda *_: 4000.0)
    labels = list[str]()
    evaluated("clean", attacks, progress=lambda *report: labels.append(report[2]))
    (outlook,) = (label for label in labels if label.startswith("all attacks"))
    assert ("--attacks clean quick: about" in outlook) is said


class Returns(nn.Module):
    """A model that returns what a function makes of the logits of four classes, and may count its calls."""

    def __init__(self, change: Any, counts: int = 0) -> None:
        super().__init__()
        self.model, self.change, self.counts = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), change, counts
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen += self.counts
        return self.change(self.model(x))


def few(logits: Tensor) -> Tensor:
    assert len(logits) < 8, "too many images"
    return logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Returns(lambda z: (z, z))}, "model output: got a tuple"),
        ({"model": Returns(lambda z: z * float("nan"))}, "model output: not finite"),
        ({"model": Returns(lambda z: z[:, :3])}, "labels: got up to 3; allowed: 0 to 2"),
        ({"model": Returns(lambda z: z.detach())}, "no gradient reaches the image"),
        ({"model": Returns(few)}, "'clean' failed in the model: AssertionError: too many images"),
        ({"model": nn.Conv2d(1, 2, 3)}, "model: fails on images of shape"),
        ({"model": Changed(lambda n, x: n(x.clone())[:, :4] + x.detach().zero_().mean(), nn.Flatten())}, "writes into"),
        ({"model": Returns(lambda z: z, 1)}, "model: seen changes during a forward pass in eval mode"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 1))}, "model output: got shape"),
        ({"model": len}, "evaluate: got a builtin_function_or_method; allowed: a torch.nn.Module"),
        ({"class_names": ["a", "b"]}, "model output: got 4 logits; allowed: 2"),
        ({"class_names": ["a", "b", "a", "c"]}, "class names: got 'a' twice; allowed: a different name for each"),
        ({"train_class_counts": [1, 2]}, "train_class_counts: got 2; allowed: 4"),
        ({"train_class_counts": [0.7, 0.1, 0.1, 0.1]}, "training counts: got .*; allowed: whole numbers"),
        ({"epss": 0.1}, "unknown setting 'epss'.*did you mean 'eps'"),
        ({"attacks": ("autoattack@runs/other",)}, "attack 'autoattack@runs/other': got autoattack, "),
        ({"attacks": ("pgd-20@runs/other",)}, "got 'runs/other'; allowed: the folder of a finished run"),
        ({"weights": "model-best"}, "unknown setting 'weights'"),
    ],
)
def test_a_model_or_setting_that_does_not_fit_is_one_line(change: dict[str, Any], message: str, task: Task) -> None:
    model, images, labels = task
    settings = {"attacks": ATTACKS, "eps": EPS, "batch_size": 8, **change}
    with one_line(message):
        taet.evaluate(settings.pop("model", model), images, labels, **settings)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3)) + 9, [0, 1], "divide them by 255"),
        (np.zeros((2, 3, 8, 8), dtype=np.int64), [0, 1], "got int64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, 1, 2], "labels: got int64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, -1], "labels: got -1"),
        (None, None, "without images"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), None, "labels: got a NoneType"),
        (TensorDataset(torch.zeros(2, 3, 8, 8)), [0, 1], "images: got a TensorDataset; allowed: arrays"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_one_line(images: Any, labels: Any, message: str, task: Task) -> None:
    with one_line(message):
        taet.evaluate(task[0], images, labels if labels is None else np.array(labels))


def test_what_a_script_has_at_hand_is_taken(task: Task) -> None:
    model, images, labels = task
    counts = pd.Series([1, 2, 1, 3, 1, 3, 3, 0]).value_counts()  # the largest first: 1, 3, 2, 0
    about: dict[str, Any] = {"name": "mine", "train_class_counts": counts, "notes": "by hand"}
    how = {"attacks": ["clean", "pgd-2"], "eps": EPS, "device": torch.device("cpu"), **about}
    before = taet.evaluate(model, images, labels, **how)
    try:
        torch.set_default_dtype(torch.float64)
        cards = [taet.evaluate(model, images, labels, training_seed=seed, **how) for seed in np.arange(2)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert (cards[0].data["train_class_counts"], cards[0].model["notes"]) == ([1, 3, 1, 3], ["by hand"])
    np.testing.assert_array_equal(before.column("pgd-2").predictions, cards[0].column("pgd-2").predictions)
    assert (taet.results(*cards).rows, [card.seed for card in cards]) == (("mine",), [0, 1])


def test_the_test_images_of_a_data_set_are_given_with_all_that_is_known_of_them() -> None:
    data = taet.data.load("digits-lt", max_count=12, test_max_count=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    card = taet.evaluate(model, data, attacks="clean")
    assert (card.class_names, card.data["name"]) == (data.class_names, data.name)
    assert card.data["train_class_counts"] == data.class_counts.tolist()
    assert card.data["test_sha256"] == data.test.sha256
    given = taet.evaluate(model, data, attacks="clean", train_class_counts=[*range(1, 11)])
    assert given.data["train_class_counts"] == [*range(1, 11)]
    mirrored = data.test.images[:, :, ::-1]  # a view that steps backwards
    same = [taet.evaluate(model, images, data.test.labels, "clean") for images in (mirrored, mirrored.copy())]
    np.testing.assert_array_equal(*(one.column("clean").predictions for one in same))
    with one_line("got labels or class names without images"):
        taet.evaluate(model, data, data.test.labels)


@pytest.mark.parametrize(("most", "measured"), [(4, True), (3, False)])
def test_of_very_many_classes_nothing_is_kept_for_every_pair(
    most: int, measured: bool, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "PAIRED_CLASSES", most)
    card = evaluated("clean")
    assert (card.column("clean").roc_auc is not None) == measured
    assert math.isnan(card.summary("clean").roc_auc) != measured
