"""What a folder knows is taken from it, if it is about the same model, images and settings; nothing is lost."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import taet
from taet.errors import UserError
from taet.evaluation import ResultCard, store
from taet.evaluation.runner import Runner
from taet.evaluation.store import BatchStore, read_examples
from taet.files import lock
from tests.evaluation.conftest import EPS

Evaluated = Callable[..., ResultCard]
Task = tuple[nn.Module, np.ndarray, np.ndarray]
ATTACKS = ("clean", "fgsm", "pgd-5", "autoattack-10")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the attacks that were really run, in their order."""
    names: list[str] = []
    real = Runner.attack
    monkeypatch.setattr(
        Runner, "attack", lambda self, one, **rest: (names.append(one.name), real(self, one, **rest))[1]
    )
    return names


class Turned(nn.Module):
    """A network with another forward and the same weights."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.network(x)
        return logits


def flags(card: ResultCard) -> list[list[bool]]:
    return [column.correct.tolist() for column in card.columns]


def cards(folder: Path) -> list[ResultCard]:
    return [ResultCard.load(path) for path in sorted(folder.glob("evaluation*.json"))]


# -- finished batches --------------------------------------------------------------------------------------------------


def test_a_killed_evaluation_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: Evaluated
) -> None:
    expected = evaluated(*ATTACKS, state_dir=tmp_path / "whole")
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
            evaluated(*ATTACKS, state_dir=folder)
        left[0] = 999
        card = evaluated(*ATTACKS, state_dir=folder)
        assert flags(card) == flags(expected)
        assert card.probe == expected.probe
        assert [column.forwards for column in card.columns] == [column.forwards for column in expected.columns]
        assert sorted(written) == sorted(str(file.with_suffix("")) for file in files), "nothing is done twice"


def test_state_of_another_evaluation_or_damaged_state_is_not_trusted(
    evaluated: Evaluated, task: Task, tmp_path: Path
) -> None:
    def run(**change: Any) -> ResultCard:
        return evaluated("pgd-5", state_dir=tmp_path, **change)

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


def test_a_damaged_unit_counts_as_missing_wherever_its_bits_have_turned(tmp_path: Path) -> None:
    units, arrays = BatchStore(tmp_path, "pgd-3", "x" * 64), {"rows": np.arange(5), "predictions": np.arange(5)}
    units.put("0", arrays)
    (path,) = tmp_path.rglob("*.npz")
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for place in range(1, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        if (found := units.get("0")) is not None:  # the same numbers: the time of a member is of no account
            for name, values in arrays.items():
                np.testing.assert_array_equal(found[name], values, strict=True)


def test_work_is_kept_where_it_is_asked_and_that_of_others_stays(evaluated: Evaluated, tmp_path: Path) -> None:
    begun = tmp_path / "evaluation-state" / "autoattack-0123456789abcdef" / "square-1.npz"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"of another")
    evaluated("fgsm", out=tmp_path)
    assert [path for path in (tmp_path / "evaluation-state").rglob("*") if path.is_file()] == [begun]
    evaluated("fgsm", out=tmp_path / "card", state_dir=tmp_path / "state")
    assert not (tmp_path / "state").exists(), "the card is written"


# -- cards -------------------------------------------------------------------------------------------------------------


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
    second = evaluated("pgd-3", step_size=0.04, out=tmp_path)
    assert [column.name for column in second.columns] == ["clean", "pgd-3", "fgsm"]
    assert {card.column("pgd-3").parameters["step_size"] for card in cards(tmp_path)} == {0.05, 0.04}
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]


def test_a_stored_worst_case_does_not_outlive_what_is_measured_after_it(evaluated: Evaluated, tmp_path: Path) -> None:
    card = evaluated("fgsm", out=tmp_path)
    card.changed(columns=(*card.columns, card.worst_case())).save(tmp_path / "evaluation.json")
    assert [column.name for column in evaluated("pgd-5", out=tmp_path).columns] == ["clean", "pgd-5", "fgsm"]


def test_a_point_of_a_curve_that_was_asked_for_stays_in_the_tables(
    evaluated: Evaluated, tmp_path: Path, ran: list[str]
) -> None:
    evaluated("pgd-20", out=tmp_path)
    card = evaluated("curve-steps", step_size=0.1, out=tmp_path)
    assert card.column("pgd-20").curve == ""
    assert card.column("pgd-10").curve == "steps"
    assert evaluated("pgd-10", step_size=0.1, out=tmp_path).column("pgd-10").curve == ""
    assert ran.count("pgd-10") == 1


class Failing:
    """Writing that fails at the n-th flush to the disk, as on a full disk, or ends the process there."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.count = at, error, 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count >= self.at:
            raise self.error


