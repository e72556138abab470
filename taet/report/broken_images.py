"""Tables of how many images each attack breaks, and how many each part of a suite breaks after the earlier parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from taet import statistics
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.report.measured import AttackKey, Measured, TextCell, heads
from taet.report.tables import MethodTable


def by_attack(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> Iterator[MethodTable]:
    """Yield a table per threat model with at least two attacks: how many images each breaks, and only that one."""
    inside = [attack for attack in attacks if attack.bounded and not attack.is_worst_case]
    for ball in dict.fromkeys(attack.ball for attack in inside):
        here = [attack for attack in inside if attack.ball == ball]
        if len(here) > 1:
            columns = [
                TextCell("right, clean"),
                *(TextCell(head.text) for head in heads(here)),
                TextCell("left by all"),
            ]
            rows = tuple((run.series, _attacks(run, here)) for run in runs)
            yield MethodTable("Images that each attack breaks", tuple(columns), rows, here[0].threat)


def _attacks(run: Measured, attacks: Sequence[AttackKey]) -> tuple[TextCell | None, ...]:
    ends: list[tuple[int, int]] = []
    found: dict[AttackKey, list[tuple[int, int]]] = {}
    for card in run.series.cards:
        columns = {a: column for a in attacks for owner, column in run.columns.get(a, ()) if owner is card}
        if columns:
            masks = np.stack([_clean(card), *(column.correct for column in columns.values())])
            broken = ~masks[1:] & masks[0]
            only = broken & (broken.sum(0) == 1)
            ends.append((masks[0].sum(), masks.all(0).sum()))
            for attack, every, alone in zip(columns, broken.sum(1), only.sum(1), strict=True):
                found.setdefault(attack, []).append((every, alone))
    texts = {attack: [_mean(counts) for counts in zip(*pairs, strict=True)] for attack, pairs in found.items()}
    cells = (TextCell(texts[attack][0], f"{texts[attack][1]} only") if attack in texts else None for attack in attacks)
    right, left = (TextCell(_mean(counts)) for counts in zip(*ends, strict=True)) if ends else (None, None)
    return (right, *cells, left)


def by_part(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> Iterator[MethodTable]:
    """Yield a table for each attack in parts: how many images each part breaks that the earlier parts left correct.

    A worst case is shown only if its attacks were not measured separately; `by_attack` shows those.
    """
    alone = Counter(attack.ball for attack in attacks if attack.bounded and not attack.is_worst_case)
    for attack in (attack for attack in attacks if not attack.is_worst_case or alone[attack.ball] < 2):
        members = [run for run in runs if attack in run.columns]
        parts = [list(column.parts) for run in members for _, column in run.columns[attack] if column.parts]
        if parts:
            columns = [TextCell("right, clean"), *(TextCell(part) for part in parts[0]), TextCell("left")]
            rows = tuple((run.series, _parts(run.columns[attack], parts[0])) for run in members)
            yield MethodTable(f"Parts of {attack.name}", tuple(columns), rows, attack.threat)


def _parts(columns: Sequence[tuple[ResultCard, Column]], parts: Sequence[str]) -> tuple[TextCell | None, ...]:
    masks = [[_clean(card), *(column.parts[part] for part in parts)] for card, column in columns if column.parts]
    if not masks:
        return (None,) * (len(parts) + 2)
    left = statistics.worst_case(np.swapaxes(np.asarray(masks), 0, 1)).sum(-1)
    broken = left[:-1] - left[1:]
    return tuple(TextCell(_mean(counts)) for counts in (left[0], *broken, left[-1]))


def _clean(card: ResultCard) -> statistics.Mask:
    """Return the mask of images that are classified correctly without attack; all if that was not measured."""
    return np.ones(len(card.labels), dtype=bool) if card.clean is None else card.clean.correct


def _mean(counts: Sequence[int]) -> str:
    """Format a number of images, or its mean over seeds."""
    return f"{float(np.mean(counts)):.1f}" if len(counts) > 1 else str(int(counts[0]))
