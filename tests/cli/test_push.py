"""`taet push` and what reads it back: a folder, and a hub that keeps folders; pins and checksums; never code."""

from __future__ import annotations

import json
import re
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from taet.evaluation import ResultCard
from taet.files import seal
from taet.training import published as models
from taet.training.folder import PUBLISHED

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"hf:user/digits@{COMMIT}"
DATA = ("--data", "digits-lt", "--data.test-max-count", "3")
SHORT = ("--attacks", "fgsm", "--eps", "0.02", "--no-probe")


@pytest.fixture(scope="module")
def published(taet: Any, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "x"
    outcome = taet("push", finished.folder, f"folder:{folder}", "--license", "mit")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == str(folder)
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def test_what_was_pushed_is_read_by_the_address_that_push_takes(published: Path, taet: Any, tmp_path: Path) -> None:
    outcome = taet("evaluate", "--model", f"folder:{published}", *DATA, *SHORT, "--out", tmp_path / "card")
    assert outcome.code == 0, outcome.err
    outcome = taet("evaluate", "--model", f"folder:{tmp_path}", *DATA, *SHORT)
    assert outcome.code == 2
    assert "holds no config.json; allowed: a folder that taet push wrote" in outcome.err


class Hub:
    """The functions of huggingface_hub that are used, on folders: the interface of its documentation."""

    def __init__(self, place: Path) -> None:
        self.place, self.calls = place, list[Any]()
        self.HfApi = lambda: self

    def create_repo(self, repo_id: str, *, private: bool = False, exist_ok: bool = False) -> None:
        self.calls.append(("create", repo_id, private))
        (self.place / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        assert commit_message
        shutil.copytree(folder_path, self.place / repo_id / COMMIT)
        return SimpleNamespace(oid=COMMIT)

    def snapshot_download(self, repo_id: str, *, revision: str, allow_patterns: list[str], local_dir: str) -> str:
        self.calls.append(("download", repo_id, revision))
        source = self.place / repo_id / revision
        if not source.is_dir():
            raise FileNotFoundError(f"no revision {revision}")
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, Path(local_dir, path.name))
        return local_dir


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path) -> Hub:
    """A hub with the published run, and no copy of it here yet."""
    fake = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published, fake.place / "user" / "digits" / COMMIT)
    return fake


def test_the_folder_has_the_files_of_the_run_and_a_model_card(taet: Any, finished: Any, published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {*PUBLISHED, "config.json", "README.md"}
    for name in ("run.json", "metrics.jsonl", "model.safetensors", "evaluation.json"):
        assert (published / name).read_bytes() == (finished.folder / name).read_bytes()
    config = json.loads((published / "config.json").read_text())
    assert config["class_names"] == [str(digit) for digit in range(10)]
    assert config["model"] == {"name": "resnet8", "image_shape": [1, 8, 8]}
    outcome = taet("doctor", published)
    assert (outcome.code, "WRONG" in outcome.out) == (0, False)


def test_every_number_of_the_model_card_is_one_of_the_result_card(finished: Any, published: Path) -> None:
    text = (published / "README.md").read_text()
    card = ResultCard.load(finished.folder)
    _, front, page = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["license"], about["library_name"], about["pipeline_tag"]) == ("mit", "taet", "image-classification")
    metrics = {entry["name"]: entry["value"] for entry in about["model-index"][0]["results"][0]["metrics"]}
    expected = {f"balanced accuracy, {c.name}": round(card.summary(c.name).balanced, 6) for c in card.columns}
    assert metrics == expected
    for column in card.columns:
        summary = card.summary(column.name)
        assert f"| {column.name} | {100 * summary.accuracy:.1f} | {100 * summary.balanced:.1f} |" in page
    last = [f"{100 * card.summary(column.name).per_class[0]:.1f}" for column in card.columns]
    assert re.search(rf"^\| 0 \| \d+ \| \d+ \| {re.escape(' | '.join(last))} \|$", page, re.M)
    for part in ("## Data", "## Training", "Not a certificate", "## Intended use", "## Licence\n\nmit", "Protocol"):
        assert part in page
    assert all(f"`{flag['flag']}`" in page for flag in card.flags)


def test_without_a_licence_the_page_leaves_it_to_be_filled_in(taet: Any, finished: Any, tmp_path: Path) -> None:
    outcome = taet("push", finished.folder, f"folder:{tmp_path / 'y'}")
    assert "the licence in README.md is to be filled in" in outcome.out
    front = (tmp_path / "y" / "README.md").read_text().split("---\n")[1]
    assert "# license: to be filled in" in front
    assert yaml.safe_load(front)["license"] == "unknown"
    # Again: the earlier one is replaced.
    assert taet("push", finished.folder, f"folder:{tmp_path / 'y'}", "--license", "mit").code == 0
    assert yaml.safe_load((tmp_path / "y" / "README.md").read_text().split("---\n")[1])["license"] == "mit"


