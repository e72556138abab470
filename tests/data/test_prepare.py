"""From a data set's name to its checked files: a real server on this machine, and none."""

import hashlib
import http.server
import io
import threading
import urllib.error
import urllib.request
import zipfile

import pytest
from PIL import Image
from taet.data.downloads import Download

from taet import registry
from taet.data import gtsrb, tiny_imagenet
from taet.data.prepare import prepare
from taet.errors import UserError
from taet.settings import Data

WNIDS = ("n01", "n02")
ARCHIVE = "tiny-imagenet-200.zip"


def write_archive(path):
    """Write two classes of two training images and one test image in the official layout."""
    with zipfile.ZipFile(path, "w") as archive:

        def image(name, level):
            with archive.open(f"tiny-imagenet-200/{name}", "w") as file:
                Image.new("RGB", (8, 8), (level,) * 3).save(file, "JPEG")

        for label, wnid in enumerate(WNIDS):
            for index in range(2):
                image(f"train/{wnid}/images/{wnid}_{index}.JPEG", 100 * label + index)
            image(f"val/images/val_{label}.JPEG", 100 * label)
        tables = {
            "wnids.txt": "n02\nn01\n",
            "words.txt": "n01\tcat\nn02\tdog, hound\n",
            "val/val_annotations.txt": "val_0.JPEG\tn01\t0\t0\t7\t7\nval_1.JPEG\tn02\t0\t0\t7\t7\n",
        }
        for name, text in tables.items():
            archive.writestr(f"tiny-imagenet-200/{name}", text)
    return path


class Served(http.server.BaseHTTPRequestHandler):
    """Serves `files` by name; a body is cut short by `missing` bytes."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set by each test
    missing = 0
    agents: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.agents.append(self.headers["User-Agent"])
        body = self.files.get(self.path.strip("/"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.missing])

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def served(monkeypatch):
    """Serve files on the loopback: the handler class, whose `files` a test sets, with its `address`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Served,), {"files": {}, "agents": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.address = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """A small official archive, whose MD5 the source expects; it lies where nobody looks."""
    path = write_archive(tmp_path / ARCHIVE)
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 2)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", {"train": 2, "test": 1})
    content = path.read_bytes()
    expect(monkeypatch, md5=hashlib.md5(content).hexdigest(), sha256=hashlib.sha256(content).hexdigest())
    return path


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.delenv("TAET_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "root"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def expect(monkeypatch, **changes):
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", tiny_imagenet.ARCHIVE._replace(**changes))


def run(root, name="tiny-imagenet", told=None):
    return prepare(Data(name=name, root=str(root)), lambda *where: None if told is None else told.append(where))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_a_set_is_downloaded_checked_unpacked_and_read(root, archive, served, monkeypatch):
    served.files[ARCHIVE] = archive.read_bytes()
    expect(monkeypatch, url=f"{served.address}/{ARCHIVE}")
    told = []
    dataset, done = run(root, told=told)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (4, 2)
    assert done == [
        f"'{root / 'tiny-imagenet-200'}' is unpacked from {ARCHIVE}; {tiny_imagenet.ARCHIVE.checksum} is right"
    ]
    assert (root / ARCHIVE).read_bytes() == archive.read_bytes()
    assert not [name for name in files(root) if name.endswith(".part")]
    size = len(archive.read_bytes()) / 1e6
    assert told[0] == (size, size, ARCHIVE)
    assert told[-1][2] == f"unpacking {ARCHIVE}"
    assert served.agents[0].startswith("taet")

    again, done = run(root)
    assert again.train.sha256 == dataset.train.sha256
    assert "was there; SHA-256" in done[0]
    assert len(served.agents) == 1


@pytest.mark.usefixtures("offline")
def test_an_archive_that_somebody_put_there_is_checked_and_unpacked(root, archive):
    root.mkdir()
    archive.rename(root / ARCHIVE)
    assert len(run(root)[0].train) == 4
    (root / ARCHIVE).unlink()
    assert "so its checksum is not compared" in run(root)[1][0]


@pytest.mark.usefixtures("offline")
def test_what_lies_in_another_data_folder_is_found_there(root, archive, monkeypatch, tmp_path):
    monkeypatch.setenv("TAET_DATA", str(tmp_path))  # where the archive lies
    dataset, _ = run(root)
    assert len(dataset.train) == 4
    assert (tmp_path / "tiny-imagenet-200").is_dir()
    assert not root.exists()
    assert archive.is_file()


@pytest.mark.usefixtures("offline", "archive")
def test_a_damaged_archive_is_named_and_not_unpacked(root):
    root.mkdir()
    (root / ARCHIVE).write_bytes(b"cut short")
    with pytest.raises(UserError, match=rf"{ARCHIVE}' \(9 bytes\) has SHA-256 \w+; expected: \w+; .* delete it"):
        run(root)
    assert files(root) == [ARCHIVE]


@pytest.mark.parametrize(
    ("megabytes", "words"),
    [(248.12, "248.1 MB"), (1, "1.0 MB"), (0.0295, "29.5 kB"), (0.001, "1.0 kB"), (9e-6, "9 bytes")],
)
def test_the_size_of_a_small_file_is_not_nothing(megabytes, words):
    assert Download("", "", "", megabytes).size == words


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "downloads"), [("gtsrb", gtsrb.ARCHIVES), ("tiny-imagenet-lt", None)])
def test_without_a_network_one_line_says_what_to_put_where(root, name, downloads):
    with pytest.raises(UserError) as caught:
        run(root, name)
    line = str(caught.value)
    assert "\n" not in line
    assert "Network is unreachable" in line
    assert line.endswith("then run the same command again")
    for wanted in downloads or (tiny_imagenet.ARCHIVE,):
        parts = (wanted.name, wanted.size, wanted.checksum, wanted.url, f"at '{root / wanted.file}'")
        assert all(part in line for part in parts)
    assert not root.exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gone", r"cannot download .* \(HTTP Error 404: Not Found\); put tiny"),
        ("cut", r"IncompleteRead|has SHA-256"),
        ("other", r"has SHA-256 \w+; expected"),
    ],
)
def test_a_download_that_fails_leaves_nothing(root, archive, served, monkeypatch, case, message):
    expect(monkeypatch, url=f"{served.address}/{ARCHIVE}")
    served.files |= {} if case == "gone" else {ARCHIVE: archive.read_bytes() + b"x" * (case == "other")}
    served.missing = 100 if case == "cut" else 0
    with pytest.raises(UserError, match=message):
        run(root)
    assert files(root) == []


