"""An item as Markdown: published beside measured numbers, differences between rows, and what
differs from the paper."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from items import PAPERS, SECONDS, Item, Row, Scale, items
from items import scale as get_scale
from paired import Cards, attacks_on, paired, text
from runs import Measured, Runs
from taet.evaluation import ResultCard
from taet.formatting import percent, percent_interval, points
from taet.metrics.accuracies import balanced_accuracy, class_groups, class_ranks
from taet.report.scores import over_seeds

CLASSES = {"dog": 5, "frog": 6, "horse": 7, "ship": 8, "truck": 9}
"""Labels of the classes that a table of CIFAR-10 names."""
GROUPS = ("head", "body", "tail")
EPOCHS = 6
"""Most epochs in a table."""
Lines = list[Sequence[str]]


@dataclass(frozen=True)
class Shown:
    """A row of an item with its runs."""

    label: str
    row: Row
    place: int
    attacks: tuple[str, ...]
    """At the scale."""
    runs: dict[int, Measured]

    @property
    def cards(self) -> Cards:
        return {seed: one.card for seed, one in self.runs.items()}


def page(item: Item, scale: Scale, runs: Runs, methods: Sequence[str] = ()) -> str:
    """Return an item at a scale, of all methods or some."""
    shown = [
        Shown(label, row, place, scale.run(row).attacks, runs.of(scale.run(row)))
        for place, (label, row) in enumerate(zip(item.labels, item.rows, strict=True))
        if not methods or row.method in methods
    ]
    parts = [
        f"### {item.name}: {item.title} (scale {scale.name})",
        table(_values(item, scale, shown)),
    ]
    lines = _differences(item, scale, shown)
    parts += (
        ["Points, paired on the same test images, with 95 % intervals:", table(lines)]
        if lines[1:]
        else []
    )
    drawn = [*FIGURES[item.shows](item, shown)] if item.shows in FIGURES else []
    parts += [table(_once(drawn))] if drawn else []
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in what_differs(item, scale))])


def pages(runs: Runs) -> dict[str, str]:
    """Return all items of each paper as one page, at the scales where a run is there, else at
    mini."""
    found: dict[str, str] = {}
    for paper in PAPERS:
        of = [item for item in items().values() if item.name.startswith(paper)]
        texts = [
            f"# {paper.upper()}, published and measured",
            "[How](reproduce.md) these are made.",
        ]
        for item in of:
            sizes = map(get_scale, ("gpu", "cpu", "mini"))
            filled = [one for one in sizes if any(runs.of(one.run(row)) for row in item.rows)]
            texts += [page(item, one, runs) for one in filled or [get_scale("mini")]]
        found[paper] = "\n\n".join(texts) + "\n"
    return found


def table(lines: Lines) -> str:
    """Return lines of equal length as a Markdown table that also reads as text; the first one is
    the head."""
    rows = [[*line, *[""] * (len(lines[0]) - len(line))] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * max(3, width) for width in widths])
    padded = [
        [cell.ljust(max(3, width)) for cell, width in zip(row, widths, strict=True)] for row in rows
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def _once(lines: Lines) -> Lines:
    """Return lines without heads, which begin with an empty cell, that repeat the last one."""
    kept: Lines = []
    head: Sequence[str] = ()
    for line in lines:
        kept += [line] if line != head else []
        head = line if not line[0] else head
    return kept


def what_differs(item: Item, scale: Scale) -> list[str]:
    """Return what the runs of an item do otherwise than the paper, and where the paper contradicts
    itself."""
    protocol = item.rows[0].protocol
    said = [
        f"Scale {scale.name}: {scale.says}.",
        str(scale.values.get(protocol, {}).get("says", "")),
    ]
    said += [
        (f"Instead of what is published: {', '.join(changed)}.")
        for changed in [scale.differences(item)]
        if changed
    ]
    if scale.name != "full":
        other = "Other test images" if scale.name == "gpu" else "Other networks and test images"
        said.append(f"{other} than the paper's: compare rows with rows, not with the paper.")
    said.append(
        "Accuracies are balanced, in %, with 95 % intervals over the test images, of n seeds over "
        "both."
    )
    if item.average == "sample":
        said[-1] = (
            "Plain accuracy, in %: recalls on the balanced test set, weighted as for training, ± "
            "standard error."
        )
    if any(metric == "autoattack" for metric, _ in item.columns):
        said.append("AutoAttack is the official one, with 100 iterations.")
    return [*filter(None, said), *item.notes]


def _head(scale: Scale, column: tuple[str, str], shown: Sequence[Shown]) -> str:
    """Return the heading of a column, with the attack here if it is another one in every row."""
    here = {scale.attack(one.row, column[0]) for one in shown} - {""}
    other = f" (here {here.pop()})" if len(here) == 1 and column[0] not in here else ""
    return f"{column[1]} {column[0]}{other}".strip().replace("_", " ")


def _values(item: Item, scale: Scale, shown: Sequence[Shown]) -> Lines:
    """Return the published and the measured numbers, a line each."""
    columns = _columns(item, scale, shown)
    lines: Lines = [("", "", *(_head(scale, column, shown) for column in columns))]
    for one in shown:
        said = [item.published.get((one.place, *column)) for column in columns]
        if item.published:
            lines.append((one.label, "paper", *map(_said, columns, said)))
        asked = [
            column
            for column, value in zip(columns, said, strict=True)
            if value is not None or not item.published
        ]
        cells = [
            _measured(one, scale, column, item.average) if column in asked else ""
            for column in columns
        ]
        lines.append(
            ("" if item.published else one.label, scale.name if one.runs else "missing", *cells)
        )
    return lines


def _columns(item: Item, scale: Scale, shown: Sequence[Shown]) -> list[tuple[str, str]]:
    """Return the columns that the scale does not leave out."""
    return [
        c
        for c in item.columns
        if c[0] == SECONDS or any(scale.attack(one.row, c[0]) for one in shown)
    ]


def _said(column: tuple[str, str], value: float | None) -> str:
    """Return a published number, as the papers print it."""
    if value is None:
        return ""
    return f"{value:g}" if column[0] == SECONDS else f"{value:.2f}"


def _measured(entry: Shown, scale: Scale, column: tuple[str, str], average: str) -> str:
    """Return a number of a row with its interval, of several seeds their mean."""
    name, part = column
    if name == SECONDS:
        seconds = [run.seconds for run in entry.runs.values() if run.seconds]
        return f"{np.mean(seconds):.3g}" if seconds else ""
    attack = scale.attack(entry.row, name)
    values = [
        ("", seed, *_value(card, attack, part, average))
        for seed, card in entry.cards.items()
        if attack in attacks_on(card)
    ]
    if not values:
        return ""
    table_of_seeds = pd.DataFrame(values, columns=["row", "seed", "accuracy", "low", "high"])
    mean = over_seeds(table_of_seeds, "row").iloc[0]
    number = percent(mean["accuracy"])
    has_interval = math.isfinite(mean["low"])
    if has_interval:
        spread = percent_interval(mean["low"], mean["high"])
    else:
        spread = f"±{percent(mean['error'])}"
    if len(values) > 1:
        return f"{number} ({spread}, n {len(values)})"
    return f"{number} ({spread})" if has_interval else number


def _value(card: ResultCard, attack: str, of: str, average: str) -> tuple[float, float, float]:
    """Return an accuracy of a card under an attack with its interval, nan if it is not of the
    card's own test set."""
    found = card.summary(attack)
    if of:
        label = _label(card, of)
        low, high = found.per_class_interval
        return float(found.per_class[label]), float(low[label]), float(high[label])
    if average != "sample":
        return found.balanced, *found.balanced_interval
    counts = card.data.get("train_class_counts")
    if counts and len({*found.total.tolist()}) == 1:
        return float(np.average(found.per_class, weights=counts)), math.nan, math.nan
    return found.accuracy, *found.accuracy_interval


