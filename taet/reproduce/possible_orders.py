"""The rank correlations of the orders that paired tests leave possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def correlations(published: Sequence[float], below: Sequence[int]) -> tuple[float, float] | None:
    """Return the least and greatest Spearman correlation over all orders without ties that keep rows above others.

    `below` has for every row the rows that must be below it, as bits. An order is built from below: what the rows of a
    set add to the correlation does not depend on the rows above it, so the best order of each set is enough. None if
    no order is possible.
    """
    count, ranks = len(published), stats.rankdata(published)
    ranks = ranks - ranks.mean()
    ends = []
    for sign in (-1, 1):
        best = {0: 0.0}
        for rows in range(2**count):
            for row in range(count) if rows in best else ():
                if not rows >> row & 1 and not below[row] & ~rows:
                    value = best[rows] + sign * (rows.bit_count() + 1) * ranks[row]
                    best[rows | 1 << row] = max(value, best.get(rows | 1 << row, -math.inf))
        if 2**count - 1 not in best:
            return None
        ends.append(sign * best[2**count - 1] / math.sqrt((ranks**2).sum() * (count**3 - count) / 12))
    return float(ends[0]), float(ends[1])
