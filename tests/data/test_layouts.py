"""Data sets written for other programs come back as they were."""

from dataclasses import replace

import numpy as np
import pytest

from taet.data import Dataset, layouts, load
from taet.data.image_store import gather
from taet.data.layouts import class_folders
from taet.errors import UserError

KINDS = {"npz": "x.npz", "folder": "x", "taet-npy": "x"}


@pytest.fixture
def make(arrays):
    def build(shape=(4, 4, 3), names=("a", "b", "c"), train=(6, 3, 1), test=(2, 2, 1)):
        found = arrays(train, test, shape)
        validation = (found["train_images"][::2], found["train_labels"][::2])
        return Dataset.from_arrays(*found.values(), validation=validation, class_names=names)

    return build


def write(dataset, layout, out, told=None):
    layouts.write(dataset, layout, out, lambda *where: None if told is None else told.append(where))


def pixels(split):
    """The images of each class, in an order of their own."""
    return [sorted(image.tobytes() for image in split.images[split.labels == c]) for c in range(len(split.class_names))]


@pytest.mark.parametrize("layout", KINDS)
@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4)])
def test_every_layout_is_read_back(make, tmp_path, layout, shape):
    dataset, out, told = make(shape), tmp_path / "new" / KINDS[layout], []
    write(dataset, layout, out, told)
    back = load(f"{layout}:{out}")
    assert back.class_names == dataset.class_names
    assert back.splits.keys() == dataset.splits.keys()
    for name, split in dataset.splits.items():
        assert pixels(back.splits[name]) == pixels(split)
        if layout != "folder":
            assert back.splits[name].sha256 == split.sha256
    assert told[-1][:2] == (20, 20)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_images_on_disk_are_written_too(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    dataset = make()
    stored = gather(dataset.train.images, dataset.train.images.shape, key="here", storage="disk")
    for layout, name in KINDS.items():
        out = tmp_path / layout / name
        write(replace(dataset, train=replace(dataset.train, images=stored)), layout, out)
        assert pixels(load(f"{layout}:{out}").train) == pixels(dataset.train)


def test_png_files_have_the_position_in_the_source_as_their_name(make, tmp_path):
    dataset = make(train=(8, 7, 6))
    write(replace(dataset, train=dataset.train.choose(np.array([3, 9, 20]))), "folder", tmp_path / "x")
    found = sorted(path.relative_to(tmp_path / "x" / "train").as_posix() for path in tmp_path.rglob("train/*/*"))
    assert found == ["a/03.png", "b/09.png", "c/20.png"]


def test_groups_are_kept_in_an_npz(make, tmp_path):
    dataset = make()
    train = replace(dataset.train, groups=np.arange(10) // 2)
    write(replace(dataset, train=train), "npz", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["train_group"].tolist() == train.groups.tolist()
        assert "test_group" not in file
    groups = load(f"npz:{tmp_path / 'x.npz'}", group="group").train.groups
    assert (np.unique(groups, return_inverse=True)[1] == train.groups).all()


def test_groups_are_folders_in_the_class_folders(make, tmp_path):
    dataset = make(train=(6, 3, 3))
    groups = np.array([0, 0, 0, 1, 1, 11, 0, 11, 2, 3, 3, 4])
    train, validation = (dataset.train.choose(np.flatnonzero(np.isin(groups, of))) for of in ([0, 2, 3, 11], [1, 4]))
    train, validation = (replace(split, groups=groups[split.indices]) for split in (train, validation))
    write(replace(dataset, train=train, validation=validation), "folder", tmp_path / "x")
    assert {path.parent.relative_to(tmp_path / "x/train").as_posix() for path in tmp_path.glob("x/train/*/*/*")} == {
        *("a/0", "a/11", "b/0", "b/2", "b/11", "c/3")
    }
    back = load(f"folder:{tmp_path / 'x'}", group="folder")
    for name, split in {"train": train, "validation": validation}.items():
        found = back.splits[name]
        order, expected = (  # the same images of the same groups, whose numbers are others
            sorted((image.tobytes(), group) for image, group in zip(of.images, of.groups, strict=True))
            for of in (found, split)
        )
        pairs = {(new, old) for (_, new), (_, old) in zip(order, expected, strict=True)}
        assert [image for image, _ in order] == [image for image, _ in expected]
        assert len(pairs) == len({new for new, _ in pairs}) == len({old for _, old in pairs})
    assert len(set(back.test.groups)) == len(back.test)  # which had none


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("cat", "dog"), ["cat", "dog"]),
        (("dog", "cat"), ["0 dog", "1 cat"]),
        (("a/b", "a-b"), ["0 a-b", "1 a-b"]),
        (("Bus", "bus"), ["0 Bus", "1 bus"]),
        ((".hidden", "x"), ["hidden", "x"]),
        (("..", "x"), ["0", "1 x"]),
        (tuple(map(str, range(10))), list("0123456789")),
        (tuple(map(str, range(11))), [f"{label:02}" for label in range(11)]),
    ],
)
def test_folders_sort_as_the_labels_do_and_are_safe_names(names, folders):
    assert class_folders(names) == folders
    assert sorted(folders) == folders


def test_classes_without_test_images_get_no_folder(make, tmp_path):
    write(make(test=(2, 0, 1)), "folder", tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x/test").iterdir()) == ["a", "c"]
    assert load(f"folder:{tmp_path / 'x'}").test.class_counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize("layout", KINDS)
def test_nothing_is_overwritten_and_nothing_half_written_stays(make, tmp_path, layout):
    out = tmp_path / KINDS[layout]
    out.write_text("mine")
    with pytest.raises(UserError, match=r"x.*' exists already and is kept; allowed: another place, by --out"):
        write(make(), layout, out)
    assert out.read_text() == "mine"
    out.unlink()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layouts.write(make(), layout, out, interrupt)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"unknown layout 'nzp'; .* did you mean 'npz'"):
        write(make(), "nzp", out)


@pytest.mark.parametrize("layout", KINDS)
def test_a_place_that_cannot_be_written_is_named(make, tmp_path, layout):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the folder .*file/\.x"):
        write(make(), layout, tmp_path / "file" / "x")


@pytest.mark.parametrize("layout", KINDS)
def test_of_two_that_write_the_same_the_second_is_told_who_is_at_it(make, tmp_path, layout):
    out, told = tmp_path / KINDS[layout], []

    def second(*_):
        with pytest.raises(UserError, match=r"x.*\.part is in use by process \d+ .*; wait for it") as caught:
            layouts.write(make(), layout, out, lambda *_: None)
        told.append(caught)

    layouts.write(make(), layout, out, second)
    assert told
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("layout", KINDS)
def test_what_a_killed_process_left_is_removed_by_the_next(make, tmp_path, layout):
    left = tmp_path / f".{KINDS[layout]}.part"
    (left / KINDS[layout] / "train").mkdir(parents=True)
    (left / ".lock").write_text("{}")
    layouts.write(make(), layout, tmp_path / KINDS[layout], lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == [KINDS[layout]]


@pytest.mark.parametrize("layout", KINDS)
def test_nothing_is_written_through_a_link_that_was_prepared(make, tmp_path, layout):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    (tmp_path / f".{KINDS[layout]}.part").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"):
        layouts.write(make(), layout, tmp_path / KINDS[layout], lambda *_: None)
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["file"]
