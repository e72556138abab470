"""The tables of the report: one function each, from results to frames of cells, below the text of its docstring."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from taet.evaluation.column import Column
from taet.formatting import MISSING, markdown_table, percent, percent_interval, plural, points, size, words
from taet.report.results import Results, class_names, members

MOST_COLUMNS = 8  # rows of results that stand side by side in a table of classes
MOST_MISTAKES = 12
BOLD = ("balanced", "plain", "head", "body", "tail")  # groups of which the best row is bold
ADDRESS = re.compile(r"https?://[\w./?=&#%~:+-]+")
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in r"\|*_`<>[]"})
SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
SIGNS |= {"·": r"$\cdot$", "∞": r"$\infty$", "ε": r"$\epsilon$"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
LATEX = str.maketrans(SIGNS)


class Text(NamedTuple):
    """A text, a detail in small print below it or in brackets after it, and whether the text is bold."""

    text: str
    detail: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


Columns = Mapping[Text, Mapping[str, Text]]  # cells by the head of their column and the name of their row


def table(title: str, columns: Columns, rows: Sequence[str], name: str = "method") -> pd.DataFrame:
    """Return a frame of cells with a title; its index names the rows, and a missing cell is a dash."""
    values = [[cells.get(row, Text(MISSING)) for cells in columns.values()] for row in rows]
    frame = pd.DataFrame(values, pd.Index(rows, name=name), pd.Index([*columns], tupleize_cols=False))
    frame.attrs["title"] = title
    return frame


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line, with its addresses as links."""
    return " ".join(word if ADDRESS.fullmatch(word) else word.translate(MARKDOWN) for word in text.split())


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown; names may hold any sign."""
    return markdown_table(_escaped(frame, MARKDOWN, "**{}**"))


def latex(frame: pd.DataFrame, test_set: str, number: int) -> str:
    """Return a table in LaTeX, for the package booktabs; the caption is its title and the name of the test set."""
    title = f"{frame.attrs['title']}: {test_set}"
    label = "-".join(re.findall(r"[a-z0-9]+", f"{frame.attrs['title']} {number}".lower()))
    caption = [rf"\caption{{{title.translate(LATEX)}}}", rf"\label{{tab:{label}}}"]
    head, *body = (" & ".join(row) + r" \\" for row in _escaped(frame, LATEX, r"\textbf{{{}}}"))
    begin = [r"\begin{table}", rf"\begin{{tabular}}{{l{'r' * len(frame.columns)}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", *caption, r"\end{table}"]
    return "\n".join([*begin, head, r"\midrule", *body, *end])


def _escaped(frame: pd.DataFrame, signs: Mapping[int, str], bold: str) -> list[list[str]]:
    def text(cell: object) -> str:
        escaped = " ".join(str(cell).split()).translate(signs)
        return bold.format(escaped) if isinstance(cell, Text) and cell.bold else escaped

    return [[*map(text, row)] for row in ((frame.index.name, *frame.columns), *frame.itertuples())]


def order(results: Results) -> list[str]:
    """Return the rows by balanced accuracy under the strongest attack, best first, those without it last."""
    scores = results.scores("balanced")
    lead = scores[scores["attack"] == lead_attacks(results)[-1]].set_index("row")["accuracy"]
    return sorted(results.rows, key=lambda row: -lead.get(row, -1.0))


def lead_attacks(results: Results) -> list[str]:
    """Return clean and the strongest attack, as far as the results have them, else the first attack."""
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


def _column(results: Results, attack: str, group: str = "balanced") -> dict[str, Text]:
    """Return the cells of an attack and a group by row; the best is bold if it is better than each other by a test."""
    scores = results.scores(group)
    found = scores[(scores["attack"] == attack) & scores["accuracy"].notna()].set_index("row")
    found = found.sort_values("accuracy", ascending=False, kind="stable")
    numbers = found[["accuracy", "low", "high"]].itertuples()
    cells = {row: Text(percent(value), percent_interval(*ends)) for row, value, *ends in numbers}
    column, (top, *others) = results.columns[attack], list(cells) or [""]
    if others and group in BOLD and (column.bounded or column.norm is None):  # an unbounded attack breaks every model
        decided = (results.difference(top, other, attack, group) for other in others)
        if all(one is not None and one.decided and one.value > 0 for one in decided):
            cells[top] = cells[top]._replace(bold=True)
    return cells


def headline(results: Results) -> pd.DataFrame:
    """Balanced accuracy under each attack, of the tail classes, and the share of all clean images if it differs."""
    columns, inside = {}, in_ball(results)
    for attack, column in results.columns.items():
        head = Text(attack, "" if column.norm is None or attack in inside else threat(column))
        columns[head] = _column(results, attack)
    if results.strongest is not None and len(members(results.cards[0], "tail")):
        columns[Text("tail", results.strongest)] = _column(results, results.strongest, "tail")
    if "clean" in results.columns and len({*results.cards[0].test_class_counts.tolist()} - {0}) > 1:
        columns[Text("all images", "clean")] = _column(results, "clean", "plain")
    seeds = results.scores("balanced").groupby("row")["seeds"].unique().map(sorted)  # fewer under some attacks
    if seeds.map(max).max() > 1:
        columns[Text("seeds")] = {str(row): Text(" or ".join(map(str, numbers))) for row, numbers in seeds.items()}
    return table("Balanced accuracy", columns, order(results))


def groups(results: Results) -> Iterator[pd.DataFrame]:
    """Balanced accuracy of the classes ranked by training images: head, the first third (rounded down), tail, from rank
    ceil(2C/3) on, and body between; of two, one is head and one tail. And the accuracy of each seed's worst class."""
    parts = {"head": "head", "body": "body", "tail": "tail", "worst class": "worst"}
    for attack in lead_attacks(results) if len(members(results.cards[0], "tail")) else ():
        columns = {Text(head): _column(results, attack, group) for head, group in parts.items()}
        yield table(under(attack), columns, order(results))


