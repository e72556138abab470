"""What is pushed is read back, from a folder or a hub that keeps folders; pins and checksums; never
code."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

import taet
from taet import models
from taet.card.card import ResultCard
from taet.data import Dataset
from taet.data.notes import DataNote
from taet.deployment.hub import model_card, paths_and_file_names, publish
from taet.models.weight_files.location import CONFIG, FILES, download_or_path
from taet.models.weight_files.stored_weights import read
from taet.run.folder import RunFolder
from taet.run.loading import load_model
from tests.calls import one_line

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"hf:user/colours@{COMMIT}"


@pytest.fixture(scope="module")
def run(trained: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a result card."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    taet.evaluate(folder, attacks=["clean", "fgsm"], dataset=dataset)
    return Path(folder)


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(publish(run, f"folder:{tmp_path_factory.mktemp('published') / 'x'}", licence="mit"))


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


class Hub:
    """The functions of huggingface_hub that are used, on folders: the interface of its
    documentation."""

    def __init__(self, place: Path) -> None:
        self.place, self.private = place, list[bool]()
        self.HfApi = lambda: self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (self.place / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.private.append(private)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str
    ) -> SimpleNamespace:
        assert commit_message
        shutil.copytree(folder_path, self.place / repo_id / COMMIT)
        return SimpleNamespace(oid=COMMIT)

    def snapshot_download(self, repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert allow_patterns == [*FILES, CONFIG]
        source = self.place / repo_id / revision
        if not source.is_dir():
            raise FileNotFoundError(f"no revision {revision}")
        return str(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.fixture(scope="module")
def page(published: Path) -> str:
    """The model card of the published folder."""
    return (published / "README.md").read_text()


@pytest.fixture(scope="module")
def card(run: Path) -> ResultCard:
    return ResultCard.load(run)


@pytest.fixture(scope="module")
def page_of(run: Path, card: ResultCard) -> Callable[..., str]:
    """The model card of a run whose record has other values in some fields."""
    record = RunFolder(run).record

    def changed(**fields: Any) -> str:
        return model_card(record.model_copy(update=fields), card, "mit", "user/x")

    return changed


def test_the_folder_has_the_files_of_the_run_and_a_model_card(run: Path, published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {*FILES, CONFIG, "README.md"}
    for name in ("metrics.jsonl", "model.safetensors", "evaluation.json"):
        assert (published / name).read_bytes() == (run / name).read_bytes()


def test_the_record_is_published_without_the_fingerprints_of_the_images(
    run: Path, published: Path
) -> None:
    told, own = (RunFolder(folder).record.model_dump() for folder in (published, run))
    assert len(own["data"]["fingerprints"]) == 16 * len(own["data"]["splits"]["train"]["indices"])
    own["data"]["fingerprints"] = ""
    assert told == own


def test_the_configuration_names_classes_and_network(published: Path) -> None:
    facts = json.loads((published / CONFIG).read_text())
    assert facts["class_names"] == ["red", "green", "blue"]
    assert facts["model"] == {"name": "resnet8", "image_shape": [3, 16, 16]}


def test_the_model_card_shows_the_result_card_its_flags_and_the_licence(
    page: str, card: ResultCard
) -> None:
    assert textwrap.indent(repr(card), "    ") in page
    assert all(flag["text"] in page for flag in card.flags)
    assert 'license: "mit"\n' in page


def test_the_model_card_has_the_recall_of_every_class_for_each_attack(
    page: str, card: ResultCard
) -> None:
    _, clean, attacked = re.split("Clean images\n|Under fgsm\n", page)
    for attack, table in (("clean", clean), ("fgsm", attacked)):
        for name, share in zip(card.class_names, card.summary(attack).per_class, strict=True):
            assert re.search(rf"\n\| {name} \|.*\| {100 * share:.1f} \(", table)


def test_the_model_card_names_the_network_without_a_number_of_parameters(
    page_of: Callable[..., str],
) -> None:
    assert "| Network | resnet8, input (3, 16, 16) |" in page_of(parameters=None)


def test_the_model_card_says_from_which_weights_training_began(
    run: Path, page: str, page_of: Callable[..., str]
) -> None:
    assert "Begins from" not in page
    settings = RunFolder(run).record.settings
    model = {**settings["model"], "weights": "x.pt"}
    assert "| Begins from | x.pt; trained: all |" in page_of(settings={**settings, "model": model})


def test_the_model_card_names_the_code_that_its_folder_lacks(
    page: str, page_of: Callable[..., str]
) -> None:
    assert "Not in this folder" not in page
    with_plugin = page_of(code={"method": "0" * 64})
    assert "| Not in this folder | the plug-in of the method, which" in with_plugin
    assert "| Not in this folder | the code of the network |" in page_of(model_given=True)


def test_a_push_and_a_load_give_the_same_answers(run: Path, hub: Hub, dataset: Dataset) -> None:
    """As a run, and as weights of a fresh network."""
    name = publish(run, "user/colours", private=True)
    assert (name, hub.private) == (NAME, [True])
    found = taet.predict(download_or_path(name), dataset.test.images)
    np.testing.assert_array_equal(
        found.probabilities, taet.predict(run, dataset.test.images).probabilities
    )
    head = load_model(run)[2].head
    model = models.build("resnet8", 3, (3, 16, 16), head=head, weights=name)
    assert model.notes[0].endswith(f"tensors of {NAME}, its head included")
    assert read(download_or_path(name)).tensors.keys() == model.state_dict().keys()


def test_an_earlier_push_is_replaced_and_nothing_else(
    run: Path, copy: Path, tmp_path: Path
) -> None:
    publish(run, f"folder:{copy}")
    assert 'license: "unknown"\n' in (copy / "README.md").read_text()
    assert download_or_path(f"folder:{copy}") == copy
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "other").mkdir()  # a model of another library
    (tmp_path / "other" / CONFIG).write_text('{"architectures": ["ViT"]}')
    refused = {tmp_path / name: "allowed: a new or empty one" for name in ("full", "other")}
    refused |= {run / "x": "a place in the run fol"}
    for place, message in {**refused, run: "got the folder that is to be published"}.items():
        with one_line(message):
            publish(run, f"folder:{place}")


def test_a_push_that_is_killed_has_not_shown_who_is_among_the_training_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "create", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish(run, f"folder:{tmp_path / 'x'}")
    hashes = RunFolder(run).record.data.fingerprints.encode()
    assert not any(hashes in file.read_bytes() for file in (tmp_path / "x").iterdir())


@pytest.mark.parametrize(
    "note",
    [
        DataNote("also in train, and which one", "identical-images", files=("a/Ann.PNG",)),
        # of an older version
        "identical images: 1 of 3 test images are also in train, e.g. 'a/Ann.PNG'",
    ],
)
def test_names_of_files_that_a_push_shows_are_known(run: Path, tmp_path: Path, note: str) -> None:
    folder, record = RunFolder(tmp_path), RunFolder(run).record
    data = record.data.model_copy(update={"notes": ("90 image files, 9x9 pixels", note)})
    folder.create(record.model_copy(update={"data": data, "command": "taet train at"}))
    assert paths_and_file_names(folder.path) == [note]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:user/colours", "allowed: hf:USER/NAME@COMMIT with the 40 digits of a commit, which "
                            "cannot move"),
        (f"hf:user/other@{COMMIT}", f"hf:user/other@{COMMIT}: FileNotFoundError: no revision"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("hub")
def test_only_a_full_commit_is_read(name: str, message: str) -> None:
    with one_line(message):
        download_or_path(name)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda at: flip(at / "model.safetensors"), "model.safetensors was changed or damaged: its "
                                                    "SHA-256 differs"),
        (lambda at: (at / "done").unlink(), "allowed: the folder of a finished run"),
        (lambda at: (at / "done").write_text("[]"), "done was changed, or not written by taet"),
    ],
)  # fmt: skip
def test_damaged_weights_begin_no_training(copy: Path, run: Path, harm: Any, message: str) -> None:
    assert (
        read(f"run:{run}").tensors.keys()
        == read(run).tensors.keys()
        == read(f"folder:{copy}").tensors.keys()
    )
    harm(copy)
    for name in (copy, f"run:{copy}", f"folder:{copy}"):
        with one_line(message):
            read(name)


def test_what_cannot_be_published_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, folder: Path, target: str, licence: str = "") -> None:
        with one_line(message):
            publish(folder, target, licence=licence)

    refused("allowed: USER/NAME, or", run, "name")
    refused("licence: got", run, "a/b", "MIT License")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(r"pip install 'taet\[hub\]'; without it: folder:PATH", run, "user/name")
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    for file, message in (("evaluation.json", "has no result card"), ("done", "is not finished")):
        (folder / file).unlink()
        refused(message, folder, f"folder:{tmp_path / 'z'}")
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("content", [b"garbage\n", None])
def test_a_run_with_foreign_or_without_metrics_is_not_published(
    run: Path, tmp_path: Path, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    with one_line("metrics.jsonl"):
        publish(folder, f"folder:{tmp_path / 'published'}", licence="mit")
    assert not (tmp_path / "published").exists()
