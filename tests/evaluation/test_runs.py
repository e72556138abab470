"""The card of a run: its own images or others, each column measured once, and examples made on
another run."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from taet import methods, protocols, train
from taet.attacks import fgsm
from taet.data import load
from taet.data.dataset import images_sha256
from taet.errors import UserError
from taet.evaluation import ResultCard, check, evaluate
from taet.evaluation.runner import as_unit
from taet.evaluation.target import EvaluationTarget, are_numbers, by_name, match_channels
from taet.files import read_json, seal, write_json
from taet.run.folder import RunFolder
from taet.run.loading import load_run
from taet.settings import override

EPS = 0.1
CHANGES = {
    "model.name": "resnet8",
    "data.max_count": 40,
    "data.test_max_count": 20,
    "threat.eps": EPS,
}
CHANGES |= {
    "training.epochs": 2,
    "training.batch_size": 16,
    "training.monitor_every": 0,
    "training.threads": 1,
}
CHANGES |= {"threat.steps": 1, "evaluation.batch_size": 20, "evaluation.step_size": EPS / 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in their seed alone, on 78 test images: four batches."""
    place = tmp_path_factory.mktemp("runs")
    settings = [override(protocols.taet("at"), CHANGES | {"seed": seed}) for seed in range(2)]
    first, second = (
        train(run, out=place / name).folder for name, run in zip("ab", settings, strict=True)
    )
    return first, second


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def names(card: ResultCard) -> list[str]:
    return [column.name for column in card.columns]


ATTACKS = ["pgd-2", "pgd-3", "clean", "fgsm"]


@pytest.fixture(scope="module")
def evaluated(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the first run, with its card."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(runs[0], folder)
    evaluate(folder, attacks=ATTACKS, step_size=0.05, command="taet evaluate run")
    return folder


@pytest.fixture
def card(evaluated: Path) -> ResultCard:
    return ResultCard.load(evaluated / "evaluation.json")


def test_a_name_is_kept_until_there_is_another(run: Path) -> None:
    assert evaluate(run, attacks="fgsm").name is None
    assert "name" not in read_json(run / "evaluation.json")
    assert evaluate(run, attacks="fgsm", name="old classifier").name == "old classifier"
    card = evaluate(run, attacks=["fgsm", "pgd-2"])
    assert card.name == ResultCard.load(run).name == "old classifier"
    assert repr(card).startswith("old classifier on digits-lt")
    assert evaluate(run, attacks="fgsm", name="new").name == "new"
    for name in ("", " x", "two\nlines", "x" * 81):
        with pytest.raises(UserError, match=r"name: got .* allowed: 1 to 80 letters on a line"):
            evaluate(run, attacks="fgsm", name=name)


def test_a_run_gets_the_card_that_is_returned(run: Path) -> None:
    card = evaluate(run, attacks=["fgsm"])
    assert ResultCard.load(run / "evaluation.json").to_json() == card.to_json()
    assert not (run / "evaluation-state").exists()


def test_a_card_begins_with_clean_images(card: ResultCard) -> None:
    assert names(card) == ["clean", "pgd-2", "pgd-3", "fgsm"]


def test_a_card_says_what_was_trained(card: ResultCard) -> None:
    assert (card.method, card.protocol, card.seed, card.model["epoch"]) == ("at", "taet", 0, 2)


def test_a_card_of_a_run_has_the_groups_of_its_training_counts(card: ResultCard) -> None:
    assert card.summary("clean").groups.keys() == {"head", "body", "tail", "last_half"}


# -- other images


Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def others(evaluated: Path) -> Images:
    """Twenty images and their labels, as a user may bring them."""
    test = load_run(evaluated)[2].test
    return test.images[:20], test.labels[:20]


DIGITS = [*"0123456789"]


def test_other_images_have_a_card_beside_that_of_the_run(
    evaluated: Path, card: ResultCard, others: Images, tmp_path: Path
) -> None:
    other = evaluate(evaluated, *others, "fgsm", class_names=DIGITS, out=tmp_path)
    assert (other.method, other.data["name"], len(other.labels)) == ("at", "arrays", 20)
    assert ResultCard.load(tmp_path / "evaluation.json").to_json() == other.to_json()
    unchanged = ResultCard.load(evaluated / "evaluation.json")
    assert unchanged.to_json() == card.to_json()


@pytest.mark.parametrize("name", ["train_class_counts", "imbalance_ratio"])
def test_a_card_of_other_images_keeps_what_the_run_was_trained_on(
    name: str, evaluated: Path, card: ResultCard, others: Images, tmp_path: Path
) -> None:
    other = evaluate(evaluated, *others, "clean", class_names=DIGITS, out=tmp_path)
    assert other.data[name] == card.data[name]


def test_other_images_need_a_folder_of_their_own(evaluated: Path, others: Images) -> None:
    message = "got images beside a run, which has its own; allowed: with out="
    with pytest.raises(UserError, match=message):
        evaluate(evaluated, *others)


def test_other_images_of_an_unknown_class_are_refused(
    evaluated: Path, others: Images, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match="unknown class of the test images, which the model does not know, 'x'"
    ):
        evaluate(evaluated, *others, "fgsm", class_names=["3", "x"], out=tmp_path)


def test_other_images_of_another_size_are_refused(
    evaluated: Path, others: Images, tmp_path: Path
) -> None:
    images, labels = others
    message = "images: got 1 x 7 x 8; allowed: 1 x 8 x 8, channels, height and width"
    with pytest.raises(UserError, match=message):
        evaluate(evaluated, images[:, 1:], labels, class_names=DIGITS, out=tmp_path)


# -- notes


@pytest.mark.parametrize(("most", "noted"), [(40, True), (30, False)])
def test_notes_on_training_images_are_only_on_the_card_of_a_model_that_saw_these(
    run: Path, most: int, noted: bool
) -> None:
    data = load("digits-lt", max_count=most, test_max_count=20)
    notes = EvaluationTarget.of(run, data).about["data"]["notes"]
    assert any("training set" in note for note in notes) == noted


REPEATED = "9 of 9 test images are also in train"


@pytest.fixture
def seen() -> Images:
    """Nine of the training images, and their labels."""
    train_split = load("digits-lt", max_count=40, test_max_count=20).train
    return train_split.images[:9], train_split.labels[:9]


def test_training_images_that_are_given_as_test_images_are_noted(run: Path, seen: Images) -> None:
    assert EvaluationTarget.of(run, *seen, class_names=DIGITS).about["data"]["notes"] == [REPEATED]


def test_training_images_are_known_in_floating_point_too(run: Path, seen: Images) -> None:
    images, labels = seen
    floats = images.transpose(0, 3, 1, 2) / np.float32(255)
    assert EvaluationTarget.of(run, floats, labels).about["data"]["notes"] == [REPEATED]


def test_a_check_says_that_training_images_are_no_unseen_images(run: Path, seen: Images) -> None:
    found = str(check(run, *seen))
    assert f"test images         {REPEATED}: they are no unseen images" in found


# -- labels by the names of their classes


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["0", "1"], ["cat", "dog", "emu"], True),
        (None, ["cat", "dog"], True),
        (["0", "1"], ["1", "0"], False),
    ],
)
def test_labels_are_numbers_where_no_names_say_otherwise(
    names: list[str] | None, known: list[str], expected: bool
) -> None:
    assert are_numbers(names, known) == expected


