"""Evaluation of any model on any images: every attack on all images, and bad input refused in one
line."""

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import taet
from taet.attacks import fgsm
from taet.data import Dataset
from taet.evaluation import ResultCard
from tests.calls import one_line
from tests.evaluation.conftest import EPS, Changed, Evaluated, Task, unit

ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


CLASSES = {"class_names": ["a", "b", "c", "d"], "train_class_counts": [9, 5, 3, 1]}


@pytest.fixture(scope="module")
def card(task: Task) -> ResultCard:
    """The network under all four attacks; Square has 30 queries."""
    model, images, labels = task
    settings = {"eps": EPS, "step_size": EPS / 2, "batch_size": 8, **CLASSES}
    with pytest.MonkeyPatch.context() as patch:
        # the name is also a function
        patch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 30)
        return taet.evaluate(model, images, labels, attacks=ATTACKS, **settings)


def test_a_column_is_an_attack_in_the_order_that_was_asked_for(card: ResultCard) -> None:
    assert [column.name for column in card.columns] == list(ATTACKS)


def test_the_clean_column_has_the_predictions_of_the_model(card: ResultCard, task: Task) -> None:
    model, images, _ = task
    expected = model(unit(images)).argmax(1).numpy()
    np.testing.assert_array_equal(card.clean.predictions, expected)


def test_the_column_of_an_attack_has_the_predictions_on_its_examples(
    card: ResultCard, task: Task
) -> None:
    model, images, labels = task
    x_adv = fgsm(model, unit(images), torch.from_numpy(labels), eps=EPS)
    expected = model(x_adv).argmax(1).numpy()
    np.testing.assert_array_equal(card.column("fgsm").predictions, expected)


def test_stronger_attacks_leave_fewer_images(card: ResultCard) -> None:
    clean, _, pgd, suite = (column.correct.sum() for column in card.columns)
    assert suite <= pgd < clean


def test_a_suite_has_a_mask_after_each_of_its_parts(card: ResultCard) -> None:
    parts = card.column("autoattack-10").parts
    assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"), [("clean", 1, 0), ("fgsm", 2, 1), ("pgd-5", 6, 5)]
)
def test_every_attack_faces_all_images_and_counts_its_passes(
    card: ResultCard, name: str, forwards: int, backwards: int
) -> None:
    images, column = 22, card.column(name)
    assert (column.forwards, column.backwards) == (forwards * images, backwards * images)


def test_a_column_has_the_settings_of_its_attack(card: ResultCard) -> None:
    step = {"steps": 5, "step_size": EPS / 2}
    expected = {**step, "start": "uniform", "restarts": 1, "seed": 0}
    assert card.column("pgd-5").parameters == expected


def test_a_suite_of_fewer_classes_says_so(card: ResultCard) -> None:
    note = card.column("autoattack-10").parameters["note"]
    assert note == "attacks all 3 other classes; the standard suite attacks 9"


@pytest.mark.parametrize(
    ("name", "norm", "eps", "bounded"), [("clean", None, None, False), ("pgd-5", "linf", EPS, True)]
)
def test_a_column_has_the_ball_of_its_attack(
    card: ResultCard, name: str, norm: str | None, eps: float | None, bounded: bool
) -> None:
    column = card.column(name)
    assert (column.norm, column.eps, column.bounded) == (norm, eps, bounded)


def test_training_counts_give_the_groups_of_classes(card: ResultCard) -> None:
    assert card.summary("clean").groups.keys() == {"head", "body", "tail", "last_half"}


def test_a_card_of_few_images_says_so(card: ResultCard) -> None:
    assert {flag["flag"] for flag in card.flags} >= {"few-images-per-class", "small-test-set"}


def test_an_image_that_was_wrong_before_has_no_distance_also_where_a_margin_moves_it(
    task: Task,
) -> None:
    model, images, labels = task
    attack = "cw-l2:kappa=9,c=10,steps=9"
    card = taet.evaluate(
        model, images, np.where(labels == 0, 1, labels), attacks=["clean", attack], probe=False
    )
    column = card.column(attack)
    assert column.bounded is False
    assert not column.distances[~card.clean.correct].any()


