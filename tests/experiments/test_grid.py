"""A grid: what a specification says, the runs that it means, and that every mistake is a line that
names the key."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from taet import methods, models, registry, results
from taet.cli import main
from taet.cli.evaluate import read as read_evaluation
from taet.cli.options import of_part
from taet.cli.train import read as read_call
from taet.evaluation import ResultCard, evaluate
from taet.experiments.grid import Cell, cells_of, parse, read
from taet.files import seal
from taet.run.identity import training_settings
from taet.settings import override
from tests.calls import configure, one_line

TEXT = """
title = "Two"
methods = ["at", {name = "harl-skip", method = "harl", settings = {absent = "skip", "outer.name" = "focal"}}]
data = ["digits-lt"]
imbalance = [10, 50.0]
seeds = [3]
protocol = "reat"
[settings]
batch-size = 32
model = "resnet8"
threat.eps = "8/255"
training.milestones = [0.5, 0.8]
[[variants]]
name = "ra+bsl"
settings = {"outer.name" = "balanced-softmax", method.beta = 6}
"""  # noqa: E501


def planned(small: dict[str, Any], out: Path, **changes: Any) -> list[Cell]:
    return cells_of(parse(small | changes), out)


def test_a_file_and_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(TEXT)
    found = read(tmp_path / "two.toml")
    assert (found.title, found.data, found.imbalance) == ("Two", ("digits-lt",), (10, 50.0))
    assert (found.seeds, found.protocol) == ((3,), "reat")
    assert found.settings == {
        "training.batch_size": 32,
        "model.name": "resnet8",
        "threat.eps": "8/255",
        "training.milestones": (0.5, 0.8),
    }
    assert [(entry.name, entry.method, entry.settings) for entry in found.methods] == [
        ("at", "at", {}),
        ("harl-skip", "harl", {"method.absent": "skip", "outer.name": "focal"}),
    ]
    assert found.variants[0].settings == {"outer.name": "balanced-softmax", "method.beta": 6}
    (tmp_path / "small.toml").write_text('methods = "all"\ndata = ["digits-lt"]')
    found = read(tmp_path / "small.toml")
    assert [entry.name for entry in found.methods] == list(registry.entries("methods"))
    assert (found.title, found.imbalance, found.seeds, found.protocol) == (
        "small",
        (None,),
        (0,),
        "taet",
    )
    nested = {
        "name": "r",
        "method": "robust-lt",
        "settings": {"base": "taet", "base_settings": {"alpha": 1.0}},
    }
    found = parse({"methods": [nested], "data": ["digits-lt"]})
    assert found.methods[0].settings == {"method.base": "taet", "method.base_settings.alpha": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": ["at"]}, r"unknown field of Grid 'method'.*did you mean 'methods'\?"),
        (
            {"methods": [{"name": "a/b", "method": "at"}]},
            "name: got 'a/b'; allowed: letters, digits",
        ),
        (
            {"methods": [{"name": "at", "title": "A"}, {"name": "mart", "title": "A"}]},
            "methods: got the row A 2 times; allowed: each once",
        ),
        (
            {"methods": [{"name": "at", "title": "mart"}, "mart"]},
            "methods: got the row mart 2 times; allowed: each once",
        ),
        ({"seeds": [0, 0]}, "seeds: got 0 2 times; allowed: each once"),
        ({"data": ["digit-lt"]}, r"^unknown data set.* 'digit-lt'.*did you mean 'digits-lt'\?"),
        ({"protocol": "tat"}, r"unknown protocol 'tat'.*did you mean 'taet'\?"),
        ({"settings": {"epoch": 3}}, r"settings: unknown setting 'epoch'.*did you mean 'epochs'\?"),
        (
            {"settings": {"data": {"imbalance-ratio": 3}}},
            "allowed: as imbalance of the specification",
        ),
        ({"settings": {"epochs": 3, "training.epochs": 4}}, "settings: got training.epochs twice"),
        (
            {"settings": {"outer.name": "focal"}, "methods": ["harl"]},
            "^settings: no method can take them: harl_d",
        ),
        (
            {"settings": {"outer.name": "cross-entropy"}, "methods": ["reat"]},
            "reat: got the outer loss cross-entropy",
        ),
        (
            {"settings": {"evaluation.attacks": ["pgd-2:step=2/255"]}},
            "got 2 steps of 2/255; allowed: steps that",
        ),
        (
            {"variants": [{"name": "x", "settings": {"outer.name": "focl"}}]},
            r"^variants: x: .*'focal'\?",
        ),
        ({"data": ["digits-lt", "digit-lt"]}, r"file here: 'digit-lt'.*did you mean 'digits-lt'\?"),
        ({"settings": {"model.name": "package.module:net"}}, "code outside this package"),
    ],
)
def test_a_mistake_in_a_specification_is_one_line(
    small: dict[str, Any], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with one_line(words):
        planned(small, tmp_path, **changes)


def test_a_file_that_is_no_specification_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text("methods = [")
    with one_line(r"spec\.toml: neither TOML nor JSON: "):
        read(tmp_path / "spec.toml")


@pytest.mark.sample(3)
@pytest.mark.parametrize("protocol", ["taet", "reat", "official"])
def test_the_words_of_a_cell_make_its_run(
    small: dict[str, Any], tmp_path: Path, protocol: str
) -> None:
    settings = {**small["settings"], "training.channels_last": False}
    # Two epochs and validation images: a method that learns from them is refused otherwise.
    settings["training"] = settings["training"] | {"epochs": 2}
    settings["data.validation"] = 0.2
    settings |= {
        "training.milestones": [0.5, 0.8],
        "evaluation.step_size": "2/255",
        "outer.drw": False,
    }
    # it needs weights
    every = ((name, methods.find(name)) for name in registry.entries("methods") if name != "fare")
    names = [name for name, method in every if protocol != "official" or method.official]
    found = planned(
        small,
        tmp_path,
        methods=names,
        protocol=protocol,
        settings=settings,
        imbalance=[5.5],
        seeds=[4],
    )
    assert len(found) == len(names)
    for cell in found:
        assert cell.run is not None, cell.reason
        (words, *_) = cell.look(threads=3).commands
        run, out = configure(words[1], words[2:])
        assert words[0] == "train"
        assert str(out) == str(cell.folder)
        assert run == override(cell.run, {"training.threads": 3}), cell.name


def test_cells_are_in_the_order_in_which_a_part_of_them_is_most_useful(
    small: dict[str, Any], tmp_path: Path
) -> None:
    variants = [{"name": "bsl", "settings": {"outer.name": "balanced-softmax"}}]
    found = planned(
        small, tmp_path, methods=["at", "trades"], seeds=[0, 1], variants=variants, imbalance=[10.0]
    )
    assert [cell.name for cell in found] == [
        f"{name}_digits-lt_ir10_seed{seed}"
        for seed in (0, 1)
        for name in ("at", "trades", "at_bsl", "trades_bsl")
    ]
    assert [cell.row for cell in found[:4]] == ["at", "trades", "at + bsl", "trades + bsl"]
    assert [cell.run.seed for cell in found if cell.run] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_a_method_refuses_is_not_applicable_with_the_reason(
    small: dict[str, Any], tmp_path: Path
) -> None:
    variants = [
        {"name": "bsl", "settings": {"outer.name": "balanced-softmax"}},
        {"name": "skip", "settings": {"method.absent": "skip"}},
    ]
    entries = [
        "at",
        "harl",
        {"name": "at-focal", "method": "at", "settings": {"outer.name": "focal"}},
    ]
    found = planned(small, tmp_path, methods=entries, seeds=[0], variants=variants)
    reasons = {cell.row: cell.reason for cell in found if cell.look().state == "not applicable"}
    assert reasons.keys() == {"harl + bsl", "at-focal + bsl", "at + skip", "at-focal + skip"}
    assert reasons["harl + bsl"].startswith("harl: got the outer loss balanced-softmax")
    assert reasons["at-focal + bsl"] == "its own settings say outer.name focal"
    assert "unknown setting 'method.absent'" in reasons["at + skip"]
    assert not [cell for cell in found if cell.reason and cell.look().commands]


def test_a_mistake_in_an_entry_is_its_own_and_leaves_no_row_out(
    small: dict[str, Any], tmp_path: Path
) -> None:
    entry = {"name": "mine", "method": "trades", "settings": {"method.bta": 3}}
    with one_line(r"^methods: mine: .*unknown setting 'method.bta'.*did you mean 'beta'\?"):
        planned(small, tmp_path, methods=["at", entry])
    # One that only shared settings make impossible is not applicable.
    skip = {"name": "skip", "method": "harl", "settings": {"absent": "skip"}}
    settings = {**small["settings"], "outer": "focal"}
    first, second = planned(small, tmp_path, methods=["at", skip], seeds=[0], settings=settings)
    assert first.run is not None
    assert second.reason.startswith("harl: got the outer loss focal")
    # Weights are shared settings that a method may need.
    save_file(models.build("resnet8", 10, (1, 8, 8)).state_dict(), tmp_path / "net.safetensors")
    fare = {"name": "fare-2", "method": "fare", "settings": {"training.epochs": 2}}
    settings |= {
        "outer": "cross-entropy",
        "outer.label_smoothing": 0.1,
        "model.weights": f"{tmp_path}/net.safetensors",
    }
    assert (
        "label smoothing"
        in planned(small, tmp_path, methods=["at", fare], settings=settings)[1].reason
    )


@pytest.fixture
def cell(small: dict[str, Any], template: Path, tmp_path: Path) -> Cell:
    """The first cell, with a folder that is done."""
    (found, *_) = planned(small, tmp_path)
    shutil.copytree(template, found.folder)
    return found


def test_a_folder_says_how_far_its_cell_is(cell: Cell) -> None:
    folder = str(cell.folder)
    assert (cell.look().state, cell.look().commands) == ("done", ())
    (cell.folder / "evaluation.json").write_text("{")
    assert cell.look()[1:3] == ("failed", ())
    assert cell.look().reason.endswith(
        f"remove {cell.folder / 'evaluation.json'} to measure it again"
    )
    (cell.folder / "evaluation.json").unlink()
    assert cell.look()[1:3] == ("started", (["evaluate", folder],))
    (cell.folder / "done").unlink()
    assert cell.look()[1:3] == ("started", (["train", "--resume", folder], ["evaluate", folder]))
    (cell.folder / "run.json").unlink()
    assert cell.look().state == "missing"
    assert [words[0] for words in cell.look().commands] == ["train", "evaluate"]


def test_a_card_needs_the_ball_and_the_attacks(
    cell: Cell, small: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **small["settings"],
        "evaluation.attacks": ["fgsm", "pgd-3"],
        "evaluation.search_precision": "bf16",
    }
    (more, *_) = planned(small, tmp_path, settings=settings)
    (command,) = more.look().commands
    assert command == [
        "evaluate",
        str(cell.folder),
        "--attacks",
        "fgsm",
        "pgd-3",
        "--search-precision",
        "bf16",
    ]
    (fewer, *_) = planned(
        small, tmp_path, settings=small["settings"] | {"evaluation.attacks": ["fgsm"]}
    )
    assert fewer.look().state == "done"
    path = cell.folder / "evaluation.json"
    assert [column.name for column in ResultCard.load(path).columns] == ["clean", "fgsm"]
    card = json.loads(path.read_text())
    card["threat"]["eps"] = 0.01
    path.write_text(json.dumps(seal(card)))
    assert cell.look().commands == (["evaluate", str(cell.folder)],)


def test_a_title_is_given_to_the_card_of_a_run_that_is_done(
    cell: Cell, small: dict[str, Any], tmp_path: Path
) -> None:
    entry = {"name": cell.method, "method": cell.method, "title": "Ours, at last"}
    (titled, *_) = planned(small, tmp_path, methods=[entry])
    assert titled.folder == cell.folder
    command = ["evaluate", str(cell.folder), "--name", "Ours, at last"]
    assert titled.look()[1:3] == ("started", (command,))
    assert main(command) == 0
    assert titled.look().state == "done"
    assert results([cell.folder]).rows == ("Ours, at last",)
    assert cell.look().state == "done"  # the name stays where the grid gives none


def test_a_variant_is_part_of_a_title(small: dict[str, Any], tmp_path: Path) -> None:
    variant = {"name": "long", "settings": {"training.epochs": 3}}
    entry = {"name": "at", "title": "AT"}
    cells = planned(small, tmp_path, methods=[entry], variants=[variant])
    assert {found.title for found in cells} == {"AT", "AT + long"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": "26/255"}, ["--eps", "26/255"]),
        ({"step_size": "5/255", "seed": 3}, ["--step-size", "5/255"]),
        ({"eps_l2": 0.5, "cw_constant": 1.0, "cw_bounded": True}, None),
        ({"batch_size": 7}, ["--batch-size", "7"]),
    ],
)
def test_other_settings_of_the_evaluation_need_no_new_run(
    cell: Cell,
    small: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    words: list[str] | None,
) -> None:
    wanted = {f"evaluation.{name}": value for name, value in changes.items()}
    # too short for the ball, which a chosen step must not be
    few = "pgd-1" if "batch_size" in changes else "pgd-3"
    wanted["evaluation.attacks"] = ["fgsm", few, "cw-l2"]
    (asked, *_) = planned(small, tmp_path, settings=small["settings"] | wanted)
    (command,) = asked.look().commands
    assert words is None or " ".join(words) in " ".join(command)
    evaluate(cell.folder, probe=False, **of_part(read_evaluation(command[1:])[1], "evaluation"))
    assert asked.look().state == "done"


@pytest.mark.usefixtures("cell")
def test_a_folder_with_other_settings_is_refused(small: dict[str, Any], tmp_path: Path) -> None:
    settings = {**small["settings"], "training.lr": 0.2}
    with one_line(r"holds a run with other settings: training.lr is 0.1 there and 0.2"):
        planned(small, tmp_path, settings=settings)
    training = small["settings"]["training"] | {
        "device": "cpu",
        "save_minutes": 1.0,
        "monitor_steps": 7,
    }
    assert (
        planned(small, tmp_path, settings=small["settings"] | {"training": training})[0]
        .look()
        .state
        == "done"
    )


def test_cells_of_own_images_are_what_their_commands_train(tmp_path: Path) -> None:
    """Else a comparison that is continued finds a run with another batch size than it asked for."""
    for part, label in itertools.product(("train", "test"), "ab"):
        (tmp_path / "mine" / part / label).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (20, 24), (number, 9 * len(part), ord(label)))
            image.save(tmp_path / "mine" / part / label / f"{number}.png")
    settings = {"training": {"epochs": 2}, "evaluation.attacks": ["clean", "pgd-20"]}
    data, wrapped = [str(tmp_path / "mine")], {"base": "taet", "method.base_settings.beta": 0.5}
    methods = ["at", "taet", {"name": "wrapped", "method": "class-budget", "settings": wrapped}]
    for cell in cells_of(
        parse({"methods": methods, "data": data, "settings": settings}), tmp_path / "out"
    ):
        run, _ = read_call(cell.look().commands[0][1:]).planned()
        assert cell.run is not None
        assert training_settings(run) == training_settings(cell.run)
        assert (run.training.batch_size, run.training.epochs, run.model.name) == (32, 2, "resnet8")
        assert run.data.size is None
    distant = cells_of(parse({"methods": ["at"], "data": data}), tmp_path / "out", accelerated=True)
    assert distant[0].settings["model.name"] == "resnet18"
    told = parse({"methods": ["at"], "data": data, "settings": {"training.device": "cpu"}})
    assert cells_of(told, tmp_path / "out", accelerated=True)[0].settings["model.name"] == "resnet8"
