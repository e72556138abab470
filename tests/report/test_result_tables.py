"""results/results.csv and the pages of tables are what the committed cards give."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import taet
from taet.report.results import COLUMNS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("result_tables", ROOT / "docs" / "result_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lines_of_one_test_set_are_those_of_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: `full`, below."""
    monkeypatch.chdir(ROOT)
    stored = (ROOT / "results" / "results.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    assert stored[0] == ",".join(COLUMNS) + "\n"
    cards = [line.partition(",")[0] for line in stored[1:]]
    assert cards == sorted(cards)
    found = taet.results("results/reproduce/cpu").table()  # no other card has these images
    text = found.to_csv(index=False, header=False, float_format="%.6f", lineterminator="\n")
    assert [line for line in stored if line.startswith("results/reproduce/cpu/")] == text.splitlines(keepends=True)


@pytest.mark.full
def test_the_file_is_the_table_of_all_committed_cards(render: ModuleType) -> None:
    text = (ROOT / "results" / "results.csv").read_text(encoding="utf-8")
    assert text == render.csv(), "run make results"
    stored = pd.read_csv(io.StringIO(text))
    assert set(stored["card"]) == {one.name for one in render.committed().named}
    assert stored["accuracy"].dropna().between(0, 1).all()


def test_the_page_of_results_has_at_most_600_words_beside_its_tables(render: ModuleType) -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert len(" ".join(line for line in page.splitlines() if not line.startswith("|")).split()) <= 600
    for about in (ROOT / "results").glob("*/about.md"):
        assert about.read_text(encoding="utf-8").strip() in page
        assert render.HERE / about.parent.name == about.parent


def test_the_notebook_asks_five_questions_in_five_lines_each(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "results.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(path.parent)
    scope: dict[str, object] = {}
    answers = 0
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, path.name, "exec"), scope)
        shown = repr(eval(compile(ast.Expression(last.value), path.name, "eval"), scope))
        assert shown == "".join(cell["outputs"][0]["data"]["text/plain"])
        answers += sum(bool(line.strip()) for line in cell["source"]) <= 5
    assert answers == 6
    assert sum(cell["source"][0].startswith("## ") for cell in cells) == 5
