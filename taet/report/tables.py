"""The tables of the report: one function each, from results to frames of cells; its docstring is the text above it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from taet import statistics
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.formatting import MISSING, count, markdown_table, percent, percent_interval, points, size, words
from taet.report.numbers import NamedCard, class_names
from taet.report.results import Results

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 8
"""Most rows of results that stand side by side in a table of classes."""
ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
ESCAPED |= {"·": r"$\cdot$", "∞": r"$\infty$", "ε": r"$\epsilon$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


class Text(NamedTuple):
    """A text, what stands small below it or in brackets behind it, and whether it is bold."""

    text: str
    detail: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True, eq=False)
class Table:
    """A frame of cells; its index names the rows, its columns are cells as well."""

    title: str
    frame: pd.DataFrame

    @property
    def lines(self) -> list[tuple[str, list[Text]]]:
        """Name and cells of each row."""
        return [(str(name), list(cells)) for name, *cells in self.frame.itertuples()]

    def _texts(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """Return the head and the rows as escaped texts, those in bold put into `bold`."""
        heads = [Text(str(self.frame.index.name)), *self.frame.columns]
        rows = [heads, *([Text(name), *cells] for name, cells in self.lines)]
        escaped = ([(escape(" ".join(str(cell).split())), cell.bold) for cell in row] for row in rows)
        return [[bold.format(text) if is_bold else text for text, is_bold in row] for row in escaped]

    def markdown(self) -> str:
        """Return the table in Markdown; names may hold any sign."""
        signs = {sign: f"\\{sign}" for sign in r"\|*_`<>[]"}
        return markdown_table(self._texts(lambda text: "".join(signs.get(sign, sign) for sign in text), "**{}**"))

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs."""
        rows = self._texts(lambda text: "".join(ESCAPED.get(sign, sign) for sign in text), r"\textbf{{{}}}")
        head, *body = (" & ".join(row) + r" \\" for row in rows)
        begin = [r"\begin{table}", rf"\begin{{tabular}}{{l{'r' * len(self.frame.columns)}}}", r"\toprule"]
        end = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join([f"% {self.title}", *begin, head, r"\midrule", *body, *end])


def table(title: str, rows: Mapping[str, Mapping[Text, Text]], name: str = "method") -> Table:
    """Return a table of cells by row and column; a missing one is a dash."""
    import pandas as pd

    heads = list(dict.fromkeys(head for cells in rows.values() for head in cells))
    values = [[cells.get(head, Text(MISSING)) for head in heads] for cells in rows.values()]
    return Table(title, pd.DataFrame(values, pd.Index(list(rows), name=name), pd.Index(heads, tupleize_cols=False)))


def accuracy(found: Mapping[str, float] | pd.Series) -> Text:
    """Return an accuracy with its interval, as in every table."""
    if math.isnan(found["accuracy"]):
        return Text(MISSING)
    return Text(percent(found["accuracy"]), percent_interval(found["low"], found["high"]))


def order(results: Results) -> list[str]:
    """Return the rows by balanced accuracy under the strongest attack, best first, those without it last."""
    scores = results.scores("balanced")
    lead = scores[scores["attack"] == (results.strongest or results.attacks[0])].set_index("row")["accuracy"]
    return sorted(results.rows, key=lambda row: -lead.get(row, -1.0))


def column_of(results: Results, attack: str) -> Column:
    """Return a column of an attack, for its settings."""
    return next(one.columns[attack] for one in results.named if attack in one.columns)


def lead_attacks(results: Results) -> list[str]:
    """Return clean and the strongest attack, those of the two that there are."""
    clean = [attack for attack in results.attacks if column_of(results, attack).norm is None]
    return [*clean[:1], *([results.strongest] if results.strongest else [])]


def threat(column: Column) -> str:
    """Return the threat model of an attack in words."""
    norm = {"linf": "L∞", "l2": "L2"}.get(str(column.norm), str(column.norm))
    if not column.bounded or column.eps is None:
        return f"{norm}, unbounded"
    return f"{norm}, ε {size(column.eps) if column.norm == 'linf' else f'{column.eps:.4g}'}"


def under(attack: str) -> str:
    """Return an attack as the title of a table or figure."""
    return "Clean images" if attack == "clean" else f"Under {attack}"


