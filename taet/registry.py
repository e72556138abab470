"""Finds methods, attacks, data sets and models by the files that hold them, without importing any.

A file that assigns the literal dictionary `NAMES = {"name": "one line about it"}` offers those names; in `methods` a
file without one offers its own name (at_bsl.py is `at-bsl`), described by the first line of its docstring.
"""

from __future__ import annotations

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from taet.errors import unknown

Kind = Literal["methods", "attacks", "data", "models"]
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One name that a user may give, and the module behind it."""

    name: str
    module: str
    title: str
    reference: str | None = None
    """Where a method is published."""

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


def _names(tree: ast.Module) -> dict[str, str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "NAMES" for target in targets):
            return dict(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return None


def _reference(tree: ast.Module) -> str | None:
    """The literal `reference = "..."` of the class in a method's file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "reference" for t in node.targets):
            return str(ast.literal_eval(node.value))
    return None


@functools.cache
def entries(kind: Kind) -> dict[str, Entry]:
    """Return every name of `kind` in the order of the alphabet; reads source text only, so listing needs no torch."""
    found = {}
    for path in sorted((PACKAGE / kind).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = _names(tree)
        if names is None and kind == "methods" and path.stem not in ("__init__", "base"):
            names = {path.stem.replace("_", "-"): (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")}
        for name, title in (names or {}).items():
            found[name] = Entry(name, f"taet.{kind}.{path.stem}", title, _reference(tree))
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> Entry:
    """Return the entry called `name`; an unknown name is a `UserError` with the nearest match."""
    known = entries(kind)
    if name not in known:
        raise unknown(
            {"methods": "method", "attacks": "attack", "data": "data set", "models": "model"}[kind], name, known
        )
    return known[name]
