"""Evaluation of any model on any images: every attack, resumable, and bad input refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet import statistics
from taet.attacks import fgsm
from taet.errors import UserError
from taet.evaluation import GivenImages, ResultCard
from taet.evaluation.batch_store import BatchStore
from taet.evaluation.runner import Runner
from taet.settings import Evaluation, Run, override

EPS = 0.1
ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")
Task = tuple[nn.Module, np.ndarray, np.ndarray]
Evaluated = Callable[..., ResultCard]


def unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255


@pytest.fixture
def evaluate(evaluated: Evaluated) -> Evaluated:
    """Evaluate the small network, with ATTACKS unless others are given."""

    def run(**change: Any) -> ResultCard:
        attacks = change.pop("attacks", ATTACKS)
        return evaluated(*([attacks] if isinstance(attacks, str) else attacks), **change)

    return run


def flags(card: ResultCard) -> list[list[bool]]:
    return [column.correct.tolist() for column in card.columns]


def test_a_mistyped_attack_is_refused_before_the_work(evaluate: Evaluated) -> None:
    with pytest.raises(UserError, match="did you mean 'pgd-20'"):
        evaluate(model=None, attacks=("clean", "pdg-20"))


def test_every_attack_faces_all_images_and_the_columns_say_what_was_done(evaluate: Evaluated, task: Task) -> None:
    model, images, labels = task
    card = evaluate(class_names=["a", "b", "c", "d"], train_class_counts=[9, 5, 3, 1])
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
    assert suite.parameters["target_classes"] == 3
    assert suite.parameters["note"] == "attacks all 3 other classes; the standard suite attacks 9"
    assert (clean.norm, clean.eps, clean.bounded) == (None, None, False)
    assert (pgd.norm, pgd.eps, pgd.bounded) == ("linf", EPS, True)
    assert card.summary("clean").groups["head"] >= 0
    assert {flag["flag"] for flag in card.flags} >= {"few-images-per-class", "small-test-set"}


def test_settings_may_be_whole_or_only_those_that_change(evaluate: Evaluated) -> None:
    changed = {"cw_constant": 1.0, "cw_bounded": True}
    given = evaluate(attacks=("clean", "cw-l2:steps=3"), settings=changed).columns[1]
    whole = evaluate(attacks=("clean", "cw-l2:steps=3"), settings=Evaluation(**changed)).columns[1]
    assert given.parameters == whole.parameters
    assert given.parameters["c"] == 1.0
    assert given.bounded


@pytest.mark.parametrize("attacks", ["pgd-2", ["fgsm", "pgd-2"], ("clean", "pgd-2")])
def test_settings_may_name_the_attacks(task: Task, attacks: Any) -> None:
    card = taet.evaluate(*task, eps=EPS, settings={"attacks": attacks})
    assert "pgd-2" in [column.name for column in card.columns]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epss": 0.1}, "unknown field of the settings 'epss'.*did you mean 'eps'"),
        (3, "settings: got int; allowed: a mapping of fields of Evaluation"),
        ({"attacks": ("reta",)}, "unknown attack 'reta'.*did you mean"),
        ({"batch_size": 0}, "batch size: got 0"),
    ],
)
def test_wrong_settings_are_refused(task: Task, settings: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        taet.evaluate(*task, settings=settings)


def test_uint8_and_float_images_are_the_same_images(task: Task) -> None:
    model, images, labels = task
    settings: dict[str, Any] = {"attacks": ("fgsm", "pgd-5"), "eps": EPS, "batch_size": 8}
    first = taet.evaluate(model, images, labels, **settings)
    second = taet.evaluate(model, unit(images), torch.from_numpy(labels), **settings)
    assert flags(first) == flags(second)


def test_flags_depend_neither_on_the_order_of_attacks_nor_on_the_batch_size_of_pgd(evaluate: Evaluated) -> None:
    forwards = evaluate(attacks=("clean", "pgd-5", "fgsm"))
    backwards = evaluate(attacks=("fgsm", "pgd-5", "clean"), batch_size=5)
    for name in ("clean", "pgd-5", "fgsm"):
        np.testing.assert_array_equal(forwards.column(name).correct, backwards.column(name).correct)


def test_the_model_is_given_back_as_it_was(evaluate: Evaluated, task: Task) -> None:
    model = task[0].train()
    state = torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model=model)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    model.eval()


def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: Evaluated
) -> None:
    expected = evaluate(state_dir=tmp_path / "whole")
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.npz"))
    put, left, written = BatchStore.put, [0], list[str]()

    def dying(self: BatchStore, key: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        written.append(f"{self.folder.name}/{key}")
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", dying)
    for units in (1, 4, len(files) - 2):
        folder = tmp_path / str(units)
        written.clear()
        left[0] = units
        with pytest.raises(KeyboardInterrupt):
            evaluate(state_dir=folder)
        left[0] = 999
        card = evaluate(state_dir=folder)
        assert flags(card) == flags(expected)
        assert [column.forwards for column in card.columns] == [column.forwards for column in expected.columns]
        assert sorted(written) == sorted(str(file.with_suffix("")) for file in files)


def test_state_of_another_evaluation_or_damaged_state_is_not_trusted(
    evaluate: Evaluated, task: Task, tmp_path: Path
) -> None:
    def run(**change: Any) -> ResultCard:
        return evaluate(attacks=("pgd-5",), state_dir=tmp_path, **change)

    model, images, labels = task
    before = run()
    for number, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        path.write_bytes(path.read_bytes()[: number * 72 + 100])
    assert flags(run()) == flags(before)
    folders = len(list(tmp_path.glob("pgd-5-*")))
    run(eps=EPS / 2)
    run(model=nn.Sequential(*model, nn.ReLU()))
    assert len(list(tmp_path.glob("pgd-5-*"))) == folders + 2
    taet.evaluate(model, images, (labels + 1) % 4, attacks="pgd-5", eps=EPS, batch_size=8, state_dir=tmp_path)
    assert len(list(tmp_path.glob("pgd-5-*"))) == folders + 3


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_progress_never_goes_back_and_ends_at_its_total_once(
    monkeypatch: pytest.MonkeyPatch, evaluate: Evaluated, seconds: float
) -> None:
    monkeypatch.setattr("taet.attacks.counted.TICK_SECONDS", seconds)
    seen: list[tuple[int, int, str]] = []
    evaluate(progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert [done >= total for done, total, _ in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[0][2].startswith("about ")
    assert {label.partition(":")[0] for _, _, label in seen[1:]} == {*ATTACKS, "probe"}


def test_progress_moves_inside_a_unit_but_not_beyond_it(monkeypatch: pytest.MonkeyPatch, evaluate: Evaluated) -> None:
    monkeypatch.setattr("taet.attacks.counted.TICK_SECONDS", 0.0)
    seen: list[tuple[float, float, str]] = []
    evaluate(attacks="pgd-5", batch_size=22, progress=lambda *report: seen.append(report))
    inside = [done for done, _, label in seen if label == "pgd-5"]
    # 22 clean passes before; then after each forward, the backwards being one step behind
    assert inside == [22 + 22 * passes for passes in (0, 1, 3, 5, 7, 9, 11)]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(done <= total for done, total, _ in seen)


class Returns(nn.Module):
    """A model that returns what a function makes of the logits of four classes."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.model, self.change = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


