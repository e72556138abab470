"""`taet evaluate`: what its options leave on the card, in its folder and in the report."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from taet.card.card import Card

SHORT = "--model resnet8 --epochs 1 --threat.steps 1 --monitor-every 0 --no-evaluate --threads 1"


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


def test_the_report_of_one_run_is_renewed_in_its_folder(
    taet: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert taet("report", run).out == f"{run / 'report.html'}\n"
    assert taet("report", run, run / "evaluation.json").out == "report.html\n"
    assert (tmp_path / "report.html").is_file()


def test_the_folder_of_a_comparison_is_refused_with_one_of_its_runs(
    taet: Any, run: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "study" / "runs" / "at"
    shutil.copytree(run, inside)
    outcome = taet("evaluate", tmp_path / "study")
    assert outcome.code == 2
    assert f"it holds a comparison; allowed: one of its runs, e.g. {inside}" in outcome.err


def test_an_export_without_a_format_is_told_the_formats(taet: Any, run: Path) -> None:
    assert "which --format? allowed: pt2, onnx, safetensors" in taet("export", run).err


@pytest.mark.parametrize(("seed", "is_told"), [("0", False), ("1", True)])
def test_images_of_the_training_divided_in_another_way_are_told(
    seed: str,
    is_told: bool,
    taet: Any,
    lesions: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    trained = taet("train", "at", "--data", lesions, *SHORT.split(), "--out", run)
    assert trained.code == 0, trained.err
    words = ["--model", run, "--data", lesions, "--data.seed", seed, "--attacks", "clean"]
    assert taet("evaluate", *words, "--out", tmp_path / "card").code == 0
    told = f"{run} was trained on folder:{lesions}, and its test images were others: "
    assert (told in caplog.text) == is_told
