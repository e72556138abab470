"""`taet cost` from the words of the call to its tables and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.cli import cost

Command = Callable[..., Any]
TINY = ["--batch-size", "4", "--steps", "2", "--curve", "1", "5", "--rounds", "1", "--threads", "1"]
TINY += ["--precision", "float32"]


def test_a_measurement_from_call_to_tables(taet: Command, tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    words = ["cost", "--image-shape", "1", "8", "8", "--classes", "4", "--methods", "at", "robal", *TINY, "--out", file]
    done = taet(*words)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("resnet8, 1 x 8 x 8, 4 classes, ")
    titles = [line for line, before in zip(lines[2:], lines[1:-1], strict=True) if line and not before]
    assert [title.split(":")[0].split(",")[0] for title in titles] == [
        "TAET beside adversarial training",
        "Parts of a step",
        "Share saved by T_ce clean epochs",
        "Memory",
        "An epoch of adversarial training against PGD steps",
        "Methods",
    ]
    found = json.loads(file.read_text())
    assert found["command"].startswith("taet cost --image-shape 1 8 8 --classes 4")
    assert found["classes"] == 4
    assert [point["steps"] for point in found["curve"]] == [1, 5]
    assert [entry["name"] for entry in found["costs"]] == ["at", "robal"]
    row = next(line for line in lines if line.startswith("  robal")).split()
    assert row[1:3] == ["4.00", "4.00"]
    assert row[-1] == "1.07–1.09"


def test_data_say_the_shape_and_json_has_no_tables(taet: Command) -> None:
    done = taet("cost", "--data", "digits-lt", "--data.max-count", "20", "--methods", *TINY, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["image_shape"], found["classes"], found["images"]) == ([1, 8, 8], 10, 78)
    assert found["costs"] == []


def test_the_paper_stands_beside(taet: Command) -> None:
    out = taet("cost", "--image-shape", "3", "8", "8", "--methods", *TINY, "--steps", "10").out
    rows = {line.strip().partition("  ")[0]: line.split()[-5:] for line in out.splitlines()}
    assert rows["TAET's gamma"] == ["0.619", "0.139", "0.656", "34.4", "39.2"]
    assert rows["multiplications alone"] == ["0.667", "0.130", "0.652", "34.8", "39.3"]
    assert rows["M_delta: their difference"][-1] == "1,629.42"
    assert rows["5"][-2:] == ["54", "0.64"]


def test_all_is_every_method_with_every_variant() -> None:
    assert ("adt", {"variant": "imp-am"}) in cost.wanted_methods(("all",))
    assert cost.wanted_methods(cost.CostOptions().methods) == [(name, {}) for name in ("at", "robal", "reat", "taet")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model resnte8", "unknown model 'resnte8'"),
        ("--methods at rest", "unknown method 'rest'; allowed: adt, at, at-bsl"),
        ("--batch-size 0", "batch size: got 0; allowed: 1 or more"),
        ("--clean-epochs 120", "clean epochs: got 120; allowed: 0 to 100, the epochs"),
        ("--classes 1", "classes: got 1; allowed: 2 to 5000"),
        ("--image-shape 3 32", "--image-shape: got '3 32'; allowed: 3 whole numbers"),
        ("--data digits-lt --classes 3", "--image-shape, --classes: got them beside --data"),
        ("--data.size 9", "--data.*: got options of a data set without --data NAME"),
        ("--precision fp16", "did you mean 'bf16'?"),
        ("--device gpu", "device: got gpu; allowed: auto, cpu, cuda"),
        ("--out nowhere/cost.json", "--out: got nowhere/cost.json; allowed: a file in a folder that is there"),
        ("--round 3", "did you mean --rounds?"),
    ],
)
def test_a_mistake_is_one_line(taet: Command, words: str, message: str) -> None:
    done = taet("cost", *words.split())
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
