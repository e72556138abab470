"""results/results.csv and the notebook are what the committed cards give; `tests/test_docs.py` renders all pages."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import taet
from taet.report.results import COLUMNS

ROOT = Path(__file__).parents[2]


def test_the_lines_of_one_test_set_are_those_of_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stored = (ROOT / "results" / "results.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    assert stored[0] == ",".join(COLUMNS) + "\n"
    found = taet.results("results/reproduce/cpu").table()  # no other card has these images
    text = found.to_csv(index=False, header=False, float_format="%.6f", lineterminator="\n")
    assert [line for line in stored if line.startswith("results/reproduce/cpu/")] == text.splitlines(keepends=True)
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert len(" ".join(line for line in page.splitlines() if not line.startswith("|")).split()) <= 600


def test_the_notebook_asks_five_questions_in_five_lines_each(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "results.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(path.parent)
    scope: dict[str, object] = {}
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in codes:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, path.name, "exec"), scope)
        shown = repr(eval(compile(ast.Expression(last.value), path.name, "eval"), scope))
        assert shown == "".join(cell["outputs"][0]["data"]["text/plain"])
        assert sum(bool(line.strip()) for line in cell["source"]) <= 5
    assert len(codes) == 6
    assert sum(cell["source"][0].startswith("## ") for cell in cells) == 5
