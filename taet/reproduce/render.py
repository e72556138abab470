"""The results of the runs of an item next to the published numbers: pure functions of cards and the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from taet import statistics
from taet.evaluation.card import ResultCard
from taet.evaluation.summary import Summary
from taet.formatting import MISSING, duration, listed, percent, percent_interval, plural, points
from taet.reproduce.cell_store import Store, StoredCell, attacks_on, by_seed
from taet.reproduce.costs import seconds_left
from taet.reproduce.differences import difference_text, paired_cards
from taet.reproduce.manifest import SECONDS, Item, PaperColumn, PaperRow, Scale, class_number
from taet.reproduce.text_table import TextTable
from taet.statistics import Difference, Floats, Ints
from taet.training.record import Epoch

FEWEST = 3
"""Least number of rows whose order is compared."""
DERIVED = "*"
EPOCHS = 6
"""Largest number of epochs in a table."""
SHOWN_CLASSES = 10
GROUPS = ("head", "body", "tail")
PAIRED = (
    "Paired on the same test images, with the 95 % interval. One seed compares two trained models, not two methods.",
    "A difference is over the seeds that both rows have, so it may differ from that of the rows' means.",
)
MEANS = "Mean over n seeds."
OWN_SECONDS = (
    "Seconds, without the curve, and peak memory of the process are those of each run's machine, with whatever else it "
    "did: compare methods with `taet cost`, which measures them side by side."
)
UNITS = (
    "Balanced accuracy, %: with its 95 % interval over the test images for one seed, ± one standard error for n seeds."
)


class CardValue(NamedTuple):
    """A number of a card, its interval, and whether it is derived from another test set."""

    value: float
    interval: tuple[float, float] | None
    derived: bool = False


@dataclass(frozen=True)
class Filled:
    """The runs of one row of an item at one scale."""

    scale: Scale
    row: PaperRow
    label: str
    cells: tuple[StoredCell, ...]

    @property
    def cards(self) -> Mapping[int, ResultCard]:
        """Its cards by seed."""
        return by_seed(self.cells)

    @property
    def epochs(self) -> list[Epoch]:
        """The epochs of all its runs."""
        return [epoch for one in self.cells for epoch in one.epochs]

    @property
    def epoch_seconds(self) -> float | None:
        """Mean seconds of an epoch of training over the runs with epochs."""
        found = [training_seconds(one.epochs) / one.epochs[-1].epoch for one in self.cells if one.epochs]
        return float(np.mean(found)) if found else None

    def attack(self, metric: str) -> str | None:
        """Return the attack for a published column; None if the scale omits it or it is not an attack."""
        return self.scale.attack(self.row, metric)

    def values(self, column: PaperColumn) -> list[CardValue]:
        """Return the value of a column on each card that has its attack."""
        attack = self.attack(column.metric)
        if attack is None:
            return []
        return [_value_of(column, card, attack) for card in self.cards.values() if attack in attacks_on(card)]


def training_seconds(epochs: Sequence[Epoch]) -> float:
    """Return the seconds of a training without its curve; a stored epoch stands for all since the one before."""
    counts = np.diff([0, *(epoch.epoch for epoch in epochs)])
    return float(counts @ [epoch.training_seconds for epoch in epochs])


def filled(store: Store, scale: Scale, item: Item) -> list[Filled]:
    """The runs of every row of an item."""
    found = store.of_item(scale, item)
    return [Filled(scale, row, label, (*found[row],)) for row, label in zip(item.rows, item.labels, strict=True)]


def tables(store: Store, scale: Scale, item: Item) -> list[TextTable]:
    """Return the tables of an item: its numbers, and differences between its rows if there are any."""
    rows = filled(store, scale, item)
    if item.shows in ("values", "embedding"):
        first, more = _values(store, scale, item, rows), _differences(scale, item, rows)
    else:
        states = tuple((one.label, _state(item, one) if one.cards else _price(store, one)) for one in rows)
        first = TextTable(_title(scale, item), ("", "state"), states, (*what_differs(scale, item, rows),))
        shown = {"classes": _classes, "curves": _curves, "predictions": _groups, "distances": _groups}[item.shows]
        more = shown(scale, item, rows)
    return [first, *([more] if more.rows else [])]


def _title(scale: Scale, item: Item, words: str = "") -> str:
    return f"{item.name} · {words or item.title} · scale {scale.name}"


def what_differs(scale: Scale, item: Item, rows: Sequence[Filled]) -> list[str]:
    """Return the differences from the paper, and the errors in it."""
    said = [f"Scale {scale.name}: {scale.says}."]
    said += [note for paper, note in scale.notes.items() if paper in {row.paper for row in item.rows}]
    changes = scale.differences(item)
    said += [f"In place of what is published: {', '.join(changes)}."] if changes else []
    if scale.name != "full":
        said.append(
            "Another network and other test images than the paper's: compare rows with rows, not with the paper."
        )
    elif "autoattack" in {column.metric for column in item.columns}:
        said.append("AutoAttack is the official one, with 100 iterations.")
    if item.shows == "curves" and (runs := [one.cell.run for row in rows for one in row.cells if one.cell.run]):
        steps, every = runs[0].training.monitor_steps, runs[0].training.monitor_every
        often = "" if every is None else f", every {plural(every, 'epoch')}"
        said.append(f"Curves: PGD with {steps} steps{often}.")
    if item.costs_of:
        said.append(OWN_SECONDS)
    if without := [one.label for one in rows if one.cards and not any(cell.is_whole for cell in one.cells)]:
        said.append(f"No {'embedding is' if item.shows == 'embedding' else 'epochs are'} kept of {listed(without)}.")
    reasons = {one.cell.reason for row in rows for one in row.cells if one.cell.reason}
    return [*said, *(f"Not applicable: {reason}." for reason in sorted(reasons)), *item.notes]


def _values(store: Store, scale: Scale, item: Item, rows: Sequence[Filled]) -> TextTable:
    """Return the table of published and measured numbers, a line each."""
    columns = [c for c in item.columns if any(_is_there(one, c) for one in rows if c in item.columns_of(one.row))]
    lines: list[tuple[str, ...]] = []
    for one in rows:
        said = [item.published.get((one.row, column)) for column in columns]
        if item.published:
            lines.append((one.label, "paper", *map(_said, columns, said)))
        cells = [_measured(one, column) if column in item.columns_of(one.row) else MISSING for column in columns]
        name = "" if item.published else one.label
        lines.append((name, scale.name if one.cards else _price(store, one), *cells))
        if scale.name == "full" and item.published and one.cards:
            gaps = (_gap(one, column, value) for column, value in zip(columns, said, strict=True))
            lines.append(("", "here − paper", *gaps))
    notes = what_differs(scale, item, rows)
    if any(column.average.startswith("balanced") for column in columns) and any(one.cards for one in rows):
        notes.append(UNITS)
    if item.shows == "embedding":
        notes.append(f"A t-SNE proves nothing: beside each picture stand numbers of the {item.of} themselves.")
    if any(DERIVED in cell for line in lines for cell in line):
        notes.append(f"{DERIVED} derived: recalls on the balanced test set, weighted like the training set.")
    return TextTable(_title(scale, item), ("", "", *(_head(c, rows) for c in columns)), (*lines,), (*notes,))


def _state(item: Item, one: Filled) -> str:
    """Return the state of a row with a card in a figure."""
    done = sum(cell.state == "done" for cell in one.cells)
    if done < len(one.cells):
        needed = "all attacks" if item.shows == "classes" else "all attacks and epochs"
        return f"{done} of {len(one.cells)} runs have {needed}"
    return "done"


def _said(column: PaperColumn, value: float | None) -> str:
    """Format a published number; accuracies as in the papers."""
    if value is None:
        return MISSING
    return f"{value:g}" if column.metric == SECONDS else f"{value:.2f}"


def _price(store: Store, one: Filled) -> str:
    """Return the state of a row without a card, with its estimated cost."""
    if all(cell.state == "not applicable" for cell in one.cells):
        return "not applicable"
    prices = [seconds_left(store, cell) for cell in one.cells]
    price = "no price" if None in prices else duration(sum(filter(None, prices)))
    return f"{'started' if any(cell.state == 'started' for cell in one.cells) else 'missing'}, {price}"


def _is_there(one: Filled, column: PaperColumn) -> bool:
    return column.metric == SECONDS or one.attack(column.metric) is not None


def _measured(one: Filled, column: PaperColumn) -> str:
    """Format a number of a row, for one seed with its interval, for more with the standard error."""
    if column.metric == SECONDS:
        seconds = one.epoch_seconds
        return MISSING if seconds is None else f"{seconds:.3g}"
    found = one.values(column)
    if not found:
        return MISSING
    mark = DERIVED if found[0].derived else ""
    if len(found) == 1:
        value, interval, _ = found[0]
        return percent(value) + mark + ("" if interval is None else f" ({percent_interval(*interval)})")
    mean, error = statistics.mean_and_standard_error([held.value for held in found])
    return f"{percent(float(mean))}{mark} ±{percent(float(error))} (n {len(found)})"


def _gap(one: Filled, column: PaperColumn, said: float | None) -> str:
    found = [held.value for held in one.values(column)]
    return MISSING if said is None or not found else points(float(np.mean(found)) - said / 100)


def _value_of(column: PaperColumn, card: ResultCard, attack: str) -> CardValue:
    """Return the value of a column on a card that has its attack."""
    summary = card.summary(attack)
    if column.average == "per-class":
        number = _label(card, column.of_class)
        low, high = summary.per_class_interval
        return CardValue(float(summary.per_class[number]), (float(low[number]), float(high[number])))
    if column.average != "sample":
        return CardValue(summary.balanced, summary.balanced_interval)
    counts = card.data.get("train_class_counts")
    if counts is None or len({*summary.total.tolist()}) > 1:
        return CardValue(summary.accuracy, summary.accuracy_interval)
    return CardValue(float(np.average(summary.per_class, weights=counts)), None, derived=True)


def _differences(scale: Scale, item: Item, rows: Sequence[Filled]) -> TextTable:
    """Return each row minus the first one of the same data, imbalance ratio and network, published and measured."""
    columns = [column for column in item.columns if column.average not in ("sample", "cost")]
    lines: list[tuple[str, ...]] = []
    for one in rows:
        base = next(other for other in rows if _kind(other.row) == _kind(one.row))
        if base is one or not (one.cards and base.cards):
            continue
        name = f"{one.label} minus {base.label}"
        if item.published:
            said = [[item.published.get((row.row, column), math.nan) for row in (one, base)] for column in columns]
            gaps = [ours / 100 - theirs / 100 for ours, theirs in said]
            lines.append((name, "paper", *(MISSING if math.isnan(gap) else points(gap) for gap in gaps)))
        found = [_paired(one, base, column) for column in columns]
        texts = [MISSING if pair is None else f"{difference_text(pair)}{_seeds(pair, one, base)}" for pair in found]
        lines.append(("" if item.published else name, scale.name, *texts))
    heads = ("points", "", *(_head(column, rows) for column in columns))
    notes = (*PAIRED, *_order(item, rows)) if columns and lines else ()
    return TextTable(_title(scale, item, "differences between rows"), heads, (*lines,) if columns else (), notes)


def _seeds(pair: Difference, one: Filled, base: Filled) -> str:
    """Return the number of seeds of a difference if a row has others."""
    return f", n {pair.runs}" if max(len(one.cards), len(base.cards)) > pair.runs else ""


def _head(column: PaperColumn, rows: Sequence[Filled]) -> str:
    """Return the heading of a column, with the attack here if it is another one in every row."""
    here = {one.attack(column.metric) for one in rows} - {None}
    other = len(here) == 1 and column.metric not in here and column.metric != SECONDS
    return f"{column.label} (here: {here.pop()})" if other else column.label


def _kind(row: PaperRow) -> tuple[object, ...]:
    return row.data.partition("-")[0], row.imbalance, row.model


def _paired(one: Filled, base: Filled, column: PaperColumn) -> Difference | None:
    attacks = [row.attack(column.metric) for row in (one, base)]
    of = _label(next(iter(one.cards.values())), column.of_class) if column.of_class else None
    return paired_cards(one.cards, base.cards, attacks, of)


def _label(card: ResultCard, name: str) -> int:
    """Return the label of a class; runs at scale smoke have other classes than the papers."""
    return card.class_names.index(name) if name in card.class_names else class_number(name)


def _order(item: Item, rows: Sequence[Filled]) -> Iterator[str]:
    """Yield sentences on the rank correlation of published columns and those measured under the same attack."""
    said = []
    for column in item.columns:
        found = rank_correlation(item, rows, column)
        if found is not None and _head(column, rows) == column.label:
            said.append(f"{column.label} {correlation_text(found[0])} ({found[1]} rows)")
    if said:
        yield f"Order of the rows, paper against here (Spearman): {', '.join(said)}."


def correlation_text(value: float) -> str:
    """Return a correlation with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def rank_correlation(item: Item, rows: Sequence[Filled], column: PaperColumn) -> tuple[float, int] | None:
    """Return Spearman's correlation of a published and measured column, and the number of rows; None below three."""
    pairs = []
    for one in rows:
        value = item.published.get((one.row, column))
        found = [held.value for held in one.values(column)]
        if value is not None and found:
            pairs.append((value, float(np.mean(found))))
    if len(pairs) < FEWEST or min(len({*side}) for side in zip(*pairs, strict=True)) == 1:
        return None
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def _classes(scale: Scale, item: Item, rows: Sequence[Filled]) -> TextTable:
    """Return the recall of each class, or of head, body and tail for many classes, under each attack of a figure."""
    lines: list[tuple[str, ...]] = []
    heads: tuple[str, ...] = ()
    for one, card in _first_cards(rows):
        few = card.num_classes <= SHOWN_CLASSES
        heads = tuple(card.class_names) if few else GROUPS
        for column in item.columns:
            attack = one.attack(column.metric)
            found = [held.summary(attack) for held in one.cards.values() if attack in attacks_on(held) and attack]
            if found:
                recalls = np.mean([_recalls(held, few) for held in found], axis=0)
                here = "" if attack in (None, column.metric) else f" (here: {attack})"
                label = f"{column.label}{here} (n {len(found)})" if len(found) > 1 else f"{column.label}{here}"
                lines.append((one.label, label, *(percent(float(recall)) for recall in recalls)))
    notes = (MEANS,) if any(len(one.cards) > 1 for one in rows) else ()
    return TextTable(_title(scale, item, "accuracy of each class"), ("", "", *heads), (*lines,), notes)