def _add(results: Results, rows: dict[str, dict[Text, Text]], head: Text, attack: str, group: str = "balanced") -> None:
    """Add the column of an attack and a group to rows; the best is bold if it is decided against each other row."""
    scores = results.scores(group)
    found = scores[scores["attack"] == attack].dropna(subset="accuracy")
    found = found.sort_values("accuracy", ascending=False, kind="stable").set_index("row")
    cells, column = {str(row): accuracy(line) for row, line in found.iterrows()}, column_of(results, attack)
    top, *others = list(cells) or [""]
    if others and (column.bounded or column.norm is None):  # without a bound every model breaks
        decided = (results.difference(top, other, attack, group) for other in others)
        if all(one is not None and one.decided and one.value > 0 for one in decided):
            cells[top] = cells[top]._replace(bold=True)
    for row in rows:
        rows[row][head] = cells.get(row, Text(MISSING))


def _rows(results: Results) -> dict[str, dict[Text, Text]]:
    return {row: {} for row in order(results)}


def headline(results: Results) -> Table:
    """Balanced accuracy under each attack, of the tail classes, and the share of all clean images if it differs."""
    rows, counts = _rows(results), results.cards[0].test_class_counts
    ball = results.strongest and threat(column_of(results, results.strongest))
    for attack in results.attacks:
        column = column_of(results, attack)
        own = "" if column.norm is None or threat(column) == ball else threat(column)
        _add(results, rows, Text(attack, own), attack)
    if results.strongest is not None:
        _add(results, rows, Text("tail", results.strongest), results.strongest, "tail")
    if "clean" in results.attacks and len({*counts[counts > 0].tolist()}) > 1:
        _add(results, rows, Text("all images", "clean"), "clean", "plain")
    seeds = {row: len([*_seeds(results, row)]) for row in rows}
    if max(seeds.values()) > 1:
        for row, number in seeds.items():
            rows[row][Text("seeds")] = Text(str(number))
    return table("Balanced accuracy", rows)


def groups(results: Results) -> Iterator[Table]:
    """Balanced accuracy inside the head, body and tail classes, the thirds of the classes by training images, and the
    accuracy of the worst class of each seed."""
    for attack in lead_attacks(results):
        rows = _rows(results)
        for group in ("head", "body", "tail"):
            _add(results, rows, Text(group), attack, group)
        for line in results.scores("worst").query("attack == @attack").to_dict("records"):
            rows[line["row"]][Text("worst class")] = accuracy(line)
        yield table(under(attack), rows)


def differences(results: Results) -> Iterator[Table]:
    """Difference of balanced accuracy to the best row in percentage points, compared image by image on the same test
    images, with its 95 % interval. Undecided: the interval contains 0, or the p-value of a randomisation test is 5 % or
    more. For one seed it tells which of two models is better, not which method; for several it covers the seeds too."""
    best, *others = order(results)
    found: dict[str, dict[Text, Text]] = {row: {} for row in others}
    for attack in lead_attacks(results):
        for row in others:
            one = results.difference(row, best, attack)
            if one is not None:
                ends = f"{points(one.low)} to {points(one.high)}{'' if one.decided else ', undecided'}"
                found[row][Text(attack)] = Text(points(one.value), ends)
    if found:
        yield table(f"Minus {best}", found)


def classes(results: Results) -> Iterator[Table]:
    """Accuracy of each class with its 95 % interval, the class with most training images first."""
    card, rows = results.cards[0], order(results)[:MOST_COLUMNS]
    counts, tested = card.data.get("train_class_counts"), card.test_class_counts
    names, largest = class_names(card), largest_first(card)
    for attack in lead_attacks(results):
        found: dict[str, dict[Text, Text]] = {}
        for label in largest:
            found[names[label]] = {} if counts is None else {Text("training images"): Text(count(counts[label]))}
            found[names[label]][Text("test images")] = Text(count(tested[label]))
        scores = results.scores(*names).query("attack == @attack").to_dict("records")
        for line in sorted((line for line in scores if line["row"] in rows), key=lambda line: rows.index(line["row"])):
            found[line["group"]][Text(line["row"])] = accuracy(line)
        yield table(under(attack), found, "class")


def largest_first(card: ResultCard) -> list[int]:
    """Return the labels, that of the class with most training images first."""
    counts = card.data.get("train_class_counts")
    return [*map(int, np.argsort(-np.asarray(counts or [0] * card.num_classes), kind="stable"))]


