"""What redraws a run: class order, seeds of training and test images, shares of groups; and a
validation set that is balanced."""

from pathlib import Path

import numpy as np
import pytest

from taet.data import Dataset, load
from taet.data.splits import class_order
from taet.settings import Data
from tests.calls import one_line


@pytest.fixture
def data_file(tmp_path: Path) -> str:
    """30 training and 12 test images of each of 4 classes; tracks of three images each."""
    draws = np.random.default_rng(0)
    arrays = {"class_names": np.array(["a", "b", "c", "d"])}
    for part, count in (("train", 30), ("test", 12)):
        labels = np.repeat(np.arange(4), count)
        arrays |= {
            f"{part}_images": draws.integers(0, 256, (len(labels), 4, 4, 3), np.uint8),
            f"{part}_labels": labels,
        }
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez(tmp_path / "tracks.npz", **arrays, train_group=np.arange(120) // 3)
    return f"npz:{tmp_path}/plain.npz"


def indices(dataset: Dataset, split: str) -> set[int]:
    return {*map(int, dataset.splits[split].indices)}


def test_a_class_order_permutes_the_class_counts_and_nothing_else(data_file: str) -> None:
    plain = load(data_file, imbalance_ratio=5)
    ordered = load(data_file, imbalance_ratio=5, class_order=3)
    assert ordered.class_counts.tolist() != plain.class_counts.tolist()
    assert sorted(ordered.class_counts) == sorted(plain.class_counts)
    order = class_order(4, 3)
    assert ordered.class_counts[order].tolist() == plain.class_counts.tolist()
    assert "class order 3" in ordered.notes[0]


def test_the_test_set_is_cut_in_the_class_order_too(data_file: str) -> None:
    ordered = load(data_file, imbalance_ratio=5, class_order=3)
    order = class_order(4, 3)
    assert ordered.test.class_counts[order].tolist() == [12, 7, 4, 2]


def test_a_class_order_of_data_that_are_not_cut_is_refused(data_file: str) -> None:
    with one_line("data class order: got 1 for data that are not cut; allowed: with --data.imb"):
        load(data_file, class_order=1)


def test_with_a_test_seed_the_data_seed_redraws_training_images_only(data_file: str) -> None:
    settings = {"imbalance_ratio": 5, "test": "balanced", "test_max_count": 3, "test_seed": 0}
    first, second = (load(data_file, seed=seed, **settings) for seed in (1, 2))
    assert indices(first, "test") == indices(second, "test")
    assert indices(first, "train") != indices(second, "train")


def test_without_a_test_seed_the_data_seed_redraws_test_images_as_before(data_file: str) -> None:
    settings = {"imbalance_ratio": 5, "test": "balanced", "test_max_count": 3}
    first, second = (load(data_file, seed=seed, **settings) for seed in (1, 2))
    assert indices(first, "test") != indices(second, "test")


def test_a_balanced_validation_set_is_held_out_before_the_cut(data_file: str) -> None:
    dataset = load(data_file, imbalance_ratio=5, validation_per_class=6, seed=2, test_seed=0)
    assert dataset.validation is not None
    assert dataset.validation.class_counts.tolist() == [6, 6, 6, 6]
    assert dataset.class_counts.max() == 24  # 30 less 6: the cut is made of what is left
    assert not indices(dataset, "validation") & indices(dataset, "train")


def test_the_validation_images_stay_where_the_data_seed_redraws_the_training_set(
    data_file: str,
) -> None:
    first, second = (
        load(data_file, imbalance_ratio=5, validation_per_class=6, seed=seed, test_seed=0)
        for seed in (1, 2)
    )
    assert indices(first, "validation") == indices(second, "validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_per_class": 30}, r"got 30; allowed: up to 29: 'a' has 30 images"),
        ({"validation_per_class": 2, "validation": 0.1}, "got 2 beside other validation images"),
    ],
)
def test_a_balanced_validation_set_that_cannot_be_is_refused(
    data_file: str, settings: dict[str, float], message: str
) -> None:
    with one_line(f"data validation per class: {message}"):
        load(data_file, **settings)


def test_a_share_of_groups_takes_whole_groups_of_every_class(data_file: str) -> None:
    tracks = data_file.replace("plain", "tracks")
    dataset = load(tracks, group_share=0.8, seed=1)
    groups, sizes = np.unique(dataset.train.groups, return_counts=True)
    assert len(groups) == 32
    assert set(sizes) == {3}
    assert dataset.class_counts.tolist() == [24, 24, 24, 24]
    assert "a share of 0.8 of the groups is used, seed 1" in " ".join(dataset.notes)


def test_another_data_seed_draws_other_groups(data_file: str) -> None:
    tracks = data_file.replace("plain", "tracks")
    first, second = (load(tracks, group_share=0.8, seed=seed) for seed in (1, 2))
    assert indices(first, "train") != indices(second, "train")


def test_a_share_of_groups_without_groups_is_refused(data_file: str) -> None:
    with one_line("data group share: got 0.8 for data without groups; allowed: 1"):
        load(data_file, group_share=0.8)


def test_facts_before_images_are_read_know_the_choice(data_file: str) -> None:
    from taet.data import facts

    found = facts(Data(name=data_file, imbalance_ratio=5, class_order=3, validation_per_class=6))
    assert found is not None
    assert found.class_counts == tuple(
        load(data_file, imbalance_ratio=5, class_order=3, validation_per_class=6).class_counts
    )
    assert found.sizes["validation"] == 24
