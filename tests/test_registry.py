"""Methods, attacks, data and models are found by reading files, and every one of them can be loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

from taet import methods, registry
from taet.cli import main
from taet.errors import UserError
from taet.registry import Kind
from tests.calls import configure

KINDS = typing.get_args(Kind)
# What the project promises by name; more may come.
# fmt: off
PROMISED = {
    "methods": {
        "adt", "at", "at-bsl", "gairat", "harl", "he", "las-at", "mart", "reat", "robal", "robust-lt", "standard",
        "taet", "trades",
    },
    "attacks": {
        "fgsm", "pgd", "pgd-l2", "cw-linf", "cw-l2", "deepfool", "adaptive",
        "autoattack", "autoattack-fast", "autoattack-10", "autoattack-l2", "autoattack-l2-fast", "autoattack-l2-10",
    },
    "data": {"digits-lt", "cifar10-lt"},
    "models": {"resnet18", "resnet8"},
}
# fmt: on
ROOT = Path(__file__).parents[1]


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from taet import registry\n"
        f"for kind in {KINDS!r}: assert registry.entries(kind)\n"
        "found = {'torch', 'numpy', 'taet.methods', 'taet.data'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_every_promised_name_is_there_with_a_title_in_the_order_of_the_alphabet(kind: Kind) -> None:
    entries = registry.entries(kind)
    assert set(entries) >= PROMISED[kind]
    assert list(entries) == sorted(entries)
    for name, entry in entries.items():
        assert entry.name == name
        assert 10 <= len(entry.title) <= 170, name
        assert "\n" not in entry.title
        assert name == name.lower()
        assert "_" not in name


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in registry.entries(kind)])
def test_every_entry_loads(kind: Kind, name: str) -> None:
    module = registry.find(kind, name).load()
    assert isinstance(module, ModuleType)
    assert module.__name__.startswith(f"taet.{kind}.")
    if kind == "methods":
        assert methods.find(name).__module__ == module.__name__
    else:
        assert name in module.NAMES


def test_base_and_package_files_offer_nothing() -> None:
    assert not {"base", "wrapper", "init", "--init--"} & set(registry.entries("methods"))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "tate", r"unknown method 'tate'; allowed: adt, at, .*did you mean '(at|taet)'\?"),
        ("methods", "at_bsl", r"did you mean 'at-bsl'\?$"),
        ("methods", "prediction-balanced", r"taet, trades, wat; is it a plugin\? name its folder in TAET_PLUGINS$"),
        ("attacks", "autoatack", r"unknown attack 'autoatack'.*did you mean 'autoattack'\?"),
        ("data", "cifar10lt", r"unknown data set 'cifar10lt'.*did you mean 'cifar10-lt'\?"),
        ("models", "resnet81", r"unknown model 'resnet81'.*did you mean 'resnet18'\?|did you mean 'resnet8'\?"),
        ("models", "zzz", r"unknown model 'zzz'; allowed: [^;]+$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_match(kind: Kind, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.find(kind, name)


# -- files of one's own ------------------------------------------------------------------------------------------------


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user with the method of the example."""
    (tmp_path / "methods").mkdir()
    shutil.copy(ROOT / "examples" / "add_a_method.py", tmp_path / "methods" / "own.py")
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("plugins")
def test_a_method_of_a_user_is_in_the_list_and_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "methods"]) == 0
    assert "prediction-balanced  Cross-entropy with larger weights" in capsys.readouterr().out
    run, _ = configure("prediction-balanced", ["--method.power", "0.5"])
    assert run.settings.power == 0.5
    short = "--data.max-count 20 --model resnet8 --epochs 1 --threat.steps 1 --monitor-steps 1 --threads 1"
    for method in (["prediction-balanced"], ["robust-lt", "--method.base", "prediction-balanced"]):
        assert main(["train", *method, *short.split(), "--out", str(tmp_path / method[0])]) == 0
        assert (tmp_path / method[0] / "done").exists()
    assert main(["train", "prediction-balanced", "--method.power", "9"]) == 2
    assert "method power: got 9; allowed: 0 to 4" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.usefixtures("plugins")