def behaviour(results: Results) -> Iterator[Table]:
    """Answers changed: share of all images whose predicted class changes under attack. Natural and boundary error: mean
    over the classes of the shares that are wrong without the attack, and wrong only under it. ROC-AUC: how well the
    scores separate two classes, mean over all pairs. Weak classes: those below the balanced accuracy. Median distance:
    size of the perturbations of an unbounded attack. All are means over the seeds."""
    attack, rows = str(results.strongest), _rows(results)
    for row in rows:
        found: dict[str, list[tuple[float, str]]] = {}
        for one in _seeds(results, row):
            if attack in one.columns and one.card.clean is not None:
                for name, value, form in _behaviour(one.card, one.columns[attack], one.card.clean):
                    found.setdefault(name, []).append((value, form))
        rows[row] = {
            Text(name): Text(of[0][1].format(np.mean([value for value, _ in of]))) for name, of in found.items()
        }
    yield table(under(attack), rows)


def _behaviour(card: ResultCard, column: Column, clean: Column) -> Iterator[tuple[str, float, str]]:
    """Yield the name, value and form of each fact about the answers of a model under an attack."""
    natural, boundary = statistics.class_errors(clean.correct, column.correct, card.labels, card.num_classes)
    right = statistics.class_counts(column.correct, card.labels, card.num_classes)
    yield "answers changed", 100 * statistics.flip_rate(clean.predictions, column.predictions), "{:.1f}"
    yield "natural error", 100 * float(np.nanmean(natural)), "{:.1f}"
    yield "boundary error", 100 * float(np.nanmean(boundary)), "{:.1f}"
    for name, of in (("ROC-AUC, clean", clean), ("ROC-AUC", column)):
        if of.roc_auc is not None:
            yield name, 100 * statistics.roc_auc(of.roc_auc), "{:.1f}"
    yield "weak classes", len(statistics.weak_classes(*right)), "{:.3g}"
    for other in (other for other in card.columns if other.distances is not None):
        yield f"median distance, {other.name}", statistics.median_distance(other.distances or ()), "{:.3g}"


def _seeds(results: Results, row: str) -> Iterator[NamedCard]:
    """Yield the cards of a row, the first of each seed."""
    own = [one for one in results.named if one.row == row]
    yield from {one.card.seed: one for one in reversed(own)}.values()


def broken(results: Results) -> Iterator[Table]:
    """Test images that are right without attack and wrong under it, and how many no other attack of the table breaks:
    means over the seeds. Where a weaker attack breaks many alone, the strongest is not strong enough for the model."""
    attacks, rows = in_ball(results), _rows(results)
    for row in rows:
        found: dict[str, list[tuple[int, int]]] = {}
        for one in _seeds(results, row):
            here = [attack for attack in attacks if attack in one.columns]
            if one.card.clean is not None and here:
                lost = one.card.clean.correct & ~np.stack([one.columns[attack].correct for attack in here])
                alone = (lost & (lost.sum(0) == 1)).sum(1)
                for attack, every, only in zip(here, lost.sum(1), alone, strict=True):
                    found.setdefault(attack, []).append((int(every), int(only)))
        means = {attack: np.mean(values, axis=0) for attack, values in found.items()}
        rows[row] = {Text(a): Text(f"{means[a][0]:.4g}", f"{means[a][1]:.4g} alone") for a in attacks if a in means}
    yield table("Images that each attack breaks", rows)


def in_ball(results: Results) -> Sequence[str]:
    """Return the attacks within the ball of the strongest one."""
    if results.strongest is None:
        return []
    ball = threat(column_of(results, results.strongest))
    return [attack for attack in results.attacks if threat(column_of(results, attack)) == ball]


def provenance(results: Results) -> Iterator[Table]:
    """The cards behind every number, and how each was made."""
    rows: dict[str, dict[Text, Text]] = {}
    for one in results.named:
        card = one.card
        facts: dict[str, object] = {
            "method": one.row,
            "title": card.title,
            "seed": card.seed,
            "SHA-256 of the weights": card.model["weights_sha256"],
            "SHA-256 of the test images": card.data["test_sha256"],
            "epoch": " ".join(words(card.model[key]) for key in ("epoch", "selection") if card.model.get(key)),
            "leaves the protocol": "; ".join(card.deviations),
            "settings of the method": card.run.get("config", {}).get("settings"),
            "training": f"{sum(epoch.seconds for epoch in one.source.epochs):.0f} s" if one.source.epochs else None,
            "evaluation": f"{sum(column.seconds for column in card.columns):.0f} s",
            "evaluated by": card.command,
            "on": card.created,
            "checksum": "" if card.sealed else "none: of an older version",
        }
        shown = {name: words(value) for name, value in facts.items() if value not in (None, "", {})}
        rows[one.source.name] = {Text(name): Text(text) for name, text in shown.items()}
    yield table("Cards", rows, "card")