def test_a_mask_depends_neither_on_the_order_of_attacks_nor_on_batches_nor_on_the_form_of_images(
    evaluated: Evaluated, task: Task
) -> None:
    model, images, labels = task
    forwards = evaluated("clean", "pgd-5", "fgsm")
    how: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "batch_size": 5}
    backwards = taet.evaluate(
        model, unit(images), torch.from_numpy(labels), ["fgsm", "pgd-5", "clean"], **how
    )
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
    monkeypatch.setattr("taet.attacks.counting_model.TICK_SECONDS", 0.0)  # at every pass
    seen: list[tuple[int, int, str]] = []
    evaluated(*ATTACKS, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert [done >= total for done, total, _ in seen] == [False] * (len(seen) - 1) + [True]
    (outlook,) = (label for _, _, label in seen if label.endswith("\n"))
    assert outlook.startswith("all attacks: about ")
    assert {label.partition(":")[0] for _, _, label in seen} == {*ATTACKS, "probe", "all attacks"}


def test_an_evaluation_shows_its_progress_where_somebody_watches(
    monkeypatch: pytest.MonkeyPatch, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("taet.progress.is_watched", lambda: True)
    evaluated("clean", progress=False)
    assert capsys.readouterr().err == ""
    evaluated("clean")
    assert "evaluate Sequential: 100 %" in capsys.readouterr().err


@pytest.mark.parametrize(("threads", "expected"), [(3, [3]), (None, [5, 4, 3])])
def test_every_pass_has_the_threads_asked_for_or_those_that_are_idle(
    threads: int | None,
    expected: list[int],
    task: Task,
    evaluated: Evaluated,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle, seen = iter([5, 4, 3]), dict[int, None]()
    monkeypatch.setattr(
        sys.modules["taet.evaluation.evaluate"], "idle_threads", lambda: (next(idle), "")
    )
    task[0].register_forward_pre_hook(lambda *_: seen.setdefault(torch.get_num_threads()))
    evaluated("clean", "pgd-2", threads=threads)  # and the probe
    before = torch.get_num_threads()  # of the model's check
    assert [number for number in seen if number != before] == expected


def test_no_threads_at_all_are_refused(evaluated: Evaluated) -> None:
    with one_line(r"threads: got 0; allowed: a whole number, 1 to 1024"):
        evaluated("clean", threads=0)


@pytest.mark.parametrize(
    ("attacks", "said"), [("pgd-2", False), ("quick", False), ("autoattack", True)]
)
def test_hours_name_the_quick_suite_where_it_is_shorter(
    attacks: str, said: bool, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taet.evaluation.runner.seconds_of", lambda *_: 4000.0)
    labels = list[str]()
    evaluated("clean", attacks, progress=lambda *report: labels.append(report[2]))
    (outlook,) = (label for label in labels if label.startswith("all attacks"))
    assert ("--attacks clean quick: about" in outlook) is said


class Returns(nn.Module):
    """A model that returns what a function makes of the logits of four classes, and may count its
    calls."""

    def __init__(self, change: Any, counts: int = 0) -> None:
        super().__init__()
        self.model, self.change, self.counts = (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
            change,
            counts,
        )
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen += self.counts
        return self.change(self.model(x))


def few(logits: Tensor) -> Tensor:
    assert len(logits) < 8, "too many images"
    return logits


class WithoutGradient(torch.autograd.Function):
    """As PyTorch's quantised layers, whose outputs require a gradient that they do not have."""

    @staticmethod
    def forward(_context: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(_context: Any, *_gradients: Tensor) -> None:
        return None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Returns(lambda z: (z, z))}, "model output: got a tuple"),
        ({"model": Returns(lambda z: z * float("nan"))}, "model output: not finite"),
        ({"model": Returns(lambda z: z[:, :3])}, "labels: got up to 3; allowed: 0 to 2"),
        ({"model": Returns(lambda z: z.detach())}, "no gradient reaches the image"),
        ({"model": Returns(WithoutGradient.apply)}, "no gradient reaches .*is it quantised"),
        ({"model": Returns(few)}, "'clean' failed in the model: AssertionError: too many images"),
        ({"model": nn.Conv2d(1, 2, 3)}, "model: fails on images of shape"),
        (
            {
                "model": Changed(
                    lambda n, x: n(x.clone())[:, :4] + x.detach().zero_().mean(), nn.Flatten()
                )
            },
            "writes into",
        ),
        (
            {"model": Returns(lambda z: z, 1)},
            "model: seen changes during a forward pass in eval mode",
        ),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 1))}, "model output: got shape"),
        ({"model": len}, "got a builtin_function_or_method; allowed: an nn.Module"),
        ({"class_names": ["a", "b"]}, "model output: got 4 logits; allowed: 2"),
        (
            {"class_names": ["a", "b", "a", "c"]},
            "class names: got 'a' twice; allowed: a different name for each",
        ),
        ({"train_class_counts": [1, 2]}, "train_class_counts: got 2; allowed: 4"),
        (
            {"train_class_counts": [0.7, 0.1, 0.1, 0.1]},
            "training counts: got .*; allowed: whole numbers",
        ),
        ({"epss": 0.1}, "unknown setting 'epss'.*did you mean 'eps'"),
        (
            {"attacks": ("autoattack@runs/other",)},
            "attack 'autoattack@runs/other': got autoattack, ",
        ),
        (
            {"attacks": ("pgd-20@runs/other",)},
            "got 'runs/other'; allowed: the folder of a finished run",
        ),
        ({"weights": "model-best"}, "unknown setting 'weights'"),
    ],
)
def test_a_model_or_setting_that_does_not_fit_is_one_line(
    change: dict[str, Any], message: str, task: Task
) -> None:
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
        (
            TensorDataset(torch.zeros(2, 3, 8, 8)),
            [0, 1],
            "images: got a TensorDataset; allowed: a ndarray",
        ),
    ],
)
def test_images_and_labels_that_do_not_fit_are_one_line(
    images: Any, labels: Any, message: str, task: Task
) -> None:
    with one_line(message):
        taet.evaluate(task[0], images, labels if labels is None else np.array(labels))


