"""What a folder knows already is taken from it, if it is about the same model, images and settings; nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.batch_store import BatchStore
from taet.evaluation.runner import Runner

Evaluated = Callable[..., ResultCard]
Task = tuple[nn.Module, np.ndarray, np.ndarray]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were really run, in their order."""
    names: list[str] = []
    real = Runner.attack
    monkeypatch.setattr(Runner, "attack", lambda self, one, *rest: (names.append(one.name), real(self, one, *rest))[1])
    return names


class Turned(nn.Module):
    """A network with another forward and the same weights."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.network(x)
        return logits


def cards(folder: Path) -> list[ResultCard]:
    return [ResultCard.load(path) for path in sorted(folder.glob("evaluation*.json"))]


def test_a_model_of_the_same_weights_that_answers_otherwise_is_another_model(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    first = evaluated("fgsm", out=tmp_path, model=Turned(task[0], 1.0))
    second = evaluated("fgsm", out=tmp_path, model=Turned(task[0], -1.0))
    assert first.summary("clean").accuracy > 0.9
    assert second.summary("clean").accuracy < 0.2
    assert len(cards(tmp_path)) == 2


def test_two_balls_in_turn_are_measured_once_each(evaluated: Evaluated, tmp_path: Path, ran: list[str]) -> None:
    for _ in range(3):
        for eps in (0.05, 0.1):
            card = evaluated("fgsm", eps=eps, out=tmp_path)
            assert card.threat["eps"] == eps
            assert ResultCard.load(tmp_path / "evaluation.json").to_json() == card.to_json()
    assert ran == ["clean", "fgsm"] * 2
    assert len(cards(tmp_path)) == 2


def test_columns_with_other_settings_replace_and_the_card_before_is_kept(evaluated: Evaluated, tmp_path: Path) -> None:
    first = evaluated("pgd-3", "fgsm", out=tmp_path)
    second = evaluated("pgd-3", step_size=0.01, out=tmp_path)
    assert [column.name for column in second.columns] == ["clean", "pgd-3", "fgsm"]
    assert {card.column("pgd-3").parameters["step_size"] for card in cards(tmp_path)} == {0.05, 0.01}
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]


def test_a_worst_case_does_not_outlive_what_is_measured_after_it(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", worst_case=True, eps=0.04, out=tmp_path)
    card = evaluated("pgd-5", eps=0.04, out=tmp_path)
    assert [column.name for column in card.columns] == ["clean", "pgd-5"]
    assert card.column("worst-case").correct.sum() <= card.column("pgd-5").correct.sum()
    assert evaluated("clean", eps=0.04, out=tmp_path).column("worst-case").parameters["attacks"][0]["name"] == "pgd-5"


def test_the_worst_case_keeps_to_a_curve_asked_for_beside_it(evaluated: Evaluated, tmp_path: Path) -> None:
    card = evaluated("pgd-20", worst_case=True, curves=["steps"], out=tmp_path)
    assert [c.name for c in card.columns if c.curve == "steps"] == [f"pgd-{n}" for n in (1, 2, 5, 10, 20, 50, 100)]


def test_damaged_examples_do_not_stop_an_evaluation(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("pgd-3", out=tmp_path)
    path = tmp_path / "artifacts" / "examples.npz"
    path.write_bytes(path.read_bytes()[:100])
    evaluated("pgd-2", out=tmp_path)
    with np.load(path) as examples:
        assert str(examples["attack"]) == "pgd-2"


def test_a_weaker_attack_does_not_replace_the_examples_of_a_stronger_one(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("pgd-3", out=tmp_path)
    evaluated("fgsm", out=tmp_path)
    with np.load(tmp_path / "artifacts" / "examples.npz") as examples:
        assert str(examples["attack"]) == "pgd-3"


def test_a_damaged_unit_counts_as_missing_wherever_its_bits_have_turned(tmp_path: Path) -> None:
    units = BatchStore(tmp_path, "pgd-3", "x" * 64)
    units.put("0", {"rows": np.arange(5), "predictions": np.arange(5)})
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        found: Any = units.get("0")  # whatever it is, it is no exception
        assert found is None or isinstance(found, dict)


def test_what_another_evaluation_has_begun_stays(evaluated: Evaluated, tmp_path: Path) -> None:
    begun = tmp_path / "evaluation-state" / "autoattack-0123456789abcdef" / "square-1.npz"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"of another")
    evaluated("fgsm", out=tmp_path)
    assert [path for path in (tmp_path / "evaluation-state").rglob("*") if path.is_file()] == [begun]


def test_a_unit_finds_its_folder_again_after_another_process_is_done_with_it(tmp_path: Path) -> None:
    mine, other = (BatchStore(tmp_path / "state", "pgd-3", "x" * 64) for _ in range(2))
    mine.put("0", {"rows": np.arange(2)})
    other.remove()
    assert not (tmp_path / "state").exists()
    mine.put("1", {"rows": np.arange(2)})
    assert mine.get("0") is None
    assert mine.get("1") is not None


def test_the_card_of_another_model_has_no_place_in_a_run(evaluated: Evaluated, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is a run, whose card is about its own model"):
        evaluated("fgsm", out=tmp_path)


def test_a_column_that_was_asked_for_stays_in_the_tables_as_a_point_with_other_settings(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    evaluated("pgd-50", step_size=0.01, out=tmp_path)
    card = evaluated("fgsm", curves=["steps"], out=tmp_path)
    assert card.column("pgd-50").curve == ""
    assert card.column("pgd-10").curve == "steps"


def test_more_restarts_hold_those_of_fewer(evaluated: Evaluated) -> None:
    names = ("pgd-2", "pgd-2:restarts=3", "pgd-2:restarts=6")
    card = evaluated(*names, eps=0.04)
    masks = [card.column(name).correct for name in names]
    assert (masks[0] >= masks[1]).all()
    assert (masks[1] >= masks[2]).all()
