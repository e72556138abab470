"""The report: a figure, a sentence and a table for each test set, with everything else folded below."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2
import pandas as pd

from taet.evaluation.rules import raised
from taet.formatting import listed, percent, percent_interval, plural
from taet.report import figures, tables
from taet.report.figures import Panel
from taet.report.results import Results, doubt
from taet.training.curve import training_flags

SECTIONS: tuple[tuple[str, Callable[[Results], Iterable[Panel | pd.DataFrame]]], ...] = (
    ("Head, body, tail and worst class", tables.groups),
    ("Differences to the best", tables.differences),
    ("Accuracy of each class", tables.classes),
    ("Accuracy against the strength of the attack", figures.strength),
    ("Most frequent mistakes", tables.mistakes),
    ("Training curves", figures.training),
    ("Where every number comes from", tables.provenance),
)
"""Folded parts: title and function, whose docstring is the text above its figures or tables; left out without any."""
NOTE = """Balanced accuracy is the mean over the classes: a rare class counts as much as a common one. All numbers are
per cent, each above its 95 % interval: of one seed over the test images, which does not cover how much another seed
would change; of several over seeds, too (Student's t). Bold: better than each other row with a number there, compared
image by image."""


def html(results: Results, title: str, notes: Sequence[str]) -> str:
    """Return the report as one page that needs no other file."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    head = (name, about, lead, warnings, figures.overview, tables.headline, _sections)
    sets = [{make.__name__.strip("_"): make(one) for make in head} for one in results.by_test_set()]
    return environment.get_template("report.html.j2").render(title=title, sets=sets, notes=notes, note=NOTE)


def _sections(results: Results) -> list[tuple[str, str, list[Panel | pd.DataFrame]]]:
    made = [(title, inspect.getdoc(make) or "", [*make(results)]) for title, make in SECTIONS]
    return [section for section in made if section[-1]]


def csv(results: Results, *_: object) -> str:
    """Return `Results.table()`, with the shares in six digits."""
    return results.table().to_csv(index=False, float_format="%.6f", lineterminator="\n")


def markdown(results: Results, title: str, notes: Sequence[str]) -> str:
    """Return the main tables in Markdown."""
    parts = ["<!-- taet report -->", *map(tables.plain, (f"# {title}", *notes))]
    for one in results.by_test_set():
        parts += [*map(tables.plain, (f"## {name(one)}", f"{about(one)} {lead(one)}"))]
        parts += [f"**{flag}** ({tables.plain(rows)}): {tables.plain(text)}" for flag, rows, text in warnings(one)]
        parts += [f"### {tables.plain(table.attrs['title'])}\n\n{tables.markdown(table)}" for table in _main(one)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results, title: str, notes: Sequence[str]) -> str:
    """Return the main tables in LaTeX, for the package booktabs."""
    parts = [f"% {' '.join(text.split())}" for text in ("taet report", "It needs the package booktabs.", title, *notes)]
    for number, one in enumerate(results.by_test_set(), 1):
        flags = (f"{flag} ({rows}): {text}" for flag, rows, text in warnings(one))
        parts += ["\n".join(f"% {' '.join(text.split())}" for text in (name(one), about(one), *flags))]
        parts += [tables.latex(table, name(one), number) for table in _main(one)]
    return "\n\n".join(parts) + "\n"


def _main(results: Results) -> list[pd.DataFrame]:
    return [tables.headline(results), *tables.groups(results), *tables.differences(results)]


def name(results: Results) -> str:
    """Return the name of a test set, with the imbalance of its training set."""
    data = results.cards[0].data
    ratio = f", imbalance ratio {data['imbalance_ratio']:.4g}" if data.get("imbalance_ratio") else ""
    return f"{data['name']}{ratio}"


def about(results: Results) -> str:
    """Return a sentence on how many models were attacked, on which images, and how."""
    card, models = results.cards[0], len({(one.row, one.card.seed) for one in results.named})
    counts, images = card.data.get("train_class_counts"), f"{len(card.labels):,} test images"
    if counts is not None:
        ends = f"from {max(counts):,} to {min(counts):,} of a class"
        images = f"{sum(counts):,} training images{'' if card.run else ' of this data set'} ({ends}), {images}"
    ball = f", attacks within {tables.threat(results.columns[results.strongest])}" if results.strongest else ""
    notes = dict.fromkeys(note for one in results.cards for note in one.data.get("notes", ()))
    notes |= {f"extra images: {one.data['extra']['source']}": None for one in results.cards if "extra" in one.data}
    return "; ".join([f"{plural(models, 'model')}, {card.num_classes} classes, {images}{ball}", *notes]) + "."


def lead(results: Results) -> str:
    """Return a sentence on the best row under the strongest attack, and whether its lead exceeds chance."""
    attack = tables.lead_attacks(results)[-1]
    scores = results.scores("balanced").query("attack == @attack").set_index("row")
    best, *others = [row for row in tables.order(results) if row in scores.index]
    top, under = scores.loc[best], "On clean images" if attack == "clean" else f"Under {attack}"
    number = f"{percent(top['accuracy'])} % ({percent_interval(top['low'], top['high'])})"
    if reason := doubt([one.card for one in results.named if one.row == best], results.columns[attack]):
        number += f", which may be too high ({reason})"
    if not others:
        return f"{under}, {best} keeps a balanced accuracy of {number}."
    found = {row: results.difference(best, row, attack) for row in others}
    near = [row for row, one in found.items() if one is None or not one.decided]
    worse = [row for row, one in found.items() if one is not None and one.decided and one.value < 0]
    ahead = f"its lead over {listed(others, 3)} is more than chance"
    if any(one.runs == 1 for one in found.values() if one is not None):
        ahead += "; with one seed this says which model is better, not which method"
    end = f"the difference to {listed(near, 3)} is undecided" if near else ahead
    end = f"of the runs with seeds of both, those of {listed(worse, 3)} are better" if worse else end
    return f"{under}, {best} has the highest balanced accuracy, {number}; {end}."


def warnings(results: Results) -> list[tuple[str, str, str]]:
    """Return the warnings of the present rules: name, rows, and the text of the first card of each row."""
    raised_on = defaultdict[tuple[str, str], list[tuple[str, int | None]]](list)
    for one in results.named:
        for flag, text in (raised(one.card) | dict(training_flags(one.epochs))).items():
            raised_on[flag, one.row].append((text, one.card.seed))
    found = defaultdict[tuple[str, str], dict[str, int]](dict)
    for (flag, row), cards_of_row in raised_on.items():
        (text, seed), texts = cards_of_row[0], {text for text, _ in cards_of_row}
        whose = "" if len(texts) == 1 else "Of one: " if seed is None else f"Of seed {seed}: "
        found[flag, whose + text][row] = len(cards_of_row)
    flags, cards = [*dict.fromkeys(flag for flag, _ in found)], Counter(one.row for one in results.named)
    lines = []
    for (flag, text), rows in sorted(found.items(), key=lambda pair: flags.index(pair[0][0])):
        named = (row if n == cards[row] else f"{row} ({n} of {cards[row]} cards)" for row, n in rows.items())
        lines.append((flag, listed(named), text))
    return lines


FORMS: dict[str, Callable[[Results, str, Sequence[str]], str]]
FORMS = {".html": html, ".md": markdown, ".csv": csv, ".tex": latex}