class Counts(nn.Module):
    """A model with a memory: it counts the images that it has seen, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Returns(lambda z: (z, z))}, "model output: got a tuple"),
        ({"model": Returns(lambda z: z * float("nan"))}, "model output: not finite"),
        ({"model": Returns(lambda z: z[:, :3])}, "labels: got up to 3; allowed: 0 to 2"),
        ({"model": Returns(lambda z: z.flatten())}, "model output: got shape"),
        ({"class_names": ["a", "b"]}, "model output: got 4 logits; allowed: 2"),
        ({"train_class_counts": [1, 2]}, "training counts: got 2"),
        ({"model": nn.Conv2d(1, 2, 3)}, "model: fails on images of shape"),
        ({"model": nn.Linear(2, 2).double()}, "float32"),
        ({"model": Counts()}, "model: seen changes during a forward pass in eval mode"),
        ({"model": Returns(lambda z: z.detach())}, "no gradient reaches the image"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(192, 1))}, "model output: got 1 logit an image"),
        ({"model": len}, "evaluate: got a builtin_function_or_method; allowed: a torch.nn.Module"),
        ({"train_class_counts": ["x"] * 4}, "training counts: got "),
        ({"seed": 2**40}, "seed: got 1099511627776; allowed: 0 to 4294967295"),
        ({"step_size": 0.0}, "step size: got 0; allowed: above 0"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"eps": 0.0}, "eps: got 0; allowed: above 0"),
        ({"eps": -0.1}, "eps: got -0.1; allowed: above 0, up to 1"),
        ({"eps_l2": 0.0}, "eps l2: got 0; allowed: above 0"),
        ({"step_size_l2": -1.0}, "step size l2: got -1; allowed: above 0"),
        ({"curves": ["stepz"]}, "unknown curve 'stepz'.*did you mean 'steps'"),
        ({"attacks": ("taet", "reat")}, "one protocol at a time"),
        ({"batch_size": 0}, "batch size"),
        ({"attacks": ("fgsm", "fgsm")}, "each once"),
        ({"attacks": ("clean", "clean", "fgsm")}, "each once"),
        ({"attacks": ()}, "attacks: got none"),
        ({"attacks": "fgsn"}, "did you mean 'fgsm'"),
        ({"dataset": object()}, "dataset= beside a Module"),
        ({"weights": "model-best"}, "weights= beside a Module; allowed: with a run folder"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_a_model_or_setting_that_does_not_fit_is_one_line(
    change: dict[str, Any], message: str, evaluate: Evaluated
) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate(**change)
    assert "\n" not in str(error.value)


def test_a_model_that_fails_later_is_one_line_too(evaluate: Evaluated) -> None:
    def few(logits: Tensor) -> Tensor:
        assert len(logits) < 8, "too many images"
        return logits

    with pytest.raises(UserError, match="'clean' failed in the model: AssertionError: too many images"):
        evaluate(model=Returns(few))


def test_two_classes_have_no_dlr_and_say_so_before_the_work(task: Task) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    seen: list[str] = []
    with pytest.raises(UserError, match="got 2 classes; allowed: 3 or more for DLR"):
        taet.evaluate(model, task[1], task[2] % 2, attacks="pgd-3:objective=dlr", progress=lambda *_: seen.append(""))
    assert seen == []


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3)) + 2, [0, 1], "divide by 255"),
        (np.zeros((2, 8, 8, 3)) * np.nan, [0, 1], "without NaN"),
        (np.zeros((2, 3, 8, 8), dtype=np.int64), [0, 1], "got int64"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, 1], "1 or 3 channels"),
        (np.zeros((2, 8, 8), dtype=np.uint8), [0, 1], "got shape"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, 1, 2], "labels: got int64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), [0.0, 1.0], "labels: got float64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, -1], "labels: got -1"),
        (None, None, "without images"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_one_line(images: Any, labels: Any, message: str, task: Task) -> None:
    with pytest.raises(UserError, match=message):
        taet.evaluate(task[0], images, labels if labels is None else np.array(labels))


def test_what_given_images_say_is_not_given_again(task: Task) -> None:
    model, images, labels = task
    given = GivenImages(images, labels, class_names=["a", "b", "c", "d"], about={"name": "mine"})
    card = taet.evaluate(model, given, attacks="clean")
    assert (card.class_names, card.data["name"]) == (("a", "b", "c", "d"), "mine")
    with pytest.raises(UserError, match="got labels= and class_names= beside GivenImages, which have their own"):
        taet.evaluate(model, given, labels, class_names=["a", "b", "c", "d"])


def test_images_beside_a_run_folder_need_labels_and_a_place_for_their_card(tmp_path: Path) -> None:
    images, labels = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, int)
    with pytest.raises(UserError, match="images beside a run, which has its own; allowed: with out="):
        taet.evaluate(tmp_path, images, labels)
    for given in ({"images": images, "out": tmp_path}, {"labels": labels}):
        with pytest.raises(UserError, match="got images without labels, or labels without images; allowed: both"):
            taet.evaluate(tmp_path, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mine"}, "name= beside a run, which has its own; allowed: with a Module"),
        ({"notes": ["from the web"]}, "notes= beside a run, which has its own; allowed: with a Module"),
        ({"train_class_counts": np.ones(10, int)}, "train_class_counts= beside a run, which has its own"),
        ({"name": "mine", "notes": ["x"]}, "name= and notes= beside a run"),
        ({"class_names": list("ab")}, "class_names= beside a run, which has its own; allowed: with images="),
        ({"data_about": {"name": "mine"}}, "data_about= beside a run, which has its own; allowed: with images="),
    ],
)
def test_what_a_run_says_of_itself_is_not_given_again(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        taet.evaluate(tmp_path, **given)


def test_finished_batches_are_kept_where_it_is_asked_also_beside_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: Evaluated
) -> None:
    put, folders = BatchStore.put, set[Path]()

    def seen(self: BatchStore, key: str, arrays: Any) -> None:
        folders.add(self.folder.parent)
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", seen)
    evaluate(attacks="fgsm", out=tmp_path / "card", state_dir=tmp_path / "state")
    assert folders == {tmp_path / "state"}
    assert not (tmp_path / "state").exists()  # the card is written


def test_a_run_folder_gets_its_card_and_its_examples(tmp_path: Path) -> None:
    run = override(
        Run(),
        {
            "model.name": "resnet8",
            "training.epochs": 1,
            "training.monitor_every": 0,
            "training.threads": 1,
            "threat.eps": 0.1,
            "threat.steps": 1,
            "evaluation.attacks": ("pgd-1", "pgd-3", "clean", "fgsm"),
            "evaluation.step_size": 0.05,
        },
    )
    folder = tmp_path / "run"
    taet.train(run, out=folder)
    card = taet.evaluate(folder, device="cpu", command="taet evaluate run")
    stored = ResultCard.load(folder / "evaluation.json")
    assert stored.to_json() == card.to_json()
    assert [column.name for column in card.columns] == ["clean", "pgd-1", "pgd-3", "fgsm"]
    assert (card.method, card.protocol, card.seed, card.model["epoch"]) == ("at", "taet", 0, 1)
    assert card.threat == {"norm": "linf", "eps": 0.1}
    assert set(card.summary("clean").groups) == {"head", "body", "tail", "last_half"}
    assert not (folder / "evaluation-state").exists()
    with np.load(folder / "artifacts" / "examples.npz") as examples:
        assert str(examples["attack"]) == "pgd-3"
        assert float(examples["eps"]) == 0.1
        assert examples["labels"].tolist() == sorted(examples["labels"])
        assert len(examples["images"]) == 20
        difference = np.abs(examples["adversarial"] - examples["images"] / 255)
        assert 0.05 < difference.max() <= 0.1 + 1e-6
        column = card.column("pgd-3")
        for position, label in enumerate(range(10)):
            members = np.flatnonzero(card.labels == label)
            assert examples["adversarial_predictions"][2 * position] in column.predictions[members]
    with np.load(folder / "artifacts" / "examples.npz") as examples:
        images, labels = examples["images"], examples["labels"]
    other = taet.evaluate(
        folder,
        images,
        labels,
        attacks="fgsm",
        out=tmp_path / "other",
        data_about={"name": "others"},
    )
    assert len(other.labels) == 20
    assert (other.method, other.data["name"]) == ("at", "others")
    assert other.data["train_class_counts"] == card.data["train_class_counts"]
    assert ResultCard.load(tmp_path / "other" / "evaluation.json").to_json() == other.to_json()
    assert ResultCard.load(folder / "evaluation.json").to_json() == card.to_json()


@pytest.mark.parametrize(("most", "measured"), [(4, True), (3, False)])
def test_of_very_many_classes_nothing_is_kept_for_every_pair(
    most: int, measured: bool, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "PAIRED_CLASSES", most)
    card = evaluated("clean", out=tmp_path)
    monkeypatch.setattr(Runner, "run", None)  # the second time nothing is run
    assert evaluated("clean", out=tmp_path).column("clean").seconds == card.column("clean").seconds
    assert (card.column("clean").roc_auc is not None) == measured
    assert math.isnan(card.summary("clean").roc_auc) != measured
