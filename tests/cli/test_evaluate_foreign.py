"""`taet evaluate --model`: anyone's network on anyone's images, from a file of weights to a result card."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from taet.attacks.cw_l2 import CwL2
from taet.errors import UserError
from taet.evaluation import ResultCard

ATTACKS = ("--attacks", "clean", "fgsm", "pgd-2")


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Nine test images of three classes in few.npz, in the current directory; returned as a model takes them."""
    generator, labels = np.random.default_rng(0), np.arange(12) % 3
    pixels = generator.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "few.npz",
        train_images=pixels,
        train_labels=labels,
        test_images=pixels[:9],
        test_labels=labels[:9],
    )
    monkeypatch.chdir(tmp_path)
    return pixels[:9].transpose(0, 3, 1, 2).astype(np.float32) / 255


def weights(path: str) -> torch.nn.Module:
    """A network of torchvision, written as DataParallel in a training script writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = resnet18(num_classes=3).eval()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state}, path)
    return network


@pytest.mark.full
def test_torchvision_end_to_end(taet: Any, images: np.ndarray) -> None:
    network = weights("net.pt")
    words = ("evaluate", "--model", "torchvision:resnet18", "--weights", "net.pt", "--data", "few.npz", *ATTACKS)
    outcome = taet(*words, "--normalize", "imagenet", "--eps", "2/255", "--eps-l2=128/255", "--out", "card")
    assert outcome.code == 0, outcome.err
    card = ResultCard.load("card/evaluation.json")
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-2"]
    assert card.threat["eps"] == 2 / 255
    assert card.data["name"].startswith("npz:few")
    assert card.data["train_class_counts"] == [4, 4, 4]
    assert card.command.startswith("taet evaluate --model torchvision:resnet18 --weights net.pt")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = network((torch.from_numpy(images) - mean) / std).argmax(1)
    np.testing.assert_array_equal(card.column("clean").predictions, expected.numpy())
    lines = outcome.out.splitlines()
    assert lines[-1] == "next: taet report card"
    assert lines[-2] == "normalisation: imagenet, inside the model"
    assert lines[-3] == "weights: 122 tensors of net.pt under 'state_dict', without the prefix 'module.'"


def test_without_weights_or_a_folder(taet: Any) -> None:
    words = ("evaluate", "--model", "torchvision:resnet18", "--data", "few.npz", "--attacks", "clean")
    outcome = taet(*words)
    assert outcome.code == 0, outcome.err
    assert "weights: none given, so fresh ones drawn from seed 0" in outcome.out
    path = Path("runs", "evaluate-torchvision-resnet18", "evaluation.json")
    assert taet(*words, "--json").out == path.read_text()
    assert len(json.loads(path.read_text())["columns"]) == 1


def test_what_was_measured_is_not_measured_again(taet: Any) -> None:
    words = ("evaluate", "--model", "resnet8", "--data", "few.npz", "--out", "card")
    assert taet(*words, "--attacks", "fgsm").code == 0
    first = ResultCard.load("card/evaluation.json").column("fgsm").seconds
    assert taet(*words, "--attacks", "pgd-2").code == 0
    card = ResultCard.load("card/evaluation.json")
    assert [column.name for column in card.columns] == ["clean", "pgd-2", "fgsm"]
    assert card.column("fgsm").seconds == first


def test_the_weights_of_a_run_give_the_flags_of_the_run(taet: Any, finished: Any) -> None:
    data = ("--data", "digits-lt", "--data.max-count", "60", "--data.test-max-count", "6")
    path = finished.folder / "model.safetensors"
    words = ("--attacks", "fgsm", "pgd-3", "--eps", "0.02", "--out", "card")
    assert taet("evaluate", "--model", "resnet8", "--weights", path, *data, *words).code == 0
    own, run = ResultCard.load("card/evaluation.json"), ResultCard.load(finished.folder / "evaluation.json")
    assert own.data["test_sha256"] == run.data["test_sha256"]
    for name in ("clean", "fgsm", "pgd-3"):
        np.testing.assert_array_equal(own.column(name).predictions, run.column(name).predictions)


class Trap:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sprung",)


def pickled() -> None:
    torch.save({"state_dict": resnet18(num_classes=3).state_dict(), "args": Trap()}, "net.pt")


def of_another_network() -> None:
    torch.save(resnet18(num_classes=5).state_dict(), "net.pt")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("prepare", "words", "part"),
    [
        (pickled, "torchvision:resnet18 --data few.npz --weights net.pt", "net.pt holds pickled code"),
        (
            of_another_network,
            "torchvision:resnet18 --data few.npz --weights net.pt",
            "2 of another shape (fc.weight (5, 512) for (3, 512) and fc.bias (5,) for (3,))",
        ),
        (None, "torchvision:resnet-18 --data few.npz", "did you mean 'resnet18'?"),
        (None, "resnet9 --data few.npz", "did you mean 'resnet8'?"),
        (None, "no_such_module:build --data few.npz", "module 'no_such_module' cannot be imported"),
        (None, "resnet8", "--data is missing: resnet8 names no test images"),
        (None, "resnet8 --data few.npz --attacks pdg-20", "did you mean 'pgd-20'?"),
        (None, "resnet8 --data few.npz --curves step", "unknown --curves 'step'"),
        (
            None,
            "resnet8 --data few.npz --eps-l2 x",
            "--eps-l2: got 'x'; allowed: a number, above 0, e.g. ",
        ),
        (None, "resnet8 --data few.npz --normalize imagnet", "did you mean 'imagenet'?"),
        (None, "resnet8 --data few.npz --weights", "--weights needs a value"),
        (None, "torchvision:squeezenet1_0 --data digits-lt", "Output size is too small"),
    ],
)
def test_mistakes_are_one_line(taet: Any, prepare: Callable[[], None] | None, words: str, part: str) -> None:
    if prepare is not None:
        prepare()
    outcome = taet("evaluate", "--model", *words.split(), "--out", "card")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("taet: error: ")
    assert outcome.err.count("\n") == 1
    assert part in outcome.err
    assert not Path("sprung").exists()
    assert not Path("card", "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("runs/x --data few.npz", "--data goes with --model runs/x; a run folder alone names its own data"),
        ("runs/x --model resnet8", "got 'runs/x', which no option takes"),
        ("runs/x --normalize imagenet", "unknown option --normalize"),
        ("runs/x --weights net.pt", "unknown --weights 'net.pt'; allowed: model, model-best, model-last"),
    ],
)
def test_what_goes_with_a_run_and_what_with_a_model(taet: Any, words: str, part: str) -> None:
    outcome = taet("evaluate", *words.split())
    assert outcome.code == 2
    assert part in outcome.err


def drawn(folder: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """A folder of class folders of five grey images each; the level of grey says the class."""
    draws = np.random.default_rng(0)
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.clip(draws.normal(level, 4, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def named(taet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of three classes with names, whose images are gone."""
    place = tmp_path_factory.mktemp("named")
    data = drawn(place / "own", {"blister": 40, "nevus": 120, "\u00d6dem haut": 200})
    words = "--model resnet8 --epochs 1 --monitor-every 0 --batch-size 4 --threads 1 --precision float32"
    outcome = taet("train", "standard", "--data", data, *words.split(), "--out", place / "run")
    assert outcome.code == 0, outcome.err
    data.rename(place / "gone")
    return place / "run"


