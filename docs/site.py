"""The documentation as a site: the Markdown files as they are, and a reference of public names.

    make docs              # build/site/index.html; a link that leads nowhere is an error
    python docs/site.py    # only the pages, in build/pages, for mkdocs build --strict

A page of the reference names the objects of a module; mkdocstrings writes their signatures and
docstrings when the site is built.
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
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**/*.md",
    "results/*.md",
    "performance/README.md",
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
API = "docs/api/{}.md"
PAPERS = "docs/tables-{}.md"
sys.path.insert(0, str(ROOT / "papers"))
TOP = "taet"
MODULES = {
    TOP: "Train, evaluate, compare, predict and export: what `import taet` offers.",
    "taet.data": "Data sets as arrays, and long tails.",
    "taet.models": "Networks. All take images (N, C, H, W) in [0, 1] and return logits.",
    "taet.losses": "Losses as pure functions: one value for each sample, unless stated otherwise.",
    "taet.attacks": "Attacks as functions: (model, x, y, eps=...) -> adversarial examples.",
    "taet.methods": "The interface of a training method.",
    "taet.training": "Training, and continuing a run.",
    "taet.evaluation": "Attacking a model, and the result card.",
    "taet.metrics": "Accuracies, groups of classes, intervals and paired differences.",
    "taet.report": "Results of many cards, tables and reports.",
    "taet.deployment": "Predict, export and publish.",
    "taet.experiments": "Comparisons.",
    "taet.settings": "What a run is asked to do.",
    "taet.protocols": "The settings that all methods of a comparison share.",
    "taet.errors": "What is raised where an input is wrong.",
}
"""Every module with public names, and a sentence about it."""
REFERENCE = """::: {path}
    options:
      heading: {name}
      toc_label: {label}
"""


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Yield every page, and the files that pages link to."""
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    yield from pages
    for page in pages:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path.is_file() and path.suffix != ".md":
                yield path


def public(module_name: str) -> dict[str, object]:
    """Return the functions, then the classes, of `__all__` of a module, else its own."""
    module = importlib.import_module(module_name)
    if module_name == TOP:
        names = sorted(taet._LAZY)
    elif hasattr(module, "__all__"):
        names = sorted(module.__all__)
    else:
        values = vars(module).items()
        names = sorted(
            name
            for name, value in values
            if not name.startswith("_") and getattr(value, "__module__", "") == module_name
        )
    offered = {name: getattr(module, name) for name in names if callable(getattr(module, name))}
    functions = {name: value for name, value in offered.items() if not inspect.isclass(value)}
    return functions | offered


def references() -> Iterator[tuple[str, str]]:
    """Yield the name and the page of every module; mkdocstrings replaces the blocks of a page.

    What several modules offer is documented on the first page, and linked on the others.
    """
    documented: dict[int, str] = {}
    for module_name, about in MODULES.items():
        blocks = [f"# {module_name}\n", f"{about}\n"]
        for name, value in public(module_name).items():
            path = f"{value.__module__}.{value.__qualname__}"  # type: ignore[attr-defined]
            full_name = f"{module_name}.{name}"
            if id(value) in documented:
                link = f"[{documented[id(value)]}][{path}]"
                blocks.append(f"## {full_name}\n\nThe same as {link}.\n")
            else:
                documented[id(value)] = full_name
                blocks.append(REFERENCE.format(path=path, name=full_name, label=name))
        yield module_name, "\n".join(blocks)


def write(out: Path, cards: Path | None = None) -> None:
    """Write the pages with what they link to, in the same folders as in the repository.

    `cards`: a folder of cards for the tables of the papers, in the place of `results`.
    """
    import tables
    from runs import Runs

    runs = Runs() if cards is None else Runs(results=cards)
    shutil.rmtree(out, ignore_errors=True)
    for path in dict.fromkeys(sources()):
        place = out / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    for paper, text in tables.pages(runs).items():
        (out / PAPERS.format(paper)).write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "docs" / "site.css", out / "docs" / "site.css")
    for module_name, text in references():
        page = out / API.format(module_name)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pages")
    write(parser.parse_args().out)
