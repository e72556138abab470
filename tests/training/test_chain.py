"""Checksums from the settings to the card: whatever is changed or exchanged is refused where it is read."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taet
from taet import report
from taet.cli import main
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.verification import FileFinding, verify
from taet.files import seal
from taet.report import sources
from taet.settings import Run
from taet.training import resume, train
from taet.training.finished import load_model
from taet.training.folder import RunFolder

FLIPS = 60
MANY_FLIPS = 1000
ATTACKS = ("clean", "fgsm")


@pytest.fixture(scope="module")
def evaluated(tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Finished runs with a card, which differ in their seed; each is made once."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            run = tiny("at", {"training.epochs": 1, "seed": seed, "data.test_max_count": 2})
            made[seed] = train(run, out=tmp_path_factory.mktemp("evaluated") / f"seed{seed}").folder
            taet.evaluate(made[seed], attacks=ATTACKS)
        return made[seed]

    return make


@pytest.fixture
def folder(evaluated: Callable[[int], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated(0), tmp_path / "run"))


@pytest.fixture
def other(evaluated: Callable[[int], Path]) -> Path:
    return evaluated(1)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wrong(folder: Path) -> list[str]:
    return [finding.file for finding in verify(folder) if finding.problem]


def use(folder: Path) -> dict[str, Any]:
    """All numbers that the users of a run folder see: report, evaluation and resuming, each on a copy of its own."""
    card = ResultCard.load(folder)
    column = card.column("fgsm")
    _, model, record = load_model(folder)
    ((read, *_), _) = sources.read(folder)
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
        "rows": [epoch.loss for epoch in read.epochs],
        "history": [(row["epoch"], row["loss"], row["monitor"]) for row in history],
        "delivered": [delivered[name].tolist() for name in sorted(delivered)],
    }


def test_a_folder_as_it_was_written_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = verify(folder)
    files = [".", "run.json", "metrics.jsonl", "checkpoint.pt", "done", "model.safetensors", "evaluation.json"]
    assert findings == [FileFinding(name) for name in files]
    assert main(["doctor", str(folder)]) == 0
    assert capsys.readouterr().out.count("verified") == len(files)


@pytest.mark.parametrize("there", [False, True])
def test_of_a_folder_that_is_no_run_nothing_is_verified(
    there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nothing"
    if there:
        path.mkdir()
    assert main(["doctor", str(path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ([".", "run.json"] if there else ["."])
    assert "WRONG" in lines[-1]
    assert there or f"no such folder: '{path}'" in lines[0]


def test_a_folder_of_an_older_version_is_read_and_said_to_be_on_trust(
    folder: Path, without_checksums: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = use(folder)
    without_checksums(folder)
    card = json.loads((folder / "evaluation.json").read_text())
    del card["sha256"]
    (folder / "evaluation.json").write_text(json.dumps(card))
    assert use(folder) == before
    findings = verify(folder)
    assert not any(finding.problem for finding in findings)
    on_trust = {finding.file for finding in findings if finding.unverified}
    assert on_trust == {"run.json", "metrics.jsonl", "done", "model.safetensors", "evaluation.json"}
    assert main(["doctor", str(folder), "--json"]) == 0
    assert "older version" in capsys.readouterr().out


def test_a_run_of_a_method_that_is_not_installed_here_is_no_damaged_one(
    folder: Path, mended: Callable[[Path], Path]
) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["run"]["method"] = "of-a-plug-in"
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "evaluation.json").unlink()
    (folder / "checkpoint.pt").unlink()
    assert not wrong(mended(folder))


def test_a_folder_may_have_any_name(folder: Path) -> None:
    other = folder.rename(folder.with_name(os.fsdecode(b"r\xff")))
    assert not wrong(other)
    assert load_model(other)[1] is not None


def swap(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, other: shutil.copy(other / name, folder / name)


def swap_weights_and_done(folder: Path, other: Path) -> None:
    shutil.copy(other / "model.safetensors", folder)
    RunFolder(folder).finish()


def swap_record_and_done(folder: Path, other: Path) -> None:
    shutil.copy(other / "run.json", folder)
    RunFolder(folder).finish()


def other_tensors(folder: Path, _: Path) -> None:
    """As a program would write them that keeps the metadata."""
    held = RunFolder(folder)
    about, values = held.weights_about(), load_file(held.weights())
    sums = held.sums
    held.save_weights("model", {name: value * 2 for name, value in values.items()}, about)
    assert held.sums == sums


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("change", "file"),
    [
        (swap("model.safetensors"), "model.safetensors"),
        (swap("run.json"), "run.json"),
        (swap("metrics.jsonl"), "metrics.jsonl"),
        (swap("done"), "run.json"),
        (swap("checkpoint.pt"), "checkpoint.pt"),
        (swap("evaluation.json"), "evaluation.json"),
        (swap_weights_and_done, "model.safetensors"),
        (swap_record_and_done, "model.safetensors"),
        (other_tensors, "model.safetensors"),
    ],
    ids=["weights", "record", "metrics", "done", "checkpoint", "card", "weights-done", "record-done", "tensors"],
)
def test_a_file_of_another_run_is_found_and_refused_where_it_is_read(
    folder: Path, other: Path, change: Callable[[Path, Path], None], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, other)
    assert file in wrong(folder)
    assert main(["doctor", str(folder)]) == 2
    assert f"{file:20} WRONG: " in capsys.readouterr().out
    with pytest.raises(UserError):
        use(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors"])
def test_a_file_that_the_finished_training_wrote_is_missed(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in {finding.file for finding in verify(folder) if finding.problem}
    if name == "metrics.jsonl":
        with pytest.raises(UserError, match=r"metrics\.jsonl is missing: done names it"):
            report.write([folder], tmp_path / "r.html")


def test_done_that_was_cut_to_nothing_does_not_turn_checks_off(folder: Path) -> None:
    (folder / "done").write_bytes(b"")
    assert {finding.file for finding in verify(folder) if finding.problem} >= {"done", "metrics.jsonl"}
    with pytest.raises(UserError, match="done is empty: it was cut short"):
        load_model(folder)


def test_a_card_of_another_run_is_not_reported(folder: Path, other: Path, tmp_path: Path) -> None:
    shutil.copy(other / "evaluation.json", folder)
    with pytest.raises(UserError, match=r"evaluation\.json belongs to another run than .*run\.json"):
        report.write([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float64, torch.float16])
def test_weights_of_another_type_are_never_cast(
    folder: Path, without_checksums: Callable[[Path], Path], dtype: torch.dtype
) -> None:
    without_checksums(folder)
    held = RunFolder(folder)
    held.save_weights(
        "model", {name: value.to(dtype) for name, value in load_file(held.weights()).items()}, held.weights_about()
    )
    with pytest.raises(UserError, match="holds the weights of another model"):
        load_model(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path, without_checksums: Callable[[Path], Path]) -> None:
    held = RunFolder(without_checksums(folder))
    values = load_file(held.weights())
    values["head.bias"][0] = float("nan")
    held.save_weights("model", values, held.weights_about())
    with pytest.raises(UserError, match=r"head\.bias: got values that are not finite"):
        load_model(folder)


def flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name}: bit {bit} of byte {place} of {len(content)}"


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_flipped_bit_anywhere_is_refused_or_gives_the_same_numbers(folder: Path, part: int) -> None:
    """Each file is hit equally often, and 0 numbers change in silence."""
    draw, before = random.Random(part), use(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 7
    refusals = 0
    for number in range(MANY_FLIPS if part else FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        what = flip(path, draw)
        try:
            after = use(folder)
        except UserError:
            refusals += 1
        else:
            assert after == before, what
        path.write_bytes(content)
    assert refusals > 0.9 * number


def test_the_content_of_a_file_is_refused_wherever_it_is_read_after_a_flip(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    (tmp_path / "x.png").write_bytes(b"")
    for words in (["evaluate", folder], ["predict", folder, tmp_path / "x.png"], ["export", folder, "--format", "pt2"]):
        assert main([*map(str, words)]) == 2
    assert [path.name for path in folder.glob("artifacts/*")] == ["examples.npz"]


def values_of(name: str, *values: Any) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}={str(value)[:20]}") for value in values]


BAD = (5, -1, "x", None, [], {}, [[]], {"zz": 1}, 2**62, 1e300)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *values_of("schema", "x", -1, None, []),
        *values_of("run", *BAD),
        *values_of("run.method", 5, None, []),
        *values_of("run.training.lr", "x", -1, None, []),
        *values_of("run.settings", 5, "x", [], {"zz": 1}),
        *values_of("run.data", 5, None, [], "x"),
        *values_of("deviations", 5, "x", None, {}, [1]),
        *values_of("stages", 5, "x", None, {"a": 1}, [1], [{}]),
        *values_of("selection", *BAD),
        *values_of("data", *BAD),
        *values_of("data.num_classes", -1, 10**12, None, "x", 9, 2**62),
        *values_of("data.image_shape", [1, 8], [1, 8, 8, 8], "x", None, [1, -8, 8], [10**5, 10**5, 10**5], [1.5, 8, 8]),
        *values_of("data.class_names", ["a"], 5, None, [1] * 10, {}),
        *values_of("data.splits", *BAD),
        *values_of("data.splits.test", *BAD),
        *values_of("data.splits.test.indices", 5, ["x"], [-1], [2**62], [0.5]),
        *values_of("data.splits.test.class_counts", [1], 5, ["x"] * 10, [-1] * 10, [2**62] * 10),
        *values_of("data.splits.test.sha256", 5, "x", None),
        *values_of("head", *(value for value in BAD if value not in ({}, {"zz": 1}))),
        *values_of("head.kind", "zz", 5, None),
        *values_of("head.scale", "x", None, [], 10**400),
        *values_of("parameters", "x", -1, []),
        *values_of("threads", 0, -1, "x", None, []),
        *values_of("versions", 5, [], "x", {"taet": 5}),
        *values_of("device", 5, [], {}),
        *values_of("command", 5, None, []),
        *values_of("model_given", 5, "x", None),
        *values_of("model_notes", 5, "x", [1]),
    ],
)
def test_every_field_of_the_record_is_typed(
    folder: Path, without_checksums: Callable[[Path], Path], name: str, value: Any
) -> None:
    record = json.loads((without_checksums(folder) / "run.json").read_text())
    *above, last = name.split(".")
    place = record
    for key in above:
        place = place[key]
    place[last] = value
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json") as caught:
        _ = RunFolder(folder).record
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_record_with_a_mistyped_field_stops_every_command_before_anything_is_changed(
    folder: Path, without_checksums: Callable[[Path], Path]
) -> None:
    record = json.loads((without_checksums(folder) / "run.json").read_text())
    record["data"]["num_classes"] = 10**12
    (folder / "run.json").write_text(json.dumps(record))
    before = contents(folder)
    for words in (
        ["train", "--resume"],
        ["evaluate"],
        ["report"],
        ["predict"],
        ["export", "--format", "pt2"],
        ["doctor"],
    ):
        arguments = [*words, str(folder), *([__file__] if words == ["predict"] else [])]
        assert main(arguments) == 2
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *values_of("", 5, "x", [], None, {}),
        *values_of("epoch", 0, 2, "x", None, 1.5, 10**400),
        *values_of("stage", 5, None),
        *values_of("loss", 5, "x", None, [], {"total": "x"}, {"total": []}),
        *values_of("predicted", 5, "x", [1], ["x"] * 10, [-1] * 10, [0.5] * 10, [2**63] * 10),
        *values_of("monitor", 5, "x", [], {}, {"split": "test"}),
        *values_of("monitor.clean", 5, None, {}, {"correct": [1], "total": [1]}),
        *values_of("monitor.clean", {"correct": [5] * 10, "total": [1] * 10}),
        *values_of("monitor.pgd-1", 5, None, {}, {"correct": [2**63] * 10, "total": [2**63] * 10}),
        *values_of("monitor.split", 5, None, []),
        *values_of("seconds", -1, "x", None, []),
        *values_of("peak_memory_mb", -1, "x", []),
    ],
)
def test_every_field_of_a_row_is_typed(
    folder: Path, without_checksums: Callable[[Path], Path], name: str, value: Any
) -> None:
    path = without_checksums(folder) / "metrics.jsonl"
    row = json.loads(path.read_text())
    *above, last = name.split(".")
    place = row
    for key in above:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(row if name else value) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1"):
        _ = RunFolder(folder).metrics


def once_of(name: str, *values: Any) -> list[Any]:
    """One value in `make test`, since each starts a training; the others in `make test-all`."""
    first, *others = values_of(name, *values)
    return [first, *(pytest.param(*other.values, id=other.id, marks=pytest.mark.full) for other in others)]


DELETED = "deleted"


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(pytest.param(name, DELETED, id=f"{name} deleted") for name in ("model", "optimizer", "epoch", "running")),
        *once_of("model", 5, {}, {"zz": torch.zeros(1)}, None, []),
        *once_of("method", 5, {"zz": torch.zeros(1)}, None),
        *once_of("method_optimizers", 5, {"zz": {}}, None),
        *once_of("optimizer", 5, {}, None, {"param_groups": [], "state": {}}, {"param_groups": [{}], "state": {}}),
        *once_of("epoch", "x", -1, 2, None, 1.0, True, 2**70),
        *once_of("step", "x", -1, 99, None, 0.5),
        *once_of("running", 5, {}, None, {"correct": 5, "total": 5, "predicted": 5, "sums": {}, "images": 0}),
        *once_of("predicted", 5, None, torch.zeros(3), torch.zeros(10, dtype=torch.int8)),
        *once_of("best_score", "x", None, []),
        *once_of("best_epoch", "x", None, -2),
        *once_of("best_weights", 5, {}, {"zz": torch.zeros(1)}),
        *once_of("drift", 5, torch.zeros(3), "x"),
        *once_of("metrics_bytes", -1, "x", None, 10**9, 5),
        *once_of("metrics_sha256", 5, None, "0" * 64),
        *once_of("seconds", 5, None, {}, {"all": "x", "training": 0.0}, {"all": -1.0, "training": 0.0}),
        *once_of("splits", 5, {}, None),
        *once_of("run_hash", 5, None, "x"),
    ],
)
def test_every_part_of_a_checkpoint_is_typed(folder: Path, name: str, value: Any) -> None:
    (folder / "done").unlink()
    path = folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    if value is DELETED:
        del state[name]
    else:
        state[name] = value
    torch.save(state, path)
    before = contents(folder)
    with pytest.raises(UserError, match=r"checkpoint|started with") as caught:
        resume(folder)
    assert "\n" not in str(caught.value)
    assert before == contents(folder)


def test_one_flipped_byte_of_a_tensor_in_the_checkpoint_is_refused(folder: Path) -> None:
    (folder / "done").unlink()
    path = folder / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    weights = load_file(folder / "model.safetensors")["head.weight"].numpy().tobytes()
    at = content.find(weights)
    assert at > 0
    content[at + 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["epoch"] == 1  # torch alone takes it
    with pytest.raises(UserError, match=r"checkpoint\.pt is not a checkpoint of taet, or is truncated \(BadZipFile"):
        resume(folder)


@pytest.mark.parametrize("metadata", ["{", "[]", "5", "[" * 100_000, '{"epoch": 1e999}', '{"method": 5}', "{}", None])
def test_metadata_of_weights_are_typed(
    folder: Path, without_checksums: Callable[[Path], Path], metadata: str | None
) -> None:
    path = without_checksums(folder) / "model.safetensors"
    save_file(load_file(path), path, metadata=None if metadata is None else {"taet": metadata})
    for words in (["evaluate", folder, "--attacks", "clean"], ["export", folder, "--format", "safetensors"]):
        assert main([*map(str, words)]) == 2
    with pytest.raises(UserError, match=r"model\.safetensors was not written by taet train"):
        load_model(folder)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "checkpoint.pt", "done", "model.safetensors"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_that_is_a_link_or_a_fifo_is_refused_and_nothing_elsewhere_is_touched(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    victim = (folder / name).rename(tmp_path / "victim")
    content = victim.read_bytes()
    if kind == "link":
        (folder / name).symlink_to(victim)
    else:
        os.mkfifo(folder / name)
    for words in (["train", "--resume", folder], ["evaluate", folder, "--attacks", "clean"], ["doctor", folder]):
        assert main([*map(str, words)]) == 2
    assert victim.read_bytes() == content


def test_a_link_beside_the_files_of_a_run_is_not_written_through(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(folder / "artifacts")
    (folder / "artifacts").symlink_to(tmp_path / "elsewhere")
    assert main(["evaluate", str(folder), "--attacks", "pgd-5"]) == 2
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.full
def test_a_second_process_in_a_folder_says_who_the_first_is(folder: Path) -> None:
    before = contents(folder)
    with RunFolder(folder).own():
        for words in (["train", "--resume", folder], ["evaluate", folder, "--attacks", "pgd-5"]):
            assert main([*map(str, words)]) == 2
        with pytest.raises(UserError, match=r"run is in use by process \d+ \(taet.*\); nothing was changed"):
            resume(folder)
        assert main(["report", str(folder), "--out", str(folder.parent / "r.html")]) == 0  # readers need no lock
    assert before == contents(folder)


def test_an_empty_folder_of_the_user_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "made"):
        with RunFolder(tmp_path / name).own():
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_that_vanishes_while_a_folder_is_looked_at_is_no_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.name == "checkpoint.pt":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    RunFolder(folder).check_plain()


def test_a_sealed_record_says_that_it_was_edited(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json was changed or damaged"):  # not the bytes that `done` names
        resume(folder)
    (folder / "done").unlink()
    assert len(resume(folder).history) == 1
    record["run"]["seed"] = 5
    (folder / "done").unlink()
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json was changed or damaged: .* stored in it"):
        resume(folder)
    (folder / "run.json").write_text(json.dumps(seal(record)))
    with pytest.raises(UserError, match="belongs to another run"):
        resume(folder)
