"""Units of work: each is done once, kept, checked when it comes back, and told before it is done."""

from __future__ import annotations

import numpy as np
import pytest

from taet.attacks.units import Unit, run_units


class Shelf:
    """A state in memory that notes what is put."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}
        self.written: list[str] = []

    def get(self, key: str) -> Unit | None:
        return self.units.get(key)

    def put(self, key: str, arrays: Unit) -> None:
        self.written.append(key)
        self.units[key] = arrays


def square(number: int) -> Unit:
    return {"number": np.asarray(number), "square": np.asarray(number**2)}


def run(count: int, state: Shelf | None, computed: list[int] | None = None) -> list[int]:
    def compute(number: int) -> Unit:
        if computed is not None:
            computed.append(number)
        return square(number)

    found = run_units(
        count,
        compute,
        state=state,
        key=lambda number: f"unit-{number}",
        valid=lambda number, unit: int(unit["number"]) == number,
    )
    return [int(unit["square"]) for unit in found]


def test_what_is_missing_or_about_something_else_is_done_again() -> None:
    state, computed = Shelf(), list[int]()
    run(6, state)
    del state.units["unit-1"]
    state.units["unit-4"] = square(3)
    assert run(6, state, computed) == [0, 1, 4, 9, 16, 25]
    assert computed == [1, 4]


def test_what_was_done_before_a_failure_is_kept() -> None:
    state = Shelf()

    def fail(number: int) -> Unit:
        if number == 3:
            raise KeyboardInterrupt
        return square(number)

    with pytest.raises(KeyboardInterrupt):
        run_units(5, fail, state=state, key=lambda number: f"unit-{number}", valid=lambda *_: True)
    computed: list[int] = []
    assert run(5, state, computed) == [0, 1, 4, 9, 16]
    assert computed == [3, 4]


def test_a_unit_is_told_before_it_is_done_and_one_that_is_there_is_not() -> None:
    state, said = Shelf(), list[str]()

    def compute(number: int) -> Unit:
        said.append(f"do {number}")
        return square(number)

    state.put("1", square(1))
    run_units(
        3, compute, state=state, key=str, valid=lambda *_: True, begin=lambda number: said.append(f"begin {number}")
    )
    assert said == ["begin 0", "do 0", "begin 2", "do 2"]