def differences(results: Results) -> Iterator[pd.DataFrame]:
    """Difference of balanced accuracy to the best row in percentage points, compared image by image on the same test
    images, with its 95 % interval. Undecided: the interval contains 0, or the p-value of a randomisation test is 5 % or
    more. For one seed it tells which of two models is better, not which method; for several it covers the seeds too.
    Pairs are of the seeds that both have, so of fewer seeds it need not be the difference of the means; without such a
    seed, a single run is paired with each of the other row, and its seed is not covered. Each row is compared on its
    own: of many equally good rows, some differ from the best by chance."""
    best, *others = order(results)
    columns: dict[Text, dict[str, Text]] = defaultdict(dict)
    seeds = results.scores("balanced").set_index(["row", "attack"])["seeds"]
    for attack in lead_attacks(results):
        for row in others:
            if (one := results.difference(row, best, attack)) is not None:
                ends = f"{points(one.low)} to {points(one.high)}{'' if one.decided else ', undecided'}"
                fewer = one.runs < max(seeds[row, attack], seeds[best, attack])
                ends += f", {plural(one.runs, 'pair')}" if fewer else ""
                columns[Text(attack)][row] = Text(points(one.value), ends)
    if columns:
        yield table(f"Difference from {best}", columns, others)


def classes(results: Results) -> Iterator[pd.DataFrame]:
    """Accuracy of each class with its 95 % interval, the class with most training images first."""
    card, names = results.cards[0], class_names(results.cards[0])
    trained = card.data.get("train_class_counts")
    numbers = {"training images": trained, "test images": card.test_class_counts}
    known = {Text(head): dict(zip(names, of, strict=True)) for head, of in numbers.items() if of is not None}
    counts = {head: {name: Text(f"{number:,}") for name, number in of.items()} for head, of in known.items()}
    for attack in lead_attacks(results):
        cells = {name: _column(results, attack, name) for name in names}
        shown = order(results)[:MOST_COLUMNS]
        columns = {Text(row): {name: of[row] for name, of in cells.items() if row in of} for row in shown}
        ordered = sorted(range(card.num_classes), key=lambda label: -trained[label] if trained else 0)
        yield table(under(attack), counts | columns, [names[label] for label in ordered], "class")


def mistakes(results: Results) -> Iterator[pd.DataFrame]:
    """What the best row takes for what, in per cent of the images of the true class, over all its seeds."""
    attack, row, names = lead_attacks(results)[-1], order(results)[0], class_names(results.cards[0])
    given = results.predictions[row].xs(attack, axis=1, level="attack").melt(ignore_index=False)["value"]
    labels = results.labels[given.index].tolist()
    totals, pairs = Counter(labels), Counter(zip(labels, given, strict=True))
    wrong = {(true, taken): times / totals[true] for (true, taken), times in pairs.items() if true != taken}
    most = sorted(wrong, key=lambda pair: (-wrong[pair], pair))[:MOST_MISTAKES]
    found = {f"{names[true]} as {names[taken]}": Text(percent(wrong[true, taken])) for true, taken in most}
    if found:
        yield table(f"{row}, {under(attack).lower()}", {Text("of the class"): found}, [*found], "mistake")


def provenance(results: Results) -> Iterator[pd.DataFrame]:
    """The cards behind every number, and how each was made."""
    columns: dict[Text, dict[str, Text]] = defaultdict(dict)
    for one in results.named:
        card, model = one.card, one.card.model
        facts = {"method": one.row, "title": card.title, "seed": card.seed, "on": card.created}
        facts |= {"weights, SHA-256": model["weights_sha256"], "test images, SHA-256": card.data["test_sha256"]}
        facts |= {"epoch": " ".join(words(model[key]) for key in ("epoch", "selection") if model.get(key))}
        network = card.run.get("config", {}).get("model", {})
        facts |= {"begins from": network.get("weights"), "trained part": network.get("tune")}
        facts |= {"leaves the protocol": "; ".join(card.deviations), "evaluated by": card.command}
        facts |= {"checksum": "" if card.sealed else "none: of an older version"}
        for name, value in facts.items():
            if value not in (None, ""):
                columns[Text(name)][one.name] = Text(words(value))
    yield table("Cards", columns, [one.name for one in results.named], "card")
