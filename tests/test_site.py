"""The site: every link leads somewhere, and every public name is in the reference."""

import importlib
import inspect
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
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
    """The pages of the site with what they link to; no card fills the tables of the papers."""
    folder = tmp_path_factory.mktemp("pages")
    site["write"](folder, cards=tmp_path_factory.mktemp("none"))
    return folder


@pytest.mark.full
def test_the_pages_of_the_papers_show_the_committed_cards(
    site: dict[str, Any], tmp_path: Path
) -> None:
    site["write"](tmp_path / "pages")
    text = (tmp_path / "pages" / site["PAPERS"].format("taet")).read_text(encoding="utf-8")
    assert re.search(r"\| mini +\| \d+\.\d \(", text), "a measured number with its interval"


def test_every_public_name_is_in_the_reference(pages: Path, site: dict[str, Any]) -> None:
    text = "".join(page.read_text() for page in (pages / "docs" / "api").iterdir())
    names = re.findall(r"^(?:      heading: |## )(\S+)$", text, re.M)
    assert len(names) == len(set(names)) > 80
    assert {f"taet.{name}" for name in taet._LAZY} <= {*names}
    for module in site["MODULES"]:
        offered = getattr(importlib.import_module(module), "__all__", [])
        functions = [n for n in offered if callable(getattr(importlib.import_module(module), n))]
        assert {f"{module}.{name}" for name in functions} <= {*names}
    folders = {f"taet.{name}" for name in taet._FOLDERS}
    assert folders <= {*site["MODULES"]}, "what `import taet` offers has a page"


def test_no_file_hides_a_public_function_of_its_name(site: dict[str, Any]) -> None:
    for name in {*site["MODULES"]} - {"taet"}:
        module = importlib.import_module(name)
        for file in pkgutil.iter_modules(getattr(module, "__path__", [])):
            importlib.import_module(f"{name}.{file.name}")
        offered = {public: vars(module)[public] for public in getattr(module, "__all__", [])}
        assert not [public for public, value in offered.items() if inspect.ismodule(value)], name


def test_every_public_name_has_a_docstring(site: dict[str, Any]) -> None:
    for module in site["MODULES"]:
        for name, value in site["public"](module).items():
            assert value.__doc__, f"{module}.{name}"


def test_a_formula_of_a_docstring_is_shown_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # only the environment of the site has griffe
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    marked = runpy.run_path(str(ROOT / "docs" / "formulas.py"))["marked"]
    text = "A loss.\n\nCE(z, y)\n\nf[i](x) is one value.\n\nExample:\n    >>> 1\n    1"
    assert marked(text) == (
        "A loss.\n\n```text\nCE(z, y)\n```\n\nf[i]\\(x) is one value.\n\n"
        "Examples:\n    >>> 1\n    1"
    )


def test_the_menu_leads_to_every_page_once(pages: Path) -> None:
    listed = re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(str(page.relative_to(pages)) for page in pages.rglob("*.md"))


@pytest.mark.full
@pytest.mark.skipif(MKDOCS is None, reason="mkdocs is not installed: make docs installs it")
def test_the_site_is_built_without_a_warning(pages: Path, tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    moved = {"build/pages": str(pages), "build/site": str(tmp_path / "site")}
    moved |= {"[src]": f"[{ROOT / 'src'}]", "docs/formulas.py": str(ROOT / "docs" / "formulas.py")}
    for place, now in moved.items():
        settings = settings.replace(place, now)
    (tmp_path / "mkdocs.yml").write_text(settings)
    call = [MKDOCS, "build", "--strict", "--config-file", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "first-hour.html").exists()
    losses = (tmp_path / "site" / "docs" / "api" / "taet.losses.html").read_text()
    assert 'id="taet.losses.balanced_softmax.balanced_softmax"' in losses
    assert "Ren et al." in losses, "the source is on the page"