def test_labels_that_may_be_numbers_or_names_are_refused() -> None:
    named_by_numbers = sorted(map(str, range(11)))  # "10" is the third
    message = r"are called 0, 1, 10, 2 .*; allowed: with class_names, or a Dataset"
    with pytest.raises(UserError, match=message):
        are_numbers(None, named_by_numbers)


def test_names_of_one_unicode_normal_form_are_two_classes() -> None:
    twins = ["caf\u00e9", "cafe\u0301", "x"]
    assert by_name(np.arange(3), twins, twins).tolist() == [0, 1, 2]


def test_names_that_are_no_classes_of_the_run_are_refused(run: Path, seen: Images) -> None:
    with pytest.raises(
        UserError, match="unknown class of the test images, which the model does not know, 'a'"
    ):
        EvaluationTarget.of(run, *seen, class_names=[*"abcdefghij"])


# -- images of other channels


def test_colour_images_for_a_network_of_grey_ones_become_grey_with_a_note(run: Path) -> None:
    grey = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    target = EvaluationTarget.of(run, grey.repeat(3, 3), np.array([0, 1]))
    np.testing.assert_array_equal(target.images, grey)
    assert "colour images are made grey, as the run's images are" in target.about["data"]["notes"]
    with pytest.raises(UserError, match="images: got 3 x 8 x 8; allowed: 1 x 8 x 8"):
        match_channels(grey.repeat(3, 3), (1, 8, 8), exactly=True)


def test_test_images_may_be_of_one_class(run: Path) -> None:
    grey = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    target = EvaluationTarget.of(run, grey, np.array([0, 0]), class_names=["7"])
    assert target.labels.tolist() == [7, 7]


def test_grey_images_get_the_channels_of_the_network() -> None:
    grey = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    np.testing.assert_array_equal(match_channels(grey, (3, 2, 4)), grey.repeat(3, 3))
    np.testing.assert_array_equal(
        match_channels(as_unit(grey).numpy(), (3, 2, 4)), as_unit(grey.repeat(3, 3))
    )
    for shape in ((1, 2, 3), (3, 2, 3)):
        with pytest.raises(UserError, match="images: got 1 x 2 x 4; allowed"):
            match_channels(grey, shape)


