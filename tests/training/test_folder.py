"""The run folder: who names its files, checksums from the settings to the card, damaged and foreign files."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from taet import models, report
from taet.cli import main
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.check import verify
from taet.files import seal
from taet.settings import Run, to_json
from taet.training import TrainingResult, resume
from taet.training.checkpoint import load_weights, save_weights, weights_digest
from taet.training.finished import load_model, load_run
from taet.training.folder import RunFolder
from taet.training.record import RunRecord, run_from_json

PACKAGE = Path(__file__).parents[2] / "taet"
NAMING = {PACKAGE / "training" / "folder.py", PACKAGE / "files.py", PACKAGE / "models" / "hub.py"}
FILES = [path for path in PACKAGE.rglob("*.py") if path not in NAMING]
NAMES = re.compile(r"(run\.json|metrics\.jsonl|checkpoint\.pt|evaluation\S*\.json|model\S*\.safetensors|examples\.npz)")
FOLDERS = {"done", "artifacts", "tensorboard"}
FLIPS, MANY_FLIPS = 40, 1000
Strip = Callable[[Path], Path]


def refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


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
    code = 'folder / "done"; open("run.json"); path = f"evaluation{weights}.json"; other = f"{name}.safetensors"'
    assert len(list(names_of_files(ast.parse(code)))) == 4


# -- what is written is read back --------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(result: TrainingResult) -> None:
    folder, stored = RunFolder(result.folder), json.loads((result.folder / "run.json").read_text())
    assert seal(folder.record.to_json()) == stored
    assert [*folder.record.to_json(), "sha256"] == list(stored)
    assert folder.record.run == result.run
    assert tuple(epoch.to_json() for epoch in folder.metrics) == result.history
    about = folder.weights_about()
    assert (about.method, about.epoch, about.run_hash) == ("taet", 3, folder.record.run_hash)
    run, model, dataset, record = load_run(result.folder)
    assert run == result.run
    assert not model.training
    assert weights_digest(model) == weights_digest(result.model)
    assert dataset.test.sha256 == record.data.test.sha256


def test_a_run_survives_run_json(tiny: Callable[..., Run]) -> None:
    for method, changes in (("at", {}), ("taet", {"training.milestones": (0.5, 0.75), "seed": 7})):
        run = tiny(method, changes)
        back = run_from_json(json.loads(json.dumps(to_json(run))))
        assert to_json(back) == {**to_json(run), "settings": to_json(back.settings)}  # type: ignore[arg-type]


def test_a_row_that_was_cut_short_is_left_out_and_a_damaged_one_refused(tmp_path: Path) -> None:
    path, folder = tmp_path / "metrics.jsonl", RunFolder(tmp_path)
    assert folder.metrics == ()
    row = {"epoch": 1, "stage": "all", "loss": {}, "seconds": 1.0, "of a later version": [1]}
    path.write_text(f'{json.dumps(row)}\n{{"epo')
    (epoch,) = folder.metrics
    assert (epoch.epoch, epoch.monitor, epoch.training_seconds) == (1, None, 1.0)
    path.write_text(f'{{"epo\n{json.dumps(row)}\n')
    refused(lambda: folder.metrics, r"metrics\.jsonl: line 1 is damaged")


def test_a_folder_as_it_was_written_is_verified_and_may_have_any_name(folder: Path) -> None:
    assert {finding.text for finding in verify(folder)} == {"verified"}
    other = folder.rename(folder.with_name(os.fsdecode(b"r\xff")))
    assert not wrong(other)
    assert load_model(other)[1] is not None


def test_a_folder_of_an_older_version_is_read_and_said_to_be_on_trust(folder: Path, without_checksums: Strip) -> None:
    before = use(folder)
    without_checksums(folder)
    card = json.loads((folder / "evaluation.json").read_text())
    del card["sha256"]
    (folder / "evaluation.json").write_text(json.dumps(card))
    assert use(folder) == before
    findings = verify(folder)
    assert not any(not finding.ok for finding in findings)
    on_trust = {finding.what for finding in findings if finding.text.startswith("on trust")}
    assert on_trust == {"run.json", "metrics.jsonl", "done", "model.safetensors", "evaluation.json"}


def test_a_run_of_a_method_that_is_not_installed_here_is_no_damaged_one(folder: Path, mended: Strip) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["run"]["method"] = "of-a-plug-in"
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "evaluation.json").unlink()
    (folder / "checkpoint.pt").unlink()
    assert not wrong(mended(folder))


# -- changed and exchanged files ---------------------------------------------------------------------------------------


def wrong(folder: Path) -> list[str]:
    return [finding.what for finding in verify(folder) if not finding.ok]


def use(folder: Path) -> dict[str, Any]:
    """All numbers that the users of a run folder see: card, model, curve, and the resumed run, on a copy of its own."""
    card = ResultCard.load(folder)
    column = card.column("fgsm")
    run = RunFolder(folder)
    run.check_card(folder / "evaluation.json", card.run["config"], card.model["weights_sha256"])
    _, model, record = load_model(folder)
    again = Path(shutil.copytree(folder, folder.with_name("resumed")))
    try:
        history = resume(again).history
        delivered = load_file(again / "model.safetensors")
    finally:
        shutil.rmtree(again)
    return {
        "card": (column.correct.tolist(), column.predictions.tolist(), card.method, card.seed, card.class_names),
        "weights": [value.tolist() for value in model.state_dict().values()],
        "record": (record.settings, record.data.splits["test"], record.data.class_names),
        "rows": [epoch.loss for epoch in run.metrics],
        "history": [(row["epoch"], row["loss"], row["monitor"]) for row in history],
        "delivered": [delivered[name].tolist() for name in sorted(delivered)],
    }


def swap(name: str, finish: bool = False) -> Callable[[Path, Path], None]:
    def change(folder: Path, other: Path) -> None:
        shutil.copy(other / name, folder / name)
        if finish:
            RunFolder(folder).finish()

    return change


def other_tensors(folder: Path, _: Path) -> None:
    """As a program would write them that keeps the metadata."""
    held = RunFolder(folder)
    values = {name: value * 2 for name, value in load_file(held.weights()).items()}
    held.save_weights("model", values, held.weights_about())


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (swap("model.safetensors"), "model.safetensors"),
        (swap("run.json"), "run.json"),
        (swap("metrics.jsonl"), "metrics.jsonl"),
        (swap("done"), "run.json"),
        (swap("checkpoint.pt"), "checkpoint.pt"),
        (swap("evaluation.json"), "evaluation.json"),
        (swap("model.safetensors", finish=True), "model.safetensors"),
        (swap("run.json", finish=True), "model.safetensors"),
        (other_tensors, "model.safetensors"),
    ],
    ids=["weights", "record", "metrics", "done", "checkpoint", "card", "weights-done", "record-done", "tensors"],
)
def test_a_file_of_another_run_is_found_and_refused_where_it_is_read(
    folder: Path, other: Path, change: Callable[[Path, Path], None], file: str
) -> None:
    change(folder, other)
    assert file in wrong(folder)
    with pytest.raises(UserError):
        use(folder)


def test_a_file_that_the_finished_training_wrote_is_missed(folder: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "model.safetensors"):
        path = (folder / name).rename(tmp_path / name)
        assert name in wrong(folder)
        path.rename(folder / name)
    (folder / "done").write_bytes(b"")
    assert {*wrong(folder)} >= {"done", "metrics.jsonl"}
    refused(lambda: load_model(folder), "done is empty: it was cut short")


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_flipped_bit_anywhere_is_refused_or_gives_the_same_numbers(folder: Path, part: int) -> None:
    """Each file is hit equally often, and 0 numbers change in silence."""
    draw, before, refusals = random.Random(part), use(folder), 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(MANY_FLIPS if part else FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        flipped, place, bit = bytearray(content), draw.randrange(len(content)), draw.randrange(8)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            after = use(folder)
        except UserError:
            refusals += 1
        else:
            assert after == before, f"{path.name}: bit {bit} of byte {place} of {len(content)}"
        path.write_bytes(content)
    assert refusals > 0.8 * number


# -- run.json, metrics.jsonl and weights that do not fit ---------------------------------------------------------------

BAD = (5, "x", None, [[]], {"zz": 1})


def changed(values: Any, name: str, value: Any) -> Any:
    """A copy of JSON with one field changed; all of it for ''."""
    copy = json.loads(json.dumps(values))
    *above, last = name.split(".")
    place = copy
    for key in above:
        place = place[key]
    place[last] = value
    return copy if name else value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("schema", ("x", -1, None, 2)),
        ("run", BAD),
        ("run.method", (5, None)),
        ("run.training.lr", ("x", -1, None)),
        ("run.settings", (5, "x", {"zz": 1})),
        ("deviations", (5, "x", None, [1])),
        ("stages", (5, {"a": 1}, [{}])),
        ("selection", BAD),
        ("data", BAD),
        ("data.num_classes", (-1, 10**12, None, 9)),
        ("data.image_shape", ([1, 8], [1, 0, 8], [1, 8, 8, 8], "x", [1, -8, 8], [2**16, 2**16, 8], [1.5, 8, 8])),
        ("data.class_names", (["a"], 5, [1] * 10)),
        ("data.splits", (*BAD, {})),
        ("data.splits.test.class_counts", ([1], 5, [-1] * 10, [2**62] * 10)),
        ("data.splits.test.sha256", (5, "x", None)),
        ("head", (5, "x", None, [])),
        ("head.scale", ("x", None)),
        ("threads", (0, "x", None)),
        ("versions", (5, {"taet": 5})),
        ("command", (5, None)),
        ("model_given", (5, "x", None)),
    ],
)
def test_every_field_of_the_record_is_typed(result: TrainingResult, name: str, values: tuple[Any, ...]) -> None:
    stored = json.loads((result.folder / "run.json").read_text())
    for value in values:
        wrong = changed(stored, name, value)
        if name != "schema" or value != 2:  # a newer version is refused by the folder
            refused(lambda wrong=wrong: RunRecord.from_json(wrong), "allowed|is missing|unknown")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{}", "was not written by taet train"),
        ("[]", "was not written by taet train"),
        ('{"schema": 1', "truncated or not JSON"),
        ('{"schema": 2, "run": {}}', "got schema 2; allowed: up to 1"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_foreign_run_json_is_refused(folder: Path, without_checksums: Strip, text: str, match: str) -> None:
    without_checksums(folder)
    (folder / "run.json").write_text(text)
    for read in (load_run, resume):
        refused(lambda read=read: read(folder), match)  # type: ignore[misc]


def test_a_wrong_record_stops_every_command_before_anything_is_changed(folder: Path, without_checksums: Strip) -> None:
    stored = json.loads((without_checksums(folder) / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(changed(stored, "data.image_shape", [1, 0, 8])))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for words in (["train", "--resume"], ["evaluate"], ["report"], ["predict"], ["export", "--format", "pt2"]):
        assert main([*words, str(folder), *([__file__] if words == ["predict"] else [])]) == 2
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_images_and_other_settings_than_those_of_the_run_are_refused(
    folder: Path, without_checksums: Strip
) -> None:
    stored = json.loads((without_checksums(folder) / "run.json").read_text())
    for split, read in (("test", load_run), ("test", resume), ("train", resume)):
        (folder / "run.json").write_text(json.dumps(changed(stored, f"data.splits.{split}.sha256", "0" * 64)))
        refused(lambda read=read: read(folder), f"the {split} images .*are not those")  # type: ignore[misc]
    (folder / "run.json").write_text(json.dumps(changed(stored, "run.training.lr", 0.5)))
    refused(lambda: resume(folder), "belongs to another run")
    (folder / "run.json").write_text(json.dumps(seal(stored) | {"command": "other"}))
    refused(lambda: resume(folder), r"run\.json was changed or damaged: .* stored in it")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("", (5, "x", [], None, {})),
        ("epoch", (0, 2, "x", None, 1.5)),
        ("stage", (5, None)),
        ("loss", (5, None, {"total": "x"})),
        ("predicted", (5, [1], ["x"] * 10, [-1] * 10, [2**63] * 10)),
        ("monitor", (5, "x", {}, {"split": "test"})),
        ("monitor.clean", (5, None, {"correct": [1], "total": [1]}, {"correct": [5] * 10, "total": [1] * 10})),
        ("monitor.split", (5, None)),
        ("seconds", (-1, "x", None)),
    ],
)
def test_every_field_of_a_row_is_typed(
    folder: Path, without_checksums: Strip, name: str, values: tuple[Any, ...]
) -> None:
    path = without_checksums(folder) / "metrics.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    for value in values:
        path.write_text(json.dumps(changed(row, name, value)) + "\n")
        refused(lambda: RunFolder(folder).metrics, r"metrics\.jsonl: line 1")


def test_weights_of_another_network_type_or_value_are_refused(folder: Path, without_checksums: Strip) -> None:
    held = RunFolder(without_checksums(folder))
    about, values = held.weights_about(), load_file(held.weights())
    for dtype in (torch.int8, torch.float64, torch.float16):
        held.save_weights("model", {name: value.to(dtype) for name, value in values.items()}, about)
        refused(lambda: load_model(folder), "holds the weights of another model")
    held.save_weights("model", values | {"head.bias": torch.full((10,), float("nan"))}, about)
    refused(lambda: load_model(folder), r"head\.bias: got values that are not finite")
    for metadata in ("{", "[]", '{"epoch": 1e999}', '{"method": 5}', None):
        save_file(values, held.weights(), metadata=None if metadata is None else {"taet": metadata})
        refused(lambda: load_model(folder), r"model\.safetensors was not written by taet train")
    held.weights().unlink()
    refused(lambda: load_model(folder), "the run is not finished|cannot read|holds no model")


def test_weights_come_back_as_they_were_or_not_at_all(tmp_path: Path) -> None:
    path, model, other = tmp_path / "model.safetensors", *(models.build("resnet8", 3, seed=seed) for seed in (1, 2))
    save_weights(path, model.state_dict(), {})
    load_weights(path, other)
    assert weights_digest(model) == weights_digest(other)
    content = path.read_bytes()
    for size in (0, 4, 1000):
        path.write_bytes(content[:size])
        refused(lambda: load_weights(path, model), "is not a safetensors file, or is truncated")
    save_weights(path, models.build("resnet8", 4).state_dict(), {})
    refused(lambda: load_weights(path, model), "weights of another model: head.bias does not fit .3 in all")
    assert weights_digest(model) == weights_digest(other)
    tied, again = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    save_weights(path, tied.state_dict(), {})
    load_weights(path, again)
    assert torch.equal(again[1].weight, tied[0].weight)


# -- files that are no files, and who owns the folder ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_is_no_ordinary_file_is_refused_and_nothing_elsewhere_is_touched(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    for name in ("run.json", "checkpoint.pt", "model.safetensors"):
        victim = (folder / name).rename(tmp_path / "victim")
        content = victim.read_bytes()
        if kind == "link":
            (folder / name).symlink_to(victim)
        else:
            os.mkfifo(folder / name)
        refused(lambda: resume(folder), "allowed: an ordinary file")
        assert main(["evaluate", str(folder), "--attacks", "clean"]) == 2
        assert victim.read_bytes() == content
        (folder / name).unlink()
        victim.rename(folder / name)


def test_one_process_owns_a_folder_and_readers_need_no_lock(folder: Path, tmp_path: Path) -> None:
    with RunFolder(folder).own():
        refused(lambda: resume(folder), r"run is in use")
        report.write([folder], tmp_path / "r.html")
    (tmp_path / "mine").mkdir()
    for name in ("mine", "made"):  # an empty folder of the user is not removed
        with RunFolder(tmp_path / name).own():
            assert (tmp_path / name).is_dir()
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / "made").exists()
