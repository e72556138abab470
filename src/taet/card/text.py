"""A result card as text: one line for each attack."""

import math
from collections.abc import Sequence

from taet.attacks.ball import Norm
from taet.card.column import Column
from taet.card.summary import Summary
from taet.formatting import format_radius

CURVE_SETTINGS = {"steps": "steps", "eps": "eps", "logit-scale": "the scale of the logits"}
HEADINGS: tuple[str, ...] = ("attack", "accuracy %", "balanced %", "worst class %", "")


def attack_row(
    column: Column, summary: Summary, class_names: Sequence[str], norm: Norm
) -> tuple[str, ...]:
    """Return the cells of an attack under `HEADINGS`; `norm` is that of the card's ball."""
    return (
        column.name,
        _percent_with_interval(summary.accuracy, summary.accuracy_interval),
        _percent_with_interval(summary.balanced, summary.balanced_interval),
        _worst_class(summary, class_names),
        "; ".join(_remarks(column, summary, norm)),
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines, with columns of equal width."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _percent_with_interval(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _worst_class(summary: Summary, class_names: Sequence[str]) -> str:
    label, recall = summary.worst_class
    if label < 0:
        return "-"
    name = class_names[label]
    others = int((summary.per_class == recall).sum()) - 1
    named = f"{name} and {others} more" if others > 0 else name
    return f"{100 * recall:.1f} ({named})"


def _remarks(column: Column, summary: Summary, norm: Norm) -> list[str]:
    """Return what a reader of the row has to know about the attack."""
    remarks = []
    if column.curve:
        remarks.append(f"curve over {CURVE_SETTINGS[column.curve]}")
    if "precision" in column.parameters:
        remarks.append(f"searched in {column.parameters['precision']}")
    if column.norm not in (None, norm) and column.eps is not None:
        remarks.append(f"{column.norm} ball of {format_radius(column.eps)}")
    if column.norm is not None and not column.bounded:  # whose accuracy says little
        remarks.append("no bound")
        if not math.isnan(summary.median_distance):
            remarks.append(f"median {column.norm} distance {summary.median_distance:.3g}")
    return remarks