def test_what_a_card_says_of_a_run_is_found_in_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its method is built for its own classes, and a run.json without an imbalance ratio takes none
    from the card."""
    built, build, counts = [], methods.build, load_run(run)[2].class_counts.tolist()
    monkeypatch.setattr(
        methods, "build", lambda *of: built.append([*of[2].class_counts]) or build(*of)
    )
    stored = {
        name: value for name, value in read_json(run / "run.json").items() if name != "sha256"
    }
    del stored["data"]["imbalance_ratio"]
    write_json(run / "run.json", seal(stored))
    RunFolder(run).finish()
    about = EvaluationTarget.of(run).about
    assert built in ([], [counts])
    assert about["data"]["imbalance_ratio"] == max(counts) / min(counts)


def test_a_card_is_about_the_training_images_as_they_were(tmp_path: Path) -> None:
    arrays = {"train_images": np.arange(50, dtype=np.uint8).repeat(64).reshape(50, 8, 8, 1)}
    arrays |= {
        "train_labels": np.arange(50) % 3 % 2,
        "test_images": arrays["train_images"][:2],
        "test_labels": [0, 1],
    }
    np.savez(tmp_path / "a.npz", **arrays)
    run = override(protocols.taet("at"), CHANGES | {"data.name": f"npz:{tmp_path / 'a.npz'}"})
    before = EvaluationTarget.of(train(run, out=tmp_path / "run").folder).about["data"]
    np.savez(
        tmp_path / "a.npz",
        **arrays | {name: arrays[name][2:40] for name in ("train_images", "train_labels")},
    )
    assert EvaluationTarget.of(tmp_path / "run").about["data"] == before


def test_attacks_are_added_and_none_is_run_twice(
    run: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, attacks=["fgsm", "pgd-2"])
    ran.clear()
    # not measured again either
    monkeypatch.setattr(sys.modules["taet.evaluation.evaluate"], "probe", None)
    second = evaluate(run, attacks=["pgd-2", "pgd-3"])
    assert (ran, names(second)) == (["pgd-3"], ["clean", "pgd-2", "pgd-3", "fgsm"])
    assert second.probe == first.probe != {}
    assert names(ResultCard.load(run / "evaluation.json")) == names(second)


def test_each_of_the_weights_of_a_run_has_its_own_state(run: Path) -> None:
    (run / "model-best.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    waiting = run / "evaluation-state" / "unit"
    waiting.mkdir(parents=True)  # of an evaluation of model that is still at work
    found = {
        name: evaluate(run, attacks="clean", weights=name)
        for name in ("model-best", "model", "model-last")
    }
    assert [card.model["selection"] for card in found.values()] == [
        "best-validation",
        "last",
        "last",
    ]
    assert [path.name for path in (run / "evaluation-state").iterdir()] == ["unit"]
    assert not (run / "evaluation-best-state").exists()


def test_a_run_from_memory_is_evaluated_with_what_it_was_trained_from(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    data, folder = load("digits-lt", max_count=12, test_max_count=6), tmp_path / "run"
    train(
        override(protocols.taet("at"), CHANGES | {"data.max_count": 12}),
        out=folder,
        model=network(),
        dataset=data,
    )
    with pytest.raises(UserError, match="from memory"):
        evaluate(folder, attacks="clean")
    card = evaluate(folder, attacks=["fgsm", "pgd-2"], model=network(), dataset=data)
    assert ResultCard.load(folder / "evaluation.json").to_json() == card.to_json()
    assert (card.model["name"], card.data["name"]) == ("Sequential", data.name)
    assert (
        card.data["test_sha256"]
        == data.test.sha256
        == images_sha256(data.test.images, data.test.labels)
    )


def test_a_column_of_another_run_is_what_a_naive_call_gives(runs: tuple[Path, Path]) -> None:
    target, source = runs
    card = evaluate(target, attacks=["fgsm", f"fgsm@{source}"])
    (column,) = (one for one in card.columns if one.is_transfer)
    assert re.fullmatch("fgsm@b-[0-9a-f]{8}", column.name)  # another run may be called b
    _, model, data, _ = load_run(target)
    _, other, _, record = load_run(source)
    x, y = as_unit(np.asarray(data.test.images)), torch.from_numpy(data.test.labels)
    x_adv = torch.cat(
        [fgsm(other, a, b, eps=EPS) for a, b in zip(x.split(20), y.split(20), strict=True)]
    )
    with torch.no_grad():
        np.testing.assert_array_equal(column.predictions, model(x_adv).argmax(1).numpy())
    assert (column.norm, column.eps, column.bounded) == ("linf", EPS, True)
    assert (f"fgsm@{column.parameters['source']['name']}", record.run.seed) == (column.name, 1)
    assert list(card.worst_case().parts) == ["fgsm"], "it is no attack on the model itself"
    assert (
        evaluate(target, attacks=[f"fgsm@{source}"]).column(column.name).seconds == column.seconds
    )


def test_the_attacked_model_itself_and_a_changed_run_are_refused(
    runs: tuple[Path, Path], run: Path
) -> None:
    with pytest.raises(
        UserError, match=f"attack @{run}: got the attacked model itself; allowed: another run"
    ):
        evaluate(runs[0], attacks=[f"pgd-10@{run}"])
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="was changed or damaged"):
        evaluate(runs[0], attacks=[f"fgsm@{run}"])
