"""`taet evaluate`: what its options leave on the card, in its folder and in the report."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from taet.card.card import Card


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def test_a_name_stands_in_the_card_and_the_tables(taet: Any, run: Path, tmp_path: Path) -> None:
    attacks = "--attacks", "fgsm", "--eps", "0.02"
    outcome = taet("evaluate", run, *attacks, "--name", "old classifier")
    assert outcome.out.startswith("old classifier on digits-lt")
    taet("report", run, "--out", tmp_path / "table.tex")
    assert r"old classifier & " in (tmp_path / "table.tex").read_text()


def test_images_are_named_and_left_out_on_request(taet: Any, run: Path) -> None:
    (file,) = run.glob("images-*.png")
    attacks = "--attacks", "fgsm", "pgd-3", "autoattack-10", "--eps", "0.02"
    kept = taet("evaluate", run, *attacks)
    assert f"images: {file} shows " in kept.out
    without = taet("evaluate", run, *attacks, "--no-images")
    assert f"images: {run}" not in without.out
    assert Card.load(run).images is None
    assert not file.exists()


def test_check_finds_a_changed_file_of_images(taet: Any, run: Path) -> None:
    (file,) = run.glob("images-*.png")
    file.write_bytes(file.read_bytes() + b"x")
    outcome = taet("check", run)
    assert outcome.code == 1
    assert f"{file} was changed or damaged" in outcome.out
