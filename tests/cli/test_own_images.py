"""`taet train METHOD --data folder:PATH` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., object]


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name, count in (("naevus", 12), ("melanoma", 5)):
        (tmp_path / "lesions" / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            image.save(tmp_path / "lesions" / name / f"{number}.png")
    return tmp_path / "lesions"


@pytest.mark.usefixtures("outlined")
def test_a_run_without_other_options_says_trains_attacks_and_reports(
    lesions: Path, monkeypatch: pytest.MonkeyPatch, taet: Command
) -> None:
    monkeypatch.setattr("taet.experiments.own_images.FEWEST_EPOCHS", 2)
    monkeypatch.setattr("taet.experiments.own_images.STEPS", 2)
    folder = lesions.parent / "run"
    outcome = taet("train", "taet", "--data", f"folder:{lesions}", "--out", folder)
    assert outcome.code == 0, outcome.err
    said = outcome.err + outcome.out
    for part in (
        "14 train + 3 test images of 2 classes",
        "10 'naevus' to 4 'melanoma' to train on",
        "cifar stem",
        "--epochs",
        "training will take about",
    ):
        assert part in said, said
    assert (folder / "evaluation.json").is_file()
    assert (folder / "report.html").is_file()
    assert f"report: {folder / 'report.html'}" in said


@pytest.mark.full
@pytest.mark.usefixtures("outlined")
def test_it_goes_on_where_it_was_stopped_and_stops_where_it_is_told(lesions: Path, taet: Command) -> None:
    folder = lesions.parent / "run"
    short = ("--epochs", "1", "--monitor-every", "0", "--threat.steps", "1")
    outcome = taet("train", "at", "--data", lesions, *short, "--no-evaluate", "--out", folder)
    assert outcome.code == 0, outcome.err
    assert not (folder / "evaluation.json").exists()
    assert "next: taet evaluate" in outcome.out
    assert taet("train", "--resume", folder).code == 0
    assert (folder / "report.html").is_file()
    outcome = taet("train", "at", "--evaluate", "--no-evaluate")
    assert (outcome.code, outcome.err) == (2, "taet: error: got both --evaluate and --no-evaluate; allowed: one\n")


@pytest.mark.usefixtures("outlined")
def test_a_benchmark_set_stops_after_training_unless_it_is_asked(
    small: list[str], tmp_path: Path, taet: Command
) -> None:
    words = ["train", "standard", *small, "--epochs", "1", "--evaluation.attacks", "clean", "--out"]
    assert taet(*words, tmp_path / "a").code == 0
    assert not (tmp_path / "a" / "evaluation.json").exists()
    assert taet(*words, tmp_path / "b", "--evaluate").code == 0
    assert (tmp_path / "b" / "report.html").is_file()
