"""Units of work that are saved when finished and shared between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from taet.distributed import gather, rank, unless_one_ends, world_size

Unit = Mapping[str, NDArray[Any]]  # the arrays of a unit of work, by name


class UnitStore(Protocol):
    """A store of finished units of work: `get` returns the arrays that `put` stored, or None."""

    def get(self, key: str) -> Unit | None: ...

    def put(self, key: str, arrays: Unit) -> None: ...


def run_units(
    count: int,
    compute: Callable[[int], Unit],
    *,
    state: UnitStore | None,
    key: Callable[[int], str],
    valid: Callable[[int, Unit], bool],
    begin: Callable[[int], None] = lambda _: None,
) -> list[Unit]:
    """Return the arrays of units 0 to count - 1, taken from `state` or computed and stored there.

    With P processes, all of which must make the same call, process r computes the units r, r + P, r + 2P, ...;
    afterwards each process has all of them. `key` names a unit in `state`, `valid` says whether stored arrays are this
    unit and complete, and `begin` is called before a unit is computed, not for a stored one.
    """

    def unit(number: int) -> Unit:
        found = None if state is None else state.get(key(number))
        if found is None or not valid(number, found):
            begin(number)
            found = compute(number)
            if state is not None:
                state.put(key(number), found)
        return found

    mine = [(key(number), unit(number)) for number in range(rank(), count, world_size())]
    with unless_one_ends("; finished batches are kept" if state is not None else ""):
        shares = gather(mine)
    done = {name: arrays for share in shares for name, arrays in share}
    if done.keys() != {key(number) for number in range(count)}:
        raise RuntimeError("processes that share work were asked for different units")
    return [done[key(number)] for number in range(count)]
