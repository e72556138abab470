"""The architecture, checked: who imports whom, what a listing costs, and that everything public is
documented."""

import ast
import functools
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "taet"
FILES = sorted(PACKAGE.rglob("*.py"))

# A folder imports only from the leaves and from those folders above it that are listed here: a
# model knows no data, a loss no model, an attack no model but as a function.
LEAVES = {
    *("errors", "files", "flags", "formatting", "randomness", "registry", "progress"),
    *("distributed", "idle_cores", "machine", "metrics", "network", "settings"),
}
LEARNED = {"data", "own_data", "models", "losses", "attacks", "methods"}
FOLDERS: dict[str, set[str]] = {
    "data": set(),
    "own_data": {"data"},
    "models": set(),
    "losses": set(),
    "attacks": {"losses"},
    "methods": {"models", "losses", "attacks"},
    "run": {"models", "data", "own_data"},
    "training": LEARNED | {"run", "protocols"},
    "card": {"data", "attacks", "run"},
    "evaluation": LEARNED | {"run", "training", "card", "protocols"},
    "report": LEARNED | {"run", "training", "card", "evaluation", "protocols"},
    "deployment": LEARNED | {"run", "training", "card", "evaluation", "report", "protocols"},
    "experiments": LEARNED | {"run", "training", "card", "evaluation", "report", "protocols"},
}
# What the leaves, and the protocols (methods only for the profile `official`), may use of each
# other.
LEAF_IMPORTS = {
    "distributed": {"errors"},
    "files": {"errors"},
    "idle_cores": {"formatting"},
    "machine": {"__version__", "distributed", "errors", "files", "idle_cores"},
    "registry": {"errors", "files"},
    "metrics": {"errors"},
    "network": {"errors", "formatting"},
    "progress": {"formatting"},
    "settings": {"errors", "formatting", "registry"},
    "protocols": {"settings", "errors", "methods"},
}
EVERYTHING = {*LEAVES, *FOLDERS, "protocols", "cli"}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """The syntax tree of every file of the package."""
    return {path: ast.parse(path.read_text()) for path in FILES}


def part_of(path: Path) -> str:
    """The folder, or for a file of the package itself its name, that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> list[str]:
    """The modules, and for a name from a module both, that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def allowed_for(part: str) -> set[str]:
    if part in FOLDERS:
        return {part} | LEAVES | FOLDERS[part]
    if part in {*LEAVES, "protocols"}:
        return {part} | LEAF_IMPORTS.get(part, set())
    assert part in {"cli", "__init__", "__main__"}, (
        f"{part}: a new folder needs a place in the order of this test"
    )
    return EVERYTHING | {"__version__"}


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_imports_go_one_way() -> None:
    """Also those inside functions and for types only."""
    wrong = [
        f"{identify(path)}, line {node.lineno}: {name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        for name in imported(node)
        if name.startswith("taet.") and name.split(".")[1] not in allowed_for(part_of(path))
    ]
    assert not wrong


def test_every_part_of_the_order_is_there() -> None:
    assert {part_of(path) for path in FILES} == EVERYTHING | {"__init__", "__main__"}


def test_every_file_and_every_public_function_and_class_is_documented() -> None:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    undocumented = [identify(path) for path, tree in trees().items() if not ast.get_docstring(tree)]
    undocumented += [
        f"{identify(path)}: {node.name}"
        for path, tree in trees().items()
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not undocumented


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    folder = re.compile(r"(?<![\w.~)}])/(?:home|tmp|root|work|mnt|Users|data)\b/?[^\s\"']*")
    found = {
        identify(path): folder.findall(path.read_text())
        for path in (*FILES, *PACKAGE.rglob("*.j2"))
    }
    assert not {name: folders for name, folders in found.items() if folders}


def test_no_file_needs_what_only_posix_has_to_be_imported() -> None:
    found = {name for tree in trees().values() for node in tree.body for name in imported(node)}
    assert not found & {"fcntl", "resource", "termios", "pwd", "grp"}


NO_TORCH = """
import sys, taet, taet.data
assert "train" in dir(taet) and taet.__version__
from taet.cli import COMMANDS, main
calls = [*map("{{}} --help".format, COMMANDS), "train --help all", *map("list {{}}".format, {kinds})]
for words in ("--help", "--version", "list methods --json", "no-such-command", *calls):
    assert main(words.split()) == (2 if words == "no-such-command" else 0), words
    assert "torch" not in sys.modules, f"{{words}} imports torch"
"""  # noqa: E501


def test_what_answers_at_once_imports_no_torch() -> None:
    code = NO_TORCH.format(kinds=("methods", "losses", "attacks", "data", "models", "protocols"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


PUBLIC = """
train evaluate predict export data.load data.long_tail_counts data.long_tail_indices models.build losses.cross_entropy
losses.kl_divergence losses.balanced_softmax losses.logit_adjustment losses.hierarchical_equalization losses.focal
losses.class_balanced losses.ldam losses.boosted_cross_entropy losses.tail_margin losses.effective_number_weights
losses.rebalancing_weights experiments.compare attacks.fgsm attacks.pgd attacks.autoattack attacks.cw_l2 attacks.cw_linf
attacks.deepfool evaluation.check metrics.accuracy metrics.balanced_accuracy metrics.per_class_accuracy
metrics.group_accuracy metrics.wilson_interval
"""  # noqa: E501


def test_public_names_are_reached_from_the_package() -> None:
    import taet

    for name in PUBLIC.split():
        value = attrgetter(name)(taet)
        assert callable(value), name
        assert (value.__doc__ or "").strip(), name
        assert name.split(".")[0] in dir(taet)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = taet.no_such_name


def test_files_do_not_import_each_other_in_a_circle() -> None:
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES
    }
    named = {names[path].removesuffix(".__init__"): tree for path, tree in trees().items()}
    ahead = {}
    for one, tree in named.items():
        ahead[one] = set[str]()
        for module, *below in filter(None, map(imported, ast.walk(tree))):
            # a file of a folder, not the folder
            ahead[one] |= {*below} & {*named} or {module, *below} & {*named}
        ahead[one] -= {one, "taet"}
    order = TopologicalSorter(ahead)
    order.prepare()  # raises CycleError, which names the circle


def declared_types(tree: ast.Module) -> Iterator[str]:
    """Names of the classes of a file, and of its aliases of types: assigned names such as Mask, not
    T or MASK."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                one.id
                for one in targets
                if isinstance(one, ast.Name) and re.match("_?[A-Z].*[a-z]", one.id)
            )


def test_a_name_of_a_type_is_used_once() -> None:
    """A run's settings of its model and an attack's model, a function, keep the name that both have
    for users."""
    found = Counter(name for tree in trees().values() for name in declared_types(tree))
    assert {name for name, count in found.items() if count > 1} == {"Model"}


def test_no_file_hides_a_public_function_of_its_folder() -> None:
    """The first import of a file taet/metrics/accuracy.py would replace a function of that name."""
    hidden = []
    for folder in ("attacks", "data", "deployment", "losses", "metrics", "models"):
        package = importlib.import_module(f"taet.{folder}")
        for file in sorted((PACKAGE / folder).glob("*.py")):
            importlib.import_module(f"taet.{folder}.{file.stem}")
        hidden += [
            f"taet.{folder}.{name}"
            for name in getattr(package, "__all__", ())
            if isinstance(getattr(package, name), ModuleType)
        ]
    assert not hidden