@pytest.mark.parametrize("at", [1, 2])
def test_whatever_fails_while_a_card_is_replaced_no_card_is_lost(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    first, second = (evaluated("fgsm", eps=eps) for eps in (0.05, 0.1))
    path = tmp_path / "evaluation.json"
    store.put(path, first)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", Failing(at, OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(UserError):
            store.put(path, second)
    assert first.to_json() in [card.to_json() for card in cards(tmp_path)]
    store.put(path, second)
    assert ResultCard.load(path).to_json() == second.to_json()
    assert [card.to_json() for card in cards(tmp_path)].count(first.to_json()) == 1


def test_a_card_that_cannot_be_made_or_read_leaves_the_others(evaluated: Evaluated, task: Task, tmp_path: Path) -> None:
    evaluated("fgsm", out=tmp_path)
    (tmp_path / "evaluation-2.json").write_text("{}")
    evaluated("pgd-2", out=tmp_path)
    assert (tmp_path / "evaluation-2.json").read_text() == "{}"
    before = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(UserError, match=r"model output: not finite under 'clean' on images 0 to 7"):
        evaluated("fgsm", out=tmp_path / "other", model=Turned(task[0], 1e38))  # from finite logits to infinite ones
    assert (tmp_path / "evaluation.json").read_bytes() == before
    with pytest.raises(UserError, match="not finite"):
        evaluated("fgsm", out=tmp_path / "new", model=Turned(task[0], float("inf")))
    assert not (tmp_path / "new").exists()


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


# -- images ------------------------------------------------------------------------------------------------------------


def test_a_card_names_its_images_and_keeps_those_of_a_stronger_attack(evaluated: Evaluated, tmp_path: Path) -> None:
    path = tmp_path / "artifacts" / "examples.npz"
    for attack, kept in (("pgd-3", "pgd-3"), ("fgsm", "pgd-3"), ("pgd-5", "pgd-5")):
        evaluated(attack, out=tmp_path)
        card = ResultCard.load(tmp_path)
        assert card.examples_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        found = read_examples(path, card)
        assert found is not None
        assert found.attack == kept
    with pytest.raises(UserError, match="was changed: it is not the file that the result card names"):
        read_examples(path, card.changed(examples_sha256="0" * 64))
    assert read_examples(path, card.changed(examples_sha256=None)) is None
    path.write_bytes(path.read_bytes()[:100])
    evaluated("pgd-2", out=tmp_path)  # damaged ones are written anew
    found = read_examples(path, ResultCard.load(tmp_path))
    assert found is not None
    assert found.attack == "pgd-2"


def arrays(**changes: Any) -> dict[str, Any]:
    labels = np.arange(3)
    pixels = {"images": np.zeros((3, 4, 4, 3), np.uint8), "adversarial": np.zeros((3, 4, 4, 3), np.float32)}
    named = dict.fromkeys(("labels", "clean_predictions", "adversarial_predictions"), labels)
    return {**pixels, **named, "attack": np.array("pgd-3"), "eps": np.array(0.1), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": np.full(3, 10)},
        {"labels": np.arange(2)},
        {"clean_predictions": np.zeros(3)},
        {"images": np.zeros((3, 5, 4, 3), np.uint8)},
        {"images": np.zeros((3, 4, 4, 2), np.uint8), "adversarial": np.zeros((3, 4, 4, 2), np.float32)},
        {"eps": np.array(None, dtype=object)},
    ],
)
def test_images_that_cannot_be_drawn_are_refused(evaluated: Evaluated, tmp_path: Path, changes: Any) -> None:
    path, card = tmp_path / "examples.npz", evaluated("clean").changed(sealed=False)
    np.savez(path, **arrays(**changes))
    with pytest.raises(UserError, match=r"examples\.npz: "):
        read_examples(path, card)
    np.savez(path, **arrays())
    assert read_examples(path, card) is not None
