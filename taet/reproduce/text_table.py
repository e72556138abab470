"""A table of texts, and its four forms: terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taet.formatting import aligned, markdown_table
from taet.report.page import template

ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"})
STYLE = """
th:first-child { white-space: normal; min-width: 9rem; }
@media (max-width: 40rem) { th:first-child { min-width: 6rem; } td:first-of-type { white-space: normal; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
fieldset { border: 0; padding: 0; margin: .25rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
legend { font-weight: 600; }"""
"""Rules in addition to those of the report."""


@dataclass(frozen=True)
class TextTable:
    """A table of texts with its notes."""

    title: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences below it."""


def plain(table: TextTable) -> str:
    """The table in plain text."""
    lines = aligned([table.heads, *table.rows]) if table.rows else []
    return "\n".join([table.title, "", *(line.rstrip() for line in lines), *([""] if lines else []), *table.notes])


def markdown(table: TextTable) -> str:
    """The table in Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.heads, *table.rows)]
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join(filter(None, [f"### {table.title}", markdown_table(rows) if table.rows else "", notes]))


def latex(table: TextTable) -> str:
    """The table in LaTeX, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(text(cell) for cell in cells) + r" \\"

    def text(words: str) -> str:
        return words.replace("\\", "/").translate(ESCAPED).replace("−", "$-$").replace("–", "--").replace("·", "--")

    notes = [f"% {note}" for note in table.notes]
    if not table.rows:
        return "\n".join([f"% {table.title}", *notes])
    begin = [
        r"\begin{table}",
        rf"\caption{{{text(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.rows[0][1:])}}}",
    ]
    body = [r"\toprule", line(table.heads), r"\midrule", *map(line, table.rows), r"\bottomrule"]
    return "\n".join([*notes, *begin, *body, r"\end{tabular}", r"\end{table}"])


def in_html(table: TextTable) -> str:
    """The table as a section of an HTML page."""

    def line(cells: Sequence[str]) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"

    parts = [f"<section><h2>{html.escape(table.title)}</h2>"]
    if table.rows:
        heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in table.heads)
        body = "\n".join(map(line, table.rows))
        scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.title)}">'
        parts.append(f"{scroll}<table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>")
    parts += [f"<p>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join([*parts, "</section>"])


def html_page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML page of one file, in the style of the report."""
    name, style = html.escape(title), template("style.css.j2").render() + STYLE
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>'
    begin = f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head><body><main>\n<h1>{name}</h1>'
    return "\n".join([begin, *sections, "</main></body></html>\n"])


FORMS: Mapping[str, Callable[[TextTable], str]] = {
    "terminal": plain,
    "markdown": markdown,
    "latex": latex,
    "html": in_html,
}


def rendered(tables: Sequence[TextTable], form: str) -> str:
    """The tables in one form; in HTML a page."""
    parts = [FORMS[form](table) for table in tables]
    return html_page("taet reproduce", parts) if form == "html" else "\n\n".join(parts)
