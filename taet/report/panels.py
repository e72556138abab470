"""Which figures a page has, and of what."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from taet import metrics
from taet.evaluation.curves import WHOLE
from taet.evaluation.curves import curves as curves_of
from taet.evaluation.summary import Summary
from taet.formatting import listed, percent, size
from taet.report import curves, figures, series, tables
from taet.report.figures import Panel
from taet.report.measured import AttackKey, Measured
from taet.report.read import DataFacts
from taet.report.series import Series
from taet.training.record import Counts

LEVELS = 255  # steps of grey in an image
AXES = {
    "steps": ("number of steps", "Number of steps"),
    "eps": ("radius ε", "Radius of the ball"),
    "logit-scale": ("factor of the logits", "Scale of the logits"),
}
"""Of each curve of an evaluation, the words at its axis and above it."""


def each(all_series: Sequence[Series], draw: Callable[[Series, str], Panel | None], name: str) -> tuple[Panel, ...]:
    """Draw a figure of each series that has one."""
    panels = (draw(one, f"{one.anchor}-{name}") for one in all_series)
    return tuple(panel for panel in panels if panel is not None)


def under(attack: AttackKey) -> str:
    """Name what an accuracy was measured under."""
    return "Clean" if attack.norm is None else f"Under {attack.name}"


# --- classes ---------------------------------------------------------------------------------------------------------


def class_bars(runs: Sequence[Measured], clean: AttackKey | None, strongest: AttackKey | None) -> tuple[Panel, ...]:
    """Accuracy of each class, clean and under the strongest attack: a figure of each series."""
    panels = []
    for run in runs:
        if clean is not None and clean in run.summaries:
            summaries = run.summaries.get(strongest) if strongest else None
            attacked = tables.classes(summaries) if summaries else None
            attack = strongest.name if strongest else ""
            name = f"{run.series.anchor}-classes"
            panels.append(figures.class_bars(run.series, tables.classes(run.summaries[clean]), attacked, attack, name))
    return tuple(panels)


def class_errors(runs: Sequence[Measured], strongest: AttackKey | None) -> tuple[Panel, ...]:
    """Natural and boundary error of each class under the strongest attack: a figure of each series."""
    panels = []
    for run in runs:
        if strongest is None or strongest not in run.summaries:
            continue
        found = run.summaries[strongest]
        natural, _ = metrics.mean_and_standard_error([summary.natural_error for summary in found])
        boundary, _ = metrics.mean_and_standard_error([summary.boundary_error for summary in found])
        if not np.isnan(natural).all():  # as without clean images
            name = f"{run.series.anchor}-errors"
            panels.append(figures.class_errors(run.series, natural, boundary, strongest.name, name))
    return tuple(panels)


def class_dots(runs: Sequence[Measured], attacks: Sequence[AttackKey], anchor: str) -> tuple[Panel, ...]:
    """Accuracy of each class, all series in one figure for each attack."""
    panels = []
    for number, attack in enumerate(attacks):
        rows = [(run.series, tables.classes(run.summaries[attack])) for run in runs if attack in run.summaries]
        if len(rows) > 1:
            panels.append(figures.class_dots(rows, under(attack), f"{anchor}-dots-{number}"))
    return tuple(panels)


def confusions(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    """Confusion matrices under each attack, all seeds of a series together; none of very many classes."""
    if any(len(run.series.data.class_names) > metrics.PAIRED_CLASSES for run in runs):
        return ()

    def matrix(run: Measured, attack: AttackKey, number: int) -> Panel:
        return figures.confusion(run.series, run.confusion(attack), f"{run.series.anchor}-confusion-{number}")

    return tuple(
        (under(attack), tuple(matrix(run, attack, number) for run in runs if attack in run.summaries))
        for number, attack in enumerate(attacks)
    )


# --- curves of the evaluation ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttackCurves:
    """One setting of an attack varied: a figure of all series, or of many one each."""

    name: str
    title: str
    attack: str
    panels: tuple[Panel, ...]
    left: tuple[str, ...]
    """Which series are still right somewhere in a ball that holds every image, and how often."""


def attack_curves(runs: Sequence[Measured], anchor: str) -> tuple[AttackCurves, ...]:
    """Return every curve that a card holds; of many series each with AT in grey."""
    return tuple(found for name in AXES if (found := _attack_curves(name, runs, anchor)) is not None)


def _attack_curves(name: str, runs: Sequence[Measured], anchor: str) -> AttackCurves | None:
    found = [(run.series, *line) for run in runs if (line := _line(run.series, name)) is not None]
    if not found:
        return None
    lines = [(one, line) for one, _, line in found]
    axis, title = AXES[name]
    radii = sorted({card.threat["eps"] for one, _ in lines for card in one.cards}) if name == "eps" else []
    ends = [(one.label, line.get(WHOLE)) for one, line in lines] if name == "eps" else []
    left = tuple(f"{label} ({percent(cell.value)} %)" for label, cell in ends if cell is not None and cell.value > 0)
    if radii and all(size(x).endswith("/255") for _, line in lines for x in line if x):
        axis, radii = "radius ε in grey levels, of 255", [LEVELS * radius for radius in radii]
        lines = [(one, {LEVELS * x: cell for x, cell in line.items()}) for one, line in lines]
    if len(lines) > series.MANY:
        base = next((line for one, line in lines if one.is_baseline), None)
        panels = tuple(
            curves.attack_curves([(one, line)], axis, one.label, f"{one.anchor}-{name}", reference=base, marks=radii)
            for one, line in lines
        )
    else:
        panels = (curves.attack_curves(lines, axis, title, f"{anchor}-{name}", marks=radii),)
    return AttackCurves(name, title, listed(dict.fromkeys(attack for _, attack, _ in found)), panels, left)


def _line(one: Series, name: str) -> tuple[str, curves.Line] | None:
    """Return the attack that is varied and the balanced accuracy at each point, over the seeds that have it."""
    points: dict[float, list[Summary]] = {}
    attack = ""
    for card in one.cards:
        for curve in curves_of(card):
            if curve.name == name:
                attack = curve.attack
                for x, column in curve.points:
                    points.setdefault(x, []).append(card.summary(column.name))
    return (attack, {x: tables.balanced_cell(points[x]) for x in sorted(points)}) if points else None


# --- curves of training ----------------------------------------------------------------------------------------------


def training_curves(all_series: Sequence[Series], data: DataFacts, anchor: str) -> tuple[Panel, ...]:
    """All series in four figures; of many, a figure each, with AT in grey."""
    monitored = [s for s in all_series if any(epoch.monitor is not None for run in s.runs for epoch in run.epochs)]
    if not monitored:
        return ()
    points = [epoch.monitor for s in monitored for run in s.runs for epoch in run.epochs if epoch.monitor is not None]
    attack = listed(dict.fromkeys(point.attack for point in points))
    tail = data.groups["tail"]

    def all_classes(counts: Counts) -> float:
        return metrics.balanced_accuracy(counts.correct, counts.total)

    def tail_classes(counts: Counts) -> float:
        return metrics.balanced_accuracy(counts.correct[tail], counts.total[tail])

    def side(value: Callable[[Counts], float], attacked: bool) -> curves.Value:
        return lambda point: value(point.attacked if attacked else point.clean)

    def top(*values: curves.Value) -> float:
        drawn = [value(point) for point in points for value in values]
        highest = max((value for value in drawn if not math.isnan(value)), default=1.0)
        return min(1.0, max(0.1, 1.1 * highest))

    clean, attacked = side(all_classes, False), side(all_classes, True)
    tail_clean, tail_attacked = side(tail_classes, False), side(tail_classes, True)
    if len(all_series) > series.MANY:
        values = {"clean": clean, attack: attacked, f"tail, {attack}": tail_attacked}
        base = next((one for one in monitored if one.is_baseline), None)
        reach = top(*values.values())
        return tuple(
            curves.own_curves(s, None if s is base else base, values, reach, f"{s.anchor}-curve") for s in monitored
        )
    shown = ((("clean", clean), (attack, attacked)), (("clean", tail_clean), (attack, tail_attacked)))
    panels: list[Panel] = []
    for words, pair in zip(("", "tail classes, "), shown, strict=True):
        reach = top(*(value for _, value in pair))
        for split, value in pair:
            name = f"{anchor}-curve-{len(panels)}"
            panels.append(curves.accuracy_curves(monitored, f"Balanced accuracy, {words}{split}", value, reach, name))
    return tuple(panels)
