"""`taet predict`, `taet export` and `taet push`: what they print and write, and that nothing is
overwritten."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


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


def test_attacked_images_are_saved_with_a_line_on_their_rounding(
    taet: Any, finished: Any, digits: Path, tmp_path: Path
) -> None:
    words = ["predict", finished.folder, digits / "part 0", "--save", tmp_path / "saved"]
    outcome = taet(*words, "--attack", "pgd-2")
    assert outcome.code == 0, outcome.err
    line = outcome.err.splitlines()[-1]
    assert re.search(r"\d+ of 20 survive pgd-2; \d+ survive it rounded to 8 bits; images: ", line)
    assert len([*(tmp_path / "saved/attacked").glob("*.png")]) == 20
    again = taet(*words, "--attack", "pgd-2")
    assert "saved exists; allowed: another --save, or --force" in again.err
    assert taet(*words, "--attack", "pgd-2", "--force").code == 0


def test_a_table_of_a_folder_names_what_it_lacks(
    taet: Any, finished: Any, digits: Path, tmp_path: Path
) -> None:
    (digits / "phone.heic").touch()
    outcome = taet("predict", finished.folder, digits, "--batch-size", "16")
    assert "taet: left out: 1 other file (1 .heic)" in outcome.err
    assert outcome.code == 0
    found = rows(outcome.out)
    assert [row["path"] for row in found] == sorted(map(str, digits.rglob("*.png")))
    assert [*found[0]] == ["path", "class", "probability"]
    assert "40 of 40 images" in outcome.err
    path = tmp_path / "found.csv"
    written = taet("predict", finished.folder, digits, "--out", path)
    assert (written.code, written.out, rows(path.read_text())) == (0, "", found)
    again = taet("predict", finished.folder, digits, "--out", path)
    assert (again.code, again.err) == (
        2,
        f"taet: error: {path} exists; allowed: another --out, or --force\n",
    )
    assert taet("predict", finished.folder, digits / "part 0", "--out", path, "--force").code == 0
    assert len(rows(path.read_text())) == 20
    missing = taet("predict", finished.folder, digits / "part 0", tmp_path / "missing.png")
    assert (missing.code, len(rows(missing.out))) == (2, 21)
    assert missing.err.splitlines()[-1] == (
        "taet: 1 of 21 images could not be read: see the column error"
    )


def test_an_export_prints_its_path_and_replaces_only_by_force(
    taet: Any, finished: Any, tmp_path: Path
) -> None:
    words = (
        "export",
        finished.folder,
        "--format",
        "safetensors",
        "--out",
        tmp_path / "x.safetensors",
    )
    assert taet(*words).out == f"{tmp_path / 'x.safetensors'}\n"
    assert taet(*words).code == 2
    assert taet(*words, "--force").code == 0
    inside = taet("export", finished.folder, "--format", "safetensors")
    assert inside.out == f"{finished.folder / 'artifacts' / 'model.safetensors'}\n"


def test_a_published_run_is_read_by_its_folder(
    taet: Any, finished: Any, digits: Path, tmp_path: Path
) -> None:
    outcome = taet("push", finished.folder, f"folder:{tmp_path / 'x'}", "--license", "mit")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == str(tmp_path / "x")
    assert rows(taet("predict", tmp_path / "x", digits).out) == rows(
        taet("predict", finished.folder, digits).out
    )
    data = (
        "--data",
        "digits-lt",
        "--data.test-max-count",
        "3",
        "--attacks",
        "clean",
        "--out",
        tmp_path / "card",
    )
    assert taet("evaluate", "--model", f"folder:{tmp_path / 'x'}", *data).code == 0


@pytest.mark.parametrize(
    "words",
    [
        "predict RUN RUN/artifacts --out RUN/run.json --force",
        "export RUN --format safetensors --out RUN/model.safetensors --force",
        "report RUN --out RUN/other.html",
        "compare s.toml --out RUN/inside",
        "evaluate --model resnet8 --data digits-lt --out RUN",
        "demo --out RUN/demo",
        "train at --out RUN/inside",
    ],
)
def test_no_output_goes_into_the_folder_of_a_run(
    taet: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    Path("s.toml").write_text('methods = ["at"]\ndata = ["digits-lt"]\n')
    before = {path: path.is_file() and path.read_bytes() for path in run.rglob("*")}
    outcome = taet(*words.replace("RUN", str(run)).split())
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[-1].startswith("taet: error: ")
    assert {path: path.is_file() and path.read_bytes() for path in run.rglob("*")} == before


LATER = """
import sys, torch, torch.utils.checkpoint
large = {{"pandas", "sklearn", "matplotlib", "torchvision", "onnx", "sympy", "jinja2"}}
large |= {{"torch._dynamo", "torch._inductor", "torch.export"}}
large -= {{*sys.modules}}  # what torch reads itself, also for the checkpointing of the probe
from taet.cli import main
for words in {calls}:
    assert main(words) == 0, words
    assert not large & {{*sys.modules}}, (words, large & {{*sys.modules}})
"""


def test_a_command_reads_no_library_that_it_does_not_use(
    finished: Any, digits: Path, tmp_path: Path
) -> None:
    """Each of them takes up to a second and 100 MB."""
    run = str(finished.folder)
    weights = str(tmp_path / "weights.safetensors")
    calls = [
        ["check"],
        ["check", run],
        ["predict", run, str(digits), "--attack", "pgd-2"],
        ["export", run, "--format", "safetensors", "--out", weights],
    ]
    done = subprocess.run(
        [sys.executable, "-c", LATER.format(calls=calls)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
