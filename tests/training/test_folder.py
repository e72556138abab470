"""The run folder: checksums from the settings to the card, damaged, exchanged and foreign files."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taet
from taet import report
from taet.card.store import read_card
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.check import verify
from taet.files import replacing, seal
from taet.run.folder import RunFolder, weights_digest
from taet.run.loading import load_model, load_run
from taet.settings import override
from taet.training import TrainingResult, resume, train
from tests.calls import one_line


@pytest.fixture(scope="module")
def other(result: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like that of `result` with another seed."""
    folder = train(
        override(result.run, {"seed": 1}), out=tmp_path_factory.mktemp("other") / "run"
    ).folder
    taet.evaluate(folder, attacks=("clean", "fgsm"))
    return folder


def refused(call: Callable[[], Any], match: str) -> None:
    with one_line(match) as caught:
        call()
    assert len(str(caught.value)) < 1000


def wrong(folder: Path) -> list[str]:
    return [finding.what for finding in verify(folder) if not finding.ok]


def test_what_is_written_is_read_back_and_verified(result: TrainingResult) -> None:
    folder, stored = RunFolder(result.folder), json.loads((result.folder / "run.json").read_text())
    assert seal(folder.record.model_dump(by_alias=True)) == stored
    assert [*folder.record.model_dump(by_alias=True), "sha256"] == list(stored)
    assert folder.record.run == result.run
    assert tuple(epoch.model_dump(mode="json") for epoch in folder.metrics) == result.history
    about = folder.weights_about()
    assert (about.method, about.epoch, about.run_hash) == ("taet", 3, folder.record.run_hash)
    run, model, dataset, record = load_run(result.folder)
    assert run == result.run
    assert not model.training
    assert weights_digest(model) == weights_digest(result.model)
    assert dataset.test.sha256 == record.data.test.sha256
    assert {finding.text for finding in verify(result.folder)} == {"verified"}


def test_weights_that_share_memory_are_saved_apart(folder: Path) -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    RunFolder(folder).save_weights("tied", tied.state_dict(), 1)
    found = load_file(folder / "tied.safetensors")
    assert torch.equal(found["0.weight"], tied[0].weight)
    assert torch.equal(found["1.weight"], tied[0].weight)


@pytest.mark.parametrize("name", ["run.json", "done", "evaluation.json"])
def test_a_file_without_its_checksum_is_refused(folder: Path, name: str) -> None:
    values = json.loads((folder / name).read_text())
    del values["sha256"]
    (folder / name).write_text(json.dumps(values))
    if name == "run.json":
        (folder / "done").unlink()  # its checksum of run.json differs, too
    assert name in wrong(folder)
    refused(lambda: [load_run(folder), taet.results(folder)], r"has no SHA-256 of its own")


def test_a_card_about_something_else_than_its_run_is_refused(folder: Path) -> None:
    card = taet.ResultCard.load(folder)
    for field, changes, match in (
        (
            "model",
            {**card.model, "file_sha256": "0" * 64},
            "made with another file of weights than model.safetensors",
        ),
        ("run", {**card.run, "config": {"training": {"lr": 0.5}}}, "belongs to another run than"),
        ("run", {}, "belongs to another run than"),
    ):
        card.changed(**{field: changes}).save(folder / "evaluation.json")
        refused(lambda: [taet.results(folder)], match)


def use(folder: Path) -> dict[str, Any]:
    """All numbers that the users of a run folder see: card, model, curve, and the run that is
    continued, on a copy."""
    card = ResultCard.load(folder)
    column = card.column("fgsm")
    run = RunFolder(folder)
    read_card(run, folder / "evaluation.json")
    _, model, record = load_model(folder)
    again = Path(shutil.copytree(folder, folder.with_name("resumed")))
    try:
        history = resume(again).history
        (again / "done").unlink()
        delivered = resume(again).model.state_dict()
    finally:
        shutil.rmtree(again)
    return {
        "card": (
            column.correct.tolist(),
            column.predictions.tolist(),
            card.method,
            card.seed,
            card.class_names,
        ),
        "weights": [value.tolist() for value in model.state_dict().values()],
        "record": (record.settings, record.data.splits["test"], record.data.class_names),
        "rows": [epoch.loss for epoch in run.metrics],
        "history": [(row["epoch"], row["loss"], row["monitor"]) for row in history],
        "delivered": [delivered[name].tolist() for name in sorted(delivered)],
    }


