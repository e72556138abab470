"""A table of texts, and its four forms: terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taet.formatting import aligned

ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"})
STYLE = """body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{padding:.2rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid}tr:hover{background:#8881}"""


@dataclass(frozen=True)
class TextTable:
    """A table of texts with what has to be said about it."""

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

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(table.heads), "|" + "---|" * len(table.heads), *map(line, table.rows)] if table.rows else []
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join(filter(None, [f"### {table.title}", "\n".join(lines), notes]))


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

    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    parts = [f"<section><h2>{html.escape(table.title)}</h2>"]
    if table.rows:
        body = "\n".join(line(row, "td") for row in table.rows)
        parts.append(f"<table><thead>{line(table.heads, 'th')}</thead><tbody>\n{body}\n</tbody></table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in table.notes]
    return "\n".join([*parts, "</section>"])


def html_page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML page of one file."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n' + "\n".join(
        [f"<h1>{html.escape(title)}</h1>", *sections, "</body></html>\n"]
    )


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