@pytest.mark.full
def test_a_run_on_other_images_takes_their_labels_by_name_and_their_size_from_itself(
    taet: Any, named: Path, tmp_path: Path
) -> None:
    other = drawn(tmp_path / "other", {"nevus": 120, "O\u0308dem haut": 200}, (20, 17))  # as a Mac writes the name
    outcome = taet("evaluate", "--model", named, "--data", other, "--attacks", "clean", "--out", "card")
    assert outcome.code == 0, outcome.err
    card = ResultCard.load("card/evaluation.json")
    assert card.class_names == ("blister", "nevus", "\u00d6dem haut")
    assert card.labels.tolist() == [2, 1]  # the folders in the order of the alphabet, where O is before n
    assert card.data["train_class_counts"] == [4, 4, 4]
    assert "no test image of the run's classes: blister" in card.data["notes"]


def test_a_class_that_the_run_does_not_know_is_refused(taet: Any, named: Path, tmp_path: Path) -> None:
    other = drawn(tmp_path / "other", {"nevus": 120, "blistr": 200})
    outcome = taet("evaluate", "--model", named, "--data", other, "--attacks", "clean", "--out", "card")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "unknown class of the test images 'blistr'; allowed: blister, nevus, \u00d6dem haut" in outcome.err
    assert "did you mean 'blister'?" in outcome.err


