"""The page of the committed results, and the notebook that asks questions of them."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_notebook_asks_five_questions_in_five_lines_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
