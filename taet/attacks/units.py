"""Units of work: kept when they are finished, shared between processes, and the same whoever did them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from taet.distributed import gather, rank, unless_one_ends, world_size

Arrays = Mapping[str, NDArray[Any]]


class UnitStore(Protocol):
    """Where finished units of work are kept; what `get` returns was once given to `put`, or is None."""

    def get(self, key: str) -> Arrays | None: ...

    def put(self, key: str, arrays: Arrays) -> None: ...


def run_units(
    count: int,
    compute: Callable[[int], Arrays],
    *,
    state: UnitStore | None,
    key: Callable[[int], str],
    valid: Callable[[int, Arrays], bool],
    begin: Callable[[int], None] | None = None,
) -> list[Arrays]:
    """Return the arrays of units 0 to count - 1, each from `state` where that has it, else computed and put there.

    Of P processes, which must all call this alike, process r does the units r, r + P, r + 2P, ...; afterwards each has
    all of them. A unit that is a function of its number alone is therefore the same with any number of processes.

    Args:
        count: how many units there are.
        compute: does a unit.
        state: keeps finished units; None keeps none.
        key: what a unit is called in `state`.
        valid: is what `state` has this unit, and whole?
        begin: called before a unit is computed; one that `state` has is passed over in silence.
    """

    def unit(number: int) -> Arrays:
        found = None if state is None else state.get(key(number))
        if found is None or not valid(number, found):
            if begin is not None:
                begin(number)
            found = compute(number)
            if state is not None:
                state.put(key(number), found)
        return found

    processes = world_size()
    mine = [(key(number), unit(number)) for number in range(rank(), count, processes)]
    with unless_one_ends("; finished batches are kept" if state is not None else ""):
        shares = gather(mine)
    done = {name: arrays for share in shares for name, arrays in share}
    if done.keys() != {key(number) for number in range(count)}:
        raise RuntimeError("processes that share work were asked for different units")
    return [done[key(number)] for number in range(count)]
