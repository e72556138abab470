"""Every public loss has an example in its docstring that runs, and prints what the docstring says."""

from __future__ import annotations

import doctest
import importlib
import inspect
from types import ModuleType

import pytest

from taet import losses

FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


def module_of(name: str) -> ModuleType:
    return importlib.import_module(getattr(losses, name).__module__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_the_docstring_runs(name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(losses, name), name, module=module_of(name))
    examples = [example for test in found for example in test.examples]
    assert f"from taet.losses import {name}" in "".join(example.source for example in examples)
    assert any(example.want for example in examples), "it prints something"
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(result.failed for result in results) == 0
