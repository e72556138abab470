"""Extra images: the prior of their mixture, their place in batches, what is left out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from taet.data.image_store import gather
from taet.data.mixture import class_shares, mixture

from taet.data import Dataset, Split, load, repeats
from taet.data.extra import Extra, check_classes, distinct_counts, read_extra
from taet.data.loader import Joined, Loader
from taet.errors import UserError
from taet.losses import balanced_softmax
from taet.settings import Data, Training

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mixture.json").read_text())
COUNTS = (12, 7, 3)


def data(**changes: Any) -> Data:
    own = {"extra": "npz:extra.npz", "extra_source": "made by a test", "extra_fraction": 0.5}
    return Data(**(own | changes))


def images(count: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Noise of three classes with a long tail: no two images are near each other."""
    labels = np.repeat([0, 1, 2], COUNTS)
    test, validation = (images(9, 1), np.arange(9) % 3), (images(6, 2), np.arange(6) % 3)
    return Dataset.from_arrays(images(22), labels, *test, validation=validation, class_names=["cat", "dog", "elk"])


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Data]:
    """Write arrays and return the settings that read them."""

    def write(pixels: np.ndarray, labels: Any, keys: tuple[str, str] = ("images", "labels"), **changes: Any) -> Data:
        np.savez(tmp_path / "extra.npz", **dict(zip(keys, (pixels, np.asarray(labels)), strict=True)))
        return data(extra=f"npz:{tmp_path / 'extra.npz'}", **changes)

    return write


@pytest.mark.parametrize(
    "name",
    ["mixture_prior_prior", "mixture_prior_uniform", "mixture_prior_inverse", "mixture_prior_inverse_small"],
)
def test_the_prior_of_the_mixture_is_the_golden_one(name: str) -> None:
    given, expected = GOLDEN[name]["inputs"], GOLDEN[name]["expected"]
    rule = name.removeprefix("mixture_prior_").removesuffix("_small")
    counts = tuple(map(int, given["class_counts"]))
    found = mixture(data(extra_fraction=given["fraction"], extra_classes=rule), counts, given["batch"])
    assert found is not None
    assert found.extra == expected.get("extra", found.extra)
    assert found.batch - found.extra == expected.get("original", found.batch - found.extra)
    near = {"rel": 1e-8, "abs": 1e-8}
    assert found.share == pytest.approx(expected["phi"], **near)
    assert found.draw == pytest.approx(expected["draw"], **near)
    prior = np.array(found.exposure) / sum(counts)
    assert prior == pytest.approx(expected["prior"], **near)
    assert prior.sum() == pytest.approx(1, abs=1e-12)
    if "log_prior" in expected:
        assert np.log(prior) == pytest.approx(expected["log_prior"], **near)
        assert found.exposure == pytest.approx(expected["exposure"], **near)


def test_balanced_softmax_of_the_exposure_is_the_golden_one() -> None:
    given = GOLDEN["mixture_balanced_softmax"]
    tensors = {name: torch.tensor(value) for name, value in given["inputs"].items()}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    found = balanced_softmax(exact["logits"], exact["labels"], exact["exposure"]).mean()
    assert found.item() == pytest.approx(given["expected"], abs=1e-7)


@pytest.mark.parametrize("rule", ["prior", "uniform", "inverse"])
def test_batches_have_the_prior_that_losses_are_told(dataset: Dataset, rule: str) -> None:
    mixed = mixture(data(extra_fraction=0.71, extra_classes=rule), COUNTS, 10)
    assert mixed is not None
    extra = Split(images(30, 5), np.arange(30) % 3, dataset.class_names, np.arange(30))
    source = loader(dataset.train, Extra(extra), mixed)
    shown, originals, epochs = np.zeros(3), [], 400
    for epoch in range(epochs):
        for batch in source.epoch(epoch):
            assert len(batch.y) == 10
            own = batch.index < 22
            assert own.sum() == 3
            originals += batch.index[own].tolist()
            shown += np.bincount(batch.y[~own], minlength=3)
    drawn = shown.sum()
    spread = np.sqrt(drawn * np.array(mixed.draw) * (1 - np.array(mixed.draw)))
    assert (abs(shown - drawn * np.array(mixed.draw)) <= 4 * spread + 1e-9).all()
    for first in range(0, len(originals) - 22, 22):  # one whole order of the real images after the other
        assert sorted(originals[first : first + 22]) == list(range(22))


