"""`taet data show` and `taet data prepare`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SMALL = ["digits-lt", "--max-count", "20", "--test-max-count", "6", "--imbalance-ratio", "10"]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_help_covers_both_actions(taet: Any) -> None:
    outcome = taet("data", "--help")
    assert outcome.code == 0
    examples = outcome.out.split("examples:")[1]
    assert "taet data show " in examples
    assert "taet data prepare " in examples
    for action, option in (("show", "--json"), ("prepare", "--size")):
        text = taet("data", action, "--help").out
        assert option in text
        assert f"taet data {action} " in text.split("examples:")[1]


def test_the_names_are_listed(taet: Any) -> None:
    for words in ((), ("--json",)):
        outcome = taet("data", "list", *words)
        assert (outcome.code, outcome.out) == (0, taet("list", "data", *words).out)
    assert "digits-lt" in outcome.out


def test_show_draws_a_picture(taet: Any, tmp_path: Path) -> None:
    outcome = taet("data", "show", *SMALL, "--out", "counts.png")
    assert outcome.code == 0
    assert "imbalance ratio 10" in outcome.out
    assert outcome.out.endswith("\nwritten: counts.png\n")
    for_a_program = taet("data", "show", *SMALL, "--out", "counts.svg", "--json")
    assert json.loads(for_a_program.out)["class_counts"]
    assert for_a_program.err == "written: counts.svg\n"
    with Image.open(tmp_path / "counts.png") as image:
        assert image.format == "PNG"
    wrong = taet("data", "show", *SMALL, "--out", "counts.txt")
    assert (wrong.code, wrong.out) == (2, "")
    assert "--out: got 'counts.txt'; allowed: a file that ends in .png, .pdf, .svg" in wrong.err


def test_prepare_of_what_needs_nothing_says_what_comes_next(taet: Any) -> None:
    outcome = taet("data", "prepare", *SMALL)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "nothing to download",
        "digits-lt: 78 train, 20 test images of 10 classes, imbalance 10",
        "next: taet train taet --data digits-lt --data.imbalance-ratio 10 --data.max-count 20 --data.test-max-count 6",
    ]


def test_prepare_without_a_network_is_one_line(taet: Any, tmp_path: Path) -> None:
    outcome = taet("data", "prepare", "tiny-imagenet-lt", "--root", "here")
    assert (outcome.code, outcome.out) == (2, "")
    line = outcome.err.splitlines()[-1]
    assert line.startswith("taet: error: cannot download tiny-imagenet-200.zip (Network is unreachable); put")
    assert "put tiny-imagenet-200.zip (248.1 MB, SHA-256 6198c8ae" in line
    assert line.endswith(" at 'here/tiny-imagenet-200.zip', then run the same command again")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which data set? taet data show NAME or taet data prepare NAME"),
        (["prepare"], "which data set? taet data prepare NAME"),
        (
            ["shwo", "digits-lt"],
            "unknown action of taet data 'shwo'; allowed: list, prepare, show; did you mean 'show'?",
        ),
        (["prepare", "chestmnist"], "multi-label"),
        (["prepare", "gtsbr"], "did you mean 'gtsrb'?"),
    ],
)
def test_mistakes_are_one_line(taet: Any, arguments: list[str], message: str) -> None:
    outcome = taet("data", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("taet: error:") == 1


def test_a_drawing_is_not_written_through_a_link(taet: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "victim")
    outcome = taet("data", "show", "digits-lt", "--out", str(tmp_path / "a.png"))
    assert outcome.code == 2
    assert "got a link" in outcome.err
    assert not (tmp_path / "victim").exists()


def test_own_images_are_shown_with_the_decision_about_mirroring(tmp_path: Path, taet: Any) -> None:
    for kind in ("1", "2"):
        (tmp_path / kind).mkdir()
        for number in range(10):
            colour = (9 * number, 5, 99 if kind == "1" else 0)
            Image.new("RGB", (16, 16), colour).save(tmp_path / kind / f"{number}.png")
    outcome = taet("data", "show", tmp_path)
    assert outcome.code == 0
    (line,) = (line for line in outcome.err.splitlines() if "--data.mirror" in line)
    why = "the default; no for letters, signs, and whatever has a left and a right"
    assert line.split(maxsplit=2)[1:] == ["yes", why]
