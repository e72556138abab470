"""Methods, attacks, data and models are found by reading files, and every one of them can be loaded."""

from __future__ import annotations

import subprocess
import sys
import typing
from types import ModuleType

import pytest

from taet import methods, registry
from taet.errors import UserError
from taet.registry import Kind

KINDS = typing.get_args(Kind)
# What the project promises by name; more may come.
PROMISED = {
    "methods": {"at", "at-bsl", "harl", "taet"},
    "attacks": {"fgsm", "pgd", "autoattack", "autoattack-fast", "autoattack-10"},
    "data": {"digits-lt", "cifar10-lt"},
    "models": {"resnet18", "resnet8"},
}


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
        assert 10 <= len(entry.title) <= 120, name
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
    assert not {"base", "init", "--init--"} & set(registry.entries("methods"))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "tate", r"unknown method 'tate'; allowed: at, .*did you mean '(at|taet)'\?"),
        ("methods", "at_bsl", r"did you mean 'at-bsl'\?"),
        ("attacks", "autoatack", r"unknown attack 'autoatack'.*did you mean 'autoattack'\?"),
        ("data", "cifar10lt", r"unknown data set 'cifar10lt'.*did you mean 'cifar10-lt'\?"),
        ("models", "resnet81", r"unknown model 'resnet81'.*did you mean 'resnet18'\?|did you mean 'resnet8'\?"),
        ("models", "zzz", r"unknown model 'zzz'; allowed: [^;]+$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_match(kind: Kind, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.find(kind, name)
