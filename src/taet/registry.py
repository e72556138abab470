"""Finds methods, losses, attacks, data sets and models in the source text of their files.

The files are not imported.

A file that assigns the literal dictionary `NAMES = {"name": "one line about it"}` offers those
names; in `methods` a file without one offers its own name (at_bsl.py is `at-bsl`), described by the
first paragraph of its docstring.

Custom files (plug-ins) are found in the folders `methods`, `losses`, `attacks`, `data` and `models`
of every folder in the environment variable TAET_PLUGINS; `add` registers a single file.
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

from taet.errors import PLUGIN, UserError, exception_text, nearest, unknown, wrapping_user_code
from taet.files import Json, read_bytes

Kind = Literal["methods", "losses", "attacks", "data", "models"]
PACKAGE = Path(__file__).parent
WORDS: dict[Kind, str] = {
    "methods": "method",
    "losses": "outer loss",
    "attacks": "attack",
    "data": "data set",
    "models": "model",
}
FOLDERS: dict[Kind, tuple[str, ...]] = {kind: (kind,) for kind in WORDS}
FOLDERS["data"] = ("data", "own_data")
"""The folders of the package that hold the files of a kind."""
NAME = re.compile(r"[^\s:,]+")
NO_METHODS = ("__init__", "base", "wrapper")
COMPUTED = object()  # stands for a value that is not a literal
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
    """How a method deviates from the protocol, if its file states it as a literal."""

    def load(self) -> ModuleType:
        """Import the module. A plug-in has a name that no package has, and is imported again after
        its file changed."""
        if self.path is None:
            return importlib.import_module(self.module)
        source = read_bytes(self.path)
        if self.module in sys.modules and vars(sys.modules[self.module])["__source__"] == source:
            return sys.modules[self.module]
        module = sys.modules[self.module] = ModuleType(self.module)
        vars(module).update(__file__=str(self.path), __source__=source)
        try:
            with wrapping_user_code(f"{self.path} cannot be imported"):
                exec(compile(source, self.path, "exec"), vars(module))
        except BaseException:
            del sys.modules[self.module]
            raise
        return module

    def call(self, name: str, kind: type[T], *arguments: object, **options: object) -> T:
        """Return the result of the function `name` of the file; a missing one or another type is a
        `UserError`."""
        function, file = getattr(self.load(), name, None), self.path or self.module
        if not callable(function):
            raise UserError(f"{file}: has no function {name}; see CONTRIBUTING.md")
        with nullcontext() if self.path is None else wrapping_user_code(f"{file}: {name}"):
            result = function(*arguments, **options)
        if not isinstance(result, kind):
            allowed = getattr(kind, "__name__", kind)
            raise UserError(
                f"{file}: {name} returned a {type(result).__name__}; allowed: {allowed}"
            )
        return result


def summary(docstring: str) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(docstring.partition("\n\n")[0].split())


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(read_bytes(path))
    # the last two: nested too deeply
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UserError(f"{path} is no Python file: {exception_text(error)}") from None


def _literal(nodes: Iterable[ast.stmt], name: str) -> Any:
    """Return the literal that the first assignment to `name` has; COMPUTED for another value, None
    if not assigned."""
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                with suppress(ValueError, TypeError, MemoryError, RecursionError):
                    return ast.literal_eval(node.value)
                return COMPUTED
    return None


def _names(kind: Kind, path: Path, tree: ast.Module) -> dict[str, str]:
    """Return the names that a file declares, each with a line about it."""
    literal = _literal(tree.body, "NAMES")
    if literal is None and kind == "methods" and path.stem not in NO_METHODS:
        title = summary(ast.get_docstring(tree) or "").rstrip(".")
        literal = {path.stem.replace("_", "-"): title}
    if literal is None:
        return {}
    if not isinstance(literal, dict) or not all(map(_is_entry, literal.items())):
        got = "something computed" if literal is COMPUTED else literal
        allowed = "a literal {'name': 'one line about it'}, without spaces in a name"
        raise UserError(f"{path}: NAMES: got {got}; allowed: {allowed}")
    return literal


def _is_entry(pair: tuple[object, object]) -> bool:
    """Whether a pair is a name, without spaces, and a text about it."""
    name, title = pair
    is_name = isinstance(name, str) and NAME.fullmatch(name) is not None
    return is_name and isinstance(title, str)


def _declared(tree: ast.Module) -> Json:
    """Return what the classes of a file state about a method in literals; importing the file checks
    it."""
    body = [node for cls in tree.body if isinstance(cls, ast.ClassDef) for node in cls.body]
    found = {name: _literal(body, name) for name in ("reference", "deviations")}
    return {name: value for name, value in found.items() if isinstance(value, str | tuple)}


def add(kind: Kind, path: str | Path) -> None:
    """Register the file `path` in this process, as if it were in the folder `kind` of this
    package."""
    if kind not in WORDS:
        raise unknown("kind", kind, WORDS)
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"{kind}: got {path}; allowed: a Python file")
    if (kind, path) not in _added:
        _added.append((kind, path))


def _plugins(kind: Kind) -> tuple[Path, ...]:
    """Return the files of plug-ins, those in TAET_PLUGINS first."""
    folders = [
        Path(folder).expanduser()
        for folder in os.environ.get("TAET_PLUGINS", "").split(os.pathsep)
        if folder
    ]
    for folder in folders:
        if not any((folder / name).is_dir() for name in WORDS):
            raise UserError(
                f"TAET_PLUGINS: got {folder}; allowed: folders that hold "
                "methods, losses, attacks, data or models"
            )
    listed = [
        path.resolve() for folder in folders for path in sorted((folder / kind).glob("[!_]*.py"))
    ]
    return tuple(dict.fromkeys([*listed, *(path for added, path in _added if added == kind)]))


def entries(kind: Kind) -> dict[str, RegistryEntry]:
    """Return every name of `kind` in alphabetical order; only source text is read."""
    return _entries(kind, _plugins(kind))


@functools.cache
def _entries(kind: Kind, plugins: tuple[Path, ...]) -> dict[str, RegistryEntry]:
    listed: dict[str, RegistryEntry] = {}
    of_package = [
        path for folder in FOLDERS[kind] for path in sorted((PACKAGE / folder).glob("*.py"))
    ]
    for path in [*of_package, *plugins]:
        is_plugin = path in plugins
        if kind != "methods" and not is_plugin and b"NAMES" not in read_bytes(path):
            continue  # parsing a file costs milliseconds
        tree = _tree(path)
        names = _names(kind, path, tree)
        if is_plugin:
            module = f"{PLUGIN}{kind}_{path.stem}"
        else:
            module = f"taet.{path.parent.name}.{path.stem}"
        declared = _declared(tree) if names else {}
        if is_plugin and any(entry.module == module for entry in listed.values()):
            raise UserError(
                f"{path}: another folder of plug-ins has a file of this name; rename yours"
            )
        for name, title in names.items():
            if is_plugin and name in listed:
                raise UserError(f"{path}: the {WORDS[kind]} '{name}' exists already; rename yours")
            listed[name] = RegistryEntry(
                name, module, title, path=path if is_plugin else None, **declared
            )
    return dict(sorted(listed.items()))


def find(kind: Kind, name: str) -> RegistryEntry:
    """Return the entry called `name`; an unknown name is a `UserError` with the nearest match."""
    known = entries(kind)
    if name not in known:
        raise unknown_name(kind, name)
    return known[name]


def unknown_name(kind: Kind, name: str) -> UserError:
    """Return the error for a name that is not listed, with the nearest match."""
    known = entries(kind)
    error = unknown(WORDS[kind], name, known)
    if kind in ("methods", "losses") and nearest(name, known) is None:
        # perhaps a plug-in that was there in training
        return UserError(f"{error}; is it a plugin? name its folder in TAET_PLUGINS")
    return error


def class_of(method: str) -> Any:
    """Import the file of a method and return its class, the one with a `Config` of settings."""
    module = find("methods", method).load()
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    ]
    found = [kind for kind in own if hasattr(getattr(kind, "Config", None), "model_validate")]
    if len(found) != 1:
        allowed = "one class that extends Method, whose Config extends Method.Config"
        raise UserError(f"{module.__file__}: got {len(found)} methods; allowed: {allowed}")
    return found[0]