def _recalls(summary: Summary, few: bool) -> list[float]:
    return [*map(float, summary.per_class)] if few else [summary.groups[group] for group in GROUPS]


def _curves(scale: Scale, item: Item, rows: Sequence[Filled]) -> TextTable:
    """Return balanced accuracy at points of the curve, with the best and the last point."""
    lines: list[tuple[str, ...]] = []
    heads: tuple[str, ...] = ()
    for one in rows:
        epochs = [epoch for epoch in one.cells[0].epochs if epoch.monitor is not None]
        chosen = _spread(epochs)
        heads = heads or tuple(f"epoch {epoch.epoch}" for epoch in chosen)
        for name in ("clean", "attacked") if epochs else ():
            counts = [getattr(epoch.monitor, name) for epoch in epochs]
            values = [statistics.balanced_accuracy(count.correct, count.total) for count in counts]
            shown = [percent(values[epochs.index(epoch)]) for epoch in chosen]
            attack = "clean" if name == "clean" else str(getattr(epochs[0].monitor, "attack", ""))
            peak = int(np.argmax(values))
            lines.append((one.label, attack, f"{percent(values[peak])} at {epochs[peak].epoch}", *shown))
    notes = ("Balanced accuracy on the images of the curve, at epochs of the first row.", *_of_first_seeds(rows))
    return TextTable(_title(scale, item, "over the epochs"), ("", "", "best", *heads), _even(lines), notes)


