"""`taet evaluate --model` and `taet check`: anyone's network on anyone's images, and what is wrong
with it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from taet.evaluation import ResultCard
from taet.models import build
from taet.report.results import results

SOURCE = """
import torch
from torch import nn

class Brightness(nn.Module):
    # Right on every image: the classes differ in their level of grey.
    def __init__(self):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.2, 0.4, 0.6, 0.8]))

    def forward(self, x):
        return -50 * (x.mean((1, 2, 3))[:, None] - self.levels).square()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images of four levels of grey, grey.npz, and grey_nets.py."""
    draws, labels = np.random.default_rng(0), np.arange(80) % 4
    levels = 51 * (1 + labels)[:, None, None, None]
    images = np.clip(levels + draws.integers(-5, 6, (80, 32, 32, 3)), 0, 255).astype(np.uint8)
    flipped = {"test_images": images[:, ::-1], "test_labels": labels}
    np.savez(tmp_path / "grey.npz", train_images=images, train_labels=labels, **flipped)
    (tmp_path / "grey_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("grey_nets", None)


@pytest.mark.full
def test_a_network_of_torchvision_with_weights_from_a_training_script(taet: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = resnet18(num_classes=4).eval()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 7, "state_dict": state}, "net.pt")
    words = (
        "evaluate",
        "--model",
        "torchvision:resnet18",
        "--weights",
        "net.pt",
        "--data",
        "grey.npz",
    )
    options = (
        "--attacks",
        "clean",
        "fgsm",
        "--normalize",
        "imagenet",
        "--eps",
        "2/255",
        "--eps-l2=128/255",
    )
    outcome = taet(*words, *options, "--out", "card")
    assert outcome.code == 0, outcome.err
    card = ResultCard.load(Path("card"))
    assert [column.name for column in card.columns] == ["clean", "fgsm"]
    assert (card.threat["eps"], card.data["train_class_counts"]) == (2 / 255, [20, 20, 20, 20])
    # another file is another row
    assert results(card).rows == ("torchvision:resnet18 net imagenet",)
    assert card.command.startswith("taet evaluate --model torchvision:resnet18 --weights net.pt")
    expected = [
        "weights: 122 tensors of net.pt under 'state_dict', without the prefix 'module.'",
        "normalisation: imagenet, inside the model",
        "classes: outputs are matched by name, the number of each class",
        "next: taet report card",
    ]
    assert [line for line in outcome.out.splitlines() if line in expected] == expected


def test_an_error_names_no_option_that_its_command_lacks(taet: Any, tmp_path: Path) -> None:
    network = build("resnet18", 10, (3, 32, 32), seed=0)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    outcome = taet("predict", "resnet8", tmp_path, "--weights", tmp_path / "net.pt")
    assert "the names are those of RUN resnet18" in outcome.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("evaluate --model resnet8", "--data is missing: resnet8 names no test images"),
        (
            "evaluate runs/x --data grey.npz",
            "got --data with a run, which has images and a normalisation of its own; allowed: with "
            "--model runs/x --data NAME",
        ),
        (
            "evaluate runs/x --data.test balanced --all-images",
            "got --data.test and --all-images with a run",
        ),
        (
            "evaluate --model resnet8 --data digits-lt --all-images",
            "all images: got digits-lt; allowed: your own",
        ),
    ],
)
def test_mistakes_are_one_line(taet: Any, words: str, part: str) -> None:
    outcome = taet(*words.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith("taet: error: ")
    assert part in outcome.err


@pytest.mark.full
def test_a_run_is_checked_file_by_file_and_as_a_model(
    taet: Any, finished: Any, tmp_path: Path
) -> None:
    outcome = taet("check", finished.folder, "--attacks", "pgd-3")
    assert outcome.err == ""
    assert any(
        line.startswith("ok model.safetensors") and line.endswith("verified")
        for line in outcome.out.splitlines()
    )
    assert "77,754 parameters, 10 logits for images of 1 x 8 x 8; tried on" in outcome.out
    assert "pgd-3: about" in outcome.out
    assert outcome.code == int("\n!" in outcome.out)
    held = ("--data.validation", 0.2, "--data.test", "validation", "--data.seed", 1)
    again = taet(
        "evaluate", "--model", finished.folder, "--data", "digits-lt", *held, "--attacks", "clean"
    )
    assert (
        "test images are also in train, so these numbers are not those of unseen images"
    ) in again.err + again.out
    damaged = Path(shutil.copytree(finished.folder, tmp_path / "damaged"))
    (damaged / "metrics.jsonl").write_text("{}")
    assert (taet("check", damaged).code, taet("check", damaged).err) == (1, "")


def test_a_model_of_any_origin_is_checked(taet: Any) -> None:
    words = ("check", "grey_nets:Brightness", "--data", "grey.npz", "--attacks", "clean", "pgd-20")
    outcome = taet(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "balanced accuracy 100.0 %" in outcome.out
    assert outcome.out.endswith("weights: as grey_nets:Brightness gives them\n")


def test_a_forgotten_normalisation_is_said_by_check_and_evaluate(taet: Any) -> None:
    Path("grey_nets.py").write_text(SOURCE.replace("x.mean", "(0.225 * x + 0.45).mean"))
    words = ("grey_nets:Brightness", "--data", "grey.npz", "--attacks", "clean")
    line = "% of 80 clean images are right; with --normalize imagenet: 100.0 %"
    assert line in taet("check", *words).out
    assert line in taet("evaluate", *words, "--out", "card").out


def with_trust(*words: str) -> list[str]:
    return [*words, "--trust-model", "grey_nets:Brightness"]


def test_an_evaluated_network_is_used_by_the_folder_of_its_card(taet: Any, place: Path) -> None:
    levels = {"levels": torch.tensor([0.8, 0.6, 0.4, 0.2])}
    (place / "other").mkdir()
    torch.save(levels, place / "other/net.pt")
    words = ["--data", "grey.npz", "--classes", "3,2,1,0", "--attacks", "clean", "--out", "card"]
    network = ["--model", "grey_nets:Brightness", "--weights", "other/net.pt"]
    assert taet("evaluate", *network, *words).code == 0
    image = Image.fromarray(np.full((50, 40, 3), 102, np.uint8))
    image.save(place / "dark.png")
    told = taet("predict", *with_trust("card", "dark.png"))
    assert told.out.splitlines()[1].startswith("dark.png,1,"), told.err
    exported = taet("export", *with_trust("card", "--format", "pt2"))
    assert exported.out == "card/artifacts/model.pt2\n", exported.err
    torch.save({"levels": torch.zeros(4)}, place / "other/net.pt")
    changed = taet("predict", *with_trust("card", "dark.png"))
    assert "has other weights than those that card is about" in changed.err


def test_code_of_an_evaluated_network_is_run_only_with_trust(taet: Any) -> None:
    words = ["--data", "grey.npz", "--attacks", "clean", "--out", "card"]
    assert taet("evaluate", "--model", "grey_nets:Brightness", *words).code == 0
    refused = taet("predict", "card", "grey.npz")
    assert "allowed: with --trust-model grey_nets:Brightness" in refused.err


def test_every_image_can_be_a_test_image(taet: Any) -> None:
    words = (
        "evaluate --model grey_nets:Brightness --data grey.npz --attacks clean --all-images "
        "--out card"
    )
    outcome = taet(*words.split())
    assert (outcome.code, "all 160 images are test images\n" in outcome.out) == (0, True)
    card = ResultCard.load(Path("card"))
    assert (len(card.labels), card.data["train_class_counts"]) == (160, None)
