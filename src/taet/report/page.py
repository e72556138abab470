"""The report in its four forms. HTML: a figure, a sentence and a table for each test set, with
everything else folded below."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from taet.report import figures, tables
from taet.report.display_names import with_display_names
from taet.report.drawing import WIDTH, Panel
from taet.report.gallery import Gallery, gallery
from taet.report.markup import latex as latex_table
from taet.report.markup import markdown as markdown_table
from taet.report.markup import markdown_text
from taet.report.plain_words import meaning
from taet.report.results import Results
from taet.report.sentences import RaisedFlag, about, in_plain_words, lead, name, warnings
from taet.report.tables import Table

NOTE = (
    "Balanced accuracy is the mean over the classes: a rare class counts as much as a common one. "
    "All numbers are per cent, each above its 95 % interval: of one seed over the test images, "
    "which does not cover how much another seed would change; of several over seeds, too "
    "(Student's t). Bold: better than each other row with a number there, compared image by image."
)
GROUPS = (
    "Balanced accuracy of the classes ranked by training images: head, the first third (rounded "
    "down), tail, from rank ceil(2C/3) on, and body between; of two, one is head and one tail. And "
    "the accuracy of each seed's worst class."
)
DIFFERENCES = (
    "Difference of balanced accuracy to the best row in percentage points, compared image by image "
    "on the same test images, with its 95 % interval. Not significant: the interval contains 0, or "
    "a randomisation test gives the p-value that is shown, 5 % or more. For one seed it tells "
    "which of two models is better, not which method; for several it covers the seeds too. Pairs "
    "are of the seeds that both have, so of fewer seeds it need not be the difference of the "
    "means; without such a seed, a single run is paired with each of the other row, and its seed "
    "is not covered. Each row is compared on its own: of many equally good rows, some differ from "
    "the best by chance."
)
CLASSES = (
    "Accuracy of each class (its recall) with its 95 % interval, the class with most training "
    "images first. Precision, of the best row: how many of the images that it takes for the class "
    "are of it; F1 is the harmonic mean of both. These two depend on how many test images each "
    "class has, and a class that nothing is taken for has no precision."
)
MANY_CLASSES = (
    " Of the {all:,} classes these are the {half} with most and the {half} with fewest training "
    "images (without known numbers, the first and the last). A table before them counts the "
    "classes of each range of accuracy. taet report with --out report.csv writes every class."
)
CONFUSION = (
    "What the best row takes for what, over all its seeds: each line is a true class, each column "
    "the class that it is taken for, the class with most training images first; a line adds up to "
    "100 %. The diagonal is right."
)
STRENGTH = (
    "Balanced accuracy against one setting of the attack, with 95 % intervals. A curve over steps "
    "that still falls at its end has not converged; one over the radius must reach 0; one over the "
    "scale of the logits should be flat. Seeds that were attacked with other settings than the "
    "first of their row are left out."
)
MISTAKES = (
    "What the best row takes for what, on clean images and under the strongest attack, in per cent "
    "of the images of the true class, over all its seeds."
)
TRAINING = (
    "Balanced accuracy over the epochs of training, mean over the seeds, on the split in the title."
)
PROVENANCE = "The cards behind every number, and how each was made."


@dataclass(frozen=True)
class Section:
    """A folded part of the page: its title, the text above its figures and tables, and these."""

    title: str
    text: str
    figures: Sequence[Panel] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class TestSetPart:
    """The part of the page about one test set."""

    name: str
    about: str
    lead: str
    in_plain_words: str
    warnings: Sequence[RaisedFlag]
    overview: Sequence[Panel]
    headline: Table
    classes: Sequence[Panel]
    gallery: Gallery
    sections: Sequence[Section]


def html(results: Results, title: str, notes: Sequence[str]) -> str:
    """Return the report as one page that needs no other file."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html.j2")
    parts = [_part(of_set) for of_set in _test_sets(results)]
    return template.render(
        title=title, notes=notes, note=NOTE, parts=parts, width=WIDTH, meaning=meaning
    )


def _test_sets(results: Results) -> list[Results]:
    return [with_display_names(of_set) for of_set in results.by_test_set()]


