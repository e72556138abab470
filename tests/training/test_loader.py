"""Batches against naive implementations, one image at a time."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taet.data import Split
from taet.data.augmentation import apply, crop_flip, to_unit
from taet.data.loader import Batch, Loader, resampled
from taet.data.storage import kept
from taet.randomness import generator
from taet.settings import Training


def split(count: int, side: int = 8, channels: int = 3) -> Split:
    images = np.random.default_rng(0).integers(
        1, 256, (count, side, side, channels), dtype=np.uint8
    )
    return Split(images, np.arange(count) % 3, ("a", "b", "c"), np.arange(count))


def loader(count: int = 20, *, given: Split | None = None, **changes: Any) -> Loader:
    fields = {*Training.model_fields}
    training = {"batch_size": 6, "channels_last": False} | {
        name: changes[name] for name in fields & {*changes}
    }
    rest = {"seed": 3, "mirror": True} | {name: changes[name] for name in {*changes} - fields}
    return Loader(given or split(count), Training(**training), device=torch.device("cpu"), **rest)


@pytest.mark.parametrize(
    ("count", "sizes"), [(12, [6, 6]), (13, [6, 7]), (14, [6, 6, 2]), (7, [7]), (6, [6]), (1, [1])]
)
def test_each_image_comes_once_per_epoch_and_a_single_one_left_over_joins_a_batch(
    count: int, sizes: list[int]
) -> None:
    batches = list(loader(count).epoch(0))
    assert [len(batch.y) for batch in batches] == sizes
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(count))
    assert torch.equal(torch.cat([batch.y for batch in batches]), index % 3)


def shifts(result: np.ndarray, image: np.ndarray, border: int) -> list[tuple[int, int, bool]]:
    """Every (row, column, flipped) under which `result` is a crop of the padded image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((border, border), (border, border), (0, 0)))
    places = itertools.product(range(2 * border + 1), range(2 * border + 1), (False, True))

    def crop(row: int, column: int, flipped: bool) -> np.ndarray:
        window = padded[row : row + height, column : column + width]
        return window[:, ::-1] if flipped else window

    return [place for place in places if np.array_equal(result, crop(*place))]


@pytest.mark.parametrize("mirror", [False, True])
def test_crop_flip_is_a_crop_of_the_padded_image(mirror: bool) -> None:
    images = torch.from_numpy(split(200, side=16).images)
    result = crop_flip(images, torch.Generator().manual_seed(0), mirror=mirror)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    drawn = [
        shifts(after.numpy(), before.numpy(), border=2)
        for after, before in zip(result, images, strict=True)
    ]
    assert all(len(found) == 1 for found in drawn)
    rows, columns, flipped = zip(*(found[0] for found in drawn), strict=True)
    assert set(rows) == set(columns) == {0, 1, 2, 3, 4}
    assert len(set(zip(rows, columns, strict=True))) == 25  # rows and columns are drawn apart
    assert 70 < sum(flipped) < 130 if mirror else not any(flipped)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("policy", ["randaugment", "autoaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_policy_comes_before_the_crop_and_the_flip(
    policy: str, mirror: bool, channels: int
) -> None:
    images = split(20, channels=channels)
    source = loader(given=images, augment=policy, mirror=mirror)
    for step, batch in enumerate(source.epoch(4)):
        changed = apply(policy, images.images[batch.index.numpy()], 3, "policy", 4, step)
        cropped = crop_flip(changed, generator("cpu", 3, "augment", 4, step), mirror=mirror)
        assert torch.equal(batch.x, to_unit(cropped))


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loader]:
    """Return a function like `loader` whose images lie on disk."""
    monkeypatch.setenv("TAET_CACHE", str(tmp_path))

    def make(count: int = 20, **changes: Any) -> Loader:
        given = split(count)
        images = kept([given.images], given.images.shape, str(count))
        return loader(count, **changes, given=replace(given, images=images))

    return make


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("sampling", ["shuffled", "class-balanced"])
@pytest.mark.parametrize("augment", ["none", "crop-flip", "randaugment"])
def test_the_shares_of_several_processes_are_the_batches_of_one(
    augment: str, sampling: str, world_size: int, stored: Callable[..., Loader]
) -> None:
    settings: dict[str, Any] = {"augment": augment, "sampling": sampling}
    expected = list(loader(20, **settings).epoch(1, 1))
    for make in (loader, stored):
        sources = [
            make(20, **settings, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        shares = [list(source.epoch(1, 1)) for source in sources]
        joined = [
            Batch(*map(torch.cat, zip(*batches, strict=True)))
            for batches in zip(*shares, strict=True)
        ]
        for batch, other in zip(joined, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))
        for step, batch in enumerate(expected, 1):
            sizes = [len(share[step - 1].y) for share in shares]
            assert max(sizes) - min(sizes) <= 1
            begins = [sum(sizes[:rank]) for rank in range(world_size)]
            assert [source.shard(step) for source in sources] == [
                (begin, len(batch.y)) for begin in begins
            ]


def test_resampled_draws_classes_alike_and_the_images_of_a_class_alike() -> None:
    labels = torch.tensor([4] * 3 + [0] * 60 + [2] * 12 + [5])[
        torch.randperm(76, generator=generator("cpu", 0))
    ]
    epochs = 400
    draws = torch.cat([resampled(labels, generator("cpu", 1, epoch)) for epoch in range(epochs)])
    assert len(draws) == epochs * len(labels)
    times = draws.bincount(minlength=len(labels)).double()
    # within five standard deviations of a binomial, or a multinomial's largest
    for label in (0, 2, 4, 5):
        drawn, share = times[labels == label], 1 / 4
        assert abs(drawn.sum() - len(draws) * share) < 5 * (len(draws) * share * (1 - share)) ** 0.5
        share /= len(drawn)
        assert (drawn - len(draws) * share).abs().max() < 5 * (
            len(draws) * share * (1 - share)
        ) ** 0.5
    assert times.min() > 0


def test_square_root_sampling_draws_a_class_by_the_root_of_its_images() -> None:
    labels = torch.tensor([0] * 64 + [2] * 4 + [3])
    draws = torch.cat(
        [resampled(labels, generator("cpu", 1, epoch), "square-root") for epoch in range(400)]
    )
    shares = labels[draws].bincount().double() / len(draws)
    torch.testing.assert_close(shares, torch.tensor([8, 0, 2, 1]).double() / 11, atol=0.01, rtol=0)
