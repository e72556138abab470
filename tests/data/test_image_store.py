"""Images on disk against the same images in memory, and the files that hold them."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taet.data import image_store
from taet.data.array_file import read_array
from taet.data.image_store import Stored, gather, memory, on_disk, pieces
from taet.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 5, 7, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files that are built."""
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(images: np.ndarray = IMAGES, key: str = "a key") -> Stored:
    stored = gather(iter(images), images.shape, key=key, storage="disk")
    assert isinstance(stored, Stored)
    return stored


def never() -> Iterator[np.ndarray]:
    raise AssertionError("the images were asked for")
    yield IMAGES[0]


# --- Stored -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 300, image_store.CHUNK])
@pytest.mark.parametrize(
    "positions",
    [
        slice(None),
        slice(4, 9),
        slice(None, None, -3),
        slice(50, 60),
        np.array([22, 0, 0, -1, 7]),
        np.array([], np.int64),
        np.arange(23) % 3 == 1,
        np.array([[1, 2], [3, 4]]),
        5,
        -1,
    ],
    ids=str,
)
def test_indexing_gives_what_the_array_gives(positions: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = kept()
    monkeypatch.setattr(image_store, "CHUNK", chunk)
    found = stored[positions]
    assert type(found) is np.ndarray
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, IMAGES[positions])


def test_choosing_reads_nothing_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, rows = kept(), np.array([20, 3, 3, 11])
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("pixels were read"))
    chosen = stored.choose(rows).choose(np.array([True, False, True, True]))
    assert (chosen.shape, chosen.ndim, len(chosen), chosen.dtype) == ((3, 5, 7, 3), 4, 3, np.uint8)
    assert chosen.nbytes == IMAGES[:3].nbytes
    monkeypatch.undo()
    np.testing.assert_array_equal(chosen[:], IMAGES[[20, 3, 11]])
    np.testing.assert_array_equal(stored[:], IMAGES)


def test_it_can_be_an_array_be_walked_through_and_be_sent_to_another_process() -> None:
    stored = kept().choose(np.array([4, 2]))
    np.testing.assert_array_equal(np.asarray(stored), IMAGES[[4, 2]])
    assert np.asarray(stored, np.float32).dtype == np.float32
    np.testing.assert_array_equal(list(stored), IMAGES[[4, 2]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored))[:], IMAGES[[4, 2]])
    assert repr(stored) == f"Stored(2 x 5 x 7 x 3, uint8, '{stored.path}')"
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(stored, copy=False)


def test_positions_that_are_not_there_and_parts_of_images_are_refused() -> None:
    with pytest.raises(IndexError):
        kept()[23]
    with pytest.raises(IndexError):
        kept()[np.array([0, -24])]
    with pytest.raises(TypeError, match="read whole"):
        kept()[..., 0]  # type: ignore[index]


def test_pieces_are_all_images_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "CHUNK", 4 * IMAGES[0].nbytes)
    for images in (IMAGES, kept()):
        found = list(pieces(images))
        assert [len(piece) for piece in found] == [4, 4, 4, 4, 4, 3]
        np.testing.assert_array_equal(np.concatenate(found), IMAGES)
    assert max(map(len, pieces(np.zeros((70_000, 1, 1, 1), np.uint8)))) <= 65_536


# --- gather -----------------------------------------------------------------------------------------------------------


def test_the_file_is_an_ordinary_array_that_is_built_once(cache: Path) -> None:
    stored = kept()
    assert [path.name for path in cache.iterdir()] == [stored.path.name]
    np.testing.assert_array_equal(np.load(stored.path), IMAGES)
    again = gather(never(), IMAGES.shape, key="a key", storage="disk")
    np.testing.assert_array_equal(again[:], IMAGES)
    other = kept(255 - IMAGES, key="another key")
    assert other.path != stored.path
    np.testing.assert_array_equal(other[:], 255 - IMAGES)


def test_in_memory_nothing_is_written(cache: Path) -> None:
    images = gather(iter(IMAGES), IMAGES.shape, key="a key", storage="memory")
    assert type(images) is np.ndarray
    np.testing.assert_array_equal(images, IMAGES)
    assert not cache.exists()