def test_weights_that_the_training_did_not_write_are_found(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-best.safetensors")
    assert wrong(folder) == ["model-best.safetensors"]


FILES = (
    "model.safetensors",
    "run.json",
    "metrics.jsonl",
    "done",
    "checkpoint.pt",
    "evaluation.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_found_and_refused_where_it_is_read(
    folder: Path, other: Path, name: str
) -> None:
    shutil.copy(other / name, folder / name)
    assert (name if name != "done" else "run.json") in wrong(folder)
    with one_line():
        use(folder)


@pytest.mark.full
def test_a_flipped_bit_anywhere_is_refused_or_gives_the_same_numbers(folder: Path) -> None:
    """Each file is hit equally often, and 0 numbers change in silence."""
    draw, before, refusals = random.Random(0), use(folder), 0
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    for number in range(40):
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


def changed(values: Any, name: str, value: Any) -> Any:
    """A copy of JSON with one field changed."""
    copy = json.loads(json.dumps(values))
    *above, last = name.split(".")
    place = copy
    for key in above:
        place = place[key]
    place[last] = value
    return copy


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("run.json", "{}", "was not written by taet train"),
        ("run.json", '{"schema": 1', "truncated or not JSON"),
        ("run.json", '{"schema": 2, "run": {}}', "got schema 2; allowed: up to 1"),
        ("metrics.jsonl", '{"epo\n', r"metrics\.jsonl: line 1 is damaged"),
        ("metrics.jsonl", "{}\n", r"metrics\.jsonl: line 1: "),
    ],
)
def test_a_foreign_file_is_refused(folder: Path, file: str, text: str, match: str) -> None:
    (folder / "done").unlink()  # which has the checksums of the others
    (folder / file).write_text(text)
    refused(lambda: [load_run(folder), RunFolder(folder).metrics], match)


def test_other_images_and_other_settings_than_those_of_the_run_are_refused(folder: Path) -> None:
    stored = json.loads((folder / "run.json").read_text())
    (folder / "done").unlink()
    for split, read in (("test", load_run), ("test", resume), ("train", resume)):
        (folder / "run.json").write_text(
            json.dumps(seal(changed(stored, f"data.splits.{split}.sha256", "0" * 64)))
        )
        refused(lambda read=read: read(folder), f"the {split} images .*are not those")  # type: ignore[misc]
    (folder / "run.json").write_text(json.dumps(seal(changed(stored, "run.training.lr", 0.5))))
    refused(lambda: resume(folder), "belongs to another run")
    (folder / "run.json").write_text(json.dumps(seal(changed(stored, "run.data.fit", "crop"))))
    refused(lambda: load_model(folder), "was trained with data fit crop; this setting has left")
    (folder / "run.json").write_text(json.dumps(stored | {"command": "other"}))
    refused(lambda: resume(folder), r"run\.json was changed or damaged: .* stored in it")


def test_weights_of_another_run_network_or_program_are_refused(folder: Path, other: Path) -> None:
    held = RunFolder(folder)
    (folder / "done").unlink()
    values = load_file(held.weights())
    shutil.copy(other / "model.safetensors", folder)
    refused(lambda: load_model(folder), "holds the weights of another run")
    held.save_weights("model", values | {"head.bias": torch.zeros(4)}, 3)
    refused(lambda: load_model(folder), "does not hold weights of this model")
    held.weights().write_bytes(held.weights().read_bytes()[:1000])
    refused(
        lambda: load_model(folder),
        r"model\.safetensors was not written by taet train, or is truncated",
    )
    for metadata in ("{", None):
        save_file(values, held.weights(), metadata=None if metadata is None else {"taet": metadata})
        refused(lambda: load_model(folder), r"model\.safetensors was not written by taet train")
    held.weights().unlink()
    refused(
        lambda: load_model(folder),
        "holds no model.safetensors: the run is not finished; resume it first",
    )
    assert "done" in wrong(folder)


def test_an_interrupt_before_the_first_step_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    run, stop = RunFolder(folder).record.run, lambda *_: signal.raise_signal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt, match=r"progress is saved in .*new; continue with: taet train --resume"
    ):
        train(run, out=tmp_path / "new", announce=stop)


def test_one_process_owns_a_folder_and_readers_need_no_lock(folder: Path, tmp_path: Path) -> None:
    (folder / "done").unlink()
    with RunFolder(folder).own():
        refused(lambda: resume(folder), r"run is in use")
        # a card of another model
        with replacing(folder / "checkpoint.pt") as file, RunFolder(folder.parent).own():
            file.write(b"one")
        assert (folder / "checkpoint.pt").read_bytes() == b"one"
        report.write([folder], tmp_path / "r.html")
