"""Drawings of the items from the runs of one scale, with the figures of the report: pure functions of the store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from taet.fields import read_number
from taet.report import embeddings, epochs, figures
from taet.report.curves import training_curves
from taet.report.figures import Panel, each, look_of, make_figure, make_panel, percent_axis, reach, short
from taet.report.measured import attacks_of, measured
from taet.report.read import ReportedRun, data_of_card
from taet.report.series import COLOURS, Series, grouped
from taet.report.tables import ScoreCell, spread
from taet.reproduce.cell_store import Store, attacks_on
from taet.reproduce.manifest import SECONDS, Item, PaperColumn, Scale, items
from taet.reproduce.render import Filled, filled

LEADING = ("clean", "pgd-20", "autoattack")
"""Columns of a figure of rows, if the item has them."""
STEPS = re.compile(r"pgd-(\d+)")
FEWEST_STEPS = 3
"""Least number of points of a curve over the steps of an attack."""
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:/\d+)?")


class Drawings(NamedTuple):
    """The figures of an item at one scale."""

    panels: Sequence[Panel] = ()
    legend: Sequence[Series] = ()
    """The runs whose markers occur in more than one figure."""


def drawings(store: Store, scale: Scale, item: Item) -> Drawings:
    """Return the figures of an item at one scale; none if it has no runs."""
    rows = [one for one in filled(store, scale, item) if one.cards]
    if not rows:
        return Drawings()
    anchor = f"{item.name.replace('/', '-')}-{scale.name}"
    with figures.style():
        of_classes = item.shows == "values" and item.columns and all(column.of_class for column in item.columns)
        if of_classes or item.shows == "classes":
            return _classes(item, rows, anchor)
        if item.shows in ("curves", "predictions", "distances"):
            return _of_epochs(item, rows, anchor)
        found = [*_values(item, rows, anchor), _scatter(item, rows, anchor)]
        if item.shows == "embedding":
            found = [*_embeddings(store, item, rows, anchor), *found]
        costs = rows if item.costs_of == item.name else []
        if item.costs_of and not costs:
            costs = [one for one in filled(store, scale, items()[item.costs_of]) if one.cards]
        return Drawings([panel for panel in (*found, _costs(costs, anchor)) if panel is not None])


def _embeddings(store: Store, item: Item, rows: Sequence[Filled], anchor: str) -> Iterator[Panel]:
    """Yield the embedding of features or logits of each row, if possible of one seed, else of its first."""
    stored = [
        {cell.cell.seed: kept for cell in one.cells if cell.card and (kept := store.embedding(cell, item.of))}
        for one in rows
    ]
    seeds = [*dict.fromkeys(seed for found in stored for seed in found)]
    seeds.sort(key=lambda seed: -sum(seed in found for found in stored))  # keeps the order of equally frequent ones
    for place, (one, found) in enumerate(zip(rows, stored, strict=True)):
        seed = next((seed for seed in seeds if seed in found), None)
        if seed is not None:
            yield embeddings.panel(found[seed], f"{one.label}, seed {seed}", f"{anchor}-embedding-{place}")


def _series(rows: Sequence[Filled], anchor: str) -> list[Series]:
    """Return the runs as series of the report: one per row, over its seeds."""
    found = [(row.label, one, card) for row in rows for one in row.cells if (card := one.card) is not None]
    runs = [ReportedRun(one.cell.folder, None, one.epochs, card, None, data_of_card(card)) for _, one, card in found]
    return [replace(one, anchor=f"{anchor}-{one.anchor}") for one in grouped(runs, [label for label, *_ in found])]


def _of_epochs(item: Item, rows: Sequence[Filled], anchor: str) -> Drawings:
    """Figures of curves, of predicted classes and of distances."""
    every = _series(rows, anchor)
    if item.shows == "curves":
        return Drawings([*training_curves(every, every[0].data, anchor), *each(every, epochs.class_curves)], every)
    if item.shows == "predictions":
        bars = each(every, lambda one: figures.predicted_classes(one, item.epochs))
        return Drawings([*each(every, epochs.predicted_shares), *bars])
    together = epochs.class_distances(every, anchor)
    return Drawings([*each(every, epochs.distances), *([together] if together else [])])


def _classes(item: Item, rows: Sequence[Filled], anchor: str) -> Drawings:
    """Accuracy of each class under the attacks of an item."""
    every = _series(rows, anchor)
    runs = measured(every)
    names = {one.attack(column.metric) for one in rows for column in _columns(item) or item.columns}
    chosen = [attack for attack in attacks_of(runs) if attack.name in names]
    clean = next((attack for attack in chosen if attack.norm is None), None)
    robust = next((attack for attack in chosen if attack.norm is not None), None)
    of_classes = [*figures.class_dots(runs, chosen, anchor), *figures.class_bars(runs, clean, robust)]
    return Drawings([*_of_steps(item, rows, anchor), *of_classes], every)


def _of_steps(item: Item, rows: Sequence[Filled], anchor: str) -> list[Panel]:
    """Draw accuracy against the steps of PGD, a line per row, if every row has enough of the same numbers of steps."""
    named: dict[float, PaperColumn] = {}
    for column in item.columns:
        found = [STEPS.fullmatch(one.attack(column.metric) or "") for one in rows]  # as the scale runs it
        steps = {float(one[1]) for one in found if one is not None}
        if len(steps) == 1 and None not in found:
            named[steps.pop()] = column
    lines: dict[str, list[tuple[float, ScoreCell]]] = {}
    for one in rows if len(named) >= FEWEST_STEPS else ():
        needed = {one.attack(column.metric) for column in named.values()}
        held = replace(
            one, cells=tuple(cell for cell in one.cells if attacks_on(cell.card) >= needed)
        )  # the same seeds
        points = ((steps, _cell(held, named[steps])) for steps in sorted(named))
        label = f"{one.label} (n {len(held.cells)})" if len(held.cells) > 1 else one.label
        lines[label] = [(steps, cell) for steps, cell in points if cell is not None]
    return [_against(lines, "steps of PGD", "Steps of the attack", f"{anchor}-steps")] if any(lines.values()) else []


def _columns(item: Item) -> list[PaperColumn]:
    """The columns that a figure of an item's numbers shows."""
    found = [column for column in item.columns if column.metric != SECONDS and not column.of_class]
    return [column for column in found if column.metric in LEADING] or found[:3]