def test_auto_goes_by_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "memory", lambda: 4 * IMAGES.nbytes)
    assert not isinstance(gather(iter(IMAGES), IMAGES.shape, key="a", storage="auto"), Stored)
    assert on_disk(IMAGES.nbytes + 1, "auto")
    monkeypatch.setattr(image_store, "memory", lambda: 4 * IMAGES.nbytes - 1)
    assert isinstance(gather(iter(IMAGES), IMAGES.shape, key="a", storage="auto"), Stored)
    assert not on_disk(2**60, "memory")
    assert on_disk(1, "disk")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"": 5, "slice": "max", "slice/job": 7}, 5), ({"slice/job": 7}, 7), ({"slice": 2**60}, None), ({}, None)],
)
def test_the_memory_is_what_the_machine_and_every_control_group_allow(
    limits: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    whole = memory(tmp_path / "nothing")
    assert whole > 2**28
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu:/elsewhere\n0::/slice/job\n")
    (tmp_path / "sys/fs/cgroup/slice/job").mkdir(parents=True)
    for folder, limit in limits.items():
        (tmp_path / "sys/fs/cgroup" / folder / "memory.max").write_text(f"{limit}\n")
    assert memory(tmp_path) == (expected or whole)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"": 2**63 - 4096, "docker/job": 7}, 7), ({"": 5}, 5), ({"": 2**63 - 4096}, None), ({}, None)],
)
def test_control_groups_of_version_1_count_too(limits: dict[str, int], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/docker/job\n3:cpuset:/other\n1:name=systemd:/x\n0::/\n")
    for folder, limit in limits.items():  # in a container the group may be what is mounted, and not below it
        (tmp_path / "sys/fs/cgroup/memory" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup/memory" / folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    assert memory(tmp_path) == (expected or memory(tmp_path / "nothing"))


def test_what_a_failure_or_an_interrupt_leaves_is_not_used_and_gives_the_disk_back(cache: Path) -> None:
    def broken(error: BaseException) -> Iterator[np.ndarray]:
        yield from np.zeros((20, 200, 200, 3), np.uint8)
        raise error

    for error in (UserError("a damaged image"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            gather(broken(error), (21, 200, 200, 3), key="a key", storage="disk")
        assert not list(cache.iterdir())
    np.testing.assert_array_equal(kept()[:], IMAGES)


def test_a_wrong_number_of_images_is_no_file(cache: Path) -> None:
    for count in (22, 24):
        with pytest.raises(ValueError, match="images for the shape"):
            gather(iter(np.resize(IMAGES, (count, 5, 7, 3))), IMAGES.shape, key="a key", storage="disk")
        assert not list(cache.glob("*.npy"))


def test_a_kill_while_writing_leaves_only_a_part_which_is_written_anew(cache: Path) -> None:
    script = """
import sys, time
import numpy as np
from taet.data.image_store import gather
def images():
    yield from np.zeros((20, 5, 7, 3), np.uint8)
    print("writing", flush=True)
    time.sleep(60)
gather(images(), (23, 5, 7, 3), key="a key", storage="disk")
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".part"]
    np.testing.assert_array_equal(kept()[:], IMAGES)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_of_two_that_need_the_same_file_one_writes_and_the_other_waits() -> None:
    begun, found = threading.Event(), []

    def slow() -> Iterator[np.ndarray]:
        begun.set()
        time.sleep(0.2)
        yield from IMAGES

    first = threading.Thread(target=lambda: found.append(gather(slow(), IMAGES.shape, key="a key", storage="disk")))
    first.start()
    begun.wait()
    found.append(gather(never(), IMAGES.shape, key="a key", storage="disk"))
    first.join()
    for images in found:
        np.testing.assert_array_equal(images[:], IMAGES)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content.replace(b"23, 5", b"23, 4")])
def test_a_file_that_is_not_whole_or_of_another_shape_is_built_anew(damage: Callable[[bytes], bytes]) -> None:
    path = kept().path
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(kept()[:], IMAGES)
    np.testing.assert_array_equal(np.load(path), IMAGES)


def test_a_full_disk_is_one_clear_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"cannot keep 0\.0 GB of images in '.*cache': no space left on the disk; allowed: .*TAET_CACHE, or --data"
    with monkeypatch.context() as patched:  # before an image is decoded
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=IMAGES.nbytes))
        with pytest.raises(UserError, match=message):
            gather(never(), IMAGES.shape, key="a key", storage="disk")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # others have filled it meanwhile
    with pytest.raises(UserError, match=message) as error:
        kept()
    assert "\n" not in str(error.value)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"images in '.*file/cache': Not a directory; allowed: another folder"):
        kept()


# --- members of an .npz -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., 0].copy()], ids=["colour", "grey"])
def test_a_member_on_disk_holds_what_it_holds_in_memory(
    save: Callable[..., None], images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.npz", x=images, y=np.arange(23))
    monkeypatch.setattr(image_store, "CHUNK", 100)
    stored = read_array(tmp_path / "a.npz", "x", "disk")
    assert isinstance(stored, Stored)
    np.testing.assert_array_equal(stored[:], images.reshape(*images.shape[:3], -1))
    found = read_array(tmp_path / "a.npz", "x", "memory")
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "y", "disk"), np.arange(23))


def test_what_cannot_be_copied_as_it_lies_comes_to_memory(tmp_path: Path) -> None:
    arrays = {"columns": np.asfortranarray(IMAGES), "floats": IMAGES / 255, "flat": IMAGES.reshape(23, -1)}
    arrays["empty"] = IMAGES[:0]
    np.savez(tmp_path / "a.npz", **arrays)
    for name, array in arrays.items():
        found = read_array(tmp_path / "a.npz", name, "disk")
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, array)


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for number, images in enumerate((IMAGES, 255 - IMAGES)):  # of one size
        np.savez(path, x=images)
        os.utime(path, ns=(number, number))
        np.testing.assert_array_equal(read_array(path, "x", "disk")[:], images)


def test_a_pickle_is_refused_before_it_could_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    np.savez(tmp_path / "a.npz", x=np.array([Payload()], object))
    for storage in ("memory", "disk"):
        with pytest.raises(UserError, match=r"cannot read '.*a\.npz': x: it holds pickled objects; allowed: .*plain"):
            read_array(tmp_path / "a.npz", "x", storage)
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["x"]
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize("change", [-1, 1])
def test_a_member_of_another_length_than_it_says_is_refused(change: int, cache: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, IMAGES)
    content = stream.getvalue()[:-1] if change < 0 else stream.getvalue() + b"x"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(UserError, match=r"x: it is (cut short|longer than it says); allowed"):
        read_array(tmp_path / "a.npz", "x", "disk")
    assert not list(cache.glob("*.npy"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_member_is_refused(save: Callable[..., None], cache: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read '.*a\.npz': x: "):
        read_array(tmp_path / "a.npz", "x", "disk")
    assert not list(cache.glob("*.npy"))


# --- a file that others change ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [200, -50, -1], ids=["a pixel", "a late pixel", "a checksum"])
def test_a_flipped_bit_is_noticed_when_its_image_is_read_and_the_file_built_anew(place: int) -> None:
    stored = kept()
    content = bytearray(stored.path.read_bytes())
    content[place] ^= 4
    stored.path.write_bytes(content)
    damaged = kept()  # its length is right
    with pytest.raises(UserError, match=r"was damaged or cut short, and is deleted; run the same command again"):
        damaged[:]
    assert not stored.path.exists()
    np.testing.assert_array_equal(kept()[:], IMAGES)


def test_a_file_that_is_cut_under_a_running_process_is_one_line_and_no_crash() -> None:
    stored = kept()
    os.truncate(stored.path, 400)
    with pytest.raises(UserError, match=r"'.*npy' was damaged or cut short"):
        stored[np.array([22, 0])]


def test_a_file_that_is_deleted_under_a_running_process_can_still_be_read() -> None:
    stored = kept()
    stored.path.unlink()
    np.testing.assert_array_equal(stored.choose(np.array([3, 1]))[:], IMAGES[[3, 1]])


def test_what_killed_builders_left_goes_when_the_next_file_is_built(cache: Path) -> None:
    cache.mkdir()
    (cache / ".taet-0123456789abcdef.part").write_bytes(b"half")
    kept()
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_more_than_the_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "memory", lambda: IMAGES.nbytes - 1)
    with pytest.raises(UserError, match=r"images of 2\.4 kB do not fit into memory; allowed: --data\.storage disk, or"):
        gather(never(), IMAGES.shape, key="a key", storage="memory")


@pytest.mark.parametrize(("suffix", "kind"), [(".lock", "link"), (".npy", "link"), (".npy", "FIFO")])
def test_what_was_prepared_in_the_cache_is_not_written_to(suffix: str, kind: str, tmp_path: Path) -> None:
    built = kept().path
    built.unlink()
    place, victim = built.with_suffix(suffix), tmp_path / "victim"
    victim.write_bytes(b"mine")
    os.mkfifo(place) if kind == "FIFO" else place.symlink_to(victim)
    with pytest.raises(UserError, match=r"link|symbolic|FIFO"):
        kept()
    assert victim.read_bytes() == b"mine"
