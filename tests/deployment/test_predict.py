"""A finished run answers for anyone's images as it was evaluated, whatever their order, and loses
none."""

import csv
import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import taet
from taet.attacks.counting_model import CountingModel
from taet.data import Dataset
from taet.data.image_files import survey
from taet.deployment import Predictions, predict
from taet.deployment.input_images import read_images
from taet.deployment.saved_images import rounded
from taet.machine import using
from tests.calls import one_line

ATTACK = "pgd-3"
Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def answered(trained: Path, dataset: Dataset) -> Predictions:
    return predict(trained, dataset.test.images, attack=ATTACK)


@pytest.mark.full
@pytest.mark.parametrize("attack", ["pgd-3:start=none", "cw-l2:eps=2,steps=2,lr=0.1"])
def test_classes_and_survival_are_those_of_the_evaluation(
    attack: str, trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    card = taet.evaluate(trained, attacks=["clean", attack], dataset=dataset, out=tmp_path)
    found = predict(trained, dataset.test.images, attack=attack)
    clean, attacked = card.column("clean"), card.column(attack)
    np.testing.assert_array_equal(found.labels, clean.predictions)
    np.testing.assert_array_equal(found.survives[clean.correct], attacked.correct[clean.correct])
    assert 0 < found.survives.sum() < len(found)


def test_a_notebook_shows_the_summary_and_the_table(answered: Predictions) -> None:
    named = dataclasses.replace(answered, class_names=("<a>", *answered.class_names[1:]))
    shown = named._repr_html_()
    assert f"survive {ATTACK}</p>" in shown
    assert "<th>probability</th>" in shown
    assert "<a>" not in shown, "names are text, not markup"


@pytest.mark.parametrize(
    ("attack", "batch_size", "expected"), [("pgd-2", 250, 1), (None, 5, 1), (None, 250, 2)]
)
def test_what_takes_long_uses_the_cores_that_are_idle(
    attack: str | None,
    batch_size: int,
    expected: int,
    trained: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys.modules["taet.deployment.predict"], "idle_threads", lambda: (1, "machine busy")
    )
    loaded, seen = taet.load(trained), set[int]()
    loaded.model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    with using(2):
        predict(loaded, dataset.test.images[:10], attack=attack, batch_size=batch_size)
    assert seen == {expected}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_neither_order_nor_batch_matters(
    batch_size: int, trained: Path, dataset: Dataset, answered: Predictions
) -> None:
    order = np.random.default_rng(0).permutation(len(answered))
    told: list[tuple[float, float]] = []
    found = predict(
        trained,
        dataset.test.images[order],
        attack=ATTACK,
        batch_size=batch_size,
        progress=lambda done, total, _: told.append((done, total)),
    )
    assert 0 < answered.survives.sum() < len(answered)
    np.testing.assert_array_equal(found.labels, answered.labels[order])
    np.testing.assert_array_equal(found.survives, answered.survives[order])
    np.testing.assert_allclose(found.probabilities, answered.probabilities[order], atol=1e-5)
    assert told == sorted(told)
    assert told[-1] == (24 * (1 + 7), 24 * (1 + 7))


@pytest.fixture
def folder(tmp_path: Path, pictures: Draw) -> Path:
    """Image files of several kinds, some in a folder below, and what is to be passed over."""
    place = tmp_path / "images"
    (place / "below" / ".hidden").mkdir(parents=True)
    draw = [Image.fromarray(image) for image in pictures(4, (40, 30, 3))]
    draw[0].save(place / "b.png")
    draw[1].convert("L").save(place / "a grey one.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    draw[2].save(place / "below" / "turned.jpg", exif=exif)
    draw[3].convert("P").save(place / "below" / "ä.gif")
    for hidden in (".cache.png", "notes.txt", "below/.hidden/x.png"):
        (place / hidden).write_bytes(b"no image")
    return place


def test_files_are_read_as_training_reads_them(trained: Path, folder: Path) -> None:
    found = predict(trained, folder)
    names = ["a grey one.PNG", "b.png", "below/turned.jpg", "below/ä.gif"]
    assert found.paths == tuple(str(folder / name) for name in names)
    arrays = np.concatenate([*survey([folder / name for name in names], 16).read(None)])
    np.testing.assert_array_equal(found.probabilities, predict(trained, arrays).probabilities)
    assert len(np.unique(found.probabilities, axis=0)) == len(names)
    one = predict(trained, [folder / "b.png", str(folder / "below")])
    np.testing.assert_array_equal(one.labels, found.labels[1:])


def test_bad_files_are_told_and_the_others_answered(trained: Path, folder: Path) -> None:
    good = predict(trained, folder, attack=ATTACK)
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:400])
    found = predict(trained, [folder, folder / "missing.png"], attack=ATTACK, batch_size=4)
    read = np.array(
        [not path.endswith(("empty.png", "cut.png", "missing.png")) for path in found.paths]
    )
    np.testing.assert_array_equal([not error for error in found.errors], read)
    assert all(
        path in error for path, error in zip(found.paths, found.errors, strict=True) if error
    )
    np.testing.assert_array_equal(found.labels[read], good.labels)
    np.testing.assert_array_equal(found.survives[read], good.survives)
    assert (found.labels[~read] == -1).all()
    assert np.isnan(found.probabilities[~read]).all()
    assert not found.survives[~read].any()
    assert repr(predict(trained, folder / "empty.png")) == "1 image: no class; 1 could not be read"


