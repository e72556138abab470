"""`taet predict`: a clean table on standard output, whatever the files."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taet.cli import predict as command
from taet.evaluation import ResultCard


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawings of another size than the run's, in two folders."""
    folder = tmp_path_factory.mktemp("digits")
    draws = np.random.default_rng(0)
    for number in range(40):
        place = folder / f"part {number % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (20, 17), np.uint8)).save(place / f"{number:02}.png")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_table_of_a_folder(taet: Any, finished: Any, digits: Path, tmp_path: Path) -> None:
    outcome = taet("predict", finished.folder, digits, "--batch-size", "16")
    assert outcome.code == 0
    found = rows(outcome.out)
    assert [row["path"] for row in found] == sorted(map(str, digits.rglob("*.png")))
    assert [*found[0]] == ["path", "class", "probability"]
    assert {row["class"] for row in found} <= set(map(str, range(10)))
    assert all(0.1 <= float(row["probability"]) <= 1 for row in found)
    assert outcome.err.splitlines()[-1].endswith("40 of 40 images")
    path = tmp_path / "found.csv"
    written = taet("predict", finished.folder, digits, "--out", path)
    assert (written.code, written.out, rows(path.read_text())) == (0, "", found)
    again = taet("predict", finished.folder, digits, "--out", path)
    assert (again.code, again.err) == (2, f"taet: error: {path} exists; allowed: another --out, or --force\n")
    assert taet("predict", finished.folder, digits / "part 0", "--out", path, "--force").code == 0
    assert len(rows(path.read_text())) == 20


def test_an_attack_and_json(taet: Any, finished: Any, digits: Path) -> None:
    words = ("predict", finished.folder, digits / "part 0", "--attack", "pgd-3")
    found = rows(taet(*words, "--top", "2").out)
    assert [*found[0]] == ["path", "class", "probability", "class_2", "probability_2", "survives"]
    assert {row["survives"] for row in found} <= {"true", "false"}
    written = json.loads(taet(*words, "--format", "json").out)
    assert (written["attack"], written["class_names"]) == ("pgd-3", list(map(str, range(10))))
    assert [str(image["survives"]).lower() for image in written["images"]] == [row["survives"] for row in found]


def test_what_the_evaluation_says_of_the_same_images(taet: Any, finished: Any, tmp_path: Path) -> None:
    from taet.data import load

    card = ResultCard.load(finished.folder / "evaluation.json")
    images = load("digits-lt", max_count=60, test_max_count=6).test.images
    for number, image in enumerate(images):
        Image.fromarray(np.asarray(image).squeeze(-1)).save(tmp_path / f"{number:03}.png")
    found = rows(taet("predict", finished.folder, tmp_path, "--attack", "fgsm:eps=0.02").out)
    clean, attacked = card.column("clean"), card.column("fgsm")
    assert [int(row["class"]) for row in found] == clean.predictions.tolist()
    survives = np.array([row["survives"] == "true" for row in found])
    np.testing.assert_array_equal(survives[clean.correct], attacked.correct[clean.correct])


