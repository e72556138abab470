"""Files of public code on the command line: described, evaluated, predicted with and exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taet import models
from taet.evaluation import ResultCard

CLASSES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of weights, net.pt, images of three classes, and a table of them, in this folder."""
    monkeypatch.chdir(tmp_path)
    network = models.build("resnet8", 3, (3, 8, 8), seed=1)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "acc": np.float64(0.5)}, "net.pt")
    draws = np.random.default_rng(0)
    for name in CLASSES:
        for split in ("train", "test"):
            (folder := Path("pets", split, name)).mkdir(parents=True)
            for number in range(4):
                pixels = draws.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_check_says_what_a_file_holds(taet: Any) -> None:
    outcome = taet("check", "net.pt")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "weights: 59 tensors under 'state_dict', 78,277 numbers"
    assert lines[1].startswith("tensors: module.mean 1 x 3 x 1 x 1, ..., module.head.bias 3")
    assert "not read, since it is code: numpy" in outcome.out
    assert "network: resnet8" in lines
    assert lines[-1] == "to attack it: taet evaluate --model resnet8 --weights net.pt --data NAME"


@pytest.mark.parametrize(
    "subject",
    [
        ("--model", "resnet8", "--weights", "net.pt"),
        ("resnet8", "--weights", "net.pt"),
        ("net.pt",),
    ],
)
def test_evaluate_takes_a_network_or_a_file_in_the_place_of_a_run(
    taet: Any, subject: tuple[str, ...]
) -> None:
    outcome = taet("evaluate", *subject, "--data", "./pets", "--attacks", "clean", "--out", "card")
    assert outcome.code == 0, outcome.err
    assert "classes: outputs are matched by position (0 is cat, 2 is eel)" in outcome.out
    assert ResultCard.load(Path("card")).clean is not None


def test_the_order_of_the_outputs_can_be_given(taet: Any) -> None:
    words = ("evaluate", "net.pt", "--data", "./pets", "--attacks", "clean")
    Path("names.txt").write_text("eel\ndog\ncat\n")
    cards = []
    for number, order in enumerate([(), ("--classes", "names.txt")]):
        outcome = taet(*words, *order, "--out", f"card{number}")
        assert outcome.code == 0, outcome.err
        cards.append(ResultCard.load(Path(f"card{number}")).column("clean"))
    by_position, by_name = (card.predictions for card in cards)
    np.testing.assert_array_equal(by_name, 2 - by_position)


def test_predict_takes_a_file(taet: Any) -> None:
    words = ("predict", "net.pt", "pets/test", "--size", 8, "--classes", ",".join(CLASSES))
    outcome = taet(*words, "--attack", "pgd-2")
    assert outcome.code == 0, outcome.err
    rows = [line.split(",") for line in outcome.out.splitlines()]
    assert rows[0] == ["path", "class", "probability", "survives"]
    assert {row[1] for row in rows[1:]} <= {*CLASSES}


def test_an_exported_file_says_its_classes_and_size(taet: Any) -> None:
    words = ("export", "resnet8", "--weights", "net.pt", "--size", 8, "--classes", "cat,dog,eel")
    outcome = taet(*words, "--format", "safetensors", "--out", "net.safetensors")
    assert outcome.code == 0, outcome.err
    again = taet("predict", "net.safetensors", "pets/test/cat")
    assert again.code == 0, again.err
    assert "classes: cat, dog and eel" in taet("check", "net.safetensors").out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("predict resnet8 pets", "got resnet8 without weights; allowed: NAME --weights FILE"),
        ("predict net.pt pets --weights net.pt", "got the file net.pt and --weights"),
        ("export runs/x --format pt2 --size 8", "runs/x is a run, which has its own"),
        ("export net.pt --format pt2", "got a model without a run; allowed: with out"),
        (
            "evaluate net.pt --data ./pets --classes cat,dog",
            "unknown class of the data 'eel'; allowed: cat, dog",
        ),
    ],
)
def test_mistakes_are_one_line(taet: Any, words: str, reason: str) -> None:
    outcome = taet(*words.split())
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert reason in outcome.err