# -- what a script has at hand


def test_training_counts_may_be_a_series_in_any_order(task: Task) -> None:
    model, images, labels = task
    counts = pd.Series([1, 2, 1, 3, 1, 3, 3, 0]).value_counts()  # the largest first: 1, 3, 2, 0
    card = taet.evaluate(model, images, labels, attacks="clean", train_class_counts=counts)
    assert card.data["train_class_counts"] == [1, 3, 1, 3]


def test_a_note_may_be_a_text(task: Task) -> None:
    assert taet.evaluate(*task, attacks="clean", notes="by hand").model["notes"] == ["by hand"]


def test_a_device_may_be_that_of_torch(task: Task) -> None:
    named, of_torch = (
        taet.evaluate(*task, attacks="clean", device=device)
        for device in ("cpu", torch.device("cpu"))
    )
    np.testing.assert_array_equal(named.clean.predictions, of_torch.clean.predictions)


def test_cards_of_numpys_seeds_are_one_row(task: Task) -> None:
    cards = [
        taet.evaluate(*task, attacks="clean", name="mine", training_seed=seed)
        for seed in np.arange(2)
    ]
    assert [card.seed for card in cards] == [0, 1]
    assert taet.results(*cards).rows == ("mine",)


def test_a_caller_whose_default_is_float64_gets_the_same_card(task: Task) -> None:
    settings = {"attacks": ["clean", "pgd-2"], "eps": EPS}
    usual = taet.evaluate(*task, **settings)
    torch.set_default_dtype(torch.float64)
    try:
        card = taet.evaluate(*task, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(
        card.column("pgd-2").predictions, usual.column("pgd-2").predictions
    )


# -- the test images of a data set


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return taet.data.load("digits-lt", max_count=12, test_max_count=3)


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_the_test_images_of_a_data_set_are_given_with_all_that_is_known_of_them(
    digits: Dataset, network: nn.Module
) -> None:
    card = taet.evaluate(network, digits, attacks="clean")
    assert (card.class_names, card.data["name"]) == (digits.class_names, digits.name)
    assert card.data["train_class_counts"] == digits.class_counts.tolist()
    assert card.data["test_sha256"] == digits.test.sha256


def test_training_counts_that_are_given_count_before_those_of_a_data_set(
    digits: Dataset, network: nn.Module
) -> None:
    counts = [*range(1, 11)]
    card = taet.evaluate(network, digits, attacks="clean", train_class_counts=counts)
    assert card.data["train_class_counts"] == counts


def test_a_view_that_steps_backwards_is_taken_as_its_images(
    digits: Dataset, network: nn.Module
) -> None:
    mirrored = digits.test.images[:, :, ::-1]
    view, copied = (
        taet.evaluate(network, images, digits.test.labels, "clean").clean
        for images in (mirrored, mirrored.copy())
    )
    np.testing.assert_array_equal(view.predictions, copied.predictions)


def test_labels_beside_a_data_set_are_refused(digits: Dataset, network: nn.Module) -> None:
    with one_line("got labels or class names without images"):
        taet.evaluate(network, digits, digits.test.labels)
