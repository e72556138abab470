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
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from taet.errors import PLUGIN, UserError, custom_code, nearest, said, unknown
from taet.files import read_bytes

Kind = Literal["methods", "attacks", "data", "models"]
PACKAGE = Path(__file__).parent
WORDS: dict[Kind, str] = {"methods": "method", "attacks": "attack", "data": "data set", "models": "model"}
NAME = re.compile(r"[^\s:,]+")
MOST_BYTES = 2**22
NO_METHODS = ("__init__", "base", "declarations", "feedback", "wrapper")
COMPUTED = object()
"""Stands for a value that is no literal."""
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
            with custom_code(f"{self.path} cannot be imported"):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[self.module]
            raise
        return module

    def call(self, name: str, kind: type[T], *arguments: Any, **options: Any) -> T:
        """Return what the function `name` of the file gives; none of that name, and another type, are a UserError."""
        function = getattr(self.load(), name, None)
        if not callable(function):
            raise UserError(f"{self.path or self.module}: has no function {name}; see CONTRIBUTING.md")
        if self.path is None:
            made = function(*arguments, **options)
        else:
            with custom_code(f"{self.path}: {name}"):
                made = function(*arguments, **options)
        if not isinstance(made, kind):
            returned = f"{name} returned a {type(made).__name__}"
            raise UserError(f"{self.path or self.module}: {returned}; allowed: {getattr(kind, '__name__', kind)}")
        return made


class _Declarations:
    """The text of a file with what it declares as literals; a declaration of the wrong type is a UserError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tree = ast.parse(read_bytes(path, most=MOST_BYTES))
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: nested too deeply
            raise UserError(f"{path} is no Python file: {said(error)}") from None
        self.of_classes = [node for cls in self.tree.body if isinstance(cls, ast.ClassDef) for node in cls.body]

    def names(self) -> dict[str, str] | None:
        """The names that the file offers, each with a line about it; None without NAMES."""
        found = self._literal("NAMES", self.tree.body)
        if found is None:
            return None
        names: dict[str, str] = found if isinstance(found, dict) else {"": ""}
        for name, title in names.items():
            if not (isinstance(name, str) and NAME.fullmatch(name) and isinstance(title, str)):
                raise self._refused("NAMES", found, "a literal {'name': 'one line about it'}, without spaces in a name")
        return names

    def attribute(self, name: str, default: T, allowed: str) -> T:
        """The literal that a class assigns to `name`; the default if it is computed when the class is made."""
        found = self._literal(name, self.of_classes)
        if found is None or found is COMPUTED:
            return default
        texts = found if isinstance(found, tuple) else ()
        if not isinstance(found, type(default)) or not all(isinstance(text, str) for text in texts):
            raise self._refused(name, found, allowed)
        return found

    def _literal(self, name: str, nodes: Sequence[ast.stmt]) -> Any:
        """The literal that one of the statements assigns to `name`, with or without a type; None if none does."""
        for node in nodes:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                try:
                    return ast.literal_eval(node.value)
                except (ValueError, TypeError, MemoryError, RecursionError):
                    return COMPUTED
        return None

    def _refused(self, name: str, found: object, allowed: str) -> UserError:
        got = "something computed" if found is COMPUTED else repr(found)
        return UserError(f"{self.path}: {name}: got {got}; allowed: {allowed}")


def add(kind: Kind, path: str | Path) -> None:
    """Register the file `path` in this process, as if it were in the folder `kind` of this package."""
    path = Path(path).resolve()
    if not path.is_file():
        raise UserError(f"{kind}: got {path}; allowed: a Python file")
    if (kind, path) not in _added:
        _added.append((kind, path))


def forget(kind: Kind, path: str | Path) -> None:
    """Take back `add`, and what was read of the file, which may have changed."""
    path = Path(path).resolve()
    if (kind, path) in _added:
        _added.remove((kind, path))
    _entries.cache_clear()
    sys.modules.pop(f"{PLUGIN}{kind}_{path.stem}", None)


def _own(kind: Kind) -> tuple[Path, ...]:
    """Files of plug-ins, those of TAET_PLUGINS first."""
    folders = [
        Path(os.path.expanduser(folder)) for folder in os.environ.get("TAET_PLUGINS", "").split(os.pathsep) if folder
    ]
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
        source = _Declarations(path)
        names = source.names()
        if names is None and kind == "methods" and path.stem not in NO_METHODS:
            names = {path.stem.replace("_", "-"): (ast.get_docstring(source.tree) or "").split("\n")[0].rstrip(".")}
            if NAME.fullmatch(path.stem) is None:
                raise UserError(f"{path}: got the name '{path.stem}'; allowed: a file name without spaces")
        module, place = (f"{PLUGIN}{kind}_{path.stem}", path) if path in own else (f"taet.{kind}.{path.stem}", None)
        for name, title in (names or {}).items():
            if place is not None and name in found:
                raise UserError(f"{path}: the {WORDS[kind]} '{name}' exists already; rename yours")
            if place is not None and any(entry.module == module and entry.path != path for entry in found.values()):
                raise UserError(f"{path}: another folder of plug-ins has a file of this name; rename yours")
            deviations = source.attribute("deviations", tuple[str, ...](), "a tuple of texts")
            baseline = source.attribute("baseline", False, "True or False")
            reference = source.attribute("reference", "", "a text") or None
            found[name] = RegistryEntry(name, module, title, reference, place, deviations, baseline)
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


def config_of(method: str) -> Any:
    """Return the `Config` of a method, whose file this imports."""
    module = find("methods", method).load()
    own = [found for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__]
    kinds: list[Any] = [getattr(found, "Config", None) for found in own]
    kinds = [kind for kind in kinds if hasattr(kind, "model_validate")]
    if len(kinds) != 1:
        raise UserError(f"{module.__file__}: got {len(kinds)} methods; allowed: one class that extends Method")
    return kinds[0]
