"""What a folder knows is taken from it, if it is about the same model, images and settings; nothing is lost."""

import errno
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taet.attacks.counted import Counted
from taet.attacks.suite import BatchStore
from taet.errors import UserError
from taet.evaluation import ResultCard, parse_attack
from taet.evaluation.card import put, same_answers
from taet.evaluation.runner import Runner, source_digest
from taet.files import lock
from taet.settings import Evaluation
from tests.evaluation.conftest import EPS, Changed, Evaluated, Task

ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


def flags(card: ResultCard) -> list[list[bool]]:
    return [column.correct.tolist() for column in card.columns]


def cards(folder: Path) -> list[ResultCard]:
    return [ResultCard.load(path) for path in sorted(folder.glob("evaluation*.json"))]


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
        assert [column.forwards for column in card.columns] == [column.forwards for column in expected.columns]
        assert sorted(written) == whole, "nothing is done twice"
        assert not (folder / "evaluation-state").exists()


def test_damaged_batches_and_those_of_another_evaluation_are_not_trusted(task: Task, tmp_path: Path) -> None:
    model, images, labels = task

    def units(network: nn.Module, labels: np.ndarray, eps: float) -> tuple[list[bool], set[Path]]:
        runner = Runner(Counted(network), images, labels, 4, 8, 0, torch.device("cpu"), tmp_path)
        with runner.still():
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
    first = evaluated("fgsm", out=tmp_path, model=Changed(lambda network, x: network(x), task[0]))
    second = evaluated("fgsm", out=tmp_path, model=Changed(lambda network, x: -network(x), task[0]))
    assert first.summary("clean").accuracy > 0.9
    assert second.summary("clean").accuracy < 0.2
    assert len(cards(tmp_path)) == 2
    rounded = Changed(lambda network, x: network((x * 255).round() / 255), task[0])
    third = evaluated("fgsm", out=tmp_path, model=rounded)  # equal logits on images of 8 bits, but gradients of 0
    assert third.summary("fgsm").accuracy == third.summary("clean").accuracy > first.summary("fgsm").accuracy
    for first_logit, same in ((1e9, True), (-1e9, False)):  # which decides alone, or nothing
        ends = ([[first_logit, 3.0, value, 0.5]] for value in (1.0, 2.0))
        assert same_answers(*(second.changed(model={**second.model, "answers": one}) for one in ends)) == same


def test_an_edit_of_forward_makes_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\n\nclass Own(nn.Sequential):\n    def forward(self, x):\n        return x{}\n"
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, edit in enumerate(("", ".round()")):
        (tmp_path / f"own{number}.py").write_text(text.format(edit))
        found.append(source_digest(importlib.import_module(f"own{number}").Own()))
    assert len({*found, source_digest(nn.Sequential(nn.Linear(1, 1)))}) == 3


def test_columns_are_reused_in_one_ball_and_a_card_of_other_columns_is_kept(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    first = evaluated("pgd-3", "fgsm", out=tmp_path)
    assert [column.name for column in evaluated("pgd-5", out=tmp_path).columns] == ["clean", "pgd-5", "pgd-3", "fgsm"]
    assert ran == ["clean", "pgd-3", "fgsm", "pgd-5"]
    assert len(cards(tmp_path)) == 1
    again = evaluated("pgd-3", step_size=0.04, out=tmp_path)
    assert again.column("fgsm").seconds == first.column("fgsm").seconds
    assert {card.column("pgd-3").parameters["step_size"] for card in cards(tmp_path)} == {0.05, 0.04}
    other = evaluated("fgsm", eps=0.05, out=tmp_path)
    assert [column.name for column in other.columns] == ["clean", "fgsm"]
    assert ResultCard.load(tmp_path).to_json() == other.to_json()
    back = [column.name for column in evaluated("fgsm", out=tmp_path).columns]  # in the first ball, set aside
    assert back == ["clean", "fgsm", "pgd-3", "pgd-5"]


def test_a_point_of_a_curve_that_was_asked_for_later_is_in_the_tables_and_not_measured_again(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    assert evaluated("curve-steps", step_size=0.1, out=tmp_path).column("pgd-10").curve == "steps"
    assert evaluated("pgd-10", step_size=0.1, out=tmp_path).column("pgd-10").curve == ""
    assert ran.count("pgd-10") == 1


@pytest.mark.parametrize("at", [1, 2])
def test_whatever_fails_while_a_card_is_replaced_no_card_is_lost(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    first, second = (evaluated("fgsm", eps=eps) for eps in (0.05, 0.1))
    path = tmp_path / "evaluation.json"
    put(path, first)
    flushes: list[int] = []

    def full(file: int) -> None:
        flushes.append(file)
        if len(flushes) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(UserError):
            put(path, second)
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]
    put(path, second)
    assert ResultCard.load(path).to_json() == second.to_json()
    assert [card.to_json() for card in cards(tmp_path)].count(first.to_json()) == 1
    put(path, evaluated("pgd-2", eps=0.05).changed(created=second.created))
    put(path, first)
    assert len(cards(tmp_path)) == 4  # two of them set aside of one second


def test_a_folder_belongs_to_one_model_and_one_process(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    with lock(tmp_path), pytest.raises(UserError, match=f"{tmp_path} is in use by"):
        evaluated("pgd-3", out=tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UserError, match="is about another model"):
        evaluated("fgsm", out=tmp_path, model=other)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run, whose card is about its own model"):
        evaluated("fgsm", out=tmp_path)
