"""Downloading, checking and unpacking official files, from a server that is a folder."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest

from taet import registry
from taet.data.downloads import Download
from taet.data.sources import prepare
from taet.settings import Data
from tests.calls import one_line

SOURCE = """
import numpy as np
from taet.data import Dataset
from taet.data.downloads import find, places

NAMES = {"boxed": "one array in an archive", "loose": "one array in a file"}
FILES = {}


def downloads(data):
    return [FILES[data.name]]


def read(data):
    places("BOXED", data, downloads(data))
    place = find(data, "own/inner/a.npy" if data.name == "boxed" else "own/a.npy")
    images, labels = np.load(place), np.arange(6) % 3
    return Dataset.from_arrays(images, labels, images, labels, name=data.name)
"""


@pytest.fixture
def server(tmp_path, monkeypatch, plugged):
    """Return a function that serves a file for a set, and a folder of data that is empty."""
    (tmp_path / "server").mkdir()
    (tmp_path / "boxes.py").write_text(SOURCE)
    monkeypatch.setenv("TAET_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with plugged("data", tmp_path / "boxes.py"):
        files = registry.entries("data")["boxed"].load().FILES

        def serve(name, file, content, unpacks_to=None, *, algorithm="sha256", served=None):
            path = tmp_path / "server" / file
            path.write_bytes(content if served is None else served)
            checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
            files[name] = Download(path.as_uri(), f"own/{file}", checksum, unpacks_to)
            return path

        yield serve


def array():
    stream = io.BytesIO()
    np.save(stream, np.zeros((6, 4, 4), np.uint8))
    return stream.getvalue()


def packed(kind):
    stream, name = io.BytesIO(), "inner/a.npy"
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(name, array())
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            about = tarfile.TarInfo(name)
            about.size = len(array())
            archive.addfile(about, io.BytesIO(array()))
    return stream.getvalue()


def prepared(name):
    return prepare(Data(name=name), lambda *_: None)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_downloaded_checked_and_unpacked_once(kind, server, tmp_path):
    source = server("boxed", f"box.{kind}", packed(kind), "own/inner")
    dataset, done = prepared("boxed")
    assert len(dataset.train) == 6
    assert done == [
        f"'{tmp_path}/data/own' holds what box.{kind} unpacks to; its checksum is right"
    ]
    assert {path.name for path in (tmp_path / "data/own").iterdir()} == {f"box.{kind}", "inner"}
    source.unlink()
    assert prepared("boxed")[1] == ["all is there"]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_with_another_checksum_is_not_unpacked(algorithm, server, tmp_path):
    server("loose", "a.npy", array(), algorithm=algorithm)
    assert prepared("loose")[1] == [f"'{tmp_path}/data/own/a.npy': its checksum is right"]
    server(
        "boxed",
        "box.zip",
        packed("zip"),
        "own/inner",
        algorithm=algorithm,
        served=b"another version",
    )
    with one_line(r"box.zip' is damaged or another version; delete it; expected: box.zip"):
        prepared("boxed")
    assert not (tmp_path / "data/own/inner").exists()


def test_without_a_network_a_line_says_which_file_to_put_where(server, tmp_path):
    server("boxed", "box.zip", packed("zip"), "own/inner").unlink()
    put = rf"put box.zip \(sha256:.*\) from file:.* at '{tmp_path}/data/own/box.zip', then run the same"  # noqa: E501
    with one_line(rf"cannot download box.zip; {put} command again: \w*Error: "):
        prepared("boxed")
