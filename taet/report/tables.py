"""The tables of the report: one function each, from results to frames of cells; its docstring is the text above it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.formatting import MISSING, count, markdown_table, percent, percent_interval, points, size, words
from taet.report.results import Results, class_names

MOST_COLUMNS = 8  # rows of results that stand side by side in a table of classes
BOLD = ("balanced", "plain", "head", "body", "tail")  # groups of which the best row is bold
MARKDOWN = {sign: f"\\{sign}" for sign in r"\|*_`<>[]"}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
LATEX |= {"·": r"$\cdot$", "∞": r"$\infty$", "ε": r"$\epsilon$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


class Text(NamedTuple):
    """A text, what stands small below it or in brackets behind it, and whether it is bold."""

    text: str
    detail: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


Cells = dict[str, dict[Text, Text]]  # by row and head of their column


def table(title: str, rows: Cells, name: str = "method") -> pd.DataFrame:
    """Return a frame of cells with a title; its index names the rows, and a missing cell is a dash."""
    heads = list(dict.fromkeys(head for cells in rows.values() for head in cells))
    values = [[cells.get(head, Text(MISSING)) for head in heads] for cells in rows.values()]
    frame = pd.DataFrame(values, pd.Index(list(rows), name=name), pd.Index(heads, tupleize_cols=False))
    frame.attrs["title"] = title
    return frame


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown; names may hold any sign."""
    return markdown_table(_escaped(frame, MARKDOWN, "**{}**"))


