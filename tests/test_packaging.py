"""What is installed and what is shipped: the pinned packages with their hashes, and the wheel."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_package_is_pinned_with_the_hashes_of_its_files() -> None:
    def plain(name: str) -> str:  # as indexes compare names
        return re.sub(r"[-_.]+", "-", name).lower()

    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "requirements.lock").read_text()).replace("\\\n", "")
    assert all(
        re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}\b", line) for line in text.splitlines()
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["onnx"], *extras["tensorboard"]]
    names = {plain(re.split(r"[<>=\[ ]", requirement)[0]) for requirement in wanted} - {"taet"}
    assert names <= {plain(line.partition("==")[0]) for line in text.splitlines()}
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel, built twice by `make wheel`: with other permissions, in other folders, at other
    times."""
    built = []
    for number, umask in ((1, 0o002), (2, 0o077)):
        place = tmp_path_factory.mktemp("wheel") / f"copy {number}"
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True, umask=umask)
        for path in place.rglob("*.py"):
            os.utime(path, (number, number))
        words = ["make", "wheel", "INSTALLED=", f"BIN={Path(sys.executable).parent}"]
        subprocess.run(words, cwd=place, check=True, umask=umask, stdout=subprocess.DEVNULL)
        built += (place / "dist").glob("*.whl")
    return built


@pytest.mark.full
def test_a_wheel_built_twice_has_one_sha256(wheels: list[Path]) -> None:
    assert len(wheels) == 2
    assert len({hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}) == 1
    names = subprocess.check_output(
        ["git", "ls-files", "src/taet"], cwd=wheels[0].parents[1], text=True
    ).splitlines()
    assert {name.removeprefix("src/") for name in names} <= {*zipfile.ZipFile(wheels[0]).namelist()}


@pytest.mark.full
def test_the_wheel_works_in_an_environment_and_a_folder_of_its_own(
    wheels: list[Path], tmp_path: Path
) -> None:
    """Train, attack and report; the packages that it depends on are those of this environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, away = tmp_path / "env" / "bin" / "python", tmp_path / "away"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    subprocess.run([*install, wheels[0]], check=True)
    own = Path(
        subprocess.check_output(
            [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True
        )[:-1]
    )
    (own / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    away.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }

    def taet(*words: str) -> str:
        call = [tmp_path / "env" / "bin" / "taet", *words]
        return subprocess.check_output(
            call, cwd=away, env=environment, text=True, stderr=subprocess.DEVNULL
        )

    where = subprocess.check_output(
        [python, "-c", "import taet; print(taet.__file__)"], cwd=away, env=environment
    )
    assert Path(where.decode().strip()).is_relative_to(own)
    assert "at-bsl" in taet("list", "methods")
    small = (
        "--epochs 1 --threat.steps 1 --monitor-every 0 --data.max-count 20 --data.test-max-count 5"
    )
    taet("train", "taet", *small.split(), "--out", "run")
    assert "balanced" in taet("evaluate", "run", "--attacks", "clean", "fgsm", "--no-probe")
    taet("report", "run", "--out", "report.html")
    assert "TAET" in (away / "report.html").read_text()
