"""The settings that are chosen for the user's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taet import protocols
from taet.cli.train import read
from taet.data import load
from taet.errors import UserError
from taet.experiments.own_images import FEWEST_EPOCHS, OwnImages, attacked, length, own_images, plan, planned
from taet.settings import Data, Run, override

CPU, GPU = False, True  # has the machine an accelerator?


def fill(folder: Path, count: int, size: tuple[int, int] = (24, 24)) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(str(folder)))
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{number}.png")


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    fill(tmp_path / "lesions" / "naevus", 12)
    fill(tmp_path / "lesions" / "melanoma", 5)
    return tmp_path / "lesions"


def on(path: Path) -> Run:
    return override(protocols.taet("taet"), {"data.name": f"folder:{path}"})


def test_images_of_one_size_that_the_machine_can_take_stay_as_they_are(lesions: Path) -> None:
    made = planned(on(lesions), CPU)
    assert made.run.data.size is None
    assert (made.run.model.name, planned(on(lesions), GPU).run.model.name) == ("resnet8", "resnet18")
    assert made.run.threat == protocols.taet("taet").threat
    assert "data.size" not in made.choices


@pytest.mark.parametrize(
    ("sizes", "here", "expected"),
    [
        ([(600, 450), (600, 450)], GPU, 224),
        ([(600, 450), (600, 450)], CPU, 32),
        ([(100, 90), (140, 70)], GPU, 64),
        ([(20, 20), (16, 24)], GPU, 32),
        ([(48, 40), (48, 40)], GPU, None),
    ],
)
def test_the_size_follows_the_images_and_the_machine(
    tmp_path: Path, sizes: list[tuple[int, int]], here: bool, expected: int | None
) -> None:
    for name, size in zip("ab", sizes, strict=True):
        fill(tmp_path / name, 3, size)
    assert planned(on(tmp_path), here).run.data.size == expected


@pytest.mark.parametrize("shape", [(28, 20), (40, 60)])
def test_images_that_are_not_square_are_spoken_of_where_they_are_resized(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    images, labels = np.zeros((90, *shape), np.uint8), np.arange(90) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    run = override(protocols.taet("at"), {"data.name": str(tmp_path / "x.npz")})
    made = planned(run, CPU)
    assert any("--data.fit" in line and "squeezed; also: crop or pad" in line for line in made.sentences()) is (
        made.run.data.size is not None
    )
    asked = planned(override(run, {"data.fit": "pad"}), CPU)
    assert (asked.run.data.fit, asked.run.data.size) == ("pad", 32)


def test_without_an_accelerator_a_run_has_a_budget_of_test_images() -> None:
    many = (60, 90, 720, 5000)
    made = attacked(Data(), many)["data.test_max_count"]
    taken = [min(count, made.value) for count in many]
    assert taken[0] == 60
    assert 2500 - len(many) < sum(taken) <= 2500
    assert f"{sum(taken):,} of 5,870 test images" in made.why
    assert attacked(Data(), (2000, 500)) == {}
    assert attacked(Data(), (1,) * 3000) != {}
    assert attacked(Data(), (7,) * 3000)["data.test_max_count"].value == 1
    assert attacked(Data(imbalance_ratio=10.0), many) == attacked(Data(test="validation"), many) == {}


def test_the_budget_of_test_images_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taet.experiments.own_images.TESTED", 20)
    images, labels = np.zeros((90, 8, 8), np.uint8), np.arange(90) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    words = ["at", "--data", str(tmp_path / "x.npz")]
    run, decided = read(words).planned()
    assert (run.data.test_max_count, "data.test_max_count" in decided) == (10, True)
    assert len(load(run.data).test) == 20
    run, decided = read([*words, "--data.test-max-count", "None"]).planned()
    assert (run.data.test_max_count, "data.test_max_count" in decided) == (None, False)
    assert planned(run, GPU).run.data.test_max_count is None


@pytest.mark.parametrize("training", [3, 100, 639, 640, 5000, 60_000])
def test_an_epoch_has_enough_steps_and_a_run_enough_epochs(training: int) -> None:
    found, run = OwnImages(training, (8, 8), (8, 8), True), protocols.taet("at")
    values = {name: made.value for name, made in length(run, found, CPU).items()}
    batch, epochs = values["training.batch_size"], values["training.epochs"]
    assert batch in (128, 64, 32)
    assert batch == 32 or training / batch >= 20
    assert FEWEST_EPOCHS <= epochs <= 100
    steps = -(-training // batch)
    assert epochs in (FEWEST_EPOCHS, 100) or 2000 <= epochs * steps < 2000 + steps
    assert length(run, found, GPU)["training.epochs"].value == 100


@pytest.mark.parametrize(("protocol", "epochs", "batch"), [("reat", 80, 128), ("official", 80, 64)])
def test_a_protocol_that_was_asked_for_is_the_most(protocol: str, epochs: int, batch: int) -> None:
    run = protocols.start(protocol, "robal")
    values = {name: made.value for name, made in length(run, OwnImages(20_000, (8, 8), (8, 8), True), GPU).items()}
    assert (values["training.epochs"], values["training.batch_size"]) == (epochs, batch)


def test_the_columns_of_another_protocol_stay(lesions: Path) -> None:
    run = override(protocols.reat("at"), {"data.name": f"folder:{lesions}"})
    assert planned(run, CPU).run.evaluation.attacks == protocols.reat("at").evaluation.attacks


def test_arrays_are_looked_at_as_well(tmp_path: Path) -> None:
    images, labels = np.zeros((90, 48, 40), np.uint8), np.arange(90) % 2
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    run = override(protocols.taet("at"), {"data.name": str(tmp_path / "x.npz")})
    assert own_images(run.data) == OwnImages(90, (40, 48), (40, 48), True, square=False, tested=(45, 45))
    assert planned(run, CPU).run.data.size == 32
    assert planned(run, GPU).run.data.size is None


def test_what_was_decided_is_said_as_long_as_it_holds(lesions: Path) -> None:
    made = planned(on(lesions), CPU)
    other = override(made.run, {"model.name": "resnet20"})
    assert any(line.startswith("--model ") and "resnet8" in line for line in made.sentences())
    assert not any(line.startswith("--model ") for line in made.sentences(other))
    assert any(line.startswith("--threat.eps") and "8/255" in line for line in made.sentences(other))
    assert repr(made).startswith(f"taet on folder:{lesions}\n--model")


def test_from_python_in_one_line(lesions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan("taet", f"folder:{lesions}").run.method == "taet"
    monkeypatch.chdir(lesions.parent)
    assert plan("at", "folder:lesions", protocol="reat").run.protocol == "reat"


def test_a_set_with_a_protocol_is_refused() -> None:
    with pytest.raises(UserError, match=r"got cifar10-lt, whose protocol decides all; allowed: folder:"):
        plan("taet", "cifar10-lt")


def test_a_folder_that_is_no_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no class folders"):
        planned(on(tmp_path), CPU)


def test_only_the_training_images_of_given_splits_are_counted(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 40)):
        for name in "ab":
            fill(tmp_path / part / name, count)
    assert own_images(on(tmp_path).data).training == 12


def test_files_that_cannot_be_read_are_named_before_anything_is_decided(lesions: Path) -> None:
    for file in lesions.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"17 of 17 images cannot be read: .*it is no image"):
        planned(on(lesions), CPU)