def latex(frame: pd.DataFrame) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    head, *body = (" & ".join(row) + r" \\" for row in _escaped(frame, LATEX, r"\textbf{{{}}}"))
    begin = [r"\begin{table}", rf"\begin{{tabular}}{{l{'r' * len(frame.columns)}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([f"% {frame.attrs['title']}", *begin, head, r"\midrule", *body, *end])


def _escaped(frame: pd.DataFrame, signs: Mapping[str, str], bold: str) -> list[list[str]]:
    def text(cell: object) -> str:
        escaped = "".join(signs.get(sign, sign) for sign in " ".join(str(cell).split()))
        return bold.format(escaped) if isinstance(cell, Text) and cell.bold else escaped

    return [[*map(text, row)] for row in ((frame.index.name, *frame.columns), *frame.itertuples())]


def order(results: Results) -> list[str]:
    """Return the rows by balanced accuracy under the strongest attack, best first, those without it last."""
    scores = results.scores("balanced")
    lead = scores[scores["attack"] == lead_attacks(results)[-1]].set_index("row")["accuracy"]
    return sorted(results.rows, key=lambda row: -lead.get(row, -1.0))


def lead_attacks(results: Results) -> list[str]:
    """Return clean and the strongest attack, those of the two that there are, or the first attack."""
    clean = [attack for attack, column in results.columns.items() if column.norm is None]
    return [*clean[:1], *filter(None, [results.strongest])] or [*results.columns][:1]


def threat(column: Column) -> str:
    """Return the threat model of an attack in words."""
    norm = {"linf": "L∞", "l2": "L2"}.get(str(column.norm), str(column.norm))
    if not column.bounded or column.eps is None:
        return f"{norm}, unbounded"
    return f"{norm}, ε {size(column.eps) if column.norm == 'linf' else f'{column.eps:.4g}'}"


def in_ball(results: Results) -> list[str]:
    """Return the attacks within the ball of the strongest one."""
    ball = threat(results.columns[results.strongest]) if results.strongest else ""
    return [attack for attack, column in results.columns.items() if threat(column) == ball]


def under(attack: str) -> str:
    """Return an attack as the title of a table or figure."""
    return "Clean images" if attack == "clean" else f"Under {attack}"


def largest_first(card: ResultCard) -> list[int]:
    """Return the labels, that of the class with most training images first."""
    counts = card.data.get("train_class_counts") or [0] * card.num_classes
    return [*map(int, np.argsort(-np.asarray(counts), kind="stable"))]


def _column(results: Results, attack: str, group: str = "balanced") -> dict[str, Text]:
    """Return the cells of an attack and a group by row; the best is bold if it is decided against each other row."""
    found = results.scores(group).query("attack == @attack").dropna(subset="accuracy")
    found = found.sort_values("accuracy", ascending=False, kind="stable").set_index("row")
    numbers = found[["accuracy", "low", "high"]].itertuples()
    cells = {row: Text(percent(value), percent_interval(*ends)) for row, value, *ends in numbers}
    column, (top, *others) = results.columns[attack], list(cells) or [""]
    if others and group in BOLD and (column.bounded or column.norm is None):  # without a bound every model breaks
        decided = (results.difference(top, other, attack, group) for other in others)
        if all(one is not None and one.decided and one.value > 0 for one in decided):
            cells[top] = cells[top]._replace(bold=True)
    return cells


def _of_columns(title: str, results: Results, columns: Mapping[Text, Mapping[str, Text]]) -> pd.DataFrame:
    rows = {row: {head: of.get(row, Text(MISSING)) for head, of in columns.items()} for row in order(results)}
    return table(title, rows)


def headline(results: Results) -> pd.DataFrame:
    """Balanced accuracy under each attack, of the tail classes, and the share of all clean images if it differs."""
    columns, inside = {}, in_ball(results)
    for attack, column in results.columns.items():
        head = Text(attack, "" if column.norm is None or attack in inside else threat(column))
        columns[head] = _column(results, attack)
    if results.strongest is not None:
        columns[Text("tail", results.strongest)] = _column(results, results.strongest, "tail")
    if "clean" in results.columns and len({*results.cards[0].test_class_counts.tolist()} - {0}) > 1:
        columns[Text("all images", "clean")] = _column(results, "clean", "plain")
    seeds = results.scores("balanced").groupby("row")["seeds"].max()
    if seeds.max() > 1:
        columns[Text("seeds")] = {row: Text(str(number)) for row, number in seeds.items()}
    return _of_columns("Balanced accuracy", results, columns)


def groups(results: Results) -> Iterator[pd.DataFrame]:
    """Balanced accuracy inside the head, body and tail classes, the thirds of the classes by training images, and the
    accuracy of the worst class of each seed."""
    parts = {"head": "head", "body": "body", "tail": "tail", "worst class": "worst"}
    for attack in lead_attacks(results) if results.cards[0].data.get("train_class_counts") is not None else ():
        columns = {Text(said): _column(results, attack, group) for said, group in parts.items()}
        yield _of_columns(under(attack), results, columns)


def differences(results: Results) -> Iterator[pd.DataFrame]:
    """Difference of balanced accuracy to the best row in percentage points, compared image by image on the same test
    images, with its 95 % interval. Undecided: the interval contains 0, or the p-value of a randomisation test is 5 % or
    more. For one seed it tells which of two models is better, not which method; for several it covers the seeds too."""
    best, *others = order(results)
    found: Cells = {row: {} for row in others}
    for attack in lead_attacks(results):
        for row in others:
            if (one := results.difference(row, best, attack)) is not None:
                ends = f"{points(one.low)} to {points(one.high)}{'' if one.decided else ', undecided'}"
                found[row][Text(attack)] = Text(points(one.value), ends)
    if found:
        yield table(f"Minus {best}", found)


def classes(results: Results) -> Iterator[pd.DataFrame]:
    """Accuracy of each class with its 95 % interval, the class with most training images first."""
    card, names = results.cards[0], class_names(results.cards[0])
    counts, tested = card.data.get("train_class_counts"), card.test_class_counts
    for attack in lead_attacks(results):
        columns = {name: _column(results, attack, name) for name in names}
        rows: Cells = {names[label]: {} for label in largest_first(card)}
        for label, name in enumerate(names):
            rows[name] |= {} if counts is None else {Text("training images"): Text(count(counts[label]))}
            rows[name][Text("test images")] = Text(count(tested[label]))
            rows[name] |= {Text(row): columns[name].get(row, Text(MISSING)) for row in order(results)[:MOST_COLUMNS]}
        yield table(under(attack), rows, "class")


def provenance(results: Results) -> Iterator[pd.DataFrame]:
    """The cards behind every number, and how each was made."""
    rows: Cells = {}
    for one in results.named:
        card, model = one.card, one.card.model
        facts = {"method": one.row, "title": card.title, "seed": card.seed, "on": card.created}
        facts |= {"weights, SHA-256": model["weights_sha256"], "test images, SHA-256": card.data["test_sha256"]}
        facts |= {"epoch": " ".join(words(model[key]) for key in ("epoch", "selection") if model.get(key))}
        facts |= {"leaves the protocol": "; ".join(card.deviations), "evaluated by": card.command}
        facts |= {"checksum": "" if card.sealed else "none: of an older version"}
        rows[one.name] = {Text(name): Text(words(value)) for name, value in facts.items() if value not in (None, "")}
    yield table("Cards", rows, "card")
