"""Cards with chosen outcomes, a parsed page and a read figure, for the tests of the report."""

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from taet.card.card import ResultCard
from taet.report.drawing import Panel
from taet.report.row_labels import label_rows

MakeCard = Callable[..., ResultCard]
ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack-10", "autoattack")
PROBE = {
    "batch_size": 250,
    "images": 9,
    "clean_correct": 9,
    "distributions": 0,
    "zero_gradients": 0,
}


def row_names(*cards: ResultCard) -> list[str]:
    return [label.row for label in label_rows(cards)]


def right(card: ResultCard, share: float, *attacks: str) -> ResultCard:
    """The card with the first part of the images right under some attacks, and the others wrong."""
    return redrawn(card, np.arange(len(card.labels)) < share * len(card.labels), *attacks)


def redrawn(card: ResultCard, correct: np.ndarray, *attacks: str) -> ResultCard:
    lost = {
        "correct": correct,
        "predictions": np.where(correct, card.labels, (card.labels + 1) % 10),
    }
    columns = (
        column.changed(**lost) if column.name in attacks else column for column in card.columns
    )
    return card.changed(columns=tuple(columns))


class Page(HTMLParser):
    """What a browser would ask for, the cells of the tables by row, and all text outside style
    rules."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched, self._open = list[str](), list[str]()
        self.tags: Counter[str] = Counter()
        self.tables: dict[str, list[list[list[str]]]] = {}
        """By their captions: rows of cells, each the texts of a cell; bold ones begin with **."""
        self.text = self._title = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.fetched += [one for one in re.findall(r"url\(([^)]*)\)|@import", self.source) if one]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open.append(tag)
        values = dict(attrs)
        self.fetched += [
            values[name] or "" for name in ("src", "href", "xlink:href", "srcset") if name in values
        ]
        if tag == "table":
            self._title = ""
        elif tag == "tr":
            self.tables.setdefault(self._title, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._title][-1].append(["**"] if values.get("class") == "best" else [])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._title += data
        elif ("td" in self._open or "th" in self._open) and data.strip():
            self.tables[self._title][-1][-1].append(" ".join(data.split()))


def shares(panel: Panel, along: int) -> dict[str, list[float]]:
    """What the markers of each name show, read off the ticks in per cent: along x (0), row by row,
    or along y (1)."""
    ticks = [
        (place[along] - 4 * along, float(place[3][:-2]))
        for place in panel.labels
        if place[3].endswith(" %")
    ]
    # a line of text begins 4 pixels below the middle of its letters
    (first, low), (last, high) = ticks[0], ticks[-1]
    found = {one.name: re.findall(r"M([\d.]+) ([\d.]+)m", one.points) for one in panel.marks}
    ordered = {
        name: sorted(places, key=lambda at: float(at[1 - along])) for name, places in found.items()
    }
    read = lambda at: low + (float(at[along]) - first) / (last - first) * (high - low)  # noqa: E731
    return {name: [*map(read, places)] for name, places in ordered.items()}
