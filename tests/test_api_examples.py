"""Every public name of the reference has an example, which runs and prints what it says."""

import doctest
import importlib
import inspect
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_lesions

SITE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "site.py"))
FIRST = ("taet.train", "taet.evaluate")
"""Their examples make the run that others read."""


def public_names() -> dict[Any, str]:
    """Return each public object with the first of its names."""
    names: dict[Any, str] = {}
    for module in SITE["MODULES"]:
        for name, value in SITE["public"](module).items():
            names.setdefault(value, f"{module}.{name}")
    return names


def public_object(name: str) -> Any:
    """Return the function or class called `name`, without the check of its arguments."""
    module, _, attribute = name.rpartition(".")
    return inspect.unwrap(getattr(importlib.import_module(module), attribute))


def run_example(name: str) -> None:
    """Run the example in the docstring of a public name; it must have one."""
    found = doctest.DocTestFinder(recurse=False).find(public_object(name), name, globs={})
    tests = [test for test in found if test.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        report: list[str] = []
        failed = doctest.DocTestRunner().run(test, out=report.append).failed
        assert failed == 0, "".join(report)


@pytest.fixture(scope="module", autouse=True)
def folder_of_the_examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder with images, and with the run of the first examples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        write_lesions(Path("lesions"))
        for name in FIRST:
            run_example(name)
        yield


@pytest.mark.parametrize("name", [name for name in public_names().values() if name not in FIRST])
def test_an_example_prints_what_it_says(name: str) -> None:
    run_example(name)
