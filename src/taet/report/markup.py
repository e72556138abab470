"""Tables and texts as Markdown and as LaTeX; names may hold any sign."""

import re
from collections.abc import Callable

from taet.formatting import markdown_table
from taet.report.tables import Table, TableCell

ADDRESS = re.compile(r"https?://[\w./?=&#%~:+-]+")
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in r"\|*_`<>[]"})
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "–": "--",
        "·": r"$\cdot$",
        "∞": r"$\infty$",
        "ε": r"$\epsilon$",
    }
    | {sign: f"\\{sign}" for sign in "&%$#_{}"}
)


DEVIATION = (
    r"Mean $\pm$ standard deviation over the seeds; "
    r"in brackets: 95\,\% interval over the test images"
)


def markdown_text(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line, with its addresses as links."""
    parts = [word if ADDRESS.fullmatch(word) else word.translate(MARKDOWN) for word in text.split()]
    return " ".join(parts)


def markdown(table: Table) -> str:
    """Return a table in Markdown."""

    def write(cell: TableCell) -> str:
        text = _one_line(cell).translate(MARKDOWN)
        return f"**{text}**" if cell.bold else text

    return markdown_table(_written(table, write))


def latex(table: Table, test_set: str, number: int) -> str:
    """Return a table in LaTeX, for the package booktabs.

    The caption is its title and the name of the test set, of which the `number` makes the label
    unique. A mean over seeds is written with their standard deviation in place of its interval.
    """

    def write(cell: TableCell) -> str:
        shown = TableCell(cell.text) if cell.deviation else cell
        text = _one_line(shown).translate(LATEX)
        text = rf"\textbf{{{text}}}" if cell.bold else text
        return rf"{text} $\pm$ {cell.deviation}" if cell.deviation else text

    head, *body = [" & ".join(cells) + r" \\" for cells in _written(table, write)]
    caption = f"{table.title}: {test_set}".translate(LATEX)
    if any(cell.deviation for row in table.rows for cell in table.cells(row)):
        caption += rf". {DEVIATION}"
    label = "-".join(re.findall(r"[a-z0-9]+", f"{table.title} {number}".lower()))
    lines = [
        r"\begin{table}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _one_line(cell: TableCell) -> str:
    return " ".join(str(cell).split())


def _written(table: Table, write: Callable[[TableCell], str]) -> list[list[str]]:
    """Return the cells of a table as text, line by line, with the heads first."""
    heads = [table.corner, *map(write, table.columns)]
    lines = [[write(TableCell(row)), *map(write, table.cells(row))] for row in table.rows]
    return [heads, *lines]