def _cell(one: Filled, column: PaperColumn) -> ScoreCell | None:
    """Return a number of a row with its interval; for several seeds, their mean with its interval."""
    found = one.values(column)
    if not found:
        return None
    return spread([held.value for held in found], [held.interval or (held.value, held.value) for held in found])


def setting_of(rows: Sequence[Filled]) -> tuple[str, list[float]] | None:
    """Return the only number in which rows differ, an imbalance ratio or a part of their names, and its axis label."""
    ratios = [one.row.imbalance for one in rows]
    if len({*ratios}) > 1 and None not in ratios:
        return "imbalance ratio", [float(ratio) for ratio in ratios if ratio is not None]
    texts = [one.row.setting or one.row.shown_as for one in rows]
    numbers = [NUMBER.findall(text) for text in texts]
    names = {NUMBER.sub("", text).strip(" =") for text in texts}
    if len(names) != 1 or any(len(found) != 1 for found in numbers) or len({*texts}) < 2:
        return None
    return names.pop().replace("_", " "), [read_number(found[0]) for found in numbers]


def _values(item: Item, rows: Sequence[Filled], anchor: str) -> list[Panel]:
    """Draw an item's numbers against the setting in which its rows differ, or with a line per row."""
    columns, setting = _columns(item), setting_of(rows)
    if not columns:
        return []
    if curve := _of_steps(item, rows, anchor):
        return curve
    if setting is None:
        return [_dots(rows, columns, anchor)]
    axis, numbers = setting
    groups: dict[str, list[tuple[float, Filled]]] = {}
    for x, one in zip(numbers, rows, strict=True):
        parts = (one.row.shown_as, one.row.setting, one.row.data) if axis == "imbalance ratio" else ("",)
        groups.setdefault(", ".join(filter(None, parts)), []).append((x, one))

    def line(column: PaperColumn, points: Sequence[tuple[float, Filled]]) -> list[tuple[float, ScoreCell]]:
        known = [(x, cell) for x, one in points if (cell := _cell(one, column)) is not None]
        return sorted(known, key=lambda point: point[0])

    if len(groups) == 1:
        drawn = [("Accuracy", {column.label: line(column, *groups.values()) for column in columns})]
    else:
        drawn = [(c.label, {name: line(c, points) for name, points in groups.items()}) for c in columns]
    named = ((f"{anchor}-setting-{place}", title, lines) for place, (title, lines) in enumerate(drawn))
    return [_against(lines, axis, title, name) for name, title, lines in named if any(lines.values())]


