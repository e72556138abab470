"""Results that threads compute in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


def ahead(
    function: Callable[[Input], Output], values: Iterable[Input], most: int, threads: int | None = None
) -> Iterator[Output]:
    """Yield `function` of every value in order; threads work on the next `most` values, which bounds their memory."""
    left, pool = iter(values), ThreadPoolExecutor(threads)
    try:
        begun = deque(pool.submit(function, value) for value in islice(left, most))
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(function, value) for value in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)
