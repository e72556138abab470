"""What a specification says, and that every mistake in one is a line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taet import registry
from taet.errors import UserError
from taet.experiments import parse, read
from taet.experiments.cells import cells

TEXT = """
title = "Two"
methods = ["at", {name = "harl-skip", method = "harl", settings = {absent = "skip", "outer.name" = "focal"}}]
data = ["digits-lt"]
imbalance = [10, 50.0]
seeds = [3]
protocol = "reat"
[settings]
training.batch-size = 32
"threat.eps" = "8/255"
training.milestones = [0.5, 0.8]
[[variants]]
name = "ra+bsl"
settings = {"outer.name" = "balanced-softmax", method.beta = 6}
"""


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(TEXT)
    found = read(path)
    assert (found.title, found.data, found.imbalance) == ("Two", ("digits-lt",), (10, 50.0))
    assert (found.seeds, found.protocol) == ((3,), "reat")
    assert found.settings == {
        "training.batch_size": 32,
        "threat.eps": 8 / 255,
        "training.milestones": (0.5, 0.8),
    }
    assert [(entry.name, entry.method, entry.settings) for entry in found.methods] == [
        ("at", "at", {}),
        ("harl-skip", "harl", {"method.absent": "skip", "outer.name": "focal"}),
    ]
    assert [(variant.name, variant.settings) for variant in found.variants] == [
        ("", {}),
        ("ra+bsl", {"outer.name": "balanced-softmax", "method.beta": 6}),
    ]


def test_what_is_not_given_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('methods = "all"\ndata = ["digits-lt"]')
    found = read(path)
    assert [entry.name for entry in found.methods] == list(registry.entries("methods"))
    assert (found.title, found.imbalance, found.seeds, found.protocol) == ("small", (None,), (0,), "taet")


def test_settings_may_have_the_names_that_the_command_line_has() -> None:
    settings = {"epochs": 2, "batch-size": 8, "model": "resnet8", "outer": "focal"}
    full = {"training.epochs": 2, "training.batch_size": 8, "model.name": "resnet8", "outer.name": "focal"}
    assert parse(GOOD | {"settings": settings}).settings == full
    assert parse(GOOD | {"variants": [{"name": "x", "settings": settings}]}).variants[1].settings == full
    entry = {"name": "x", "method": "harl", "settings": settings | {"momentum": 0.5}}
    assert parse(GOOD | {"methods": [entry]}).methods[0].settings == full | {"method.momentum": 0.5}, "harl's own knob"


GOOD: dict[str, Any] = {"methods": ["at"], "data": ["digits-lt"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": ["at"]}, r"unknown key 'method'.*did you mean 'methods'\?"),
        ({"methods": "at"}, r"methods: got 'at'; allowed: a list of text or tables, one or more or 'all'"),
        ({"methods": []}, r"methods: got \[\]; allowed"),
        ({"methods": [1]}, "methods: got 1"),
        ({"methods": ["att"]}, r"unknown method 'att'.*did you mean"),
        ({"methods": ["at", "at"]}, "methods: got at 2 times; allowed: each once"),
        ({"methods": [{"name": "x", "metod": "at"}]}, r"unknown key of an entry of methods 'metod'.*'method'\?"),
        ({"methods": [{"name": "x"}]}, "unknown method 'x'"),
        ({"methods": [{"method": "at"}]}, "methods: got the name ''; allowed: letters"),
        ({"methods": [{"name": "a/b", "method": "at"}]}, "got the name 'a/b'; allowed: letters"),
        ({"methods": [{"name": "x", "method": "at", "settings": 1}]}, "settings: got 1; allowed: a table"),
        ({"data": "digits-lt"}, "data: got 'digits-lt'; allowed: a list of text"),
        ({"data": ["digits-lt", "digits-lt"]}, "data: got digits-lt 2 times"),
        ({"imbalance": [True]}, "imbalance: got True; allowed: numbers"),
        ({"imbalance": ["10"]}, "imbalance: got '10'; allowed: numbers"),
        ({"imbalance": []}, r"imbalance: got \[\]"),
        ({"seeds": [0.5]}, "seeds: got 0.5; allowed: whole numbers"),
        ({"seeds": 3}, "seeds: got 3; allowed: a list"),
        ({"seeds": [0, 0]}, "seeds: got 0 2 times"),
        ({"protocol": "tat"}, r"unknown protocol 'tat'.*did you mean 'taet'\?"),
        ({"protocol": 1}, "protocol: got 1; allowed: text"),
        ({"title": ["x"]}, r"title: got \['x'\]"),
        ({"settings": {"epoch": 3}}, r"settings: unknown setting 'epoch'.*did you mean 'epochs'\?"),
        ({"settings": {"threat": 3}}, "settings: unknown setting 'threat'; allowed: .* an option of taet train"),
        ({"settings": {"eps": 3}}, r"unknown setting 'eps'.*did you mean 'threat.eps'\?"),
        ({"settings": {"data": "x"}}, "settings: got data; allowed: as data of the specification"),
        ({"settings": {"epochs": 3, "training.epochs": 4}}, "settings: got training.epochs twice"),
        ({"settings": {"trainin.epochs": 3}}, r"unknown setting.*allowed: data\.\*.*did you mean 'training.epochs'\?"),
        ({"settings": {"data.name": "x"}}, "settings: got data.name; allowed: as data of the specification"),
        ({"settings": {"data": {"imbalance-ratio": 3}}}, "allowed: as imbalance of the specification"),
        ({"settings": {"seed": 3}}, "settings: got seed; allowed: as seeds of the specification"),
        ({"settings": {"protocol": "reat"}}, "settings: got protocol; allowed: as protocol of the specification"),
        ({"seeds": [-1]}, "seeds: got -1; allowed: 0 to 2"),
        ({"seeds": [2**63]}, "seeds: got 9223372036854775808; allowed: 0 to 2"),
        ({"imbalance": [0.1]}, r"imbalance ratio: got 0.1.*did you mean 10\?"),
        ({"methods": [{"name": "x", "method": "harl", "settings": {"absnt": 1}}]}, r"methods: x: .*mean 'absent'\?"),
        ({"settings": {"training.epochs": 3, "training": {"epochs": 4}}}, "settings: got training.epochs twice"),
        ({"settings": {"training.epochs": [[None]]}}, r"settings: training.epochs: got \[\[None\]\]"),
        ({"variants": [{"name": "x"}]}, "variants: x: got no settings"),
        ({"variants": [{"settings": {"outer.name": "focal"}}]}, "variants: got the name ''"),
        ({"variants": {"name": "x"}}, "variants: got .*; allowed: a list of tables"),
        ({"variants": [{"name": "x", "setings": {}}]}, r"unknown key of an entry of variants 'setings'.*'settings'\?"),
    ],
)
def test_a_mistake_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(GOOD | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["methods", "data"])
def test_a_key_that_is_missing(missing: str) -> None:
    with pytest.raises(UserError, match=f"{missing} is missing"):
        parse({key: value for key, value in GOOD.items() if key != missing})


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("methods = [")
    with pytest.raises(UserError, match=r"broken\.toml: not TOML: "):
        read(tmp_path / "broken.toml")
    (tmp_path / "wrong.toml").write_text("seeds = [0]")
    with pytest.raises(UserError, match=r"specification .*wrong\.toml: methods is missing"):
        read(tmp_path / "wrong.toml")


GRID = 'methods = ["at"]\ndata = ["digits-lt"]\n'
MANY = "9" * 5000
FILES: dict[str, tuple[bytes, str]] = {
    "lists in lists": (f"seeds = {'[' * 5000}{']' * 5000}".encode(), "not TOML: lists or tables are nested too deeply"),
    "lists in a setting": (f"{GRID}[settings]\nepochs = {'[' * 50}{']' * 50}".encode(), "training.epochs: got [[["),
    "tables in tables": (f"{GRID}[settings]\na = {'{a=' * 5000}1{'}' * 5000}".encode(), "nested too deeply"),
    "a long key": (f"{GRID}[settings]\n{'a.' * 5000}a = 1".encode(), "allowed: at most 8 tables inside each other"),
    "a table of a long key": (f"{GRID}[settings.{'a.' * 5000}a]\nb = 1".encode(), "at most 8 tables inside each other"),
    "a long key at the top": (f"{'a.' * 5000}a = 1".encode(), "unknown key 'a'"),
    "a number of 5,000 digits": (f"{GRID}seeds = [{MANY}]".encode(), "not TOML: Exceeds the limit"),
    "a hexadecimal one": (
        f"{GRID}seeds = [0x{MANY}]".encode(),
        "seeds: got a int too large to print",
    ),
    "a hexadecimal setting": (f"{GRID}[settings]\nepochs = 0x{MANY}".encode(), "epochs: got a int too large to print"),
    "a hexadecimal weight": (
        f"{GRID}[settings]\nweight-decay = 0x{MANY}".encode(),
        "decay: got a int too large",
    ),
    "a number of 400 digits": (f"{GRID}[settings]\nweight-decay = {'9' * 400}".encode(), "at most 64 bits"),
    "underscores in a text": (
        f'{GRID}[settings]\nthreat.eps = "1_0/255"'.encode(),
        "eps: got",
    ),
    "infinity": (f"{GRID}imbalance = [inf]".encode(), "imbalance ratio: got inf; allowed: 1 or more"),
    "not a number": (f"{GRID}imbalance = [nan]".encode(), "imbalance ratio: got nan"),
    "a date": (f"{GRID}[settings]\nepochs = 2020-01-01".encode(), "training.epochs: got datetime.date(2020, 1, 1)"),
    "a zero byte": (b'methods = ["at"]\ndata = ["npz:a\\u0000.npz"]', "text in UTF-8 without zero bytes"),
    "half a character": (b'title = "\\ud800"', "not TOML: "),
    "other bytes": (b'title = "\xff"', "not TOML: 'utf-8' codec"),
    "a zip": (b"PK\x03\x04\x00\x00", "not TOML: "),
    "two megabytes": (b"#" * 2**21, "got 2,097,152 bytes; allowed: at most 1,048,576"),
    "many cells": (f"{GRID}seeds = {[*range(100_001)]}".encode(), "got 100,001 cells; allowed: at most 100,000"),
    "a long title": (f'{GRID}title = ["{"x" * 5000}"]'.encode(), "title: got ['xxx"),
    "a long name": (f'methods = ["{"x" * 5000}"]\ndata = ["digits-lt"]'.encode(), "unknown method 'xxx"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_specification_is_one_line(case: str, tmp_path: Path) -> None:
    content, message = FILES[case]
    (tmp_path / "spec.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        cells(read(tmp_path / "spec.toml"), tmp_path)
    assert message in str(caught.value)
    assert "spec.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
