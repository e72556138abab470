"""The figures of the report: one function each, from results to panels; its docstring is the text above it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from taet import statistics
from taet.evaluation.bundles import curves
from taet.report.drawing import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    Panel,
    Picture,
    axes,
    draw,
    legend,
    look,
    percent_axis,
    png,
    rows_axis,
    short,
)
from taet.report.numbers import class_names, over_seeds
from taet.report.results import Results
from taet.report.tables import in_ball, largest_first, lead_attacks, order, under

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

STRENGTHS = ("#8c8c8c", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
"""Colours of attacks: grey for clean images, orange for the strongest."""
GROUPS = {"head": "#8c8c8c", "body": "#0072B2", "tail": "#D55E00"}
MOST_ROWS, MOST_LINES, MOST_CLASSES, EXAMPLES = 20, 7, 100, 8
CURVES = {"steps": "number of steps", "eps": "radius ε", "logit-scale": "factor of the logits"}


def overview(results: Results) -> Iterator[Panel]:
    """Balanced accuracy of each row under each attack, and of its head, body and tail classes under the strongest."""
    rows, strongest = order(results)[:MOST_ROWS], lead_attacks(results)[-1:]
    scores, parts = (results.scores(*names).set_index("row") for names in (("balanced",), GROUPS))
    usual = [attack for attack in in_ball(results) if 2 * (scores["attack"] == attack).sum() >= len(results.rows)]
    attacks = [*lead_attacks(results)[:-1], *(attack for attack in usual if attack not in strongest)]
    attacks = [*attacks[: len(STRENGTHS) - 1], *strongest]
    colours = [*STRENGTHS[: len(attacks) - 1], STRENGTHS[-1]]
    parts = parts[parts["attack"] == results.strongest]
    reach = min(1.01, 1.02 * max(scores["high"].max(), parts["high"].max() if len(parts) else 0))
    of = f", the best {MOST_ROWS} of {len(results.rows)}" if len(results.rows) > MOST_ROWS else ""
    lines = {a: (scores[scores["attack"] == a], colour) for a, colour in zip(attacks, colours, strict=True)}
    yield _forest(f"Balanced accuracy under each attack{of}", rows, lines, reach)
    if len(parts):
        groups = {group: (parts[parts["group"] == group], colour) for group, colour in GROUPS.items()}
        yield _forest(f"Head, body and tail classes under {results.strongest}{of}", rows, groups, reach)


def _forest(title: str, rows: Sequence[str], lines: Mapping[str, tuple[pd.DataFrame, str]], reach: float) -> Panel:
    """Draw a row for each method, with a marker and an interval for each line."""
    figure, ax = axes(0.85 + (0.44 if len(rows) < 10 else 0.36) * len(rows))
    for place, (label, (line, colour)) in enumerate(lines.items()):
        at = [row for row, method in enumerate(rows) if method in line.index]
        y = np.array(at) + 0.62 * ((place + 0.5) / len(lines) - 0.5)
        _points(ax, line.loc[[rows[row] for row in at]], y, label, colour, MARKERS[place % len(MARKERS)])
    for row in range(1, len(rows)):
        ax.axhline(row - 0.5, color="#ececec", linewidth=0.8, zorder=0)
    rows_axis(ax, rows)
    ax.set_xlim(-0.01, reach)
    percent_axis(ax.xaxis)
    legend(figure, ax)
    return draw(figure, title, f"with 95 % intervals, one row per method: {', '.join(lines)}")


def _points(ax: Axes, found: pd.DataFrame, y: ArrayLike, label: str, colour: str, marker: str) -> None:
    ax.hlines(y, found["low"], found["high"], color=colour, linewidth=1.5, alpha=0.5)
    ax.plot(found["accuracy"], y, linestyle="none", marker=marker, markersize=4.5, color=colour, label=label)


def classes(results: Results) -> Iterator[Panel]:
    """Accuracy of each class with its 95 % interval, the class with most training images on top."""
    card, rows = results.cards[0], order(results)[:MOST_LINES]
    names = [class_names(card)[label] for label in largest_first(card)]
    for attack in lead_attacks(results):
        scores = results.scores(*names).query("attack == @attack")
        figure, ax = axes(0.85 + max(0.26, 0.08 * len(rows)) * min(len(names), MOST_CLASSES))
        for place, row in enumerate(rows):
            found = scores[scores["row"] == row].set_index("group").reindex(names)
            y = np.arange(len(names)) + 0.6 * ((place + 0.5) / len(rows) - 0.5)
            _points(ax, found, y, short(row), COLOURS[place], MARKERS[place])
        rows_axis(ax, names)
        ax.set_xlim(-0.01, 1.01)
        percent_axis(ax.xaxis)
        legend(figure, ax)
        yield draw(figure, under(attack), "accuracy of each class, one marker per method")


def histogram(results: Results) -> Iterator[Panel]:
    """Images of each class in the training set; head, body and tail are the thirds of the classes."""
    card = results.cards[0]
    counts, order = np.asarray(card.data["train_class_counts"]), largest_first(card)
    figure, ax = axes(0.8 + 0.22 * min(len(order), MOST_CLASSES))
    for group, members in statistics.class_groups(counts).items():
        if group in GROUPS:
            at = [order.index(label) for label in members]
            ax.barh(at, counts[members], 0.75, color=GROUPS[group], label=group)
    if len(order) <= 60:
        for row, label in enumerate(order):
            place: Any = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(str(counts[label]), (counts[label], row), color=GREY, fontsize=8, **place)
    rows_axis(ax, [card.class_names[label] for label in order])
    ax.grid(axis="x")
    legend(figure, ax)
    yield draw(figure, "Training images of each class", "one bar per class, the largest on top")


def strength(results: Results) -> Iterator[Panel]:
    """Balanced accuracy against one setting of the attack, with 95 % intervals. A curve over steps that still falls at
    its end has not converged; one over the radius must reach 0; one over the scale of the logits should be flat."""
    for name, said in CURVES.items():
        lines = {row: line for row in order(results)[:MOST_LINES] if (line := _curve(results, row, name))}
        if not lines:
            continue
        figure, ax = axes(3.0)
        for place, (row, line) in enumerate(lines.items()):
            x, value, low, high = (np.array(each) for each in zip(*line, strict=True))
            ax.fill_between(x, low, high, color=COLOURS[place], alpha=0.12, linewidth=0)
            ax.plot(x, value, markersize=4, label=short(row), **look(place))
        ticks = sorted({point[0] for line in lines.values() for point in line})
        ax.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick > 0))
        ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel(said)
        ax.set_ylim(bottom=0)
        percent_axis(ax.yaxis)
        legend(figure, ax)
        yield draw(figure, said[0].upper() + said[1:], f"balanced accuracy against the {said}")


def _curve(results: Results, row: str, name: str) -> list[tuple[float, float, float, float]]:
    """Return the points of a curve of a row: its setting, and mean accuracy with its interval."""
    found: dict[float, list[tuple[float, float, float]]] = {}
    for card in (one.card for one in results.named if one.row == row):
        for x, column in curves(card)[name].items():
            counts = statistics.class_counts(column.correct, card.labels, card.num_classes)
            ends = statistics.balanced_interval(*counts)
            found.setdefault(x, []).append((statistics.balanced_accuracy(*counts), *ends))
    return [(x, *over_seeds(np.array(values))[:3]) for x, values in sorted(found.items())]


def confusion(results: Results) -> Iterator[Panel]:
    """Share of each true class that is predicted as each class by the best row, in per cent, summed over its seeds."""
    attack, row, card = lead_attacks(results)[-1], order(results)[0], results.cards[0]
    given = [one.columns[attack].predictions for one in results.named if one.row == row and attack in one.columns]
    counts = np.sum([statistics.confusion_matrix(card.labels, one, card.num_classes) for one in given], axis=0)
    place = largest_first(card)
    share = (counts / np.maximum(counts.sum(1, keepdims=True), 1))[np.ix_(place, place)]
    names, few = [short(card.class_names[label], 12) for label in place], len(place) <= 12
    figure, ax = axes(4.3)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= 40:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8 if few else 6)
        ax.set_yticks(range(len(names)), names, fontsize=8 if few else 6)
    for (true, predicted), value in np.ndenumerate(share):
        if few and value >= 0.005:
            tone = "white" if value > 0.55 else INK
            ax.text(predicted, true, f"{100 * value:.0f}", ha="center", va="center", color=tone, fontsize=8)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    yield draw(figure, f"{row}, {under(attack).lower()}", "confusion matrix, per cent of each true class")


def training(results: Results) -> Iterator[Panel]:
    """Balanced accuracy over the epochs of training, mean over the seeds, on the split in the title."""
    points = [epoch.monitor for one in results.named for epoch in one.source.epochs if epoch.monitor is not None]
    split, attack = points[0].split, points[0].attack
    for name, title in (("clean", f"Clean images, {split} split"), ("attacked", f"Under {attack}, {split} split")):
        figure, ax = axes(2.9)
        lines = {row: line for row in order(results) if (line := _over_epochs(results, row, name))}
        for place, (row, line) in enumerate([*lines.items()][:MOST_LINES]):
            every = max(1, len(line) // 8)
            ax.plot([*line], [*line.values()], markersize=3.5, markevery=every, label=short(row), **look(place))
        ax.set_ylim(bottom=0)
        ax.set_xlabel("epoch")
        percent_axis(ax.yaxis)
        legend(figure, ax)
        yield draw(figure, title, "balanced accuracy per epoch, one line per method")


def _over_epochs(results: Results, row: str, name: str) -> dict[int, float]:
    """Return the mean balanced accuracy over the seeds of a row by epoch, where it was measured."""
    found: dict[int, list[float]] = {}
    for epoch in (epoch for one in results.named if one.row == row for epoch in one.source.epochs):
        if epoch.monitor is not None:
            counts = epoch.monitor.clean if name == "clean" else epoch.monitor.attacked
            found.setdefault(epoch.epoch, []).append(statistics.balanced_accuracy(counts.correct, counts.total))
    return {epoch: float(np.mean(found[epoch])) for epoch in sorted(found)}


def pictures(results: Results) -> Iterator[Picture]:
    """Examples from common to rare classes of the best row that kept some: clean, under attack, and what the attack
    added, magnified around grey."""
    kept = [(row, one.source.examples) for row in order(results) for one in results.named if one.row == row]
    for row, examples in [(row, examples) for row, examples in kept if examples is not None][:1]:
        names, largest = results.cards[0].class_names, largest_first(results.cards[0])
        sorted_rows = sorted(range(len(examples.labels)), key=lambda i: largest.index(int(examples.labels[i])))
        chosen = np.linspace(0, len(sorted_rows) - 1, min(EXAMPLES, len(sorted_rows))).round().astype(int)
        clean = examples.images / 255
        change = examples.adversarial - clean
        factor = max(1, int(0.5 / max(float(np.abs(change).max(initial=0)), 1e-9) + 1e-3)) if change.any() else 1
        for i in (sorted_rows[place] for place in dict.fromkeys(chosen)):
            shown = (clean[i], examples.adversarial[i], 0.5 + factor * change[i])
            answers = (examples.labels[i], examples.clean_predictions[i], examples.adversarial_predictions[i])
            true, before, after = (names[label] for label in answers)
            said = f"{true}: {before}, under {examples.attack} {after} ({row}, change × {factor})"
            yield Picture(said, [png(image) for image in shown])
