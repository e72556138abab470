"""Units of work: each is done once, kept, checked when it comes back, and told before it is done."""

from __future__ import annotations

import numpy as np
import pytest

from taet.attacks.units import Unit, run_units


class Shelf:
    """A state in memory."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}

    def get(self, key: str) -> Unit | None:
        return self.units.get(key)

    def put(self, key: str, arrays: Unit) -> None:
        self.units[key] = arrays


def run(count: int, state: Shelf, fails_at: int = -1) -> tuple[list[int], list[str]]:
    """The squares of the numbers, and what was told and done."""
    said: list[str] = []

    def compute(number: int) -> Unit:
        if number == fails_at:
            raise KeyboardInterrupt
        said.append(f"do {number}")
        return {"number": np.asarray(number), "square": np.asarray(number**2)}

    found = run_units(
        count,
        compute,
        state=state,
        key=lambda number: f"unit-{number}",
        valid=lambda number, unit: int(unit["number"]) == number,
        begin=lambda number: said.append(f"begin {number}"),
    )
    return [int(unit["square"]) for unit in found], said


def test_what_is_missing_or_about_something_else_is_done_again() -> None:
    state = Shelf()
    run(6, state)
    del state.units["unit-1"]
    state.units["unit-4"] = state.units["unit-3"]
    assert run(6, state) == ([0, 1, 4, 9, 16, 25], ["begin 1", "do 1", "begin 4", "do 4"])


def test_what_was_done_before_a_failure_is_kept() -> None:
    state = Shelf()
    with pytest.raises(KeyboardInterrupt):
        run(5, state, fails_at=3)
    assert run(5, state) == ([0, 1, 4, 9, 16], ["begin 3", "do 3", "begin 4", "do 4"])