def _against(lines: Mapping[str, Sequence[tuple[float, ScoreCell]]], axis: str, title: str, name: str) -> Panel:
    """Draw accuracy against a setting, with intervals, one line per name."""
    figure, (axes,) = make_figure(2.9)
    for place, (label, points) in enumerate(lines.items()):
        if points:
            x, cells = zip(*points, strict=True)
            look = {**look_of(place), "markersize": 4.0, "elinewidth": 0.9, "linewidth": 1.4}
            y = [cell.value for cell in cells]
            axes.errorbar(x, y, yerr=reach(cells), label=short(label, 28), **look)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(axis)
    percent_axis(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return make_panel(figure, name, title, f"accuracy against {axis}")


def _dots(rows: Sequence[Filled], columns: Sequence[PaperColumn], anchor: str) -> Panel:
    """Draw the accuracy of each row with its interval, one marker per column."""
    figure, (axes,) = make_figure(1.1 + 0.32 * len(rows))
    for place, column in enumerate(columns):
        cells = [(row, cell) for row, one in enumerate(rows) if (cell := _cell(one, column)) is not None]
        if not cells:
            continue
        look = {**look_of(place), "linestyle": "none", "markersize": 4.5, "elinewidth": 0.9}
        heights = [row + 0.22 * (place - (len(columns) - 1) / 2) for row, _ in cells]
        values, spans = [cell.value for _, cell in cells], reach([cell for _, cell in cells])
        axes.errorbar(values, heights, xerr=spans, label=column.label, **look)
    axes.set_yticks(range(len(rows)), [short(one.label, 28) for one in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    percent_axis(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=len(columns), fontsize=7)
    return make_panel(figure, f"{anchor}-rows", "Each row", "accuracy of each row with its 95 % interval")


def _scatter(item: Item, rows: Sequence[Filled], anchor: str) -> Panel | None:
    """Draw clean against robust accuracy, with both intervals as a cross for each row, for one data set only."""
    columns = {column.metric: column for column in item.columns if not column.of_class}
    if "clean" not in columns or len({(one.row.data, one.row.imbalance) for one in rows}) > 1:
        return None
    for robust in (columns[name] for name in ("autoattack", "pgd-20") if name in columns):
        pairs = [(one.label, _cell(one, columns["clean"]), _cell(one, robust)) for one in rows]
        known = [(label, x, y) for label, x, y in pairs if x is not None and y is not None]
        if len(known) > 1:
            plain = columns["clean"].average == "sample"
            return figures.crosses(known, robust.label, anchor, "clean plain accuracy" if plain else figures.CLEAN)
    return None


def _costs(rows: Sequence[Filled], anchor: str) -> Panel | None:
    """Seconds of an epoch and peak memory of each row."""
    found = []
    for one in rows:
        if (seconds := one.epoch_seconds) is not None:
            memory = max(epoch.peak_memory_mb or 0.0 for epoch in one.epochs)
            found.append((one.label, seconds, memory))
    if not found:
        return None
    figure, grid = make_figure(0.9 + 0.3 * len(found), columns=2)
    for axes, values, title in zip(
        grid, list(zip(*found, strict=True))[1:], ("seconds", "peak memory, MB"), strict=True
    ):
        axes.barh(range(len(found)), values, 0.6, color=COLOURS[0])
        axes.set_xlabel(title)
        axes.grid(axis="x")
    grid[0].set_yticks(range(len(found)), [short(label, 20) for label, _, _ in found])
    grid[0].set_ylim(len(found) - 0.4, -0.6)
    return make_panel(figure, f"{anchor}-costs", "An epoch", "mean seconds and peak memory of an epoch of each row")
