"""Files of a run folder that are broken, foreign, newer, or would run code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from taet import models
from taet.errors import UserError
from taet.methods.taet import Taet
from taet.settings import Run, to_json
from taet.training import TrainingResult, resume, train
from taet.training.checkpoint import load_weights, save_checkpoint, save_weights, weights_digest
from taet.training.finished import load_run
from taet.training.folder import RunFolder
from taet.training.record import run_from_json

HASH = "ab12"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint that is well."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"run_hash": HASH, "epoch": 3, "weights": torch.arange(1000.0)})
    return path


@pytest.fixture(scope="module")
def finished(tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train(tiny("at", {"training.epochs": 1}), out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def folder(finished: TrainingResult, tmp_path: Path, without_checksums: Callable[[Path], Path]) -> Path:
    """A finished run of an older version, to be damaged."""
    return without_checksums(shutil.copytree(finished.folder, tmp_path / "run"))


def refused(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    state = RunFolder(path.parent).load_checkpoint(HASH)
    assert state["epoch"] == 3
    assert torch.equal(state["weights"], torch.arange(1000.0))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: RunFolder(path.parent).load_checkpoint(HASH), "is not a checkpoint of taet, or is truncated")


@pytest.mark.parametrize("state", [{"model": 1}, [1, 2], torch.zeros(3), {"schema": "one"}])
def test_a_foreign_checkpoint_is_refused(path: Path, state: Any) -> None:
    torch.save(state, path)
    refused(lambda: RunFolder(path.parent).load_checkpoint(HASH), "is not a checkpoint of taet")


def test_a_newer_checkpoint_is_refused(path: Path) -> None:
    torch.save({"schema": 2, "run_hash": HASH}, path)
    refused(lambda: RunFolder(path.parent).load_checkpoint(HASH), "got schema 2; allowed: up to 1")


def test_a_checkpoint_of_another_run_is_refused(path: Path) -> None:
    refused(lambda: RunFolder(path.parent).load_checkpoint("cd34"), "belongs to another run")


def test_a_missing_checkpoint_is_refused(path: Path) -> None:
    path.unlink()
    refused(lambda: RunFolder(path.parent).load_checkpoint(HASH), "nothing to resume")


class Malicious:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_code_in_a_checkpoint_is_never_run(path: Path) -> None:
    mark = path.parent / "mark"
    torch.save({"schema": 1, "run_hash": HASH, "evil": Malicious(mark)}, path)
    refused(lambda: RunFolder(path.parent).load_checkpoint(HASH), "is not a checkpoint of taet")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file would have run it


def test_a_checkpoint_that_does_not_load_back_leaves_the_old_one(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Exception, match="Weights only load failed"):
        save_checkpoint(path, {"run_hash": HASH, "path": path})
    assert path.read_bytes() == before


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model, other = models.build("resnet8", 3, seed=1), models.build("resnet8", 3, seed=2)
    save_weights(tmp_path / "model.safetensors", model.state_dict(), {"epoch": 1})
    assert weights_digest(model) != weights_digest(other)
    load_weights(tmp_path / "model.safetensors", other)
    assert weights_digest(model) == weights_digest(other)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", models.build("resnet8", 3)
    save_weights(path, models.build("resnet8", 4).state_dict(), {})
    refused(lambda: load_weights(path, model), "weights of another model: head.bias does not fit .3 in all")
    save_file({"a": torch.zeros(1)}, path)
    before = weights_digest(model)
    refused(lambda: load_weights(path, model), "weights of another model: a does not fit")
    assert weights_digest(model) == before


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_truncated_weights_are_refused(tmp_path: Path, size: int) -> None:
    path, model = tmp_path / "model.safetensors", models.build("resnet8", 3)
    save_weights(path, model.state_dict(), {})
    path.write_bytes(path.read_bytes()[:size])
    refused(lambda: load_weights(path, model), "is not a safetensors file, or is truncated")


@pytest.mark.parametrize("method", ["at", "taet"])
def test_a_run_survives_run_json(tiny: Callable[..., Run], method: str) -> None:
    settings = Taet.Config(clean_share=0.25, absent="ema") if method == "taet" else None
    run = tiny(method, {"settings": settings, "training.milestones": (0.5, 0.75), "data.validation": 0.1, "seed": 7})
    back = run_from_json(json.loads(json.dumps(to_json(run))))
    assert to_json(back) == {**to_json(run), "settings": to_json(back.settings)}
    assert settings is None or back.settings == settings


def test_a_finished_run_gives_its_model_back(finished: TrainingResult) -> None:
    run, model, dataset, record = load_run(finished.folder)
    assert run == finished.run
    assert weights_digest(model) == weights_digest(finished.model)
    assert not model.training
    assert dataset.test.sha256 == record.data.test.sha256


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{}", "was not written by taet train"),
        ("[]", "was not written by taet train"),
        ('{"schema": 1', "truncated or not JSON"),
        ('{"schema": 2, "run": {}}', "got schema 2; allowed: up to 1"),
    ],
)
@pytest.mark.parametrize("read", [load_run, resume])
def test_a_foreign_run_json_is_refused(folder: Path, text: str, match: str, read: Callable[[Path], Any]) -> None:
    (folder / "run.json").write_text(text)
    refused(lambda: read(folder), match)


@pytest.mark.parametrize(("read", "split"), [(load_run, "test"), (resume, "test"), (resume, "train")])
def test_other_images_than_those_of_the_run_are_refused(folder: Path, read: Callable[[Path], Any], split: str) -> None:
    info = json.loads((folder / "run.json").read_text())
    info["data"]["splits"][split]["sha256"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(info))
    refused(lambda: read(folder), f"the {split} images .*are not those")


def test_a_checkpoint_of_other_settings_is_refused(folder: Path) -> None:
    info = json.loads((folder / "run.json").read_text())
    info["run"]["training"]["lr"] = 0.5
    (folder / "run.json").write_text(json.dumps(info))
    refused(lambda: resume(folder), "belongs to another run")


def test_a_checkpoint_without_a_part_is_refused(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["drift"]
    torch.save(state, path)
    refused(lambda: resume(folder), "lacks drift: another version of taet wrote it")


def test_metrics_that_lost_rows_are_refused(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("")
    refused(lambda: resume(folder), "is shorter than when checkpoint.pt was written")


def test_a_run_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(lambda: load_run(folder), "the run is not finished")


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(tmp_path / "tied.safetensors", model.state_dict(), {})
    again = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    load_weights(tmp_path / "tied.safetensors", again)
    assert torch.equal(again[1].weight, model[0].weight)
