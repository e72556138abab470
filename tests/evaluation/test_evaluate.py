"""Evaluation of any model on any images: every attack, resumable, and bad input refused in one line."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet
from taet import config
from taet.attacks import fgsm
from taet.errors import UserError
from taet.evaluation import ResultCard, attack_split, parse_attack
from taet.evaluation.state import Units

EPS = 0.1
ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


@functools.cache
def task() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A small network trained on noisy copies of one pattern per class, and uint8 test images."""
    generator = np.random.default_rng(0)
    labels = np.arange(22) % 4
    patterns = generator.uniform(80, 176, (4, 8, 8, 3))
    images = np.clip(patterns[labels] + generator.normal(0, 50, (22, 8, 8, 3)), 0, 255).astype(np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
        x, y = unit(images), torch.from_numpy(labels)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval(), images, labels


def unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 255


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 30)


def evaluate(**change: Any) -> ResultCard:
    model, images, labels = task()
    settings = {"attacks": ATTACKS, "eps": EPS, "step_size": EPS / 2, "batch_size": 8}
    return taet.evaluate(change.pop("model", model), images, labels, **{**settings, **change})


def flags(card: ResultCard) -> list[list[bool]]:
    return [column.correct.tolist() for column in card.columns]


@pytest.mark.parametrize("name", ["clean", "fgsm", "pgd-1", "pgd-20", "autoattack", "autoattack-fast", "autoattack-10"])
def test_names_of_attacks_are_understood(name: str) -> None:
    attack = parse_attack(name)
    assert attack.name == name
    assert attack.steps == {"fgsm": 1, "pgd-1": 1, "pgd-20": 20}.get(name, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "allowed: pgd-N, e.g. pgd-20"),
        ("pdg-20", "did you mean 'pgd-20'"),
        ("pgd-0", "unknown attack"),
        ("auto-attack", "did you mean 'autoattack'"),
    ],
)
def test_a_mistyped_attack_is_refused_before_the_work(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(attacks=("clean", name))


def test_every_attack_faces_all_images_and_the_columns_say_what_was_done() -> None:
    model, images, labels = task()
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


def test_uint8_and_float_images_are_the_same_images() -> None:
    model, images, labels = task()
    settings: dict[str, Any] = {"attacks": ("fgsm", "pgd-5"), "eps": EPS, "batch_size": 8}
    first = taet.evaluate(model, images, labels, **settings)
    second = taet.evaluate(model, unit(images), torch.from_numpy(labels), **settings)
    assert flags(first) == flags(second)


def test_flags_depend_neither_on_the_order_of_attacks_nor_on_the_batch_size_of_pgd() -> None:
    forwards = evaluate(attacks=("clean", "pgd-5", "fgsm"))
    backwards = evaluate(attacks=("fgsm", "pgd-5", "clean"), batch_size=5)
    for name in ("clean", "pgd-5", "fgsm"):
        np.testing.assert_array_equal(forwards.column(name).correct, backwards.column(name).correct)


def test_the_model_is_given_back_as_it_was() -> None:
    model = task()[0].train()
    state = torch.random.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model=model)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    model.eval()


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(state_dir=tmp_path / "whole")
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.npz"))
    put, left, written = Units.put, [0], list[str]()

    def dying(self: Units, key: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        written.append(f"{self.folder.name}/{key}")
        put(self, key, arrays)

    monkeypatch.setattr(Units, "put", dying)
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


def test_state_of_another_evaluation_or_damaged_state_is_not_trusted(tmp_path: Path) -> None:
    model, images, labels = task()
    settings: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "batch_size": 8, "state_dir": tmp_path}
    (before,) = attack_split(model, images, labels, ["pgd-5"], **settings)
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(path.read_bytes()[: int(path.stem) * 9 + 100])
    (again,) = attack_split(model, images, labels, ["pgd-5"], **settings)
    np.testing.assert_array_equal(again.correct, before.correct)
    count = len(list(tmp_path.iterdir()))
    attack_split(model, images, labels, ["pgd-5"], **{**settings, "eps": EPS / 2})
    attack_split(model, images, (labels + 1) % 4, ["pgd-5"], **settings)
    attack_split(nn.Sequential(*model, nn.ReLU()), images, labels, ["pgd-5"], **settings)
    assert len(list(tmp_path.iterdir())) == count + 3


def test_progress_never_goes_back_and_ends_at_its_total() -> None:
    seen: list[tuple[int, int, str]] = []
    evaluate(progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert {label.partition(":")[0] for _, _, label in seen} == {*ATTACKS, "probe"}


def test_progress_moves_inside_a_unit_but_not_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taet.attacks.progress.TICK_SECONDS", 0.0)
    seen: list[tuple[float, float, str]] = []
    evaluate(attacks="pgd-5", batch_size=22, progress=lambda *report: seen.append(report))
    inside = [done for done, _, label in seen if label == "pgd-5"]
    # 22 clean passes before; then after each forward, the backwards being one step behind
    assert inside == [22 + 22 * passes for passes in (0, 1, 3, 5, 7, 9, 11, 11)]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(done <= total for done, total, _ in seen)


class Returns(nn.Module):
    """A model that returns what a function makes of the logits."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.model, self.change = task()[0], change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


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
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"batch_size": 0}, "batch size"),
        ({"attacks": ("fgsm", "fgsm")}, "each once"),
        ({"attacks": ("clean", "clean", "fgsm")}, "each once"),
        ({"attacks": ()}, "attacks: got none"),
        ({"attacks": "fgsn"}, "did you mean 'fgsm'"),
        ({"dataset": object()}, "dataset= beside a Module"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_a_model_or_setting_that_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate(**change)
    assert "\n" not in str(error.value)


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
def test_images_and_labels_that_do_not_fit_are_one_line(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        taet.evaluate(task()[0], images, labels if labels is None else np.array(labels))


def test_images_beside_a_run_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a run folder alone"):
        taet.evaluate(tmp_path, np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, int))


def test_a_run_folder_gets_its_card_and_its_examples(tmp_path: Path) -> None:
    run = config.override(
        config.Run(),
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
