"""Extra images: the prior of their mixture, their place in batches, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from taet.data import Dataset, Split, load
from taet.data.extra import mixture, read_extra
from taet.data.loader import Loader
from taet.data.storage import kept
from taet.losses import balanced_softmax
from taet.settings import Data, Training
from tests.calls import one_line
from tests.golden_numbers import Golden

COUNTS, EXTRA = (12, 7, 3), (10, 10, 10)


def data(**changes: Any) -> Data:
    own = {"extra": "npz:extra.npz", "extra_source": "made by a test", "extra_fraction": 0.5}
    return Data(**(own | changes))


def images(count: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Noise of three classes with a long tail."""
    labels = np.repeat([0, 1, 2], COUNTS)
    test, validation = (images(9, 1), np.arange(9) % 3), (images(6, 2), np.arange(6) % 3)
    return Dataset.from_arrays(
        images(22), labels, *test, validation=validation, class_names=["cat", "dog", "elk"]
    )


@pytest.fixture
def extra(dataset: Dataset) -> Split:
    return Split(images(30, 5), np.arange(30) % 3, dataset.class_names, np.arange(30))


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Data]:
    """Write arrays and return the settings that read them."""

    def write(
        pixels: np.ndarray,
        labels: Any,
        keys: tuple[str, str] = ("images", "labels"),
        **changes: Any,
    ) -> Data:
        np.savez(
            tmp_path / "extra.npz", **dict(zip(keys, (pixels, np.asarray(labels)), strict=True))
        )
        return data(extra=f"npz:{tmp_path / 'extra.npz'}", **changes)

    return write


def loader(
    split: Split,
    extra: Split | None,
    augment: Literal["crop-flip", "none"] = "crop-flip",
    **part: int,
) -> Loader:
    training = Training(batch_size=10, channels_last=False, augment=augment)
    mixed = mixture(data(), COUNTS, 10, EXTRA)
    return Loader(
        split,
        training,
        seed=3,
        mirror=True,
        device=torch.device("cpu"),
        extra=extra,
        mixture=mixed,
        **part,
    )


@pytest.mark.parametrize("name", ["prior", "uniform", "inverse", "inverse_small"])
def test_the_prior_of_the_mixture_is_the_golden_one(name: str) -> None:
    golden = Golden(f"mixture_prior_{name}")
    given, expected = golden.raw, golden.expected
    counts, drawn = (
        tuple(map(int, given["class_counts"])),
        [1000 * share for share in expected["draw"]],
    )
    found = mixture(data(extra_fraction=given["fraction"]), counts, given["batch"], drawn)  # type: ignore[arg-type]
    assert found.extra == expected.get("extra", found.extra)
    near = {"rel": 1e-8, "abs": 1e-8}
    assert found.draw == pytest.approx(expected["draw"], **near)
    prior = np.array(found.drawn_class_counts) / sum(counts)
    assert prior == pytest.approx(expected["prior"], **near)
    assert prior.sum() == pytest.approx(1, abs=1e-12)


def test_balanced_softmax_of_the_drawn_class_counts_is_the_golden_one() -> None:
    golden = Golden("mixture_balanced_softmax")
    found = balanced_softmax(golden["logits"], golden["labels"], golden["exposure"]).mean()
    assert found.item() == pytest.approx(golden.expected, abs=1e-7)


def test_without_a_fraction_there_is_no_mixture_and_one_that_leaves_nothing_is_refused() -> None:
    assert mixture(data(extra_fraction=0.0), COUNTS, 10) is None
    assert mixture(Data(), COUNTS, 10) is None
    found = mixture(data(extra_fraction=0.29), COUNTS, 100)
    assert found.extra == 29  # 0.29 * 100 is below 29 in floating point
    assert found.drawn_class_counts == pytest.approx(COUNTS)  # before the extra images are read
    with one_line(r"data extra: got 'csv:x'; allowed: npz:PATH, folder:PATH"):
        mixture(data(extra="csv:x"), COUNTS, 10)
    for fraction, left in ((0.05, "extra"), (1 - 1e-12, "real")):
        with one_line(rf"data extra fraction: got .* batch size of 10, which leaves no {left} im"):
            mixture(data(extra_fraction=fraction), COUNTS, 10)


def test_batches_have_the_prior_that_losses_are_told(dataset: Dataset, extra: Split) -> None:
    source = loader(dataset.train, extra)
    shown, originals = np.zeros(3), list[int]()
    for epoch in range(300):
        for batch in source.epoch(epoch):
            own = batch.index < 22
            assert (len(batch.y), own.sum()) == (10, 5)
            originals += batch.index[own].tolist()
            shown += np.bincount(batch.y[~own], minlength=3)
    assert (abs(shown / shown.sum() - 1 / 3) < 0.03).all()
    # one whole order of the real images after the other
    for first in range(0, len(originals) - 22, 22):
        assert sorted(originals[first : first + 22]) == list(range(22))


