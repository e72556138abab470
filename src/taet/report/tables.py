"""The tables of the report: one function each, from results to cells of text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from taet.card.column import Column
from taet.errors import unknown
from taet.formatting import (
    MISSING,
    format_radius,
    format_value,
    percent,
    percent_interval,
    plural,
    points,
)
from taet.metrics.paired import Difference
from taet.report.confusion import mistakes_of
from taet.report.entries import TableEntry
from taet.report.results import Results
from taet.report.scores import class_names, labels_in

MOST_ROWS_BESIDE = 8  # rows of results that stand side by side in a table of classes
MOST_MISTAKES = 12
MOST_CLASSES = 200  # in a table of classes; of more, a page has the first and the last of them
RANGES = {0.0: "0", 0.2: "up to 20", 0.4: "20 to 40", 0.6: "40 to 60", 0.8: "60 to 80"}
RANGES |= {1 - 1e-9: "80 to 100", 1.0: "100"}
"""Ranges of accuracy by their ends, and their names in per cent."""
BOLD = ("balanced", "plain", "head", "body", "tail")  # groups of which the best row is bold
GROUPS = {"head": "head", "body": "body", "tail": "tail", "worst class": "worst"}
NORMS = {"linf": "L∞", "l2": "L2"}


class TableCell(NamedTuple):
    """A text, a detail in small print below it or in brackets after it, whether the text is bold,
    and of a mean over seeds their standard deviation."""

    text: str
    detail: str = ""
    bold: bool = False
    deviation: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Table:
    """Cells by the head of their column and the name of their row; a missing cell is a dash."""

    title: str
    columns: Mapping[TableCell, Mapping[str, TableCell]]
    rows: Sequence[str]
    corner: str = "method"
    """What the rows are."""

    def cells(self, row: str) -> list[TableCell]:
        """Return the cells of a row."""
        return [cells.get(row, TableCell(MISSING)) for cells in self.columns.values()]

    def only(self, wanted: Sequence[str]) -> Table:
        """Return the table with some columns, in the order that is asked for."""
        heads = {head.text: head for head in self.columns}
        for name in wanted:
            if name not in heads:
                raise unknown("column", name, heads)
        columns = {heads[name]: self.columns[heads[name]] for name in wanted}
        return replace(self, columns=columns)


def order(results: Results) -> list[str]:
    """Return the rows by balanced accuracy under the strongest attack, best first, those without it
    last."""
    scores = results.scores("balanced")
    lead = scores[scores["attack"] == lead_attacks(results)[-1]].set_index("row")["accuracy"]
    return sorted(results.rows, key=lambda row: -lead.get(row, -1.0))


def lead_attacks(results: Results) -> list[str]:
    """Return clean and the strongest attack, as far as the results have them, else the first
    attack."""
    lead = [attack for attack, column in results.columns.items() if column.norm is None][:1]
    if results.strongest is not None:
        lead.append(results.strongest)
    return lead or [*results.columns][:1]


def threat(column: Column) -> str:
    """Return the threat model of an attack in words."""
    norm = NORMS.get(str(column.norm), str(column.norm))
    if not column.bounded or column.eps is None:
        return f"{norm}, unbounded"
    radius = format_radius(column.eps) if column.norm == "linf" else f"{column.eps:.4g}"
    return f"{norm}, ε {radius}"


def attacks_in_ball(results: Results) -> list[str]:
    """Return the attacks within the ball of the strongest one."""
    ball = threat(results.columns[results.strongest]) if results.strongest else ""
    return [attack for attack, column in results.columns.items() if threat(column) == ball]


def under(attack: str) -> str:
    """Return an attack as the title of a table or figure."""
    return "Clean images" if attack == "clean" else f"Under {attack}"


def headline(results: Results) -> Table:
    """Return balanced accuracy under each attack, of the tail classes, and the share of all clean
    images if it differs."""
    card, columns = results.cards[0], dict[TableCell, Mapping[str, TableCell]]()
    in_ball = attacks_in_ball(results)
    for attack, column in results.columns.items():
        ball = "" if column.norm is None or attack in in_ball else threat(column)
        columns[TableCell(attack, ball)] = _accuracies(results, attack)
    if results.strongest is not None and len(labels_in(card, "tail")):
        columns[TableCell("tail", results.strongest)] = _accuracies(
            results, results.strongest, "tail"
        )
    class_sizes = {int(count) for count in card.test_class_counts if count > 0}
    if "clean" in results.columns and len(class_sizes) > 1:
        columns[TableCell("all images", "clean")] = _accuracies(results, "clean", "plain")
    seeds = _seeds(results)
    if any(max(numbers) > 1 for numbers in seeds.values()):
        cells = {row: TableCell(" or ".join(map(str, numbers))) for row, numbers in seeds.items()}
        columns[TableCell("seeds")] = cells
    return Table("Balanced accuracy", columns, order(results))


def most_important_first(headline: Table, results: Results) -> Table:
    """Return the table with the strongest attack and its tail before the other columns, so that a
    phone shows them beside the names."""
    heads = sorted(headline.columns, key=lambda head: _importance(head, results.strongest))
    columns = {head: headline.columns[head] for head in heads}
    return Table(headline.title, columns, headline.rows)


def _importance(head: TableCell, strongest: str | None) -> int:
    if head == TableCell(str(strongest)):
        return 0
    return 1 if head == TableCell("tail", str(strongest)) else 2


def _seeds(results: Results) -> dict[str, list[int]]:
    """Return the number of seeds of each row; several numbers where some attacks have fewer."""
    by_row = results.scores("balanced").groupby("row")["seeds"]
    return {str(row): sorted(numbers) for row, numbers in by_row.unique().items()}


def groups(results: Results) -> Iterator[Table]:
    """Yield the accuracy of head, body, tail and worst class, on clean images and under the
    strongest attack; none where the classes have no rank."""
    if not len(labels_in(results.cards[0], "tail")):
        return
    for attack in lead_attacks(results):
        columns = {
            TableCell(head): _accuracies(results, attack, group) for head, group in GROUPS.items()
        }
        yield Table(under(attack), columns, order(results))


def differences(results: Results) -> Iterator[Table]:
    """Yield the paired differences of balanced accuracy to the best row; none without pairs."""
    best, *others = order(results)
    seeds = results.scores("balanced").set_index(["row", "attack"])["seeds"]
    columns: dict[TableCell, dict[str, TableCell]] = defaultdict(dict)
    for attack in lead_attacks(results):
        for row in others:
            paired = results.difference(row, best, attack)
            if paired is not None:
                most = max(seeds[row, attack], seeds[best, attack])
                columns[TableCell(attack)][row] = _difference_cell(paired, most)
    if columns:
        yield Table(f"Difference from {best}", columns, others)


def _difference_cell(paired: Difference, most_seeds: int) -> TableCell:
    detail = f"{points(paired.low)} to {points(paired.high)}"
    if not paired.significant:
        detail += f", {paired.verdict}"
    if paired.runs < most_seeds:
        detail += f", {plural(paired.runs, 'pair')}"
    return TableCell(points(paired.value), detail)


def shown_classes(results: Results) -> list[int]:
    """Return the labels of the classes that a page shows, the class with most training images
    first.

    Of more than `MOST_CLASSES`, these are the first and the last half of them.
    """
    labels = list(range(results.cards[0].num_classes))
    trained = results.train_class_counts
    if trained is not None:
        labels.sort(key=lambda label: -trained[label])
    if len(labels) <= MOST_CLASSES:
        return labels
    half = MOST_CLASSES // 2
    return labels[:half] + labels[-half:]


def classes(results: Results) -> Iterator[Table]:
    """Yield the accuracy of each class that is shown, and of many classes how many have which
    accuracy."""
    card = results.cards[0]
    every_name, labels = class_names(card), shown_classes(results)
    trained = results.train_class_counts
    names = [every_name[label] for label in labels]
    counts = {TableCell("test images"): _counts(names, card.test_class_counts[labels].tolist())}
    if trained is not None:
        of_training = _counts(names, [trained[label] for label in labels])
        counts = {TableCell("training images"): of_training, **counts}
    shown = order(results)[:MOST_ROWS_BESIDE]
    scores = results.scores(*every_name)
    for attack in lead_attacks(results):
        of_attack = scores[(scores["attack"] == attack) & scores["accuracy"].notna()]
        if len(labels) < card.num_classes:
            yield _spread(of_attack, shown, attack)
        of_shown = of_attack[of_attack["group"].isin(names)]
        columns = dict(counts)
        for row in shown:
            columns[TableCell(row)] = {
                line.group: _accuracy_cell(line)
                for line in of_shown[of_shown["row"] == row].itertuples()
            }
        columns |= _precision_and_f1(results, shown[0], attack, names)
        yield Table(under(attack), columns, names, "class")


def _spread(of_classes: pd.DataFrame, rows: Sequence[str], attack: str) -> Table:
    """Return how many classes of each row have an accuracy in each of some ranges."""
    columns = {}
    for row in rows:
        accuracies = of_classes.loc[of_classes["row"] == row, "accuracy"]
        ranges = pd.cut(accuracies, [-1.0, *RANGES], labels=[*RANGES.values()])
        cells = ranges.value_counts().items()
        columns[TableCell(row)] = {name: TableCell(f"{count:,}") for name, count in cells}
    return Table(f"Number of classes, {under(attack).lower()}", columns, [*RANGES.values()], "%")


def _precision_and_f1(
    results: Results, row: str, attack: str, names: Sequence[str]
) -> dict[TableCell, dict[str, TableCell]]:
    """Return precision and F1 of some classes for a row, the mean over its seeds."""
    table = results.table()
    table = table[(table["row"] == row) & (table["attack"] == attack)]
    table = table[table["group"].isin(names)].drop_duplicates(["seed", "group"])
    means = table.groupby("group")[["precision", "f1"]].mean()
    columns = {}
    for head, name in (("precision", "precision"), ("F1", "f1")):
        cells = {group: TableCell(percent(value)) for group, value in means[name].items()}
        columns[TableCell(head, row)] = cells
    return columns


def _counts(names: Sequence[str], numbers: Sequence[int]) -> dict[str, TableCell]:
    return {name: TableCell(f"{number:,}") for name, number in zip(names, numbers, strict=True)}


def mistakes(results: Results) -> Iterator[Table]:
    """Yield what the best row most often takes for what, on clean images and under the strongest
    attack, in per cent of the images of the true class, over all its seeds."""
    row = order(results)[0]
    names = class_names(results.cards[0])
    for attack in lead_attacks(results):
        most_frequent = mistakes_of(results, row, attack)[:MOST_MISTAKES]
        cells = {
            f"{names[true]} as {names[taken]}": TableCell(percent(share))
            for true, taken, share in most_frequent
        }
        if cells:
            title = f"{row}, {under(attack).lower()}"
            yield Table(title, {TableCell("of the class"): cells}, [*cells], "mistake")


def provenance(results: Results) -> Iterator[Table]:
    """Yield the cards behind every number, and how each was made."""
    columns: dict[TableCell, dict[str, TableCell]] = defaultdict(dict)
    for entry in results.entries:
        for name, value in _origin(entry).items():
            if value not in (None, ""):
                columns[TableCell(name)][entry.name] = TableCell(format_value(value))
    yield Table("Cards", columns, [entry.name for entry in results.entries], "card")


def _origin(entry: TableEntry) -> dict[str, object]:
    """Return what is known of the origin of a card; None or "" where it is not."""
    card, model = entry.card, entry.card.model
    network = card.run.get("config", {}).get("model", {})
    chosen = [format_value(model[name]) for name in ("epoch", "selection") if model.get(name)]
    return {
        "method": entry.row,
        "title": card.title,
        "seed": card.seed,
        "on": card.created,
        "weights, SHA-256": model["weights_sha256"],
        "test images, SHA-256": card.data["test_sha256"],
        "epoch": " ".join(chosen),
        "begins from": network.get("weights"),
        "trained part": network.get("tune"),
        "leaves the protocol": "; ".join(card.deviations),
        "evaluated by": card.command,
        "checksum": "" if card.sealed else "none: of an older version",
    }


def _accuracies(results: Results, attack: str, group: str = "balanced") -> dict[str, TableCell]:
    """Return the cells of an attack and a group by row, best first.

    The best is bold if a paired test finds it better than each other row.
    """
    scores = results.scores(group)
    scores = scores[(scores["attack"] == attack) & scores["accuracy"].notna()]
    scores = scores.sort_values("accuracy", ascending=False, kind="stable")
    cells = {}
    for line in scores.itertuples():
        cells[line.row] = _accuracy_cell(line)
    if group in BOLD and _measures_robustness(results.columns[attack]) and len(cells) > 1:
        best, *others = cells
        paired = [results.difference(best, other, attack, group) for other in others]
        if all(one is not None and one.significant and one.value > 0 for one in paired):
            cells[best] = cells[best]._replace(bold=True)
    return cells


def _accuracy_cell(line: Any) -> TableCell:
    """Return the cell of a line of `Results.scores`."""
    interval = percent_interval(line.low, line.high)
    deviation = percent(line.error * line.seeds**0.5) if line.seeds > 1 else ""
    return TableCell(percent(line.accuracy), interval, deviation=deviation)


def _measures_robustness(column: Column) -> bool:
    """Return whether models differ under an attack: an unbounded one breaks every model."""
    return column.bounded or column.norm is None