def loader(
    split: Split, extra: Extra | None, mixed: Any, augment: Literal["crop-flip", "none"] = "crop-flip", **part: int
) -> Loader:
    training = Training(batch_size=10, channels_last=False, augment=augment)
    device = torch.device("cpu")
    return Loader(split, training, seed=3, mirror=True, device=device, extra=extra, mixture=mixed, **part)


def test_images_keep_their_labels_and_copies_are_training_images(dataset: Dataset) -> None:
    mixed = mixture(data(), COUNTS, 10)
    extra = Split(images(30, 5), np.arange(30) % 3, dataset.class_names, np.arange(30))
    pool = np.concatenate([dataset.train.images, extra.images]), np.concatenate([dataset.train.labels, extra.labels])
    for found, most in ((Extra(extra), 52), (Extra(dataset.train, copies=True), 22)):
        for batch in loader(dataset.train, found, mixed, augment="none").epoch(1):
            assert int(batch.index.max()) < most
            assert np.array_equal(batch.y, pool[1][batch.index])
            assert np.array_equal((batch.x * 255).round().numpy(), pool[0][batch.index].transpose(0, 3, 1, 2))


def test_images_that_repeat_each_other_or_training_images_count_once(dataset: Dataset) -> None:
    new = images(5, 5)
    pixels = np.concatenate([new, new[:2], dataset.train.images[-4:], new[:1]])
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 1, 2])  # also copies under another label
    found = Extra(Split(pixels, labels, dataset.class_names, np.arange(len(labels))))
    pairs = {(label, image.tobytes()) for label, image in zip(labels, pixels, strict=True)}
    real = {(label, image.tobytes()) for label, image in zip(dataset.train.labels, dataset.train.images, strict=True)}
    slow = [sum(label == c for label, _ in pairs - real) for c in range(3)]
    assert distinct_counts(found, dataset.train) == tuple(slow) == (2, 4, 2)
    assert distinct_counts(Extra(dataset.train, copies=True), dataset.train) == (0, 0, 0)


