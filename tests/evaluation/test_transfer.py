"""Examples made on one model and shown to another: the matrix, what is kept, and what is refused."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taet import protocols, train
from taet.attacks import fgsm
from taet.errors import UserError
from taet.evaluation import ResultCard, diagnostics, evaluate, parse_attack
from taet.evaluation.batch_store import BatchStore
from taet.evaluation.runner import Runner, as_unit, make_runner
from taet.evaluation.transfer import Transfer, matrices, matrix, transfer, transfer_columns
from taet.files import lock
from taet.settings import Evaluation, override
from taet.training.finished import load_run

EPS = 0.1
CHANGES = {
    "model.name": "resnet8",
    "data.max_count": 40,
    "data.test_max_count": 20,
    "training.epochs": 4,
    "training.batch_size": 16,
    "training.monitor_every": 0,
    "training.threads": 1,
    "threat.eps": EPS,
    "threat.steps": 1,
    "evaluation.batch_size": 20,
}
STEP = Evaluation(step_size=EPS / 2)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ in their seed alone, on 78 test images: four batches."""
    place = tmp_path_factory.mktemp("trained")
    settings = [override(protocols.taet("at"), CHANGES | {"seed": seed}) for seed in range(3)]
    return [train(run, out=place / name).folder for name, run in zip(NAMES, settings, strict=True)]


@dataclass(frozen=True)
class Measured:
    """Three runs with their cards, and what the call returned and reported."""

    runs: list[Path]
    result: Transfer
    progress: list[tuple[float, float, str]]