def test_parts_of_processes_later_steps_and_streamed_images_are_the_batches(
    dataset: Dataset, extra: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path))
    whole = list(loader(dataset.train, extra).epoch(2))
    parts = [
        list(loader(dataset.train, extra, rank=part, world_size=3).epoch(2)) for part in range(3)
    ]
    for step, batch in enumerate(whole):
        for field in range(3):
            assert torch.equal(batch[field], torch.cat([part[step][field] for part in parts]))
    on_disk = kept([extra.images], extra.images.shape, "x")
    streaming = loader(dataset.train, dataclasses.replace(extra, images=on_disk))
    assert isinstance(streaming.images, np.memmap)
    for later in (loader(dataset.train, extra).epoch(2, 1), list(streaming.epoch(2))[1:]):
        for one, other in zip(whole[1:], later, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("keys", [("images", "labels"), ("image", "label")])
def test_arrays_have_numbers_of_classes_and_folders_names_or_numbers(
    keys: tuple[str, str], dataset: Dataset, stored: Callable[..., Data], tmp_path: Path
) -> None:
    pixels = images(6, 9)
    found = read_extra(stored(pixels, [2, 0, 1] * 2, keys), dataset)
    assert found.class_counts.tolist() == [2, 2, 2]
    for index, name in enumerate(["elk", "cat", "dog"] * 2):
        (tmp_path / "made" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index, :, :, 0]).save(tmp_path / "made" / name / f"{index}.png")
    by_name = read_extra(data(extra=f"folder:{tmp_path / 'made'}"), dataset)
    order = [1, 4, 2, 5, 0, 3]  # class folders are read in alphabetical order
    assert by_name.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(by_name.images, pixels[order])
    (tmp_path / "made" / "cat" / "broken.png").write_bytes(b"no image")
    assert (
        len(read_extra(data(extra=f"folder:{tmp_path / 'made'}", skip_unreadable=True), dataset))
        == 6
    )
    (tmp_path / "made" / "dog").rename(tmp_path / "made" / "1")  # a name beside names
    with one_line("unknown class: '1'"):
        read_extra(data(extra=f"folder:{tmp_path / 'made'}"), dataset)


def test_numbers_mean_the_classes_that_are_called_so(stored: Callable[..., Data]) -> None:
    names = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2
    own = Dataset.from_arrays(
        images(24), np.arange(24) % 12, images(12, 1), np.arange(12), class_names=names
    )
    assert [names[label] for label in read_extra(stored(images(12, 9), range(12)), own).labels] == [
        *map(str, range(12))
    ]


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_test_image_among_them_is_refused(
    part: str, dataset: Dataset, stored: Callable[..., Data]
) -> None:
    pixels = np.concatenate(
        [images(20, 7), dataset.splits[part].images[:2], dataset.train.images[:3]]
    )
    with one_line(rf"2 of 25 images are {part} images, e\.g\. number 20"):
        read_extra(stored(pixels, np.arange(25) % 3), dataset)


@pytest.mark.parametrize("size", [None, 12])
def test_so_is_one_that_the_cut_removed(stored: Callable[..., Data], size: int | None) -> None:
    whole = load("digits-lt", imbalance_ratio=1, test="balanced")
    settings = {"name": "digits-lt", "imbalance_ratio": 10.0, "size": size}
    asked = stored(
        np.concatenate([images(9, 7), whole.test.images[-1:]]), np.arange(10), **settings
    )
    dataset = load(asked)
    assert len(dataset.test) < len(whole.test)
    with one_line(r"1 of 10 images are test images, e\.g\. number 9"):
        read_extra(asked, dataset)


def test_other_pixels_and_classes_are_refused(
    dataset: Dataset, stored: Callable[..., Data]
) -> None:
    whole, labels = images(6, 9), [0, 1, 2] * 2
    for pixels, given, message in (
        (
            images(6, 9, side=10),
            labels,
            r"got 10x10 pixels, 1 channels; allowed: 8x8 pixels, 1 channels",
        ),
        (
            whole,
            [0, 1, 3] * 2,
            r"got 6 images and 6 labels up to 3; allowed: a label for each image, 0 to 2",
        ),
    ):
        with one_line(rf"^data extra: .*{message}"):
            read_extra(stored(pixels, given), dataset)
