"""Finds methods, attacks, data sets and models by the files that hold them, without importing any.

A file that assigns the literal dictionary `NAMES = {"name": "one line about it"}` offers those names; in `methods` a
file without one offers its own name (at_bsl.py is `at-bsl`), described by the first line of its docstring.

Custom files (plug-ins) are found in the folders `methods`, `attacks`, `data` and `models` of every folder in the
environment variable TAET_PLUGINS; `add` registers a single file.
"""

import ast
import functools
import importlib
import os
import re
import sys
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from taet.errors import PLUGIN, UserError, custom_code, nearest, said, unknown
from taet.files import Json, read_bytes

Kind = Literal["methods", "attacks", "data", "models"]
PACKAGE = Path(__file__).parent
WORDS: dict[Kind, str] = {"methods": "method", "attacks": "attack", "data": "data set", "models": "model"}
NAME = re.compile(r"[^\s:,]+")
NO_METHODS = ("__init__", "base", "wrapper")
COMPUTED = object()  # stands for a value that is no literal
T = TypeVar("T")
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

    def load(self) -> ModuleType:
        """Import the module; that of a plug-in under a name that no package has, and again after its file changed."""
        if self.path is None:
            return importlib.import_module(self.module)
        source = read_bytes(self.path)
        if self.module in sys.modules and vars(sys.modules[self.module])["__source__"] == source:
            return sys.modules[self.module]
        module = sys.modules[self.module] = ModuleType(self.module)
        vars(module).update(__file__=str(self.path), __source__=source)
        try:
            with custom_code(f"{self.path} cannot be imported"):
                exec(compile(source, self.path, "exec"), vars(module))
        except BaseException:
            del sys.modules[self.module]
            raise
        return module

    def call(self, name: str, kind: type[T], *arguments: object, **options: object) -> T:
        """Return what the function `name` of the file gives; none of that name, and another type, are a UserError."""
        function, where = getattr(self.load(), name, None), self.path or self.module
        if not callable(function):
            raise UserError(f"{where}: has no function {name}; see CONTRIBUTING.md")
        with nullcontext() if self.path is None else custom_code(f"{where}: {name}"):
            made = function(*arguments, **options)
        if not isinstance(made, kind):
            allowed = getattr(kind, "__name__", kind)
            raise UserError(f"{where}: {name} returned a {type(made).__name__}; allowed: {allowed}")
        return made


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(read_bytes(path))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: nested too deeply
        raise UserError(f"{path} is no Python file: {said(error)}") from None


def _literal(nodes: Iterable[ast.stmt], name: str) -> Any:
    """The literal that the first of the statements assigns to `name`; COMPUTED for another value, None for none."""
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                with suppress(ValueError, TypeError, MemoryError, RecursionError):
                    return ast.literal_eval(node.value)
                return COMPUTED
    return None


def _offered(kind: Kind, path: Path, tree: ast.Module) -> dict[str, str]:
    """The names that a file offers, each with a line about it."""
    found = _literal(tree.body, "NAMES")
    if found is None and kind == "methods" and path.stem not in NO_METHODS:
        found = {path.stem.replace("_", "-"): (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")}
    names: dict[str, str] = found if isinstance(found, dict) else {} if found is None else {"": found}
    for name, title in names.items():
        if not (isinstance(name, str) and NAME.fullmatch(name) and isinstance(title, str)):
            got = "something computed" if found is COMPUTED else found
            allowed = "a literal {'name': 'one line about it'}, without spaces in a name"
            raise UserError(f"{path}: NAMES: got {got}; allowed: {allowed}")
    return names


def _declared(tree: ast.Module) -> Json:
    """What the classes of a file say of a method, as far as it is literal; its own import checks it."""
    body = [node for cls in tree.body if isinstance(cls, ast.ClassDef) for node in cls.body]
    found = {name: _literal(body, name) for name in ("reference", "deviations")}
    return {name: value for name, value in found.items() if isinstance(value, str | tuple)}


def add(kind: Kind, path: str | Path) -> None:
    """Register the file `path` in this process, as if it were in the folder `kind` of this package."""
    if kind not in WORDS:
        raise unknown("kind", kind, WORDS)
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"{kind}: got {path}; allowed: a Python file")
    if (kind, path) not in _added:
        _added.append((kind, path))


def _own(kind: Kind) -> tuple[Path, ...]:
    """Files of plug-ins, those of TAET_PLUGINS first."""
    folders = [Path(folder).expanduser() for folder in os.environ.get("TAET_PLUGINS", "").split(os.pathsep) if folder]
    for folder in folders:
        if not any((folder / each).is_dir() for each in WORDS):
            raise UserError(f"TAET_PLUGINS: got {folder}; allowed: folders that hold methods, attacks, data or models")
    listed = [path.resolve() for folder in folders for path in sorted((folder / kind).glob("[!_]*.py"))]
    return tuple(dict.fromkeys([*listed, *(path for added, path in _added if added == kind)]))


def entries(kind: Kind) -> dict[str, RegistryEntry]:
    """Return every name of `kind` in alphabetical order; only source text is read."""
    return _entries(kind, _own(kind))


@functools.cache
def _entries(kind: Kind, own: tuple[Path, ...]) -> dict[str, RegistryEntry]:
    found: dict[str, RegistryEntry] = {}
    for path in [*sorted((PACKAGE / kind).glob("*.py")), *own]:
        tree = _tree(path)
        names = _offered(kind, path, tree)
        module, place = (f"{PLUGIN}{kind}_{path.stem}", path) if path in own else (f"taet.{kind}.{path.stem}", None)
        declared = _declared(tree) if names else {}
        if place is not None and any(entry.module == module for entry in found.values()):
            raise UserError(f"{path}: another folder of plug-ins has a file of this name; rename yours")
        for name, title in names.items():
            if place is not None and name in found:
                raise UserError(f"{path}: the {WORDS[kind]} '{name}' exists already; rename yours")
            found[name] = RegistryEntry(name, module, title, path=place, **declared)
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> RegistryEntry:
    """Return the entry called `name`; an unknown name is a `UserError` with the nearest match."""
    known = entries(kind)
    if name not in known:
        error = unknown(WORDS[kind], name, known)
        strange = kind == "methods" and nearest(name, known) is None  # was there when a run was made, perhaps
        raise UserError(f"{error}; is it a plugin? name its folder in TAET_PLUGINS") if strange else error
    return known[name]


def class_of(method: str) -> Any:
    """Return the class of a method: the one of its file, which this imports, with a `Config` of settings."""
    module = find("methods", method).load()
    own = [found for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__]
    found = [one for one in own if hasattr(getattr(one, "Config", None), "model_validate")]
    if len(found) != 1:
        allowed = "one class that extends Method, whose Config extends Method.Config"
        raise UserError(f"{module.__file__}: got {len(found)} methods; allowed: {allowed}")
    return found[0]
