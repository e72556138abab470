"""Finds methods, attacks, data sets and models by the files that hold them, without importing any.

A file that assigns the literal dictionary `NAMES = {"name": "one line about it"}` offers those names; in `methods` a
file without one offers its own name (at_bsl.py is `at-bsl`), described by the first line of its docstring.

Custom files (plug-ins) are found in the folders `methods`, `attacks`, `data` and `models` of every folder in the
environment variable TAET_PLUGINS; `add` registers a single file.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from taet.errors import UserError, nearest, unknown

Kind = Literal["methods", "attacks", "data", "models"]
PACKAGE = Path(__file__).parent
WORDS: dict[Kind, str] = {"methods": "method", "attacks": "attack", "data": "data set", "models": "model"}
_added: list[tuple[Kind, Path]] = []


@dataclass(frozen=True)
class RegistryEntry:
    """A name that users can give, and its module."""

    name: str
    module: str
    title: str
    reference: str | None = None
    """Where a method is published."""
    path: Path | None = None
    """The file of a plug-in; None for a file of this package."""
    deviations: tuple[str, ...] = ()
    """How a method leaves the protocol, if its file has this as a literal."""
    baseline: bool = False
    """Whether reports compare the other methods with this one."""

    def load(self) -> ModuleType:
        """Import the module; a plug-in is imported once, under a name that no package has."""
        if self.path is None or self.module in sys.modules:
            return importlib.import_module(self.module)
        spec = importlib.util.spec_from_file_location(self.module, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.module] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[self.module]
            raise UserError(f"{self.path} cannot be imported: {type(error).__name__}: {error}") from error
        return module


def _names(tree: ast.Module) -> dict[str, str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "NAMES" for target in targets):
            return dict(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return None


def _literal(tree: ast.Module, name: str) -> Any:
    """The literal that a class of the file assigns to `name`, with or without a type; None if there is none."""
    for node in (node for cls in tree.body if isinstance(cls, ast.ClassDef) for node in cls.body):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:  # computed when the class is made
                return None
    return None


def add(kind: Kind, path: str | Path) -> None:
    """Register the file `path` in this process, as if it were in the folder `kind` of this package."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"{kind}: got {path}; allowed: a Python file")
    if (kind, path) not in _added:
        _added.append((kind, path))


def _own(kind: Kind) -> tuple[Path, ...]:
    """Files of plug-ins, those of TAET_PLUGINS first."""
    folders = [Path(folder).expanduser() for folder in os.environ.get("TAET_PLUGINS", "").split(os.pathsep) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"TAET_PLUGINS: got {folder}; allowed: folders that hold methods, attacks, data or models")
    listed = [path.resolve() for folder in folders for path in sorted((folder / kind).glob("*.py"))]
    return tuple(dict.fromkeys([*listed, *(path for added, path in _added if added == kind)]))


def entries(kind: Kind) -> dict[str, RegistryEntry]:
    """Return every name of `kind` in alphabetical order; only source text is read, so listing needs no torch."""
    return _entries(kind, _own(kind))


@functools.cache
def _entries(kind: Kind, own: tuple[Path, ...]) -> dict[str, RegistryEntry]:
    found: dict[str, RegistryEntry] = {}
    for path in [*sorted((PACKAGE / kind).glob("*.py")), *own]:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no Python file: {error}") from None
        names = _names(tree)
        if names is None and kind == "methods" and path.stem not in ("__init__", "base"):
            names = {path.stem.replace("_", "-"): (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")}
        module, place = (f"taet_plugin_{kind}_{path.stem}", path) if path in own else (f"taet.{kind}.{path.stem}", None)
        for name, title in (names or {}).items():
            if place is not None and name in found:
                raise UserError(f"{path}: the {WORDS[kind]} '{name}' exists already; rename yours")
            deviations = tuple(_literal(tree, "deviations") or ())
            baseline = bool(_literal(tree, "baseline"))
            found[name] = RegistryEntry(name, module, title, _literal(tree, "reference"), place, deviations, baseline)
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> RegistryEntry:
    """Return the entry called `name`; an unknown name is a `UserError` with the nearest match.

    A method that resembles none may be a plugin that was there when a run was made, which the error then says.
    """
    known = entries(kind)
    if name not in known:
        error = unknown(WORDS[kind], name, known)
        strange = kind == "methods" and nearest(name, known) is None
        raise UserError(f"{error}; is it a plugin? name its folder in TAET_PLUGINS") if strange else error
    return known[name]