def _label(card: ResultCard, of: str) -> int:
    return card.class_names.index(of) if of in card.class_names else CLASSES[of]


def _differences(item: Item, scale: Scale, shown: Sequence[Shown]) -> Lines:
    """Return each row minus the first one of the same data, imbalance ratio and network, published
    and measured."""
    columns = [] if item.average == "sample" else _columns(item, scale, shown)
    columns = [column for column in columns if column[0] != SECONDS]
    lines: Lines = [("", "", *(_head(scale, column, shown) for column in columns))]
    if not columns:
        return lines
    for entry in shown:
        base = next(other for other in shown if _kind(other.row) == _kind(entry.row))
        if base is entry or not (entry.runs and base.runs):
            continue
        name = f"{entry.label} − {base.label}"
        if item.published:
            gaps = [_published_gap(item, entry, base, column) for column in columns]
            lines.append((name, "paper", *gaps))
            name = ""
        measured = [_paired(entry, base, scale, column) for column in columns]
        lines.append((name, scale.name, *measured))
    return lines


def _published_gap(item: Item, entry: Shown, base: Shown, column: tuple[str, str]) -> str:
    """Return the published difference of two rows in points; "" if one of them is not published."""
    value = item.published.get((entry.place, *column))
    value_of_base = item.published.get((base.place, *column))
    if value is None or value_of_base is None:
        return ""
    return points(value / 100 - value_of_base / 100)