def test_where_one_side_has_only_numbers_the_order_counts(taet: Any, named: Path) -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    labels = np.arange(3)
    np.savez("plain.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    outcome = taet("evaluate", "--model", named, "--data", "plain.npz", "--attacks", "clean", "--out", "card")
    assert outcome.code == 0, outcome.err
    assert ResultCard.load("card/evaluation.json").labels.tolist() == [0, 1, 2]


def test_no_card_takes_the_place_of_one_about_something_else(taet: Any, named: Path, tmp_path: Path) -> None:
    first, second = (drawn(tmp_path / name, {"nevus": level, "blister": 9}) for name, level in (("a", 90), ("b", 99)))
    words = ("evaluate", "--attacks", "clean", "--model")
    assert taet(*words, named, "--data", first, "--out", "card").code == 0
    cards = (Path("card/evaluation.json"), named / "evaluation.json")
    before = [card.read_bytes() for card in cards]
    for model, data, out, part in (
        (named, first, named, "is a run, whose card is about its own model and data; allowed: another"),
        (named, second, "card", "evaluation.json is about other test images (pixels and labels SHA-256 "),
        ("resnet8", first, "card", "evaluation.json is about another model (weights SHA-256 "),
    ):
        outcome = taet(*words, model, "--data", data, "--out", out)
        lines = [line for line in outcome.err.splitlines() if not line.startswith("evaluate ")]  # progress
        assert (outcome.code, len(lines)) == (2, 1)
        assert part in lines[0]
    assert [card.read_bytes() for card in cards] == before


def test_help_of_both_forms(taet: Any) -> None:
    run, model = taet("evaluate", "--help").out, taet("evaluate", "--model", "x", "--help").out
    assert "Run folder" in run
    assert "--normalize STR" not in run
    for words in ("--normalize STR", "--data.name", "--weights", "torchvision:NAME, timm:NAME"):
        assert words in model


def test_an_option_beside_a_bundle_replaces_the_setting_of_its_paper(
    taet: Any, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--attacks reat` brings along the CW of REAT, whose constant is searched for; `--cw-constant` sets it."""
    subjects: list[Any] = []

    def measure(subject: Any, _: object, **__: object) -> None:
        subjects.append(subject)
        raise UserError("planned")

    monkeypatch.setattr(sys.modules["taet.evaluation.evaluate"], "measure", measure)
    for words in (finished.folder, "--model=torchvision:resnet18 --data=few.npz"):
        for option in ((), ("--cw-constant", "5")):
            assert taet("evaluate", *str(words).split(), "--attacks", "reat", *option).err.endswith("planned\n")
    for searched, given in (subjects[:2], subjects[2:]):
        assert given.settings == searched.settings.replace(cw_constant=5)
        (before,), (after,) = ([a for a in subject.attacks if isinstance(a, CwL2)] for subject in (searched, given))
        assert (before.c, after.c, before.eps, after.eps) == ("search", 5, 1.0, 1.0)