def test_shares_of_processes_and_later_steps_are_parts_of_the_batches(dataset: Dataset) -> None:
    mixed = mixture(data(), COUNTS, 10)
    extra = Extra(Split(images(30, 5), np.arange(30) % 3, dataset.class_names, np.arange(30)))
    whole = list(loader(dataset.train, extra, mixed).epoch(2))
    parts = [list(loader(dataset.train, extra, mixed, part=part, parts=3).epoch(2)) for part in range(3)]
    for step, batch in enumerate(whole):
        for field in range(3):
            assert torch.equal(batch[field], torch.cat([part[step][field] for part in parts]))
    later = list(loader(dataset.train, extra, mixed).epoch(2, 1))
    assert all(
        torch.equal(a, b) for one, two in zip(whole[1:], later, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_every_process_gets_its_part_of_extra_images(dataset: Dataset) -> None:
    mixed = mixture(data(), COUNTS, 10)
    extra = Extra(Split(images(30, 5), np.arange(30) % 3, dataset.class_names, np.arange(30)))
    for part in range(2):
        share = loader(dataset.train, extra, mixed, part=part, parts=2)
        real = np.array([int((batch.index < 22).sum()) for epoch in range(100) for batch in share.epoch(epoch)])
        # 5 of 10 places without replacement: mean 2.5, variance 5 * 5 * 5 * 5 / (10 * 10 * 9).
        assert abs(real.mean() - 2.5) < 4 * np.sqrt(625 / 900 / len(real))
        assert real.std() > 0.5


def test_streamed_images_are_those_in_memory(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path))
    mixed, pixels = mixture(data(), COUNTS, 10), images(30, 5)
    extra = Split(pixels, np.arange(30) % 3, dataset.class_names, np.arange(30))
    on_disk = dataclasses.replace(extra, images=gather(iter(pixels), pixels.shape, key="x", storage="disk"))
    read, streamed = (loader(dataset.train, Extra(one), mixed) for one in (extra, on_disk))
    assert isinstance(streamed.images, Joined)
    for one, other in zip(read.epoch(0), streamed.epoch(0), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_a_fraction_there_is_no_mixture() -> None:
    assert mixture(data(extra_fraction=0.0), COUNTS, 10) is None
    assert mixture(Data(), COUNTS, 10) is None
    found = mixture(data(extra_fraction=0.29), COUNTS, 100)
    assert found is not None
    assert found.extra == 29  # 0.29 * 100 is below 29 in floating point
    for fraction, left in ((0.05, "extra"), (1 - 1e-12, "real")):
        with pytest.raises(
            UserError, match=rf"data extra fraction: got .* batch size of 10, which leaves no {left} im"
        ):
            mixture(data(extra_fraction=fraction), COUNTS, 10)


def test_inverse_evens_out_as_far_as_it_can() -> None:
    assert class_shares("inverse", [5, 5, 5], 0.3) == pytest.approx([1 / 3] * 3)
    assert class_shares("inverse", [90, 5, 5], 0.1) == pytest.approx([0, 0.5, 0.5])


def test_images_of_test_and_validation_are_left_out_and_counted(dataset: Dataset, stored: Callable[..., Data]) -> None:
    assert dataset.validation is not None
    fresh = images(50, 7)
    brighter = (dataset.test.images[:2].astype(int) * 0.98 + 2).round().astype(np.uint8)
    mirrored = dataset.validation.images[:1, :, ::-1]
    pixels = np.concatenate([fresh, dataset.test.images[3:4], brighter, mirrored, dataset.train.images[:4]])
    found = read_extra(stored(pixels, np.arange(len(pixels)) % 3), dataset)
    assert found.repeats == (("validation", 0, 1), ("test", 1, 2))
    assert len(found.split) == 54  # the training images stay
    assert np.array_equal(found.split.images[:50], fresh)
    unmirrored = dataclasses.replace(dataset, mirror=False)
    assert read_extra(stored(pixels, np.arange(len(pixels)) % 3), unmirrored).repeats[0] == ("validation", 0, 0)


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("size", [None, 12])
def test_test_images_that_the_cut_removed_are_held_out_as_well(
    tmp_path: Path, stored: Callable[..., Data], monkeypatch: pytest.MonkeyPatch, storage: str, size: int | None
) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    digits = load("digits-lt", imbalance_ratio=1, test="balanced")
    arrays = {"train_images": digits.train.images, "train_labels": digits.train.labels}
    own = tmp_path / "own.npz"
    np.savez(own, **arrays, test_images=digits.test.images, test_labels=digits.test.labels)
    for name, changes in (
        ("digits-lt", {}),
        (f"npz:{own}", {"imbalance_ratio": 10}),
        (str(own), {"test_max_count": 9}),
    ):
        settings = {"name": name, "size": size, "storage": storage, **changes}
        dataset = load(Data(**settings))
        kept = {image.tobytes() for image in load(Data(**settings | {"size": None})).test.images[:]}
        removed = np.array([image for image in digits.test.images if image.tobytes() not in kept])
        assert len(removed) > 200
        pixels = np.concatenate([images(90, 7), removed[:9]])
        found = read_extra(stored(pixels, np.arange(99) % 10, **settings), dataset)
        assert found.repeats[-1] == ("test", 9, 0)
        assert len(found.split) == 90
        whole = load(Data(**settings | {"test": "balanced", "test_max_count": None}))
        assert whole.whole_test is None
        assert found.test_sha256 == whole.test.sha256 != dataset.test.sha256


def test_a_set_made_from_test_images_is_refused(dataset: Dataset, stored: Callable[..., Data]) -> None:
    pixels = np.concatenate([images(20, 7), dataset.test.images])
    message = r"9 of 29 images are exactly or nearly held-out ones \(0 \+ 0 of validation and 9 \+ 0 of test\); allowed"
    with pytest.raises(UserError, match=message):
        read_extra(stored(pixels, np.arange(29) % 3), dataset)


@pytest.mark.parametrize("numbers", [(700, 60), (60, 700)])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_search_finds_what_comparing_all_pairs_finds(
    numbers: tuple[int, int], mirror: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 85 images, blocks of 64 and sorting by the mean hide no pair, neither at an end nor at the limit."""
    draw = np.random.default_rng(0)
    monkeypatch.setattr(repeats, "ROWS", 64)
    monkeypatch.setattr("taet.data.image_store.CHUNK", 85 * 8 * 8 * 3)
    images, others = (draw.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8) for number in numbers)
    images[7], images[-1] = others[3][:, ::-1], others[0]
    images[20] = np.clip(others[5].astype(int) + 7, 0, 255)  # the whole image brighter, by almost as much as counts
    apart = images.reshape(-1, 1, 8, 8, 3) / 255.0 - others / 255.0
    close = np.sqrt(np.square(apart).mean((2, 3, 4))) <= repeats.NEAR
    if mirror:
        apart = images.reshape(-1, 1, 8, 8, 3) / 255.0 - others[:, :, ::-1] / 255.0
        close |= np.sqrt(np.square(apart).mean((2, 3, 4))) <= repeats.NEAR
    found = repeats.near(images, others, mirror=mirror)
    assert found.tolist() == close.any(1).tolist()
    assert found.sum() == (3 if mirror else 2)


def test_a_long_search_for_repeats_is_not_made_twice(
    dataset: Dataset, tmp_path: Path, stored: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("taet.data.extra.MOST_PAIRS", 0)
    pixels, labels = np.concatenate([images(50, 7), dataset.test.images[3:5]]), np.arange(52) % 3
    pixels[50, 0, 0] ^= 4
    once = read_extra(stored(pixels, labels), dataset)
    assert once.repeats == (("validation", 0, 0), ("test", 1, 1))
    calls = []
    near = repeats.near
    monkeypatch.setattr(repeats, "near", lambda *args, **more: calls.append(1) or near(*args, **more))
    again = read_extra(stored(pixels, labels), dataset)
    assert (again.repeats, again.split.sha256, len(calls)) == (once.repeats, once.split.sha256, 0)
    read_extra(stored(pixels, labels), dataclasses.replace(dataset, mirror=False))
    assert len(calls) == 2
    pixels[0, 0, 0] ^= 4
    read_extra(stored(pixels, labels), dataset)
    assert len(calls) == 4
    read_extra(stored(pixels, labels, storage="memory"), dataset)
    assert len(calls) == 6


def test_different_digits_are_not_near_each_other() -> None:
    digits = load("digits-lt", imbalance_ratio=1, test="balanced")
    arrays = digits.train.images, digits.train.labels, digits.test.images[:100], digits.test.labels[:100]
    whole = Dataset.from_arrays(*arrays)
    held = Split(digits.test.images[100:], digits.test.labels[100:], whole.class_names, np.arange(500))
    assert not repeats.near(held.images, whole.test.images, mirror=False).any()


def test_folders_and_tables_name_classes(dataset: Dataset, tmp_path: Path) -> None:
    pixels = images(6, 9)
    for index, name in enumerate(["elk", "cat", "1", "elk", "cat", "1"]):
        folder = tmp_path / "made" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index, :, :, 0]).save(folder / f"{index}.png")
    rows = "".join(f"{name}/{index}.png,{name}\n" for index, name in enumerate(["elk", "cat", "1"]))
    (tmp_path / "made" / "list.csv").write_text(f"path,label\n{rows}")
    listed = read_extra(data(extra=f"csv:{tmp_path / 'made' / 'list.csv'}"), dataset)
    assert listed.split.labels.tolist() == [2, 0, 1]
    assert np.array_equal(listed.split.images, pixels[:3])
    (tmp_path / "made" / "list.csv").unlink()
    found = read_extra(data(extra=f"folder:{tmp_path / 'made'}"), dataset)
    assert found.split.class_counts.tolist() == [2, 2, 2]


def test_files_of_generated_images_have_other_keys(dataset: Dataset, stored: Callable[..., Data]) -> None:
    found = read_extra(stored(images(6, 9), [0, 1, 2] * 2, ("image", "label")), dataset)
    assert found.split.class_counts.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (images(6, 9, side=10), [0, 1, 2] * 2, r"got 10x10 pixels, 1 channels; allowed: 8x8 pixels, 1 channels"),
        (np.repeat(images(6, 9), 3, axis=3), [0, 1, 2] * 2, r"got 8x8 pixels, 3 channels; allowed: 8x8 pixels, 1 ch"),
        (images(6, 9), [0, 1, 3] * 2, r"got label 3; allowed: 0 to 2"),
        (images(6, 9), [0, -1, 2] * 2, r"got label -1"),
        (images(6, 9), [0, 1], r"got 6 images but 2 labels"),
        (images(6, 9) / 255, [0, 1, 2] * 2, r"images: got float64; allowed: uint8"),
    ],
)
def test_other_pixels_and_classes_are_refused(
    dataset: Dataset, stored: Callable[..., Data], pixels: np.ndarray, labels: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^data extra: .*{message}"):
        read_extra(stored(pixels, labels), dataset)


def test_a_class_that_is_to_be_drawn_needs_an_image(dataset: Dataset, stored: Callable[..., Data]) -> None:
    for rule, ends in (("uniform", True), ("inverse", False)):
        settings = stored(images(6, 9), [1, 2] * 3, extra_classes=rule, extra_fraction=0.2)
        mixed = mixture(settings, COUNTS, 10)
        assert mixed is not None
        if ends:
            with pytest.raises(UserError, match=r"data extra: got no image of class 'cat'; allowed: images of all cl"):
                check_classes(read_extra(settings, dataset), mixed)
        else:
            check_classes(read_extra(settings, dataset), mixed)


def test_the_rule_that_is_set_already_is_not_advised(dataset: Dataset, stored: Callable[..., Data]) -> None:
    settings = stored(images(6, 9), [0, 1] * 3, extra_classes="inverse")
    mixed = mixture(settings, COUNTS, 10)
    assert mixed is not None
    message = "data extra: got no image of class 'elk'; allowed: images of every class that inverse draws"
    with pytest.raises(UserError, match=f"^{message}$"):
        check_classes(read_extra(settings, dataset), mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extra": "npz:a.npz"},
            r"data extra: got 'npz:a\.npz' without a source; add --data\.extra-source, a sentence",
        ),
        ({"extra": "npz:a.npz", "extra_source": "  "}, "without a source"),
        ({"extra": "npz:", "extra_source": "x"}, r"data extra: got 'npz:'; allowed: folder:, csv:, npz: with a path"),
        ({"extra": "taet-npy:x", "extra_source": "x"}, r"data extra: got 'taet-npy:x'; allowed: folder:"),
        ({"extra_fraction": 0.5}, r"data extra fraction: got 0\.5; allowed: with data extra only"),
        ({"extra_source": "x"}, r"data extra source: got x; allowed: with data extra only"),
        ({"extra": "copies", "extra_source": "x"}, r"data extra source: got x; allowed: with other data than copies"),
        ({"extra": "copies", "extra_fraction": 1.0}, r"data extra fraction: got 1; allowed: 0 up to, not including, 1"),
        ({"extra": "copies", "extra_fraction": -0.1}, r"data extra fraction: got -0\.1; allowed: 0 up to"),
        (
            {"extra": "npz:a.npz", "extra_source": "x", "extra_filter": 0.5},
            r"data extra filter: got one of share and m",
        ),
        (
            {"extra": "npz:a.npz", "extra_source": "x", "extra_filter_model": "r"},
            r"data extra filter: got one of share",
        ),
        ({"extra": "copies", "extra_classes": "invers"}, r"did you mean 'inverse'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Data(**changes)
