"""What is installed and what is shipped: the pinned packages with their hashes, the bill of materials, the wheel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, tuple[str, list[str]]]:
    """The version and the hashes of every package in requirements.lock."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "requirements.lock").read_text()).replace("\\\n", "")
    packages = {}
    for line in text.splitlines():
        match = re.match(r"(\S+)==(\S+)", line)
        assert match is not None, line
        packages[plain(match[1])] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return packages


def test_every_package_is_pinned_with_the_hashes_of_its_files() -> None:
    packages = locked()
    assert all(hashes for _, hashes in packages.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["onnx"], *extras["tensorboard"]]
    names = {plain(re.split(r"[<>=\[ ]", requirement)[0]) for requirement in wanted} - {"taet"}
    assert names <= packages.keys()
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()


def test_the_bill_of_materials_lists_what_is_pinned() -> None:
    bill = json.loads((ROOT / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {plain(one["name"]): one["version"].partition("+")[0] for one in bill["components"]}
    packages = locked()
    assert {name: packages[name][0] for name in listed.keys() & packages.keys()} == {
        name: version for name, version in listed.items() if name in packages
    }
    assert packages.keys() - listed.keys() <= {"colorama", "tzdata"}, "those of Windows are not installed"
    assert listed.keys() - packages.keys() <= {"pip", "taet"}


@pytest.mark.full
def test_a_wheel_built_twice_has_one_sha256(tmp_path: Path) -> None:
    """With other permissions, in other folders, at other times: by `make wheel`."""
    hashes = set()
    for number, umask in ((1, 0o002), (2, 0o077)):
        place = tmp_path / f"copy {number}"
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True, umask=umask)
        for path in place.rglob("*.py"):
            os.utime(path, (number, number))
        words = ["make", "wheel", "INSTALLED=", f"BIN={Path(sys.executable).parent}"]
        subprocess.run(words, cwd=place, check=True, umask=umask, stdout=subprocess.DEVNULL)
        (wheel,) = (place / "dist").glob("*.whl")
        hashes.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
        names = subprocess.check_output(["git", "ls-files", "taet"], cwd=place, text=True).splitlines()
        assert {*names} <= {*zipfile.ZipFile(wheel).namelist()}
    assert len(hashes) == 1
