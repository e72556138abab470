"""Docstrings for the site: a formula becomes a block of code, and its brackets no link.

An extension of griffe, which reads the docstrings for mkdocstrings (mkdocs.yml).
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?:Args|Returns|Raises|Yields|Examples|Attributes):\n")


def marked(docstring: str) -> str:
    """Return a docstring whose formulas are blocks of code, with `Examples:` as griffe spells it.

    A paragraph is a formula if it has aligned columns, or, after the first one, no full stop or
    colon at its end.
    """
    summary, *blocks = re.sub(r"^Example:$", "Examples:", docstring, flags=re.M).split("\n\n")
    shown = [without_links(summary)]
    in_section = False
    for block in blocks:
        in_section = bool(SECTION.match(block)) or (in_section and block.startswith(" "))
        if in_section:
            shown.append(block)
        elif re.search(r"\S {2,}\S", block) or not block.rstrip().endswith((".", ":")):
            shown.append(f"```text\n{block}\n```")
        else:
            shown.append(without_links(block))
    return "\n\n".join(shown)


def without_links(text: str) -> str:
    """Return a text in which brackets side by side are part of a formula, not a link."""
    return text.replace("](", "]\\(").replace("][", "]\\[")


class Formulas(griffe.Extension):
    """Mark the formulas of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = marked(obj.docstring.value)
