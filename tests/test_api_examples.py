"""The examples of the API reference run, and print what they say."""

import doctest
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_lesions

OF_A_RUN = [
    *("taet.train", "taet.resume", "taet.evaluate", "taet.results", "taet.load", "taet.predict"),
    *("taet.export", "taet.report.write", "taet.evaluation.check", "taet.compare", "taet.plan"),
]
"""In this order: the first one trains the run that the others read."""
ALONE = {
    "taet.attacks": ["autoattack", "cw_l2", "cw_linf", "deepfool", "fgsm", "pgd", "quick"],
    "taet.data": [
        *("load", "Dataset", "long_tail_counts", "long_tail_indices", "balanced_small_counts")
    ],
    "taet.evaluation": ["parse_attack"],
    "taet.losses": ["BalancedSoftmax", "CrossEntropy", "Focal", "Ldam", "LogitAdjustment"],
    "taet.methods": ["find"],
    "taet.metrics": [
        *("accuracy", "balanced_accuracy", "per_class_accuracy", "group_accuracy"),
        *("class_counts", "class_groups", "difference"),
        *("wilson_interval", "exact_interval", "balanced_interval"),
    ],
    "taet.models": ["build", "Normalized", "split_head", "trusted"],
    "taet.protocols": ["taet", "reat", "official", "recipes", "start"],
    "taet.settings": ["flat", "override"],
}


def function_called(name: str) -> Callable[..., Any]:
    module, _, attribute = name.rpartition(".")
    return inspect.unwrap(getattr(importlib.import_module(module), attribute))


def run_example(name: str) -> None:
    """Run the example in the docstring of a public function; it must have one."""
    found = doctest.DocTestFinder(recurse=False).find(function_called(name), name, globs={})
    tests = [test for test in found if test.examples]
    assert tests, f"{name} has no example"
    for test in tests:
        report: list[str] = []
        failed = doctest.DocTestRunner().run(test, out=report.append).failed
        assert failed == 0, "".join(report)


def test_the_examples_about_a_run_work_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lesions(Path("lesions"))
    for name in OF_A_RUN:
        run_example(name)
    assert {"runs", "model.safetensors", "report.md"} <= {*os.listdir()}


@pytest.mark.parametrize(
    "name", [f"{module}.{name}" for module, names in ALONE.items() for name in names]
)
def test_an_example_prints_what_it_says(name: str) -> None:
    run_example(name)
