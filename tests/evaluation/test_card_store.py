"""What a folder knows already is taken from it, if it is about the same model, images and settings; nothing is lost."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from taet.errors import UserError
from taet.evaluation import ResultCard, card_store
from taet.evaluation.batch_store import BatchStore
from taet.evaluation.examples import read_examples
from taet.evaluation.runner import Runner
from taet.files import lock

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
    arrays = {"rows": np.arange(5), "predictions": np.arange(5)}
    units.put("0", arrays)
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in range(1, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        found = units.get("0")  # missing, or the same numbers: the time of a member is of no account
        if found is not None:
            assert found.keys() == arrays.keys(), place
            for name, values in arrays.items():
                np.testing.assert_array_equal(found[name], values, strict=True)


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


@pytest.mark.full
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


class Failing:
    """Writing that fails at the n-th flush to the disk, as on a full disk, or ends the process there."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.count = at, error, 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count >= self.at:
            raise self.error


@pytest.mark.sample(4)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_whatever_fails_while_a_card_is_replaced_no_card_is_lost(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException
) -> None:
    first, second = (evaluated("fgsm", eps=eps) for eps in (0.05, 0.1))
    path = tmp_path / "evaluation.json"
    card_store.put(path, first)
    failing = Failing(at, error)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", failing)
        with pytest.raises((UserError, KeyboardInterrupt)):
            card_store.put(path, second)
    assert path.exists()
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]
    card_store.put(path, second)
    assert ResultCard.load(path).to_json() == second.to_json()
    assert [card.to_json() for card in cards(tmp_path)].count(first.to_json()) == 1


def test_a_card_keeps_its_images_until_its_successor_is_there(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated("pgd-1", out=tmp_path)
    path, images = tmp_path / "evaluation.json", tmp_path / "artifacts" / "examples.npz"
    before = read_examples(images, ResultCard.load(path))
    assert before is not None
    with monkeypatch.context() as patched:
        patched.setattr(card_store, "put", Failing(1, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            evaluated("pgd-3", out=tmp_path)
    kept = read_examples(images, ResultCard.load(path))
    assert kept is not None
    assert (kept.attack, kept.sha256) == ("pgd-1", before.sha256)
    evaluated("pgd-3", out=tmp_path)
    assert [file.name for file in images.parent.iterdir()] == ["examples.npz"]
    after = read_examples(images, ResultCard.load(path))
    assert after is not None
    assert after.attack == "pgd-3"


def test_a_card_beside_that_cannot_be_read_does_not_stop_an_evaluation(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    (tmp_path / "evaluation-2.json").write_text("{}")
    evaluated("pgd-1", out=tmp_path)
    assert ResultCard.load(tmp_path / "evaluation.json").column("pgd-1") is not None
    assert (tmp_path / "evaluation-2.json").read_text() == "{}"


def test_a_model_whose_answers_become_infinite_keeps_the_card_that_is_there(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    evaluated("fgsm", out=tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    model = Turned(task[0], 1.0)
    model.factor = float("inf")
    with pytest.raises(UserError, match=r"is about another model|not finite"):
        evaluated("fgsm", out=tmp_path, model=model)
    model.factor = 1e38  # from finite logits to infinite ones, image by image
    with pytest.raises(UserError, match=r"model output: not finite under 'clean' on images 0 to 7"):
        evaluated("fgsm", model=model)
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_a_card_whose_bytes_were_changed_is_refused(evaluated: Evaluated, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    path = tmp_path / "evaluation.json"
    assert ResultCard.load(path).sealed
    text = path.read_text()
    path.write_text(text.replace('"eps": 0.1', '"eps": 0.2'))
    with pytest.raises(UserError, match=r"evaluation\.json was changed or damaged: its SHA-256"):
        ResultCard.load(path)
    stored = json.loads(text)
    del stored["sha256"]
    path.write_text(json.dumps(stored))  # as an older version wrote it
    assert not ResultCard.load(path).sealed


def test_one_evaluation_at_a_time_works_in_a_folder(evaluated: Evaluated, task: Task, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    before = (tmp_path / "evaluation.json").read_bytes()
    with lock(tmp_path), pytest.raises(UserError, match=f"{tmp_path} is in use by"):
        evaluated("pgd-3", out=tmp_path)
    assert (tmp_path / "evaluation.json").read_bytes() == before
    with pytest.raises(UserError, match="not finite"):
        evaluated("fgsm", out=tmp_path / "new", model=Turned(task[0], float("inf")))
    assert not (tmp_path / "new").exists()