def test_a_bad_file_has_its_reason_and_the_others_their_class(
    taet: Any, finished: Any, digits: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad, really.png"
    bad.touch()
    outcome = taet("predict", finished.folder, digits / "part 0", bad, tmp_path / "missing.png")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == "taet: 2 of 22 images could not be read: see the column error"
    *good, empty, missing = rows(outcome.out)
    assert all(row["class"] and not row["error"] for row in good)
    assert (empty["path"], empty["class"], empty["probability"]) == (str(bad), "", "")
    assert "it is no image" in empty["error"]
    assert "missing.png" in missing["error"]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux only")
def test_names_that_are_no_text(taet: Any, finished: Any, tmp_path: Path) -> None:
    name = b"caf\xe9 \xff.png"
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/" + name)
    call = [sys.executable, "-W", "error", "-m", "taet", "predict", str(finished.folder), str(tmp_path)]
    done = subprocess.run(call, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()
    assert header == b"path,class,probability"
    assert row.startswith(os.fsencode(tmp_path) + b"/" + name + b",")
    (image,) = json.loads(taet("predict", finished.folder, tmp_path, "--format", "json").out)["images"]
    assert os.fsencode(image["path"]) == os.fsencode(tmp_path) + b"/" + name


def test_an_interruption_writes_what_was_found(
    taet: Any, finished: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        parts = command_batches(*arguments, **options)
        yield next(parts)
        raise KeyboardInterrupt

    command_batches = command.batches
    monkeypatch.setattr(command, "batches", interrupted)
    outcome = taet("predict", finished.folder, digits, "--batch-size", "16")
    assert outcome.code == 130
    assert len(rows(outcome.out)) == 16


def test_many_files_by_name(taet: Any, finished: Any, tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number}.png").symlink_to(tmp_path / "one.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "one.png")
    files = [tmp_path / f"{number}.png" for number in range(1500)]
    outcome = taet("predict", finished.folder, *files)
    assert outcome.code == 0
    assert [row["path"] for row in rows(outcome.out)] == list(map(str, files))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("RUN", "which images? taet predict"),
        ("RUN EMPTY", "no image in"),
        ("EMPTY IMAGES", "is not a run folder: it holds no run.json"),
        ("UNFINISHED IMAGES", "holds no model.safetensors: the run is not finished; resume it first"),
        ("RUN IMAGES --attack pdg-20", "did you mean 'pgd-20'?"),
        ("RUN IMAGES --attack deepfool", "got deepfool, which has no ball"),
        ("RUN IMAGES --top 0", "top: got 0; allowed: 1 or more"),
        ("RUN IMAGES --batch-size 0", "batch size: got 0"),
        ("RUN IMAGES --format xml", "unknown --format 'xml'; allowed: csv, json"),
        ("RUN IMAGES --out /proc/no/file.csv", "cannot make the folder /proc/no: No such file or directory"),
        ("RUN IMAGES --out /proc", "/proc is not a file; allowed: another --out"),
    ],
)
def test_mistakes_are_one_line(
    taet: Any,
    finished: Any,
    digits: Path,
    words: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / "unfinished" / "run.json").write_bytes((finished.folder / "run.json").read_bytes())
    places = {"RUN": finished.folder, "IMAGES": digits, "EMPTY": "empty", "UNFINISHED": "unfinished"}
    outcome = taet("predict", *(places.get(word, word) for word in words.split()))
    assert (outcome.code, outcome.out) == (2, "")
    lines = [line for line in outcome.err.splitlines() if not line.startswith("predict ")]  # progress
    assert len(lines) == 1
    assert lines[0].startswith("taet: error: ")
    assert part in lines[0]


def test_help_says_what_survival_is_not(taet: Any) -> None:
    text = " ".join(taet("predict", "--help").out.split())
    assert "true means that this attack failed; another attack may succeed" in text


def test_what_is_done_to_the_images_is_said_and_the_old_name_of_the_attack_is_answered(
    taet: Any, finished: Any, tmp_path: Path
) -> None:
    for number, (mode, size) in enumerate([("L", (8, 8)), ("RGB", (8, 8)), ("L", (20, 10))]):
        Image.new(mode, size).save(tmp_path / f"{number}.png")
    lines = [line for line in taet("predict", finished.folder, tmp_path).err.splitlines() if line.startswith("taet: ")]
    assert lines == [
        f"taet: 1 of 3 images are resized to 8x8 pixels as in training, e.g. '{tmp_path}/2.png' of 20x10",
        "taet: 1 of 3 images: not square, squeezed (e.g. '2.png')",
        "taet: 1 of 3 images are colour and read as grey, as the run's are",
    ]
    outcome = taet("predict", finished.folder, tmp_path, "--certify-attack", "fgsm")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--certify-attack is now --attack" in outcome.err
