"""The documentation as a site: the Markdown files as they are, with a page of every public function.

make docs                                  # build/site/index.html; a link that leads nowhere is an error
python docs/site.py                        # only the pages, in build/pages, for mkdocs build --strict
"""

import argparse
import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import taet

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "results/*.md", "benchmarks/README.md")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
API = "docs/api.md"
PAPERS = "docs/tables-{}.md"
sys.path.insert(0, str(ROOT / "papers"))
MODULES = ("data", "models", "losses", "attacks", "methods", "training")
MODULES += ("evaluation", "deployment", "experiments", "report", "statistics")


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Yield every page, and the files that pages link to."""
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    yield from pages
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path.is_file() and path.suffix != ".md":
                yield path


def public() -> Iterator[tuple[str, object]]:
    """Yield the name and the value of everything public, by module: what `taet` and `__all__` offer."""
    for name in sorted(taet._LAZY):
        yield f"taet.{name}", getattr(taet, name)
    for part in MODULES:
        module = importlib.import_module(f"taet.{part}")
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in sorted(getattr(module, "__all__", [name for name in own if not name.startswith("_")])):
            if callable(value := getattr(module, name)):
                yield f"taet.{part}.{name}", value


def described(name: str, value: object) -> str:
    """Return the section of a function or class: its signature, and its docstring as it is written."""
    try:
        signature = re.sub(r"<[^<>]*(?:<[^<>]*>)?[^<>]*>|'", "", str(inspect.signature(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = ""
    call = name.rpartition(".")[2] + signature
    return f"## {name}\n\n```python\n{call}\n```\n\n```text\n{inspect.getdoc(value)}\n```\n"


def write(out: Path) -> None:
    """Write the pages with what they link to, in the same folders as in the repository."""
    import tables
    from runs import Runs

    shutil.rmtree(out, ignore_errors=True)
    for path in dict.fromkeys(sources()):
        place = out / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for paper, text in tables.pages(Runs()).items():
        (out / PAPERS.format(paper)).write_text(text, encoding="utf-8")
    sections = [described(name, value) for name, value in public()]
    text = "# Public functions and classes\n\nMade from the docstrings.\n\n" + "\n".join(sections)
    (out / API).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pages")
    write(parser.parse_args().out)