def _part(results: Results) -> TestSetPart:
    return TestSetPart(
        name(results),
        about(results),
        lead(results),
        in_plain_words(results),
        warnings(results),
        [*figures.overview(results)],
        tables.most_important_first(tables.headline(results), results),
        [*figures.classes(results)],
        gallery(results),
        _sections(results),
    )


def _sections(results: Results) -> list[Section]:
    """Return the folded parts that have a figure or a table."""
    sections = [
        _tables("Head, body, tail and worst class", GROUPS, tables.groups(results)),
        _tables("Differences to the best", DIFFERENCES, tables.differences(results)),
        _tables("Accuracy of each class", _about_classes(results), tables.classes(results)),
        _figures(
            "Accuracy against the strength of the attack", STRENGTH, figures.strength(results)
        ),
        _figures("Confusion matrix", CONFUSION, figures.confusion(results)),
        _tables("Most frequent mistakes", MISTAKES, tables.mistakes(results)),
        _figures("Training curves", TRAINING, figures.training(results)),
        _tables("Where every number comes from", PROVENANCE, tables.provenance(results)),
    ]
    return [section for section in sections if section.figures or section.tables]


def _about_classes(results: Results) -> str:
    num_classes, shown = results.cards[0].num_classes, len(tables.shown_classes(results))
    if shown == num_classes:
        return CLASSES
    return CLASSES + MANY_CLASSES.format(all=num_classes, half=shown // 2)


def _tables(title: str, text: str, made: Iterable[Table]) -> Section:
    return Section(title, text, tables=[*made])


def _figures(title: str, text: str, made: Iterable[Panel]) -> Section:
    return Section(title, text, figures=[*made])


def csv(results: Results, *_: object) -> str:
    """Return `Results.table()`, with the shares in six digits."""
    return results.table().to_csv(index=False, float_format="%.6f", lineterminator="\n")


def markdown(
    results: Results, title: str, notes: Sequence[str], columns: Sequence[str] = ()
) -> str:
    """Return the main tables in Markdown."""
    parts = ["<!-- taet report -->", markdown_text(f"# {title}"), *map(markdown_text, notes)]
    for of_set in _test_sets(results):
        parts.append(markdown_text(f"## {name(of_set)}"))
        parts.append(markdown_text(f"{about(of_set)} {lead(of_set)}"))
        for warning in warnings(of_set):
            rows, text = markdown_text(warning.rows), markdown_text(warning.text)
            parts.append(f"**{warning.flag}** ({rows}): {text}")
        parts += [
            f"### {markdown_text(table.title)}\n\n{markdown_table(table)}"
            for table in _main_tables(of_set, columns)
        ]
    return "\n\n".join(parts) + "\n"


def latex(results: Results, title: str, notes: Sequence[str], columns: Sequence[str] = ()) -> str:
    """Return the main tables in LaTeX, for the package booktabs."""
    parts = [
        _comment(text) for text in ("taet report", "It needs the package booktabs.", title, *notes)
    ]
    for number, of_set in enumerate(_test_sets(results), 1):
        flags = [f"{flag} ({rows}): {text}" for flag, rows, text in warnings(of_set)]
        parts.append("\n".join(map(_comment, (name(of_set), about(of_set), *flags))))
        parts += [
            latex_table(table, name(of_set), number) for table in _main_tables(of_set, columns)
        ]
    return "\n\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return f"% {' '.join(text.split())}"


def _main_tables(results: Results, columns: Sequence[str]) -> list[Table]:
    """Return the tables of a report in text: the first alone, and some of its columns, if these are
    given."""
    if columns:
        return [tables.headline(results).only(columns)]
    return [tables.headline(results), *tables.groups(results), *tables.differences(results)]


FORMS: dict[str, Callable[[Results, str, Sequence[str]], str]]
FORMS = {".html": html, ".md": markdown, ".csv": csv, ".tex": latex}
WITH_COLUMNS: dict[str, Callable[[Results, str, Sequence[str], Sequence[str]], str]]
WITH_COLUMNS = {".md": markdown, ".tex": latex}
"""Forms of which the columns can be chosen."""