def test_an_interrupted_download_leaves_nothing(root, archive, served, monkeypatch):
    served.files[ARCHIVE] = archive.read_bytes()
    expect(monkeypatch, url=f"{served.address}/{ARCHIVE}")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Data(name="tiny-imagenet", root=str(root)), interrupt)
    assert files(root) == []


@pytest.mark.usefixtures("offline")
def test_another_layout_that_can_be_read_is_enough(root, archive, monkeypatch):
    root.mkdir()
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(root)
    expect(monkeypatch, unpacks_to="elsewhere")
    dataset, done = run(root)
    assert len(dataset.train) == 4
    assert done == ["all is there, in other files than the official archives"]
    with pytest.raises(UserError, match=r"training set: a largest class of 9 .* needs"):  # no matter of a download
        prepare(Data(name="tiny-imagenet", root=str(root), imbalance_ratio=1, max_count=9), lambda *_: None)


@pytest.mark.usefixtures("offline")
def test_an_archive_of_something_else_and_an_incomplete_folder_are_refused(root, archive, monkeypatch):
    root.mkdir()
    archive.rename(root / ARCHIVE)
    expect(monkeypatch, unpacks_to="elsewhere")
    monkeypatch.setattr(tiny_imagenet, "FOLDER", "elsewhere")
    with pytest.raises(UserError, match=rf"{ARCHIVE}' holds no elsewhere; expected: the archive that is at http"):
        run(root)
    (root / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"wnids\.txt'; .*delete the folder"):
        run(root)