def test_a_push_and_a_load_give_the_same_masks(taet: Any, finished: Any, remote: Hub, tmp_path: Path) -> None:
    """From the run, from the folder of the hub as a model, and from its weights in a fresh network."""
    pushed = taet("push", finished.folder, "other/digits", "--private", "--license", "mit")
    assert pushed.out.splitlines()[-1] == f"hf:other/digits@{COMMIT}"
    assert ("create", "other/digits", True) in remote.calls
    assert taet("evaluate", "--model", finished.folder, *DATA, *SHORT, "--out", "a").code == 0
    assert taet("evaluate", "--model", f"hf:other/digits@{COMMIT}", *DATA, *SHORT).code == 0
    loaded = next(Path("runs").glob("evaluate-hf-other-digits-*"))
    weights = ("--model", "resnet8", "--weights", NAME)
    outcome = taet("evaluate", *weights, *DATA, *SHORT, "--out", "c")
    assert outcome.code == 0, outcome.err
    cards = [ResultCard.load(path) for path in ("a", loaded, "c")]
    assert len({card.model["weights_sha256"] for card in cards}) == 1
    assert len({card.column("fgsm").correct.tobytes() for card in cards}) == 1
    downloads = len(remote.calls)
    shutil.rmtree(remote.place)  # what was verified once is kept
    assert taet("check", NAME, *DATA).code == 0
    assert len(remote.calls) == downloads
    kept = {path.name for path in (tmp_path / "cache" / "hub" / "user--digits" / COMMIT).iterdir()}
    assert kept == {*PUBLISHED, "config.json"}


def test_a_local_folder_is_read_as_weights_and_as_a_model(taet: Any, published: Path, tmp_path: Path) -> None:
    weights = ("--model", "resnet8", "--weights", published)
    assert taet("evaluate", *weights, *DATA, *SHORT, "--out", tmp_path / "a").code == 0
    assert taet("evaluate", "--model", published, *DATA, *SHORT, "--out", tmp_path / "b").code == 0
    words = ("--epochs", "1", "--threat.steps", "1", "--monitor-steps", "1", "--data.max-count", "20", "--threads", "1")
    run = tmp_path / "run"
    assert taet("train", "at", *words, "--model", "resnet8", "--model.weights", published, "--out", run).code == 0
    assert "its head included" in " ".join(json.loads((run / "run.json").read_text())["model_notes"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf:user/digits",
            "got no commit; allowed: hf:user/digits@ and the 40 digits of a commit; git ls-remote https",
        ),
        ("hf:user/digits@main", "got the revision 'main', which may move"),
        ("hf:user/digits@0123456", "got the revision '0123456'"),
        ("hf:digits@main", "allowed: hf:USER/NAME@COMMIT"),
        ("hf:../digits", "got no commit"),
        (f"hf:user/other@{COMMIT}", f"hf:user/other@{COMMIT}: FileNotFoundError: no revision"),
    ],
)
@pytest.mark.usefixtures("remote")
def test_only_a_full_commit_is_read(taet: Any, name: str, message: str) -> None:
    for words in (("--model", name), ("--model", "resnet8", "--weights", name)):
        outcome = taet("evaluate", *words, *DATA, *SHORT)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert message in outcome.err


def test_without_the_package_there_is_one_line(taet: Any, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for words in (("push", finished.folder, "user/name"), ("check", f"hf:user/absent@{COMMIT}", *DATA)):
        outcome = taet(*words)
        assert outcome.code == 2
        assert "pip install 'taet[hub]'" in outcome.err


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, change: Any) -> None:
    """Change a sealed file as somebody who can write its seal."""
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(seal(stored)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda at: flip(at / "model.safetensors"), "model.safetensors was changed or damaged"),
        (lambda at: (at / "run.json").unlink(), "cannot read"),
        (lambda at: (at / "config.json").write_text("{}"), "was not written by taet push"),
        (lambda at: (at / "config.json").unlink(), "allowed: a file that exists"),
        (lambda at: rewrite(at / "config.json", lambda stored: stored["files"].pop("run.json")), "run.json is missing"),
        (lambda at: rewrite(at / "config.json", lambda stored: stored.update(files=3)), "files"),
    ],
)
def test_damage_is_one_line(taet: Any, copy: Path, harm: Any, message: str) -> None:
    harm(copy)
    outcome = taet("evaluate", "--model", "resnet8", "--weights", copy, *DATA, *SHORT)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err


@pytest.mark.parametrize("words", [("evaluate", "--model"), ("predict",), ("audit",)])
def test_a_damaged_folder_is_refused_under_its_own_name(taet: Any, copy: Path, words: tuple[str, ...]) -> None:
    flip(copy / "metrics.jsonl")
    outcome = taet(*words, copy, *([copy] if words[0] == "predict" else DATA))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "metrics.jsonl was changed or damaged: its SHA-256 differs from the one in config.json" in outcome.err


def test_other_weights_than_those_of_the_card_are_refused(taet: Any, copy: Path) -> None:
    """Even where config.json was written anew for them."""
    flip(copy / "model.safetensors")
    models.describe(copy, {})
    outcome = taet("evaluate", "--model", "resnet8", "--weights", copy, *DATA, *SHORT)
    assert outcome.code == 2
    assert "other weights than model.safetensors" in outcome.err


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("name", [], "allowed: USER/NAME, or folder:PATH"),
        ("folder:", [], "allowed: USER/NAME, or folder:PATH"),
        ("folder:RUN", [], "allowed: a new or empty one, or one of taet push"),
        ("folder:new", ["--license", "MIT License"], "licence: got 'MIT License'"),
    ],
)
def test_a_wrong_target_is_one_line(
    taet: Any,
    finished: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = taet("push", finished.folder, target.replace("RUN", str(finished.folder)), *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not Path("new").exists()


def test_an_unfinished_run_and_one_without_a_card_are_refused(taet: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "evaluation.json").unlink()
    assert "has no result card" in taet("push", copy, f"folder:{tmp_path / 'z'}").err
    (copy / "done").unlink()
    assert "is not finished" in taet("push", copy, f"folder:{tmp_path / 'z'}").err
    assert not (tmp_path / "z").exists()
