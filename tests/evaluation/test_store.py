"""What a folder knows is taken from it, if it is about the same model, images and settings; nothing
is lost."""

import errno
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import taet
from taet.attacks.batch_store import BatchStore
from taet.attacks.counting_model import CountingModel
from taet.card.comparison import same_answers
from taet.card.store import save_card
from taet.errors import UserError
from taet.evaluation import ResultCard, parse_attack
from taet.evaluation.runner import Runner, source_digest
from taet.files import lock
from taet.settings import Evaluation
from tests.evaluation.conftest import EPS, Changed, Evaluated, Task

ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


def flags(card: ResultCard) -> list[list[bool]]:
    return [column.correct.tolist() for column in card.columns]


def cards(folder: Path) -> list[ResultCard]:
    return [ResultCard.load(path) for path in sorted(folder.glob("evaluation*.json"))]


@pytest.mark.full
def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: Evaluated
) -> None:
    put, left, written = BatchStore.put, [999], list[str]()

    def dying(self: BatchStore, key: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        written.append(f"{self.folder.name}/{key}")
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", dying)
    expected = evaluated(*ATTACKS, out=tmp_path / "whole")
    whole = sorted(written)
    for units in (1, 4, len(whole) - 2):
        folder = tmp_path / str(units)
        written.clear()
        left[0] = units
        with pytest.raises(KeyboardInterrupt):
            evaluated(*ATTACKS, out=folder)
        left[0] = 999
        card = evaluated(*ATTACKS, out=folder)
        assert flags(card) == flags(expected)
        assert card.probe == expected.probe
        assert [column.forwards for column in card.columns] == [
            column.forwards for column in expected.columns
        ]
        assert sorted(written) == whole, "nothing is done twice"
        assert not (folder / "evaluation-state").exists()


def test_a_finished_batch_keeps_nothing_for_each_class(task: Task, tmp_path: Path) -> None:
    """With 8,142 classes the probabilities of 24,000 images take 800 MB."""
    model, images, labels = task
    runner = Runner(CountingModel(model), images, labels, 4, 8, 0, torch.device("cpu"), tmp_path)
    with runner.frozen_and_exact():
        runner.attack(parse_attack("pgd-5", Evaluation(eps=EPS)))
    for path in tmp_path.rglob("*.npz"):
        content = path.read_bytes()[32:]
        with np.load(io.BytesIO(content)) as batch:
            assert all(array.ndim <= 1 for array in batch.values())


def test_damaged_batches_and_those_of_another_evaluation_are_not_trusted(
    task: Task, tmp_path: Path
) -> None:
    model, images, labels = task

    def units(network: nn.Module, labels: np.ndarray, eps: float) -> tuple[list[bool], set[Path]]:
        runner = Runner(
            CountingModel(network), images, labels, 4, 8, 0, torch.device("cpu"), tmp_path
        )
        with runner.frozen_and_exact():
            found, _ = runner.attack(parse_attack("pgd-5", Evaluation(eps=eps)))
        return (found.predictions == labels).tolist(), {*tmp_path.glob("pgd-5-*")}

    before, folders = units(model, labels, EPS)
    twice = Changed(lambda network, x: 2 * network(x), model)
    for number, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        content = bytearray(path.read_bytes())
        content[number * 72 + 100] ^= 1
        path.write_bytes(content)
    assert units(model, labels, EPS) == (before, folders)
    others = [(model, labels, EPS / 2), (twice, labels, EPS), (model, labels[::-1].copy(), EPS)]
    for count, other in enumerate(others):
        assert len(units(*other)[1]) == 2 + count


def test_a_model_of_the_same_weights_that_answers_otherwise_is_another_model(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    evaluated("fgsm", out=tmp_path, model=Changed(lambda network, x: network(x), task[0]))
    negative = Changed(lambda network, x: -network(x), task[0])
    second = evaluated("fgsm", out=tmp_path, model=negative)
    assert second.summary("clean").accuracy < 0.2
    assert len(cards(tmp_path)) == 2


def test_a_model_of_the_same_logits_without_gradients_is_another_model(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    first = evaluated("fgsm", out=tmp_path, model=Changed(lambda network, x: network(x), task[0]))
    # equal logits on images of 8 bits
    rounded = Changed(lambda network, x: network((x * 255).round() / 255), task[0])
    second = evaluated("fgsm", out=tmp_path, model=rounded)
    unbroken = second.summary("clean").accuracy
    assert second.summary("fgsm").accuracy == unbroken > first.summary("fgsm").accuracy


@pytest.mark.parametrize(("first_logit", "same"), [(1e9, True), (-1e9, False)])
def test_logits_that_decide_nothing_do_not_tell_models_apart(
    evaluated: Evaluated, first_logit: float, same: bool
) -> None:
    """A very large logit decides alone, and a very small one nothing."""
    card = evaluated("clean")
    first, second = (
        card.changed(model={**card.model, "answers": [[first_logit, 3.0, third, 0.5]]})
        for third in (1.0, 2.0)
    )
    assert same_answers(first, second) == same


def test_an_edit_of_forward_makes_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from torch import nn\n\nclass Own(nn.Sequential):\n    def forward(self, x):\n        "
        "return x{}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, edit in enumerate(("", ".round()")):
        (tmp_path / f"own{number}.py").write_text(text.format(edit))
        found.append(source_digest(importlib.import_module(f"own{number}").Own()))
    assert len({*found, source_digest(nn.Sequential(nn.Linear(1, 1)))}) == 3


def names(card: ResultCard) -> list[str]:
    return [column.name for column in card.columns]


def test_an_attack_is_added_to_the_card_of_its_ball(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    evaluated("pgd-3", "fgsm", out=tmp_path)
    ran.clear()
    assert names(evaluated("pgd-5", out=tmp_path)) == ["clean", "pgd-5", "pgd-3", "fgsm"]
    assert ran == ["pgd-5"]
    assert len(cards(tmp_path)) == 1


def test_an_attack_of_other_settings_makes_a_second_card_with_the_columns_that_fit(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    first = evaluated("pgd-3", "fgsm", out=tmp_path)
    again = evaluated("pgd-3", step_size=0.04, out=tmp_path)
    assert again.column("fgsm").seconds == first.column("fgsm").seconds  # not measured again
    steps = {card.column("pgd-3").parameters["step_size"] for card in cards(tmp_path)}
    assert steps == {0.05, 0.04}


def test_another_ball_has_a_card_of_its_own(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("pgd-3", out=tmp_path)
    other = evaluated("fgsm", eps=0.05, out=tmp_path)
    assert names(other) == ["clean", "fgsm"]
    assert ResultCard.load(tmp_path).to_json() == other.to_json()


def test_a_ball_that_was_set_aside_gives_its_columns_back(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    evaluated("pgd-3", "fgsm", out=tmp_path)
    evaluated("fgsm", eps=0.05, out=tmp_path)
    ran.clear()
    assert names(evaluated("fgsm", out=tmp_path)) == ["clean", "fgsm", "pgd-3"]
    assert ran == []


@pytest.mark.full
def test_a_point_of_a_curve_that_was_asked_for_later_is_in_the_tables_and_not_measured_again(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    assert evaluated("curve-steps", step_size=0.1, out=tmp_path).column("pgd-10").curve == "steps"
    assert evaluated("pgd-10", step_size=0.1, out=tmp_path).column("pgd-10").curve == ""
    assert ran.count("pgd-10") == 1


@pytest.fixture(scope="module")
def two_balls(task: Task) -> tuple[ResultCard, ResultCard]:
    """Cards of one model in two balls."""
    first, second = (taet.evaluate(*task, attacks=["fgsm"], eps=eps) for eps in (0.05, 0.1))
    return first, second


@pytest.mark.parametrize("at", [1, 2])
def test_whatever_fails_while_a_card_is_replaced_no_card_is_lost(
    two_balls: tuple[ResultCard, ResultCard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    first, second = two_balls
    path = tmp_path / "evaluation.json"
    save_card(path, first)
    flushes: list[int] = []

    def full(file: int) -> None:
        flushes.append(file)
        if len(flushes) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(UserError):
            save_card(path, second)
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]
    save_card(path, second)
    assert ResultCard.load(path).to_json() == second.to_json()
    assert [card.to_json() for card in cards(tmp_path)].count(first.to_json()) == 1


def test_cards_that_were_set_aside_in_one_second_are_all_kept(
    two_balls: tuple[ResultCard, ResultCard], tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    first, second = two_balls
    for number, card in enumerate((first, second, first)):
        save_card(path, card.changed(created=second.created, command=f"call {number}"))
    assert len(cards(tmp_path)) == 3


def test_a_folder_belongs_to_one_process(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    with lock(tmp_path), pytest.raises(UserError, match=f"{tmp_path} is in use by"):
        evaluated("pgd-3", out=tmp_path)


def test_a_folder_belongs_to_one_model(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UserError, match="is about another model"):
        evaluated("fgsm", out=tmp_path, model=other)


def test_the_folder_of_a_run_takes_no_card_of_another_model(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run, whose card is about its own model"):
        evaluated("fgsm", out=tmp_path)
