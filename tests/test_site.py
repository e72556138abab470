"""The site: every link leads somewhere, and every public function has its section."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import taet

ROOT = Path(__file__).parents[1]
MKDOCS = shutil.which("mkdocs", path=ROOT / ".docs-venv" / "bin") or shutil.which("mkdocs")


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "site.py"))


@pytest.fixture(scope="module")
def pages(site: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the site with what they link to."""
    folder = tmp_path_factory.mktemp("pages")
    site["write"](folder)
    return folder


def test_every_public_function_has_its_section(pages: Path) -> None:
    text = (pages / "docs" / "api.md").read_text()
    names = re.findall(r"^## (\S+)$", text, re.M)
    assert len(names) == len(set(names)) > 80
    for name in ("taet.train", "taet.losses.balanced_softmax", "taet.statistics.accuracy"):
        assert name in names
    assert {f"taet.{name}" for name in taet._LAZY} <= {*names}
    assert "0x" not in text  # no address of an object, which would change from run to run


def test_the_navigation_leads_to_pages_that_exist(pages: Path) -> None:
    listed = re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(listed) == len(set(listed)) > 40
    assert {*listed} <= {str(page.relative_to(pages)) for page in pages.rglob("*.md")}


@pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not installed: make docs installs it")
def test_the_site_is_built_without_a_warning(pages: Path, tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text().replace("build/pages", str(pages))
    (tmp_path / "mkdocs.yml").write_text(settings.replace("build/site", str(tmp_path / "site")))
    call = [MKDOCS, "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "first-hour.html").exists()