def test_table_and_csv(trained: Path, folder: Path, answered: Predictions) -> None:
    (folder / "bad.png").touch()
    found = predict(trained, [folder / "b.png", folder / "bad.png"], attack=ATTACK)
    good, bad = csv.DictReader(io.StringIO(found.to_csv(top=2)))
    assert [*good] == [
        "path",
        "class",
        "probability",
        "class_2",
        "probability_2",
        "survives",
        "error",
    ]
    assert (good["survives"] in ("true", "false"), good["error"]) == (True, "")
    assert [bad[name] for name in ("class", "probability", "class_2", "survives")] == [""] * 4
    shares = found.table(top=9).loc[0, ["probability", "probability_2", "probability_3"]]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    counts = np.bincount(answered.labels, minlength=3)
    assert repr(answered).startswith(
        f"24 images: {answered.class_names[int(counts.argmax())]} {counts.max()}"
    )
    sure = dataclasses.replace(
        found, probabilities=np.array([[1.0, 0, 0]] * 2, np.float32), errors=("", "")
    )
    assert sure.to_csv().splitlines()[1].split(",")[2] == "1.0", "and not True"


def test_the_csv_is_that_of_the_table(trained: Path, folder: Path) -> None:
    (folder / 'a "cut", long name.png').write_bytes(b"no image")
    found = predict(trained, folder, attack=ATTACK)
    named = dataclasses.replace(found, class_names=('cat, "big"', "tail\n", " ä"))
    table = named.table(2)
    table["survives"] = table["survives"].map({True: "true", False: "false"})
    assert named.to_csv(2) == table.to_csv(index=False, lineterminator="\n")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attack": "clean"}, r"attack: got clean, which has no ball"),
        ({"attack": "pgd-20@runs/x"}, r"attack"),
        (
            {"attack": "pgd-2:step=0.0001"},
            r"got 2 steps of 0\.0001; allowed: steps that add up to its radius",
        ),
        ({"attack": "deepfool"}, r"got deepfool, which has no ball; allowed: .*such as eps=0\.5"),
        ({"images": np.zeros((2, 8, 8, 3))}, r"images: got float64 \(2, 8, 8, 3\); allowed: uint8"),
        (
            {"images": np.zeros((8, 8, 3), np.uint8)},
            r"images: got shape \(8, 8, 3\); allowed: \(N, H, W, C\)",
        ),
        (
            {"images": np.zeros((0, 8, 8, 3), np.uint8)},
            r"images: got uint8 \(0, 8, 8, 3\); allowed: .* N at least 1",
        ),
        (
            {"images": torch.zeros(2, 3, 8, 8)},
            r"images: got float32 \(2, 3, 8, 8\); allowed: uint8",
        ),
        (
            {"images": [(1, 2)]},
            r"images: no array, file, folder, or list of files and folders: TypeError",
        ),
        (
            {"images": []},
            r"no image in what was given; allowed: files, or folders with any of \.bmp",
        ),
    ],
)
def test_mistakes_are_one_line(
    options: dict[str, Any], match: str, trained: Path, dataset: Dataset
) -> None:
    images = options.pop("images", dataset.test.images)
    with one_line(match):
        predict(trained, images, **options)


@pytest.mark.parametrize(("background", "level"), [(None, 10), (255, 255)])
def test_transparent_pixels_lie_on_the_background_of_training(
    background: int | None, level: int, tmp_path: Path
) -> None:
    Image.new("RGBA", (8, 8), (10, 10, 10, 0)).save(tmp_path / "a.png")
    (image,) = read_images([tmp_path / "a.png"], (3, 8, 8), background)
    assert np.unique(image).tolist() == [level]


def read_back(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


@pytest.mark.parametrize(
    "attack",
    [
        "pgd-3",
        "cw-l2:eps=2,steps=2,lr=0.1",
        pytest.param("autoattack-fast", marks=pytest.mark.full),
    ],
)
def test_saved_images_are_in_the_ball_and_predicted_as_told(
    attack: str, trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.test.images
    found = predict(trained, images, attack=attack, save=tmp_path / "saved", batch_size=7)
    attacked = read_back(tmp_path / "saved/attacked")
    change = (attacked.astype(int) - images) / 255
    if "eps=2" in attack:
        assert np.sqrt(np.square(change).sum((1, 2, 3))).max() <= 2
    else:
        assert np.abs(change).max() <= 0.05
    again = predict(trained, tmp_path / "saved/attacked")
    np.testing.assert_array_equal(again.labels == found.labels, found.survives_rounded)
    assert 0 < found.survives_rounded.sum() < len(found)


def test_saved_images_lie_beside_the_original_and_the_change(
    trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    images = dataset.test.images
    predict(trained, images, attack=ATTACK, save=tmp_path)
    original, change, attacked = map(read_back, sorted(tmp_path.iterdir())[::-1])
    np.testing.assert_array_equal(original, images)
    drawn = 128 + 10 * (attacked.astype(int) - original)
    np.testing.assert_array_equal(change, drawn.clip(0, 255))


def test_an_image_is_rounded_so_that_it_stays_adversarial() -> None:
    """The class changes at 0.4 levels more: the nearest level is the original's."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        bright = 255 * x.mean((1, 2, 3)) - 100.3
        return torch.stack([-bright, bright], 1)

    model = CountingModel(torch.nn.Module())
    model.model.forward = logits  # type: ignore[method-assign]
    original = np.full((1, 2, 2, 1), 100, np.uint8)
    x_adv = np.full((1, 1, 2, 2), 100.4 / 255, np.float32)
    labels = np.zeros(1, np.int64)
    pixels, survives = rounded(model, original, x_adv, labels, 8 / 255, "linf", torch.device("cpu"))
    assert not survives[0]
    assert set(pixels.flat) == {101}


def test_images_are_saved_only_with_an_attack(trained: Path, dataset: Dataset) -> None:
    with one_line("save: got a folder without an attack; allowed: with one"):
        predict(trained, dataset.test.images, save="saved")