def test_the_contract_tests_find_it_and_hold() -> None:
    """In a process of its own, as its author would run them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "prediction-balanced"]
    done = subprocess.run(
        [*command, "tests/methods/test_contract.py"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 20, done.stdout


def test_a_file_can_be_added_in_a_program(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAET_PLUGINS")
    assert "prediction-balanced" not in registry.entries("methods")
    for _ in range(2):
        registry.add("methods", plugins / "methods" / "own.py")
    assert methods.find("prediction-balanced").title == "Prediction-balanced AT"
    registry.forget("methods", plugins / "methods" / "own.py")
    assert "prediction-balanced" not in registry.entries("methods")
    with pytest.raises(UserError, match="allowed: a Python file"):
        registry.add("methods", plugins / "methods" / "none.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("NAMES = {'at': 'another one'}", "the method 'at' exists already; rename yours"),
        ("def", "is no Python file"),
    ],
)
def test_a_file_that_cannot_be_offered_is_refused_in_one_line(plugins: Path, source: str, message: str) -> None:
    (plugins / "methods" / "own.py").write_text(source)
    registry.forget("methods", plugins / "methods" / "own.py")
    with pytest.raises(UserError, match=message):
        registry.entries("methods")


def test_a_file_that_breaks_when_it_is_imported_is_named(plugins: Path) -> None:
    (plugins / "methods" / "broken.py").write_text('"""Breaks."""\nimport no_such_module\n')
    with pytest.raises(UserError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        methods.find("broken")


@pytest.mark.parametrize("number", [0, 2])
def test_a_file_holds_one_method(plugins: Path, number: int) -> None:
    classes = "".join(f"class M{i}(Method): ...\n" for i in range(number))
    source = f'"""Counts."""\nfrom taet.methods.base import Method\n{classes}'
    (plugins / "methods" / f"count{number}.py").write_text(source)
    with pytest.raises(UserError, match=rf"count{number}\.py: got {number} methods; allowed: one class"):
        methods.find(f"count{number}")


WHOLE = {
    "title": 'title = "One"',
    "reference": 'reference = "a test"',
    "Config": "class Config(Method.Config):\n        power: float = 1.0",
    "loss": "def loss(self, model, x, y, adversarial): ...",
}


@pytest.mark.parametrize(
    ("name", "part", "source", "message"),
    [
        ("whole", "Config", WHOLE["Config"], None),
        ("knobless", "Config", "", None),
        ("lossless", "loss", "", "got no method loss; allowed: loss"),
        ("untitled", "title", "", "got no title; allowed: a text"),
        ("unsaid", "title", "title: str", "got no title; allowed: a text"),
        ("unreferenced", "reference", "reference = 3", "reference: got 3; allowed: a text"),
        ("plain", "Config", "class Config:\n        power: float = 1.0", "got a Config that is no Settings"),
        ("mapping", "Config", "Config = {}", "got a Config that is no Settings"),
        (
            "bare",
            "Config",
            "class Config(Method.Config):\n        power: float",
            "power without a default",
        ),
    ],
)
def test_a_method_that_lacks_a_part_is_refused_in_one_line(
    plugins: Path, name: str, part: str, source: str, message: str | None
) -> None:
    body = "\n    ".join((WHOLE | {part: source}).values())
    head = '"""Part."""\nfrom taet.methods.base import Method\n\n\n'
    (plugins / "methods" / f"{name}.py").write_text(f"{head}class One(Method):\n    {body}\n")
    if message is None:
        assert methods.find(name).title == "One"
        return
    with pytest.raises(UserError, match=rf"{name}\.py: .*{message}") as caught:
        methods.find(name)
    assert "\n" not in str(caught.value)
    assert main(["train", name]) == 2


def test_a_folder_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"TAET_PLUGINS: got .*nowhere; allowed: folders"):
        registry.entries("methods")
