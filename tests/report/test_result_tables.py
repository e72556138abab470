"""The tables of the README: a row per card, or per method with several seeds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from taet import methods
from taet.evaluation.card import ResultCard


@pytest.fixture(scope="module")
def render() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "result_tables.py"
    spec = importlib.util.spec_from_file_location("result_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_single_cards_have_intervals_and_the_order_of_robustness(
    render: ModuleType, make_card: Callable[..., ResultCard], tmp_path: Path
) -> None:
    for method in ("taet", "at"):
        make_card(method).save(tmp_path / f"{method}.json")
    table = cells(render.table(tmp_path))
    robust = {name: make_card(name).summary("autoattack").balanced for name in ("at", "taet")}
    assert [*table] == ["method", "---", *(f"{name} in words" for name in sorted(robust, key=lambda m: -robust[m]))]
    assert cells(render.table(tmp_path, ("clean", "autoattack")))["method"] == ["clean", *table["method"][-3:]]
    assert table["method"][-3:] == ["autoattack", "tail, autoattack", "cost, AT = 1"]
    summary = make_card("at").summary("clean")
    low, high = summary.balanced_interval
    assert table["at in words"][0] == f"{100 * summary.balanced:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def test_seeds_are_means_with_standard_errors_in_the_order_of_robustness(
    render: ModuleType, make_card: Callable[..., ResultCard], tmp_path: Path
) -> None:
    (tmp_path / "ra").mkdir()
    for seed in range(3):
        for method, name in (("at", "at"), ("taet", "taet"), ("at", "at-other"), ("at", "ra/at")):
            make_card(method, seed=seed + 10 * len(name)).save(tmp_path / f"{name}-seed{seed}.json")
    table = cells(render.table(tmp_path))
    assert table.pop("method")[-4:] == ["tail, autoattack", "accuracy", "n", "cost, AT = 1"]
    table.pop("---")
    assert set(table) == {"at in words", "at in words (at-other)", "at in words + ra", "taet in words"}
    robust = [float(row[4].strip("*").split("*")[0].split()[0]) for row in table.values()]
    assert robust == sorted(robust, reverse=True)
    values = np.array([make_card("taet", seed=seed + 40).summary("autoattack").balanced for seed in range(3)])
    mean, error = table["taet in words"][4].split()
    assert mean.strip("*") == f"{100 * values.mean():.1f}"
    assert error == f"({100 * values.std(ddof=1) / np.sqrt(3):.1f})"
    assert table["taet in words"][-2] == "3"
    assert [sum("**" in row[column] for row in table.values()) for column in range(7)] == [1] * 7


def test_rows_that_leave_the_protocol_are_marked_and_the_words_are_below(
    render: ModuleType, make_card: Callable[..., ResultCard], tmp_path: Path
) -> None:
    for seed in range(2):
        make_card("taet", seed=seed, run={"deviations": ["its own eps"]}).save(tmp_path / f"taet-seed{seed}.json")
        make_card("at", seed=seed).save(tmp_path / f"at-seed{seed}.json")
        make_card("adt", seed=seed, run={"deviations": []}).save(tmp_path / f"adt-seed{seed}.json")
        make_card("unknown", seed=seed).save(tmp_path / f"unknown-seed{seed}.json")
        make_card("las-at", seed=seed).save(tmp_path / f"las-at-seed{seed}.json")  # does not know: the declared ones
    table, *notes = render.table(tmp_path).split("\n\n")
    assert len(table.splitlines()) == 2 + 5
    names = [name for name in cells(table) if name not in ("method", "---")]
    marked = [name.removesuffix("</sup>").split("<sup>") for name in names if "<sup>" in name]
    (declared,) = methods.find("las-at").deviations
    words = {"taet in words": "its own eps", "las-at in words": declared}
    assert notes == [f"<sup>{mark}</sup> leaves the protocol: {words[name]}" for name, mark in marked]
    assert sorted(name for name, _ in marked) == sorted(words)
    assert [mark for _, mark in marked] == ["1", "2"]
    assert {"at in words", "adt in words", "unknown in words"} < set(names)
