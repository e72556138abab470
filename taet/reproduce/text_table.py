"""A table of texts, and its four forms: terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taet.formatting import aligned, markdown_table

ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"})
STYLE = """:root{color-scheme:light dark;--rule:#8886;--link:#00558a}
@media(prefers-color-scheme:dark){:root{--link:#7cc4ff}}
body{font:16px/1.55 system-ui,sans-serif;margin:0 auto;max-width:78rem;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.8rem;line-height:1.2}h2{font-size:1.3rem;margin-top:2.5rem}h3{font-size:1.05rem;margin:1.5rem 0 0}
p,ul{max-width:46rem}a{color:var(--link)}nav ul{display:flex;flex-wrap:wrap;gap:1.25rem;padding:0;list-style:none}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.94rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .8rem .35rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
th:first-child{text-align:left;font-weight:500;white-space:normal;min-width:9rem}thead th{font-weight:600}
.panels{display:flex;flex-wrap:wrap;gap:1.5rem;align-items:flex-start}figure{margin:0;width:24rem;max-width:100%}
fieldset{border:0;padding:0;margin:.25rem 0;display:flex;flex-wrap:wrap;gap:.2rem 1rem}legend{font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.25rem;padding:0;list-style:none;max-width:none}
.swatch{width:36px;height:14px;vertical-align:-.15em;margin-right:.4rem}figcaption{font-weight:600}figure>svg{display:block;width:100%;height:auto;background:#fff}"""


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
