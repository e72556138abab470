"""Every mistake: exit status 2, one line that says what, what was got and what is allowed; nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taet.training import step as steps


@pytest.fixture
def refused(taet: Any) -> Callable[..., None]:
    """Run a command that must fail in one line holding every one of `parts`."""

    def check(arguments: list[Any], *parts: str) -> None:
        outcome = taet(*arguments)
        assert outcome.code == 2
        assert outcome.out == ""
        *before, last = outcome.err.splitlines()  # before it: what a run said of its data, and its progress
        assert last.startswith("taet: error: ")
        assert not any(line.startswith(("taet: error", "Traceback")) for line in before)
        for part in parts:
            assert part in last

    return check


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("trian", ["unknown command 'trian'", "did you mean 'train'?"]),
        ("train", ["which method?", "taet list methods"]),
        ("train ta", ["unknown method 'ta'", "allowed: adt, at, at-bsl", "did you mean 'taet'?"]),
        ("train at --data digit-lt", ["no folder or file 'digit-lt'", "did you mean 'digits-lt'?"]),
        ("train at --data digit-lt --out x", ["no folder or file 'digit-lt'"]),
        ("train at --model resnet9", ["unknown model 'resnet9'", "did you mean 'resnet8'?"]),
        ("train at --epoch 3", ["unknown option --epoch;", "did you mean --epochs?"]),
        ("train at --method.alpha 1", ["unknown option --method.alpha"]),
        ("train at --precision fp32", ["unknown --precision 'fp32'", "did you mean 'float32'?"]),
        ("train harl --method.absent sip", ["unknown --method.absent 'sip'", "did you mean 'skip'?"]),
        ("train harl --method.alpha -1", ["method alpha: got -1; allowed: 0 or more"]),
        ("train harl --outer balanced-softmax", ["harl: got the outer loss balanced-softmax"]),
        (
            "train at --outer balanced-sofmax",
            ["unknown --outer.name 'balanced-sofmax'", "did you mean 'balanced-softmax'?"],
        ),
        ("train at --protocol raet", ["unknown protocol 'raet'", "did you mean 'taet'?"]),
        ("train at --epochs three", ["--epochs", "'three'"]),
        ("train at --epochs 0", ["epochs: got 0; allowed: 1 or more"]),
        ("train at --lr 0", ["learning rate: got 0"]),
        ("train at --milestones 0.9 0.5", ["milestones: got (0.9, 0.5)"]),
        ("train at --out", ["--out"]),
        ("train at --device gpu", ["device: got gpu; allowed: auto, cpu, cuda"]),
        ("train at --device cuda:99", ["device: got cuda:99; this machine has"]),
        ("train at --data.imbalance-ratio 0.02", ["imbalance ratio: got 0.02; allowed: 1 or more", "did you mean 50?"]),
        ("train at --data.max-count 20 --data.imbalance-ratio 100", ["would get no training image", "up to 20"]),
        ("train at --data.max-count 9999", ["has 118; the largest that fits: 118"]),
        ("train at --threat.eps 8", ["eps: got 8; allowed: 0 to 1", "did you mean 8/255?"]),
        ("train at --threat.eps 8/0", ["--threat.eps", "8/0"]),
        ("train at --threat.eps -1/255", ["eps: got -0.00392157; allowed: 0 to 1"]),
        ("train at --selection best-validation", ["needs a validation split: add --data.validation 0.1"]),
        ("train at --data npz", ["data 'npz' needs a path"]),
        ("train at --data npz:no.npz", ["no such file: 'no.npz'"]),
        ("train at --data folder:no", ["no such folder: 'no'"]),
        ("train --resume", ["--resume needs a value"]),
        ("train at --protocol --data.max-count 20", ["--protocol needs a value"]),
        ("train prediction-balanced", ["unknown method", "is it a plugin? name its folder in TAET_PLUGINS"]),
        ("train --resume no", ["no is not a run folder: it holds no run.json"]),
        ("train --resume no --epochs 3", ["--resume takes everything from the run: got --epochs 3"]),
        ("evaluate", ["PATH is missing"]),
        ("evaluate no", ["no is not a run folder: it holds no run.json"]),
        ("evaluate . --attacks autoatack", ["unknown attack 'autoatack'", "did you mean 'autoattack'?"]),
        ("evaluate . --attacks pgd", ["attack 'pgd': got no number of steps", "e.g. pgd-20"]),
        ("evaluate . --out x", ["unknown option --out; see taet evaluate --help"]),
        ("evaluate . --attack fgsm", ["unknown option --attack;", "did you mean --attacks?"]),
        ("evaluate . --weights best", ["unknown --weights 'best'", "did you mean 'model-best'?"]),
        ("report", ["no run folder"]),
        ("report no", ["no: no run folder"]),
        ("list method", ["unknown kind 'method'", "did you mean 'methods'?"]),
        ("list methods models", ["taet list takes one of"]),
        ("data", ["which data set?"]),
        ("data sow", ["unknown action of taet data 'sow'", "did you mean 'show'?"]),
        ("data show digit-lt", ["no folder or file 'digit-lt'", "did you mean 'digits-lt'?"]),
        ("doctor --jsn", ["unknown option --jsn; did you mean --json?"]),
        ("demo --ot x", ["unknown option --ot;", "did you mean --out?"]),
    ],
)
def test_words(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAET_DATA", raising=False)
    refused(words.split(), *parts)
    assert not any(tmp_path.iterdir())


# -- numbers and paths, of any kind ------------------------------------------------------------------------------------

MANY = "9" * 400
TRAIN = "train at --model resnet8 --epochs 1 --data.max-count 10 --data.test-max-count 2 --threat.steps 1 --out o"
WRONG = {
    "--epochs": "1_000 １２ 1e3 0x10 -5 99999999999 MANY MANYMANYMANYMANY nan '' + 1.0",
    "--threads": "1000000 99999999999 0 -1 1025 MANY",
    "--lr": "1_0 nan inf -inf 1e400 MANY 1e39 0 1/0 1/2/3 / 8/ '' 1e-400",
    "--threat.eps": "nan 8 MANY -0.1 ٣/255",
    "--weight-decay": "1e400 MANY inf -1",
    "--batch-size": "99999999999 MANY 0",
    "--seed": "-1 MANY 9223372036854775808 1.5",
    "--data.seed": "-1 MANY",
    "--data.size": "20000 3 -1 MANY",
    "--data.max-count": "MANY 99999999999 0 -3 1_0",
    "--data.imbalance-ratio": "MANY 0.5 nan 1e300 inf",
    "--data.validation": "1 nan -1",
    "--data": "npz:~nouser/x ~nouser/x folder:~nouser csv:~nouser/a.csv '' npz: /dev/null npz:/dev/zero csv:/dev/zero "
    "npz:/proc/self/mem \udcff npz:\udcff.npz digits-lt\udcff LONG folder:LONG",
    "--out": "'' \udcff 'a\nb'",
    "--resume": "''",
    "--protocol": "'' x",
    "--model": "'' : a: LONG \udcff \udcff:x torchvision: timm: os:getcwd ..:x .:x a..b:c 'a b:c' taet:train "
    "builtins:dict torch:rand taet.cli:main numpy:zeros",
    "--model.weights": "'' /dev/zero . no.pt \udcff",
    "--milestones": "nan 2 -1 MANY",
    "--device": "'' cuda:-1 cuda:99999999999999999999 cuda:MANY mps meta \udcff",
    "--workers": "99999999999 -1",
    "--save-minutes": "nan -1 MANY",
    "--monitor-every": "-1 MANY",
    "--distance-images": "-1 99999999999 MANY",
    "--ema": "1 nan -1",
    "--evaluation.attacks": "pgd-0 pgd-99999999999 pgd-MANY pgd-٣ pgd-1:restarts=99999999999 pgd-1:restarts=MANY LONG "
    "pgd-1:restarts=1_0 pgd-1:restarts=٣ pgd-1:eps=nan pgd-1:eps=MANY pgd-1:step=inf '' : pgd-1: pgd-1:eps pgd-1:=1 "
    "cw-l2:c=1e400 \udcff",
    "--evaluation.seed": "-1 MANY",
    "--evaluation.eps-l2": "0 inf MANY",
}
"""Options of `taet train`, and values that none of them takes."""
CALLS = r"""
train ''; evaluate ''; report ''; predict '' x; predict . ''; export '' --format pt2; check ''; list ''; transfer '' ''
evaluate \udcff; list \udcff; evaluate /dev/null; train --resume /dev/null; demo --out ''
compare ''; compare .; compare /dev/null; compare /dev/zero
compare s.toml --time-budget MANYh; compare s.toml --time-budget ''; compare s.toml --jobs 99999999999
compare s.toml --part MANY/2; compare s.toml --part 1/99999999999; compare s.toml --part 0/0
data show ''; data show ~nouser/x; data show digits-lt --out ''
transfer . . --eps nan; transfer . . --batch-size 0; evaluate . --processes 99999999999
predict . x --batch-size 0; predict . x --top MANY; predict . x --attack pgd-1:restarts=99999999999
evaluate --model os:getcwd --data digits-lt; evaluate --model resnet8 --data digits-lt --normalize nan/1
evaluate --model resnet8 --data digits-lt --normalize MANY/1; evaluate --model resnet8 --data digits-lt --weights ''
evaluate --model resnet8 --data digits-lt --weights /dev/zero; evaluate --model resnet8 --data digits-lt --out ''
"""


def split(text: str) -> list[str]:
    """Words as a shell splits them; MANY stands for a number of 400 digits, LONG for a name of 5,000 letters."""
    text = text.replace("MANY", MANY).replace("LONG", "x" * 5000)
    return shlex.split(text.replace(r"\udcff", "\udcff"))


@pytest.mark.sample(10)
@pytest.mark.parametrize("option", WRONG)
def test_values_that_no_option_takes(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in split(WRONG[option]):
        refused([*TRAIN.split(), option, value] if option != "--resume" else ["train", option, value])
        assert not any(tmp_path.iterdir())


def test_calls_of_every_command(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for words in re.split("[;\n]", CALLS.strip()):
        refused(split(words))
        assert not any(tmp_path.iterdir())


# -- data of one's own -------------------------------------------------------------------------------------------------


def image(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 100, np.uint8)).save(path)


def folder(place: Path, classes: str = "ab", side_of_last: int = 8) -> Path:
    for name in classes:
        for number in range(3):
            image(place / name / f"{number}.png", side_of_last if (name, number) == (classes[-1], 2) else 8)
    return place


def test_folders(refused: Callable[..., None], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    one = folder(tmp_path / "one", "a")
    refused(["train", "at", "--data", f"folder:{one}", *out], "got ['a']; allowed: 2 classes or more")
    broken = folder(tmp_path / "broken")
    (broken / "b" / "1.png").write_bytes(b"no image at all")
    refused(["train", "at", "--data", f"folder:{broken}", *out], f"cannot be read: '{broken / 'b' / '1.png'}'")
    mixed = folder(tmp_path / "mixed", side_of_last=9)
    refused(["data", "show", f"folder:{mixed}", "--size", "None"], "8x8 pixels", "9x9", "--data.size 8")
    empty = folder(tmp_path / "empty")
    (empty / "c").mkdir()
    refused(["train", "at", "--data", f"folder:{empty}", *out], f"class folder '{empty / 'c'}' holds no image")
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_mixed_sizes_train_with_data_size(taet: Any, small: list[str], tmp_path: Path) -> None:
    mixed = folder(tmp_path / "mixed", side_of_last=9)
    words = [*small, "--epochs", "1", "--data", f"folder:{mixed}", "--data.size", "8", "--out", tmp_path / "run"]
    assert taet("train", "at", *words).code == 0


IMAGES = np.zeros((6, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"test_labels": None}, ["has no test_labels"]),
        ({"train_images": np.full((6, 8, 8), np.nan, np.float32)}, ["train_images: got float32 with NaN"]),
        ({"train_images": IMAGES.astype(np.int32)}, ["train_images: got int32; allowed: uint8"]),
        ({"train_labels": np.array([0, 1, np.nan, 0, 1, 0])}, ["train_labels: got float64 with NaN"]),
        ({"train_labels": np.array([0, 1, -1, 0, 1, 0])}, ["train_labels: got label -1"]),
        ({"test_labels": np.array([0, 1, 2, 0, 1, 0])}, ["test_labels: got label 2; allowed: 0 to 1"]),
        ({"train_labels": np.array([0, 2, 0, 2, 0, 2])}, ["class '1' has no training image"]),
        ({"train_labels": np.array([0, 1])}, ["got 6 images but 2 labels"]),
        ({"train_images": np.array([{}] * 6)}, ["Object arrays cannot be loaded"]),
    ],
)
def test_npz(refused: Callable[..., None], tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    arrays = {"train_images": IMAGES, "train_labels": labels, "test_images": IMAGES, "test_labels": labels} | changes
    path = tmp_path / "data.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    refused(["train", "at", "--data", f"npz:{path}", "--out", tmp_path / "run"], str(path), *parts)
    assert not (tmp_path / "run").exists()


# -- run folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(finished: Any, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished.folder, tmp_path / "damaged"))


@pytest.mark.full
def test_a_run_folder_that_exists(refused: Callable[..., None], small: list[str], finished: Any) -> None:
    before = (finished.folder / "run.json").read_bytes()
    words = ["train", "at", *small, "--epochs", "10", "--out", finished.folder]
    refused(words, f"{finished.folder} exists: it is finished, see taet evaluate {finished.folder}")
    refused([*words, "--outer.drw"], f"{finished.folder} exists and is not this run; choose another --out")
    assert (finished.folder / "run.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x04 something else"])
def test_a_checkpoint_that_is_none(refused: Callable[..., None], damaged: Path, content: bytes) -> None:
    (damaged / "checkpoint.pt").write_bytes(content)
    refused(["train", "--resume", damaged], "checkpoint.pt is not a checkpoint of taet")
    assert (damaged / "checkpoint.pt").read_bytes() == content


def test_a_checkpoint_of_something_else(refused: Callable[..., None], damaged: Path) -> None:
    torch.save({"state_dict": {}}, damaged / "checkpoint.pt")
    refused(["train", "--resume", damaged], "checkpoint.pt is not a checkpoint of taet")


def test_runs_that_are_not_finished_or_none(refused: Callable[..., None], damaged: Path, tmp_path: Path) -> None:
    (damaged / "model.safetensors").unlink()
    refused(["evaluate", damaged], "the run is not finished; resume it first")
    (damaged / "run.json").write_text("{}")
    for words in (["evaluate", damaged], ["train", "--resume", damaged], ["report", damaged]):
        refused(words, "run.json")
    (tmp_path / "empty").mkdir()
    refused(["evaluate", tmp_path / "empty"], "is not a run folder")


def test_truncated_weights(refused: Callable[..., None], damaged: Path) -> None:
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[:5000])
    refused(["evaluate", damaged], "model.safetensors cannot be read")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--eps 8", "did you mean 8/255?"),
        ("--batch-size 0", "batch size: got 0; allowed: 1 or more"),
        ("--attacks fgsm fgsm", "allowed: each once"),
        ("--weights model-best", "model-best"),
    ],
)
def test_evaluation_settings(refused: Callable[..., None], finished: Any, words: str, part: str) -> None:
    before = (finished.folder / "evaluation.json").read_bytes()
    refused(["evaluate", finished.folder, *words.split()], part)
    assert (finished.folder / "evaluation.json").read_bytes() == before


# -- while it runs -----------------------------------------------------------------------------------------------------


def test_no_space_left_on_the_disk(
    taet: Any, refused: Callable[..., None], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(["train", "at", *small, "--epochs", "1", "--out", out], "no space left on the disk")
    assert taet("train", "at", *small, "--epochs", "1", "--out", out).code == 0


def test_a_loss_that_is_not_finite(
    refused: Callable[..., None], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = steps.training_step

    def broken(*args: Any, **options: Any) -> Any:
        return step(*args, **options)._replace(total=torch.tensor(float("nan")))

    monkeypatch.setattr(steps, "training_step", broken)
    refused(
        ["train", "at", *small, "--epochs", "1", "--out", tmp_path / "run"],
        "the loss is not finite in epoch 1",
        "checkpoint.pt keeps the last good state",
    )