def _kind(row: Row) -> tuple[object, ...]:
    return row.data.partition("-")[0], row.imbalance, row.model


def _paired(one: Shown, base: Shown, scale: Scale, column: tuple[str, str]) -> str:
    """Return the difference of two rows in a column with its interval; empty if they cannot be
    compared."""
    metric, class_name = column
    attacks = (scale.attack(one.row, metric), scale.attack(base.row, metric))
    if not all(attacks):
        return ""
    ranks = None
    if class_name:
        card = next(iter(one.cards.values()))
        rank = int(class_ranks(card.data["train_class_counts"])[_label(card, class_name)]) + 1
        ranks = (rank, rank)
    found = paired(one.cards, base.cards, attacks, ranks=ranks)
    return "" if found is None else text(found)


def _classes(_: Item, shown: Sequence[Shown]) -> Iterator[Sequence[str]]:
    """Yield the recall of each class, or of head, body and tail for many classes, under each attack
    of a figure."""
    for one in shown:
        for attack in one.attacks:
            found = [
                card.summary(attack) for card in one.cards.values() if attack in attacks_on(card)
            ]
            names = next(iter(one.cards.values())).class_names if found else ()
            few = len(names) <= 10
            each = [of.per_class if few else [of.groups[group] for group in GROUPS] for of in found]
            if each:
                yield ("", "", *(names if few else GROUPS))
                yield (
                    one.label,
                    attack,
                    *(percent(float(value)) for value in np.mean(each, axis=0)),
                )


def _curves(_: Item, shown: Sequence[Shown]) -> Iterator[Sequence[str]]:
    """Yield balanced accuracy at points of the curve, of the first seed."""
    for entry in shown:
        run = next(iter(entry.runs.values()), None)
        epochs = [epoch for epoch in run.epochs if epoch.get("monitor")] if run else []
        if not epochs:
            continue
        chosen = [epochs[index] for index in _spread(len(epochs))]
        yield ("", "", *(f"epoch {epoch['epoch']}" for epoch in chosen))
        for name, counts in epochs[0]["monitor"].items():
            if isinstance(counts, dict):
                values = [balanced_accuracy(**epoch["monitor"][name]) for epoch in chosen]
                yield (entry.label, name, *map(percent, values))


def _groups(item: Item, shown: Sequence[Shown]) -> Iterator[Sequence[str]]:
    """Yield, of head, body and tail, the share of training examples predicted as it, or their
    distance from before."""
    for entry in shown:
        run = next(iter(entry.runs.values()), None)
        if run is None:
            continue
        chosen = _epochs_of(item, run)
        if not chosen:
            continue
        of_classes = {
            f"epoch {epoch['epoch']}": np.array(epoch[item.shows], dtype=float) for epoch in chosen
        }
        counts = np.array(run.card.data["train_class_counts"], dtype=float)
        if item.shows == "predicted":
            of_classes = {"labels, %": counts, **of_classes}
        yield ("", "", *of_classes)
        groups = class_groups(counts)
        for name in GROUPS:
            cells = []
            for values in of_classes.values():
                if item.shows == "predicted":
                    shares = 100 * values / values.sum()
                    cells.append(f"{shares[groups[name]].sum():.3g}")
                else:
                    cells.append(f"{values[groups[name]].mean():.3g}")
            yield (entry.label, name, *cells)


def _epochs_of(item: Item, run: Measured) -> list[dict[str, Any]]:
    """Return the epochs of a run that an item shows, or some of all that have its values."""
    epochs = [epoch for epoch in run.epochs if epoch.get(item.shows)]
    wanted = [epoch for epoch in epochs if epoch["epoch"] in item.epochs]
    return wanted or [epochs[index] for index in _spread(len(epochs))]


def _spread(count: int) -> list[int]:
    """Return at most `EPOCHS` places of a list, evenly spaced, with the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, EPOCHS)}) if count else []


def _separable(item: Item, shown: Sequence[Shown]) -> Iterator[Sequence[str]]:
    """Yield numbers about features or logits of test images, where they are kept."""
    for one in shown:
        for seed, run in one.runs.items():
            for side, of in run.features(item.shows).get("numbers", {}).items():
                yield ("", item.shows, *(name.replace("_", " ") for name in of))
                yield (
                    f"{one.label}, seed {seed}",
                    side,
                    *(f"{value:.3f}" for value in of.values()),
                )


FIGURES: dict[str, Callable[[Item, Sequence[Shown]], Iterator[Sequence[str]]]] = {
    "classes": _classes,
    "curves": _curves,
    "predicted": _groups,
    "distance": _groups,
    "features": _separable,
    "logits": _separable,
}
