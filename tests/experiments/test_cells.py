"""Cells: the runs that they are, the words that make the same runs, and what a folder says of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from taet import methods, registry
from taet.cli.train import read
from taet.data import facts
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.experiments import parse
from taet.experiments.cells import Cell, cells
from taet.files import seal
from taet.settings import override
from taet.training.decisive_settings import training_settings
from tests.calls import configure


def planned(small: dict[str, Any], out: Path, **changes: Any) -> list[Cell]:
    return cells(parse(small | changes), out)


@pytest.mark.sample(3)
@pytest.mark.parametrize("protocol", ["taet", "reat", "official"])
def test_the_words_of_a_cell_make_its_run(small: dict[str, Any], tmp_path: Path, protocol: str) -> None:
    settings = {**small["settings"], "training.tensorboard": True, "training.channels_last": False}
    # Two epochs and validation images: a method that learns from them is refused otherwise.
    settings["training"] = settings["training"] | {"epochs": 2}
    settings["data.validation"] = 0.2
    settings |= {"training.milestones": [0.5, 0.8], "evaluation.step_size": "2/255", "outer.drw": False}
    names = [name for name in registry.entries("methods") if protocol != "official" or methods.find(name).official]
    found = planned(small, tmp_path, methods=names, protocol=protocol, settings=settings, imbalance=[5.5], seeds=[4])
    assert len(found) == len(names)
    for cell in found:
        assert cell.run is not None, cell.reason
        (words, *_) = cell.commands(threads=3)
        run, out = configure(words[1], words[2:])
        assert words[0] == "train"
        assert str(out) == str(cell.folder)
        assert run == override(cell.run, {"training.threads": 3}), cell.name


def test_levels_of_a_method_are_no_sizes_of_the_ball(small: dict[str, Any], tmp_path: Path) -> None:
    entry = {"name": "narrow", "method": "las-at", "settings": {"method.eps": [8, 8]}}
    (cell,) = planned(small, tmp_path, methods=[entry], seeds=[0])
    assert cell.run is not None, cell.reason
    (words, *_) = cell.commands(threads=1)
    assert configure(words[1], words[2:])[0].settings.eps == (8, 8) == cell.run.settings.eps


def test_cells_are_in_the_order_in_which_a_part_of_them_is_most_useful(small: dict[str, Any], tmp_path: Path) -> None:
    variants = [{"name": "bsl", "settings": {"outer.name": "balanced-softmax"}}]
    found = planned(small, tmp_path, methods=["at", "harl"], seeds=[0, 1], variants=variants)
    assert [cell.name for cell in found] == [
        f"{name}_digits-lt_seed{seed}" for seed in (0, 1) for name in ("at", "harl", "at_bsl", "harl_bsl")
    ]
    assert [cell.row for cell in found[:4]] == ["at", "harl", "at + bsl", "harl + bsl"]
    assert [cell.run.seed for cell in found if cell.run] == [0, 0, 0, 1, 1, 1]


def test_what_a_method_cannot_take_is_not_applicable_with_the_reason(small: dict[str, Any], tmp_path: Path) -> None:
    variants = [
        {"name": "bsl", "settings": {"outer.name": "balanced-softmax"}},
        {"name": "skip", "settings": {"method.absent": "skip"}},
    ]
    methods = ["at", "harl", {"name": "at-focal", "method": "at", "settings": {"outer.name": "focal"}}]
    found = planned(small, tmp_path, methods=methods, seeds=[0], variants=variants)
    reasons = {cell.row: cell.reason for cell in found if cell.state == "not applicable"}
    assert reasons.keys() == {"harl + bsl", "at-focal + bsl", "at + skip", "at-focal + skip"}
    assert reasons["harl + bsl"].startswith("harl: got the outer loss balanced-softmax")
    assert reasons["at-focal + bsl"] == "its own settings say outer.name focal"
    assert reasons["at + skip"] == "unknown setting 'method.absent'; at has none of its own"
    (skip,) = [cell for cell in found if cell.row == "harl + skip"]
    assert skip.run is not None
    assert skip.run.settings.absent == "skip"
    assert not [cell for cell in found if cell.reason and cell.commands(1)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"training.epoch": 3}}, r"^settings: unknown setting .*did you mean 'epochs'\?"),
        ({"settings": {"training.epochs": "3"}}, "^settings: epochs: got '3'"),
        ({"settings": {"method.absent": "skip"}}, "^settings: unknown .*none of the methods has settings of its own"),
        (
            {"settings": {"method.bta": 3}, "methods": ["at", "trades"]},
            r"^settings: unknown setting 'method.bta'; .*did you mean 'method.beta'\?",
        ),
        (
            {"settings": {"outer.name": "focal"}, "methods": ["harl"]},
            "^settings: no method can take them: harl: harl: got",
        ),
        ({"settings": {"evaluation.attacks": ["pgd20"]}}, r"unknown attack 'pgd20'.*did you mean 'pgd-20'\?"),
        ({"settings": {"training.selection": "best-validation"}}, "best-validation needs a validation split"),
        (
            {"variants": [{"name": "x", "settings": {"outer.name": "focl"}}]},
            r"^variants: x: unknown name 'focl'.*'focal'\?",
        ),
        ({"data": ["digit-lt"]}, r"unknown data set 'digit-lt'.*did you mean 'digits-lt'\?"),
        ({"imbalance": [1000]}, "would get no training image"),
        ({"data": ["npz:a/b.npz", "npz:a-b.npz"]}, "no such file"),
    ],
)
def test_a_mistake_that_concerns_every_method(
    small: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        planned(small, tmp_path, **changes)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("robust-lt", {"base": "trade"}, r"unknown method 'trade'.*did you mean 'trades'\?"),
        ("robust-lt", {"base": "trades", "knobs": ["bta=3"]}, "robust-lt: option of trades: unknown name 'bta'"),
        ("harl", {"outer.name": "focal"}, "harl: got the outer loss focal"),
        ("reat", {"threat.weighting": "rw"}, "reat: got the weighting rw"),
        ("at", {"selection": "best-validation"}, "selection best-validation needs a validation split"),
        ("at", {"method.beta": 3}, "unknown setting 'method.beta'; at has none of its own"),
        ("trades", {"method.bta": 3}, r"unknown option of trades 'bta'; .*did you mean 'beta'\?"),
        ("at", {"data.max_count": 9999}, "a largest class of 9999"),
    ],
)
@pytest.mark.parametrize("protocol", ["taet", "official"])
def test_a_mistake_in_an_entry_is_its_own_and_leaves_no_row_out(
    small: dict[str, Any], tmp_path: Path, method: str, settings: dict[str, Any], words: str, protocol: str
) -> None:
    entry = {"name": "mine", "method": method, "settings": settings}
    if (method, protocol) == ("robust-lt", "official"):
        assert not planned(small, tmp_path, methods=["at", entry], protocol=protocol)[1].run
        return
    with pytest.raises(UserError, match=f"^methods: mine: .*{words}") as caught:
        planned(small, tmp_path, methods=["at", entry], protocol=protocol)
    assert "\n" not in str(caught.value)


def test_an_entry_that_only_the_shared_settings_make_possible_or_impossible(
    small: dict[str, Any], tmp_path: Path
) -> None:
    chosen = {"name": "chosen", "method": "at", "settings": {"selection": "best-validation"}}
    skip = {"name": "skip", "method": "harl", "settings": {"absent": "skip"}}
    settings = {**small["settings"], "data.validation": 0.2, "outer": "focal"}
    first, second = planned(small, tmp_path, methods=[chosen, skip], seeds=[0], settings=settings)
    assert first.run is not None
    assert second.reason.startswith("harl: got the outer loss focal")


def test_a_method_without_published_settings_is_not_applicable_under_official(
    small: dict[str, Any], tmp_path: Path
) -> None:
    found = planned(small, tmp_path, methods=["robust-lt", "at", "standard"], seeds=[0], protocol="official")
    assert [cell.state for cell in found] == ["not applicable", "missing", "not applicable"]
    assert found[0].reason.startswith("protocol official: got robust-lt")
    with pytest.raises(UserError, match=r"^protocol official: got standard"):
        planned(small, tmp_path, methods=["standard", "robust-lt"], protocol="official")


def test_a_mistake_names_the_file_of_the_specification(small: dict[str, Any], tmp_path: Path) -> None:
    specification = dataclasses.replace(parse(small | {"data": ["digit-lt"]}), path=Path("study.toml"))
    with pytest.raises(UserError, match=r"^specification study\.toml: unknown data set"):
        cells(specification, tmp_path)


def test_two_data_sets_never_share_a_folder(
    small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = facts(planned(small, tmp_path)[0].run.data)
    monkeypatch.setattr("taet.experiments.cells.facts", lambda _: digits)
    with pytest.raises(UserError, match=r"data: npz:a/b.npz and npz:a-b.npz would both be in"):
        planned(small, tmp_path, data=["npz:a/b.npz", "npz:a-b.npz"])


@pytest.fixture
def cell(small: dict[str, Any], template: Path, tmp_path: Path) -> Cell:
    """The first cell, with a folder that is done."""
    (found, *_) = planned(small, tmp_path)
    shutil.copytree(template, found.folder)
    return found


def test_a_folder_says_how_far_its_cell_is(cell: Cell) -> None:
    folder = str(cell.folder)
    assert (cell.state, cell.commands(1)) == ("done", [])
    assert cell.look().seconds["training"] > 0
    (cell.folder / "evaluation.json").unlink()
    assert (cell.state, cell.commands(1)) == ("started", [["evaluate", folder]])
    (cell.folder / "done").unlink()
    assert (cell.state, cell.commands(1)) == ("started", [["train", "--resume", folder], ["evaluate", folder]])
    (cell.folder / "run.json").unlink()
    assert cell.state == "missing"
    assert [words[0] for words in cell.commands(1)] == ["train", "evaluate"]


def test_a_card_about_another_ball_is_not_enough(cell: Cell) -> None:
    path = cell.folder / "evaluation.json"
    card = json.loads(path.read_text())
    card["threat"]["eps"] = 0.01
    path.write_text(json.dumps(seal(card)))
    assert cell.commands(1) == [["evaluate", str(cell.folder)]]


def test_attacks_are_added_to_a_run_that_is_done(cell: Cell, small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small["settings"], "evaluation.attacks": ["fgsm", "pgd-3"]}
    (more, *_) = planned(small, tmp_path, settings=settings)
    assert more.commands(1) == [["evaluate", str(cell.folder), "--attacks", "fgsm", "pgd-3"]]
    settings["evaluation.attacks"] = ["fgsm"]
    (fewer, *_) = planned(small, tmp_path, settings=settings)
    assert fewer.state == "done"
    assert [column.name for column in ResultCard.load(cell.folder / "evaluation.json").columns] == ["clean", "fgsm"]


def test_a_folder_with_other_settings_is_refused(cell: Cell, small: dict[str, Any], tmp_path: Path) -> None:
    words = rf"{cell.folder} holds a run with other settings: training.lr is 0.1 there and 0.2 in the specification"
    with pytest.raises(UserError, match=words):
        planned(small, tmp_path, settings={**small["settings"], "training.lr": 0.2})
    planned(small, tmp_path, settings={**small["settings"], "training.threads": 7, "training.device": "cuda:9"})
    planned(small, tmp_path, settings={**small["settings"], "training.monitor_every": 2})  # its curve decides nothing


def test_cells_without_a_precision_train_as_those_that_were_begun(
    small: dict[str, Any], template: Path, tmp_path: Path
) -> None:
    """The template trained in float32; another machine might take bf16."""
    training = {name: value for name, value in small["settings"]["training"].items() if name != "precision"}
    settings = small["settings"] | {"training": training}
    fresh = planned(small, tmp_path, settings=settings)
    assert not any("training.precision" in cell.settings for cell in fresh)
    shutil.copytree(template, fresh[0].folder)
    found = planned(small, tmp_path, settings=settings)
    assert [cell.run and cell.run.training.precision for cell in found] == ["float32"] * 3
    assert [configure("at", cell.commands(1)[0][2:])[0].training.precision for cell in found[1:]] == ["float32"] * 2


def test_cells_of_own_images_are_what_their_commands_train(tmp_path: Path) -> None:
    """Else a comparison that is continued finds a run with another batch size than it asked for."""
    for part, label in itertools.product(("train", "test"), "ab"):
        (tmp_path / "mine" / part / label).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (20, 24), (number, 9 * len(part), ord(label)))
            image.save(tmp_path / "mine" / part / label / f"{number}.png")
    settings = {"training": {"epochs": 2}, "evaluation.attacks": ["clean", "pgd-20"]}
    data = [f"folder:{tmp_path / 'mine'}"]
    for cell in cells(parse({"methods": ["at", "reat"], "data": data, "settings": settings}), tmp_path / "out"):
        run, _ = read(cell.commands(threads=1)[0][1:]).planned()
        assert cell.run is not None
        assert training_settings(run) == training_settings(cell.run)
        assert (run.training.batch_size, run.training.epochs, run.model.name) == (32, 2, "resnet8")
        assert (run.data.size, run.evaluation.attacks) == (None, ("clean", "pgd-20"))