@pytest.mark.usefixtures("offline")
def test_a_file_that_is_no_archive_is_only_checked(root, archive, monkeypatch):
    root.mkdir()
    archive.rename(root / ARCHIVE)
    (root / "readme").write_bytes(b"hello")
    readme = Download("http://127.0.0.1/readme", "readme", hashlib.md5(b"hello").hexdigest(), 0.1)
    monkeypatch.setattr(tiny_imagenet, "downloads", lambda _: (tiny_imagenet.ARCHIVE, readme))
    assert run(root)[1][1] == f"'{root / 'readme'}': MD5 {readme.md5} is right"
    (root / "readme").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"readme' .* has MD5"):
        run(root)


@pytest.mark.usefixtures("offline")
def test_nothing_is_downloaded_for_what_is_there_anyhow(root):
    dataset, done = run(root, "digits-lt")
    assert (dataset.name, done) == ("digits-lt", ["nothing to download"])
    with pytest.raises(UserError, match=r"unknown data set 'digit-lt'; .* did you mean 'digits-lt'"):
        run(root, "digit-lt")
    with pytest.raises(UserError, match="no such folder"):
        run(root, "folder:nowhere")


@pytest.mark.usefixtures("offline")
def test_archives_that_share_a_folder_are_unpacked_into_one_tree(root, monkeypatch):
    def image(archive, name, level):
        with archive.open(name, "w") as file:
            Image.new("RGB", (9, 9), (level,) * 3).save(file, "PPM")

    folder = root / "gtsrb"
    folder.mkdir(parents=True)
    paths = [root / download.file for download in gtsrb.ARCHIVES]
    with zipfile.ZipFile(paths[0], "w") as archive:
        for label in range(2):
            image(archive, f"GTSRB/Final_Training/Images/{label:05}/00000_00000.ppm", label)
    with zipfile.ZipFile(paths[1], "w") as archive:
        for label in range(2):
            image(archive, f"GTSRB/Final_Test/Images/{label:05}.ppm", label)
    with zipfile.ZipFile(paths[2], "w") as archive:
        archive.writestr("GT-final_test.csv", "Filename;ClassId\r\n00000.ppm;0\r\n00001.ppm;1\r\n")
    sums = [hashlib.md5(path.read_bytes()).hexdigest() for path in paths]
    archives = [old._replace(md5=md5, sha256=None) for old, md5 in zip(gtsrb.ARCHIVES, sums, strict=True)]
    monkeypatch.setattr(gtsrb, "ARCHIVES", tuple(archives))
    monkeypatch.setattr(gtsrb, "CLASS_NAMES", ("stop", "give way"))
    monkeypatch.setattr(gtsrb, "TRAINING", {"Final_Training/Images": 2})
    monkeypatch.setattr(gtsrb, "TEST", 2)
    dataset, done = run(root, "gtsrb")
    assert [len(dataset.train), len(dataset.test), len(done)] == [2, 2, 3]
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".zip") == ["GT-final_test.csv", "GTSRB"]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "gtsrb", "tiny-imagenet", "pathmnist"])
def test_every_address_is_encrypted_and_all_but_medmnist_have_a_sha256(name):
    module = registry.entries("data")[name].load()
    for download in module.downloads(Data(name=name)):
        assert download.url.startswith("https://")
        assert len(download.md5) == 32
        assert download.sha256 is None if name == "pathmnist" else len(download.sha256) == 64


def test_an_encrypted_address_that_leads_to_one_without_is_refused(root, archive, monkeypatch):
    class Answer(io.BytesIO):
        url = "http://elsewhere/tiny-imagenet-200.zip"
        headers: dict[str, str] = {}  # noqa: RUF012

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(archive.read_bytes()))
    with pytest.raises(UserError, match=r"leads to http://elsewhere/.*, which is not encrypted\); put tiny"):
        run(root)
    assert files(root) == []


def test_an_answer_that_never_ends_is_cut_off(root, archive, served, monkeypatch):
    served.files[ARCHIVE] = archive.read_bytes() + bytes(3_000_000)
    expect(monkeypatch, url=f"{served.address}/{ARCHIVE}", megabytes=0.1)
    with pytest.raises(UserError, match=r"cannot download .* \(it is longer than 100\.0 kB\)"):
        run(root)
    assert files(root) == []
