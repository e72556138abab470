"""The leaderboard: the rows of each setting by balanced accuracy under AutoAttack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from taet.evaluation.card import ResultCard
from taet.evaluation.diagnostics import MASKING, raised
from taet.report.results import Entry, Results
from taet.report.rows import images

if TYPE_CHECKING:
    import pandas as pd

LEAD = "autoattack"
COLUMNS = (
    *("data", "imbalance_ratio", "model", "protocol", "selection", "row", "rank", LEAD, "low", "high"),
    *("clean", "pgd-20", "tail", "worst", "seeds", "flags"),
)
"""low and high are the 95 % interval under AutoAttack; tail and worst are under it as well."""
PGD_ALONE = frozenset({"autoattack-far-below-pgd", "logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"})
"""Flags of a loss or scale that misleads PGD but not AutoAttack, whose losses are a margin and free of the scale."""


def board(results: Results) -> pd.DataFrame:
    """Return the rows of each setting, best first, with `COLUMNS`.

    A setting is data, imbalance ratio, training counts, network, protocol, threat, and the rule that chose the epoch.
    A rank is a range where paired tests over common seeds do not tell rows apart. Cards that may not be ranked are left
    out, with the reason in `.attrs["left out"]`.
    """
    import pandas as pd

    left = {entry.source.name: why for entry in results.entries if (why := unranked(entry.card))}
    places: dict[object, list[Entry]] = {}
    for entry in results.entries:
        if entry.source.name not in left:
            places.setdefault((images(entry.card), entry.setting), []).append(entry)
    boards = [_ranked(Results(tuple(entries))) for entries in places.values()]
    found = pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=list(COLUMNS))
    found.attrs["left out"] = left
    return found


def unranked(card: ResultCard) -> str:
    """Return why a card may not stand on a board; empty if it may."""
    attacks = {column.name for column in card.columns}
    if missing := [name for name in ("clean", LEAD) if name not in attacks]:
        return f"not attacked by {missing[0]}" if missing[0] == LEAD else "clean images were not measured"
    if card.model.get("leak"):
        return "its epoch was chosen on the test images"
    if not card.probe:
        return "no probe of its gradients"
    misled = MASKING.intersection(raised(card)) - PGD_ALONE
    return f"gradients may mislead AutoAttack: {', '.join(sorted(misled))}" if misled else ""


def _ranked(one: Results) -> pd.DataFrame:
    """Return the board of one setting."""
    import pandas as pd

    scores = one.scores("balanced", "tail", "worst").set_index(["row", "attack", "group"])
    means = scores["accuracy"]
    order = sorted(one.rows, key=lambda row: -means[row, LEAD, "balanced"])
    setting, lines = one.entries[0].setting, []
    for row in order:
        others = (one.difference(row, other, LEAD) for other in order if other != row)
        decided = [found.value for found in others if found is not None and found.decided]
        best, worst = 1 + sum(value < 0 for value in decided), len(order) - sum(value > 0 for value in decided)
        lead = scores.loc[row, LEAD, "balanced"]
        flags = {name for entry in one.entries if entry.row == row for name in raised(entry.card)}
        lines.append(
            (
                *(setting.data, setting.imbalance_ratio, setting.model, setting.protocol, setting.selection, row),
                str(best) if best == worst else f"{best}–{worst}",
                *(lead["accuracy"], lead["low"], lead["high"]),
                *(means.get((row, attack, "balanced"), math.nan) for attack in ("clean", "pgd-20")),
                *(means.get((row, LEAD, group), math.nan) for group in ("tail", "worst")),
                int(lead["seeds"]),
                " ".join(sorted(flags - {"small-test-set"})),
            )
        )
    return pd.DataFrame(lines, columns=list(COLUMNS))
