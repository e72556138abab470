"""Unpacking, above all of archives that mean harm."""

import io
import stat
import tarfile
import zipfile

import pytest

from taet.data import archives
from taet.data.archives import unpack
from taet.errors import UserError

GOOD = {"set/a.txt": b"a", "set/deep/b.txt": b"b" * 100_000, "readme": b""}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files, *special):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in special:
            archive.addfile(info)
    return path


def write(path, files):
    return (write_zip if path.suffix == ".zip" else write_tar)(path, files)


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_files_and_folders_arrive_and_progress_is_told(tmp_path, name):
    told = []
    folder = tmp_path / "out"
    unpack(write(tmp_path / name, GOOD), folder, lambda *where: told.append(where))
    assert everything(folder) == GOOD
    assert told == [(done, 3, f"unpacking {name}") for done in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == ["readme", "set"]


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "set/../../outside", "..", "C:\\outside", "..\\outside", "\\outside", "set/.."]
)
def test_names_that_lead_out_are_refused_before_anything_is_written(tmp_path, kind, name):
    archive = write(tmp_path / kind, {"good": b"g", name: b"bad"})
    with pytest.raises(UserError) as caught:
        unpack(archive, tmp_path / "out")
    assert name.replace("\\", "/") in str(caught.value).replace("\\", "/")
    assert "leads out of the folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == [kind]


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        special("link", tarfile.SYMTYPE, "/etc"),
        special("link", tarfile.SYMTYPE, "../.."),
        special("link", tarfile.LNKTYPE, "../../outside"),
        special("link", tarfile.CHRTYPE),
        special("link", tarfile.BLKTYPE),
        special("link", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, member):
    archive = write_tar(tmp_path / "x.tar", {"good": b"g"}, member)
    with pytest.raises(UserError, match=r"x\.tar' is not unpacked: its member 'link' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.tar"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive = write_zip(tmp_path / "x.zip", {"good": b"g", info: b"/etc/passwd"})
    with pytest.raises(UserError, match="its member 'link' is a link or a device"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.zip"]


def test_a_link_cannot_be_written_through(tmp_path):
    archive = write_tar(tmp_path / "x.tar", {}, special("set", tarfile.SYMTYPE, str(tmp_path)))
    with tarfile.open(archive, "a") as more:
        info = tarfile.TarInfo("set/outside")
        info.size = 1
        more.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="'set' is a link"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def test_permissions_of_the_archive_do_not_count(tmp_path):
    info = tarfile.TarInfo("run")
    info.mode = 0o6777
    unpack(write_tar(tmp_path / "x.tar", {}, info), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/run").stat().st_mode) & 0o6111 == 0


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, name):
    path = write(tmp_path / name, {str(i): bytes(range(256)) * 40 for i in range(20)})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot unpack '.*x\."):
            unpack(path, tmp_path / "out")
        assert not any((tmp_path / "out").glob("*"))
    with pytest.raises(UserError, match=r"cannot read .*none\.zip"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_a_file_whose_checksum_is_wrong_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"first")
        archive.writestr("b", b"marked")
    path.write_bytes(path.read_bytes().replace(b"marked", b"forged"))
    with pytest.raises(UserError, match="Bad CRC-32 for file 'b'"):
        unpack(path, tmp_path / "out")
    assert not any((tmp_path / "out").glob("*"))


def test_an_interrupted_unpacking_leaves_nothing_that_looks_complete(tmp_path):
    archive = write_zip(tmp_path / "x.zip", GOOD)

    def interrupt(done, *_):
        if done == 2:
            assert not (tmp_path / "out/set").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", interrupt)
    assert not any((tmp_path / "out").glob("*"))


def test_what_a_killed_process_has_left_is_not_taken_over(tmp_path, monkeypatch):
    archive = write_zip(tmp_path / "x.zip", GOOD)
    left = tmp_path / "out/.x.zip.unpacking/set/stale.txt"
    left.parent.mkdir(parents=True)
    left.touch()
    unpack(archive, tmp_path / "out")
    assert everything(tmp_path / "out") == GOOD
    monkeypatch.setattr(archives, "_merge", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot unpack .*No space left on device"):
        unpack(archive, tmp_path / "full")
    assert not any((tmp_path / "full").glob("*"))


def test_archives_are_unpacked_into_each_other_and_files_that_are_there_stay(tmp_path):
    folder = tmp_path / "out"
    unpack(write_zip(tmp_path / "x.zip", GOOD), folder)
    (folder / "set/a.txt").write_bytes(b"mine")
    unpack(write_zip(tmp_path / "y.zip", {"set/a.txt": b"theirs", "set/deep/c.txt": b"c"}), folder)
    assert everything(folder) == GOOD | {"set/a.txt": b"mine", "set/deep/c.txt": b"c"}