def _groups(scale: Scale, item: Item, rows: Sequence[Filled]) -> TextTable:
    """Return predicted classes of training examples, or their distances, for head, body and tail over the epochs."""
    predicted = item.shows == "predictions"
    field = "predicted" if predicted else "distance"
    lines: list[tuple[str, ...]] = []
    heads: tuple[str, ...] = ()
    for one, card in _first_cards(rows):
        recorded = [[epoch for epoch in cell.epochs if getattr(epoch, field) is not None] for cell in one.cells]
        first: Sequence[Epoch] = next(filter(None, recorded), [])
        chosen = [epoch for epoch in first if epoch.epoch in item.epochs] or _spread(first)
        heads = heads or tuple(f"epoch {epoch.epoch}" for epoch in chosen)
        counts = card.data["train_class_counts"] or []
        for group, labels in statistics.class_groups(counts).items() if chosen else ():
            if group in GROUPS:
                share = f"{100 * sum(counts[label] for label in labels) / sum(counts):.3g}"
                shown = [f"{_of_group(getattr(epoch, field), predicted, labels):.3g}" for epoch in chosen]
                lines.append((one.label, group, *([share] if predicted else []), *shown))
    what = "share of examples predicted as a group, %" if predicted else "mean distance between epochs"
    heads = ("", "", *(["its labels, %"] if predicted else []), *heads)
    return TextTable(_title(scale, item, what), heads, _even(lines), _of_first_seeds(rows))


def _of_first_seeds(rows: Sequence[Filled]) -> tuple[str, ...]:
    """Return the note of a table that shows one of several seeds."""
    return ("A row with several seeds shows the first one.",) if any(len(one.cards) > 1 for one in rows) else ()


def _of_group(values: Ints | Floats, predicted: bool, labels: Sequence[int]) -> float:
    return float(100 * values[labels].sum() / values.sum() if predicted else values[labels].mean())


def _spread(epochs: Sequence[Epoch]) -> list[Epoch]:
    """Return at most `EPOCHS` epochs, evenly spaced, with the first and the last."""
    places = sorted({round(place) for place in np.linspace(0, len(epochs) - 1, EPOCHS)}) if epochs else []
    return [epochs[place] for place in places]


def _even(lines: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Return rows of equal length: those of shorter runs are filled with dashes."""
    longest = max(map(len, lines), default=0)
    return tuple((*line, *[MISSING] * (longest - len(line))) for line in lines)


def _first_cards(rows: Sequence[Filled]) -> Iterator[tuple[Filled, ResultCard]]:
    for one in rows:
        for card in [*one.cards.values()][:1]:
            yield one, card
