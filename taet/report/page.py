"""The report: one picture, one sentence and one table for each test set, and everything else folded below."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from taet.formatting import count, listed, percent, percent_interval, plural
from taet.report import figures, tables
from taet.report.drawing import Panel, Picture, style
from taet.report.results import Results
from taet.report.tables import Table
from taet.training.collapse import training_flags

Piece = Panel | Picture | Table


class Section(NamedTuple):
    """A folded part of the page; the docstring of the function that makes it is the text above it."""

    title: str
    make: Callable[[Results], Iterable[Piece]]
    when: Callable[[Results], bool] = lambda _: True


def _has_groups(results: Results) -> bool:
    return results.cards[0].data.get("train_class_counts") is not None


def _has_curve(results: Results) -> bool:
    return any(epoch.monitor for one in results.named for epoch in one.source.epochs)


def _is_attacked(results: Results) -> bool:
    return len(tables.lead_attacks(results)) == 2


SECTIONS: tuple[Section, ...] = (
    Section("Head, body, tail and worst class", tables.groups, _has_groups),
    Section("Differences to the best", tables.differences),
    Section("Accuracy of each class", figures.classes),
    Section("Accuracy of each class in numbers", tables.classes),
    Section("Training set", figures.histogram, _has_groups),
    Section("Changed answers, errors and weak classes", tables.behaviour, _is_attacked),
    Section("Which attack breaks which image", tables.broken, lambda results: len(tables.in_ball(results)) > 1),
    Section("Accuracy against the strength of the attack", figures.strength),
    Section("Confusion", figures.confusion, lambda results: results.cards[0].num_classes <= figures.MOST_CLASSES),
    Section("Training curves", figures.training, _has_curve),
    Section("Example images", figures.pictures),
    Section("Where every number comes from", tables.provenance),
)


def html(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """Return the report as one page that needs no other file."""
    with style():
        sets = [_shown(one, f"set-{number}") for number, one in enumerate(results.by_test_set(), 1)]
    return _template().render(title=title, sets=sets, notes=notes)


def markdown(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """Return the main tables in Markdown."""
    parts = [f"# {title}", *notes]
    for one in results.by_test_set():
        parts += [f"## {name(one)}", f"{about(one)} {lead(one)}"]
        parts += [f"### {table.title}\n\n{table.markdown()}" for table in _main_tables(one)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """Return the main tables in LaTeX, for the package booktabs."""
    parts = [f"% {' '.join(text.split())}" for text in (title, *notes)]
    for one in results.by_test_set():
        parts += [f"% {' '.join(name(one).split())}", *(table.latex() for table in _main_tables(one))]
    return "\n\n".join(parts) + "\n"


def _main_tables(results: Results) -> Iterator[Table]:
    yield tables.headline(results)
    yield from tables.groups(results) if _has_groups(results) else ()
    yield from tables.differences(results)


def _shown(results: Results, anchor: str) -> dict[str, Any]:
    """Return what the template shows of one test set."""
    sections = []
    for place, section in enumerate(SECTIONS):
        parts = [*section.make(results)] if section.when(results) else []
        if parts:
            shown = [_anchored(part, f"{anchor}-{place}-{number}") for number, part in enumerate(parts)]
            sections.append((section.title, inspect.getdoc(section.make) or "", shown))
    return {
        "name": name(results),
        "about": about(results),
        "lead": lead(results),
        "overview": [_anchored(part, f"{anchor}-{number}") for number, part in enumerate(figures.overview(results))],
        "headline": tables.headline(results),
        "note": note(results),
        "warnings": warnings(results),
        "sections": sections,
    }


def name(results: Results) -> str:
    """Return the name of a test set, with the imbalance of its training set."""
    data = results.cards[0].data
    ratio = data.get("imbalance_ratio")
    return str(data["name"]) if ratio is None else f"{data['name']}, imbalance ratio {ratio:.4g}"


def about(results: Results) -> str:
    """Say how many models were attacked, on which images, and how."""
    card, models = results.cards[0], len({one.model["weights_sha256"] for one in results.cards})
    counts, tested = card.data.get("train_class_counts"), count(len(card.labels))
    images = f"{card.num_classes} classes, {tested} test images"
    if counts is not None:
        ends = f"from {count(max(counts))} to {count(min(counts))} of a class"
        images = f"{card.num_classes} classes, {count(sum(counts))} training images ({ends}), {tested} test images"
    ball = "" if results.strongest is None else tables.threat(tables.column_of(results, results.strongest))
    return f"{plural(models, 'model')}, {images}{ball and f', attacks within {ball}'}."


def lead(results: Results) -> str:
    """Say which row is best under the strongest attack, and whether its lead exceeds chance."""
    attack = results.strongest or results.attacks[0]
    scores = results.scores("balanced").query("attack == @attack").set_index("row")
    best, *others = [row for row in tables.order(results) if row in scores.index]
    top, under = scores.loc[best], "On clean images" if attack == "clean" else f"Under {attack}"
    number = f"{percent(top['accuracy'])} % ({percent_interval(top['low'], top['high'])})"
    if not others:
        return f"{under}, {best} keeps a balanced accuracy of {number}."
    found = {row: results.difference(best, row, attack) for row in others}
    near = [row for row, one in found.items() if one is None or not one.decided or one.value <= 0]
    said = f"{under}, {best} has the highest balanced accuracy, {number}"
    if not near:
        return f"{said}; its lead over {'each other row' if len(others) > 1 else others[0]} is more than chance."
    return f"{said}; the difference to {listed(near, 3)} is undecided."


def note(results: Results) -> str:
    """Say what the numbers of the tables are."""
    seeds = results.scores("balanced")["seeds"]
    each = "over the test images of one trained model; it does not cover how much another seed would change"
    if seeds.max() > 1:
        several = "of the mean over the seeds (Student's t)"
        each = several if seeds.min() > 1 else f"{several}, for a single seed over its test images"
    bold = " Bold: better than each other row, compared image by image." if len(results.rows) > 1 else ""
    mean = "Balanced accuracy is the mean over the classes, so that a rare class counts as much as a common one."
    return f"{mean} All numbers are per cent, each above its 95 % interval {each}.{bold}"


def warnings(results: Results) -> list[tuple[str, str, str]]:
    """Return the warnings of the evaluations: name, rows, and the text of the first card that has it."""
    found: dict[str, tuple[dict[str, None], str]] = {}
    for one in results.named:
        own = {flag["flag"]: flag["text"] for flag in one.card.flags} | dict(training_flags(one.source.epochs))
        if one.card.model.get("leak"):
            own["leak"] = "The epoch was chosen on the test images, so the numbers are too high."
        for flag, text in own.items():
            found.setdefault(flag, ({}, text))[0][one.row] = None
    return [(flag, listed(rows), text) for flag, (rows, text) in found.items()]


def _anchored(part: Piece, anchor: str) -> Piece:
    """Return a part whose ids begin with an anchor, so that they are unique on the page, as markup."""
    if not isinstance(part, Panel):
        return part
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{anchor}-\1"', part.svg)
    svg = re.sub(r"href=\"#([^\"]+)\"", rf'href="#{anchor}-\1"', svg)
    return part._replace(svg=Markup(re.sub(r"url\(#([^)]+)\)", rf"url(#{anchor}-\1)", svg)))


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
