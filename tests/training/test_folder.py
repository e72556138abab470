"""The run folder: one file knows the names in it, beside those of published models; what is written is read back."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taet.errors import UserError
from taet.files import seal
from taet.settings import Run
from taet.training import TrainingResult, train
from taet.training.folder import RunFolder
from taet.training.record import RunRecord

PACKAGE = Path(__file__).parents[2] / "taet"
NAMING = {PACKAGE / "training" / "folder.py", PACKAGE / "files.py", PACKAGE / "models" / "hub.py"}
FILES = [path for path in PACKAGE.rglob("*.py") if path not in NAMING]
NAMES = re.compile(r"(run\.json|metrics\.jsonl|checkpoint\.pt|evaluation\S*\.json|model\S*\.safetensors|examples\.npz)")
FOLDERS = {"done", "artifacts", "tensorboard"}


@pytest.fixture(scope="module")
def finished(tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(tiny("at", {"training.epochs": 1}), out=tmp_path_factory.mktemp("finished") / "run")


def names_of_files(tree: ast.Module) -> Iterator[str]:
    """Texts in the code, not in docstrings or sentences, that name a file of a run folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            if node.right.value in FOLDERS:
                yield str(node.right.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMES.fullmatch(node.value):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            if NAMES.fullmatch(text) or re.fullmatch(r"X\.(safetensors|pt)", text):
                yield text


def test_no_other_file_names_the_files_of_a_run() -> None:
    found = {path: list(names_of_files(ast.parse(path.read_text()))) for path in FILES}
    assert {str(path.relative_to(PACKAGE)): names for path, names in found.items() if names} == {}


def test_names_would_be_found() -> None:
    code = 'folder / "done"; open("run.json"); path = f"evaluation{weights}.json"; other = f"{name}.safetensors"'
    assert len(list(names_of_files(ast.parse(code)))) == 4


def test_a_record_is_written_as_it_is_read(finished: TrainingResult) -> None:
    record, stored = RunFolder(finished.folder).record, json.loads((finished.folder / "run.json").read_text())
    assert seal(record.to_json()) == stored
    assert [*record.to_json(), "sha256"] == list(stored)
    assert record.run == finished.run


def test_rows_are_typed(finished: TrainingResult) -> None:
    folder = RunFolder(finished.folder)
    (epoch,) = folder.metrics
    assert (epoch.to_json(),) == finished.history
    assert epoch.epoch == 1
    assert epoch.loss == finished.history[0]["loss"]
    assert epoch.monitor is not None
    assert epoch.monitor.clean.correct.tolist() == finished.history[0]["monitor"]["clean"]["correct"]


def test_a_row_that_was_cut_short_is_left_out_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "metrics.jsonl", RunFolder(tmp_path)
    assert folder.metrics == ()
    row = {"epoch": 1, "stage": "all", "loss": {}, "seconds": 1.0}
    path.write_text(f'{json.dumps(row)}\n{{"epo')
    (epoch,) = folder.metrics
    assert (epoch.epoch, epoch.monitor) == (1, None)
    path.write_text(f'{{"epo\n{json.dumps(row)}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is damaged"):
        _ = folder.metrics


def test_weights_say_where_they_come_from(finished: TrainingResult, tmp_path: Path) -> None:
    about = RunFolder(finished.folder).weights_about()
    assert (about.method, about.epoch) == ("at", 1)
    with pytest.raises(UserError, match="cannot read"):
        RunFolder(tmp_path).weights_about()
    RunFolder(tmp_path).weights().write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        RunFolder(tmp_path).weights_about()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_shape", [1, 0, 8], "got 0; allowed: 1 to 65536"),
        ("image_shape", [1, 8], "image shape.*the field '2' is missing"),
        ("image_shape", [65536, 65536, 8], "channels, height and width"),
        ("num_classes", -1, "0 or more"),
        ("class_names", ["a"], "one per class"),
        ("splits", {}, "the field 'test' is missing"),
    ],
)
def test_a_record_of_impossible_images_is_refused(
    finished: TrainingResult, field: str, value: object, allowed: str
) -> None:
    stored = json.loads((finished.folder / "run.json").read_text())
    stored["data"][field] = value
    with pytest.raises(UserError, match=allowed):
        RunRecord.from_json(stored)
