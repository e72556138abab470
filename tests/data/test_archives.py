"""Archives of images as data: unpacked once, and nothing outside of the cache is written."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taet.data import archives, load
from taet.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(number: int) -> bytes:
    image, file = np.full((8, 8, 3), number, np.uint8), io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


FILES = {
    f"lesions/{name}/{i}.png": png(i + 40 * (name == "mel"))
    for name in ("mel", "nv")
    for i in range(10)
}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_an_archive_is_read_as_the_folder_that_it_holds(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    system = {"__MACOSX/lesions/mel/._0.png": b"x"}
    archived = load(str(make(tmp_path / name, FILES | system)))
    folder = tmp_path / "folder"
    for file, content in FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    expected = load(str(folder / "lesions"))
    assert archived.class_names == expected.class_names
    np.testing.assert_array_equal(archived.train.images, expected.train.images)
    np.testing.assert_array_equal(archived.test.images, expected.test.images)


def test_an_archive_is_unpacked_once_and_again_after_it_changed(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    first = archives.unpacked(path)
    assert archives.unpacked(path) == first
    make_zip(path, FILES | {"lesions/nv/more.png": png(99)})
    assert archives.unpacked(path) != first


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png", "C:/out.png"])
def test_a_path_outside_of_the_archive_is_refused_before_anything_is_written(
    tmp_path: Path, cache: Path, make: Callable[..., Path], name: str
) -> None:
    path = make(tmp_path / ("a.zip" if make is make_zip else "a.tar.gz"), FILES | {name: png(0)})
    with pytest.raises(UserError, match="a path outside of it; allowed: paths inside the archive"):
        load(str(path))
    assert not list(cache.rglob("*.png"))
    assert not (tmp_path / "out.png").exists()


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("lesions/mel/link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(UserError, match=r"'lesions/mel/link.png', a link or device"):
        load(str(path))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        member = zipfile.ZipInfo("lesions/mel/link.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match=r"'lesions/mel/link.png', a link or device"):
        load(str(path))


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_zip(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(archives, "MOST_BYTES", 500)
    with pytest.raises(UserError, match="unpacks to more than 1000000 files or 500 bytes"):
        load(str(path))


def test_a_damaged_archive_is_one_line(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(make_zip(path, FILES).read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cannot unpack '.*a\.zip'"):
        load(str(path))
    assert not list(cache.rglob("*.png"))


def test_an_archive_of_another_kind_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.7z"
    path.write_bytes(b"7z")
    with pytest.raises(UserError, match=r"the folder that it unpacks to: 7z x '.*a\.7z'"):
        load(str(path))