@pytest.fixture(scope="module")
def measured(trained: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """All three runs on the FGSM examples of each other; their one warning lists the columns that it saw."""
    runs, seen = copies(trained, tmp_path_factory.mktemp("measured")), list[tuple[float, float, str]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "flags", lambda card: ({"flag": "seen", "text": " ".join(names(card))},))
        result = transfer(runs, "fgsm", progress=lambda *report: seen.append(report), command="taet transfer")
    return Measured(runs, result, seen)


@pytest.fixture
def runners(task: tuple[nn.Module, np.ndarray, np.ndarray]) -> list[Runner]:
    """The small network and two whose weights were moved."""
    model, images, labels = task
    models = [model]
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        moved = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
        moved.load_state_dict(model.state_dict())
        for parameter in moved.parameters():
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
        models.append(moved.eval())
    return [make_runner(one, images, labels, batch_size=8) for one in models]


class Killer:
    """Counts what attacks are asked for, lists the batches that are kept, and dies before it keeps more than `left`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.made, self.kept = 10**6, 0, list[str]()
        put, perturb = BatchStore.put, Runner.perturb

        def dying(units: BatchStore, key: str, arrays: Any) -> None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.kept.append("/".join((*units.folder.parts[-3:], key)))
            put(units, key, arrays)

        def counting(runner: Runner, *arguments: Any) -> Any:
            self.made += 1
            return perturb(runner, *arguments)

        monkeypatch.setattr(BatchStore, "put", dying)
        monkeypatch.setattr(Runner, "perturb", counting)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    return Killer(monkeypatch)


def copies(runs: list[Path], place: Path) -> list[Path]:
    return [Path(shutil.copytree(run, place / run.name)) for run in runs]


def names(card: ResultCard) -> list[str]:
    return [column.name for column in card.columns]


def cards(runs: list[Path]) -> list[ResultCard]:
    return [ResultCard.load(run / "evaluation.json") for run in runs]


# --- two models and their images -------------------------------------------------------------------------------------


def test_columns_are_what_naive_calls_give(runners: list[Runner]) -> None:
    source, *targets = runners
    x, y = as_unit(source.images), torch.from_numpy(source.labels)
    x_adv = fgsm(source.model.model, x, y, eps=EPS)
    columns = transfer_columns(source, targets, parse_attack("fgsm", eps=EPS), name="first")
    for column, target in zip(columns, targets, strict=True):
        np.testing.assert_array_equal(column.predictions, target.model.model(x_adv).argmax(1).numpy())
        np.testing.assert_array_equal(column.correct, column.predictions == source.labels)
        assert (column.name, column.norm, column.eps, column.bounded) == ("fgsm@first", "linf", EPS, True)
        assert (column.forwards, column.backwards) == (22, 0)
        assert column.parameters["source"]["name"] == "first"
    assert (columns[0].predictions != columns[1].predictions).any()


def test_a_source_that_is_its_own_target_gets_its_ordinary_column(
    runners: list[Runner], evaluated: Callable[..., ResultCard]
) -> None:
    card = evaluated("pgd-3", "cw-linf-2", step_size=STEP.step_size)
    for name in ("pgd-3", "cw-linf-2"):
        _, column = transfer_columns(runners[0], [runners[1], runners[0]], parse_attack(name, STEP, EPS))
        np.testing.assert_array_equal(column.predictions, card.column(name).predictions)
        assert column.parameters["source"]["weights_sha256"] == card.model["weights_sha256"]
        assert column.correct.sum() < card.column("clean").correct.sum()


def test_models_hold_still_and_are_given_back_as_they_were(runners: list[Runner]) -> None:
    attack = parse_attack("fgsm", eps=EPS)
    expected = transfer_columns(runners[0], runners[1:], attack)
    for one in runners:
        one.model.model.train()
    columns = transfer_columns(runners[0], runners[1:], attack)
    for column, other in zip(columns, expected, strict=True):
        np.testing.assert_array_equal(column.predictions, other.predictions)
    for one in runners:
        assert all(module.training for module in one.model.model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in one.model.parameters())
        one.model.model.eval()


def test_kept_batches_are_taken_unless_a_target_is_new(runners: list[Runner], tmp_path: Path, killer: Killer) -> None:
    source = replace(runners[0], state_dir=tmp_path)
    attack = parse_attack("pgd-3", eps=EPS)
    (alone,) = transfer_columns(source, runners[2:], attack)
    assert killer.made == 3
    first, second = transfer_columns(source, runners[1:], attack)
    assert killer.made == 6
    (again,) = transfer_columns(source, runners[1:2], attack)
    assert killer.made == 6
    np.testing.assert_array_equal(second.correct, alone.correct)
    np.testing.assert_array_equal(again.correct, first.correct)


def test_a_target_with_other_images_is_refused(runners: list[Runner]) -> None:
    source = runners[0]
    for images, labels in ((255 - source.images, source.labels), (source.images, source.labels[::-1].copy())):
        other = make_runner(source.model.model, images, labels)
        with pytest.raises(UserError, match="other images or labels; allowed: those of the source"):
            transfer_columns(source, [other], parse_attack("fgsm"))


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_matrix_is_what_naive_calls_give_and_is_in_the_cards(measured: Measured) -> None:
    result = measured.result
    loaded = [load_run(run) for run in measured.runs]
    test = loaded[0][2].test
    x, y = as_unit(test.images), torch.from_numpy(test.labels)
    made = [fgsm(model, x, y, eps=EPS) for _, model, _, _ in loaded]
    expected = [[(model(x_adv).argmax(1) == y).numpy() for x_adv in made] for _, model, _, _ in loaded]
    recalls = [[[right[test.labels == label].mean() for label in range(10)] for right in row] for row in expected]
    np.testing.assert_allclose(result.accuracy, np.mean(expected, axis=2))
    np.testing.assert_allclose(result.balanced, np.mean(recalls, axis=2))
    assert (np.diag(result.balanced) < result.balanced.max(1)).all()
    assert (result.balanced.max(1) < result.clean).all()
    assert result.names == NAMES
    for target, card in enumerate(cards(measured.runs)):
        others = [f"fgsm@{name}" for name in NAMES if name != NAMES[target]]
        assert names(card) == ["clean", "fgsm", *others]
        assert [flag["flag"] for flag in card.flags] == [
            "seen",
            "probe-small",
        ]  # made anew, and what the probe says stays
        assert card.flags[0]["text"] == " ".join(names(card))
        assert card.command == "taet transfer"
        assert card.summary("clean").balanced == result.clean[target]
        for source, other in enumerate(cards(measured.runs)):
            column = card.column("fgsm" if source == target else f"fgsm@{NAMES[source]}")
            np.testing.assert_array_equal(column.correct, expected[target][source])
            origin = {"name": NAMES[source], "weights_sha256": other.model["weights_sha256"]}
            assert column.parameters.get("source") == (None if source == target else origin)
    assert not any((run / "transfer-state").exists() for run in measured.runs)


def test_progress_never_goes_back_and_ends_at_its_total(measured: Measured) -> None:
    seen = measured.progress
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(done <= total for done, total, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    labels = {label for _, _, label in seen if not label.startswith(("about ", "at most "))}
    assert labels == {"clean", "fgsm", "probe", *(f"fgsm@{name}" for name in NAMES)}


@pytest.mark.full
def test_what_is_measured_stays_and_only_what_is_missing_is_added(
    measured: Measured, trained: list[Path], tmp_path: Path, killer: Killer
) -> None:
    runs = copies(measured.runs, tmp_path)
    shutil.rmtree(runs[2])
    shutil.copytree(trained[0], runs[2])  # c is trained anew, and has become like a
    evaluate(runs[0], attacks="clean")  # which leaves the columns from elsewhere
    result = transfer(runs, "fgsm")
    # Four batches of c: clean and attacked; four of a, b and c; and the example images of three evaluations.
    assert killer.made == 2 * 4 + 3 * 4 + 3
    before, after = measured.result.balanced, result.balanced
    np.testing.assert_array_equal(after[:2, :2], before[:2, :2])
    np.testing.assert_array_equal(after[:, 2], after[:, 0])
    assert (after[:2, 2] != before[:2, 2]).all()
    killer.made = 0
    assert transfer(runs, "fgsm").to_json() == result.to_json()
    assert killer.made == 3


@pytest.mark.full
def test_a_killed_transfer_goes_on_where_it_was(
    measured: Measured, trained: list[Path], tmp_path: Path, killer: Killer
) -> None:
    runs = copies(trained[:2], tmp_path)
    for left in (6, 9, 5, 1):  # clean, fgsm and the probe are 9 of each run, its examples 4
        killer.left = left
        with pytest.raises(KeyboardInterrupt):
            transfer(runs, "fgsm")
    assert sum("transfer-state" in batch for batch in killer.kept) == 3
    killer.left = 10**6
    transfer(runs, "fgsm")
    assert len(killer.kept) == len(set(killer.kept)) == 2 * (9 + 4)
    for card, expected in zip(cards(runs), cards(measured.runs), strict=False):
        assert names(card) == names(expected)[:3]
        for column in card.columns:
            np.testing.assert_array_equal(column.predictions, expected.column(column.name).predictions)
    assert not any((run / "transfer-state").exists() for run in runs)


@pytest.mark.full
def test_other_test_images_other_settings_and_names_that_clash_are_one_line(
    trained: list[Path], tmp_path: Path
) -> None:
    runs = copies(trained, tmp_path)

    def other(name: str, **changes: Any) -> Path:
        settings = override(protocols.taet("at"), CHANGES | {"training.epochs": 1, "data.max_count": 12, **changes})
        return train(settings, out=tmp_path / "others" / name).folder

    fewer, wider = other("d", **{"data.test_max_count": 15}), other("a", **{"threat.eps": 0.05})
    refused: list[tuple[list[Path], str, str]] = [
        (runs[:1], "pgd-2", "transfer: got 1 run; allowed: two or more"),
        ([], "pgd-2", "got 0 run"),
        ([runs[0], runs[0] / ".." / "a"], "pgd-2", "of one name; allowed: folders whose names differ"),
        ([runs[0], wider], "pgd-2", "of one name"),
        ([runs[0], fewer], "pgd-2", "d has other test images than .*a; allowed: the same ones"),
        ([runs[1], wider], "pgd-2", "pgd-2 has eps 0.05 in .*a and 0.1 in .*b; allowed: the same, e.g. by --eps"),
        (runs, "autoattack-fast", "leaves an image that it cannot break as it is; allowed: .* pgd-20"),
        (runs, "reat", "all columns of a protocol; allowed: an attack that changes every image"),
        (runs, "clean", "makes no examples"),
        (runs, "pdg-20", "did you mean 'pgd-20'"),
        ([runs[0], tmp_path], "pgd-2", "is not a run folder"),
    ]
    for folders, attack, message in refused:
        with pytest.raises(UserError, match=message) as error:
            transfer(folders, attack)
        assert "\n" not in str(error.value)
    assert not any((run / "evaluation.json").exists() for run in (*runs, fewer, wider))
    result = transfer([runs[1], wider], "fgsm", eps=EPS / 2)
    assert result.names == ("b", "a")
    assert [column.eps for column in ResultCard.load(wider / "evaluation.json").columns] == [None, EPS / 2, EPS / 2]


# --- the matrix ------------------------------------------------------------------------------------------------------


def test_matrices_come_from_the_cards_alone(measured: Measured, tmp_path: Path) -> None:
    runs = copies(measured.runs, tmp_path)
    transfer(runs[1:], "pgd-1")
    shown = dict(zip(("A", "B", "C"), cards(runs), strict=True))  # the weights tell which is which, not the names
    steps, chain = matrices(shown)
    assert (steps.attack, chain.attack, steps.names) == ("fgsm", "pgd-1", ("A", "B", "C"))
    np.testing.assert_array_equal(steps.balanced, measured.result.balanced)
    assert np.isnan(chain.balanced).tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert matrices({"A": shown["A"]}) == ()
    assert math.isnan(matrix(shown, "pgd-7").accuracy[0, 2])


def test_a_matrix_prints_itself_and_becomes_json() -> None:
    values = np.array([[0.25, 0.5], [math.nan, 0.125]])
    result = Transfer("pgd-20", ("at", "taet"), np.array([0.75, 1.0]), values, values / 2)
    assert repr(result).splitlines() == [
        "balanced accuracy % of each row's model on the pgd-20 examples made on each column's",
        "      clean    at  taet",
        "at     75.0  25.0  50.0",
        "taet  100.0     -  12.5",
    ]
    assert result.to_json() == {
        "attack": "pgd-20",
        "names": ["at", "taet"],
        "clean": [0.75, 1.0],
        "balanced": [[0.25, 0.5], [None, 0.125]],
        "accuracy": [[0.125, 0.25], [None, 0.0625]],
    }


@pytest.mark.full
def test_a_transfer_owns_the_runs_and_refuses_one_that_another_process_evaluates(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = copies(trained[:2], tmp_path)
    with lock(folders[1]), pytest.raises(UserError, match=f"{folders[1]} is in use by"):
        transfer(folders, "fgsm")
    real = evaluate

    def also(folder: Path, **settings: Any) -> ResultCard:
        card = real(folder, **settings)
        if folder == folders[0]:
            real(folder, attacks=["pgd-2"])
        return card

    monkeypatch.setattr(sys.modules["taet.evaluation.transfer"], "evaluate", also)
    with pytest.raises(UserError, match="was evaluated by another process meanwhile; run the transfer again"):
        transfer(folders, "fgsm")
    assert "pgd-2" in names(cards(folders)[0])
