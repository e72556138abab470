"""The picture of the benchmark: mean and tail of every row on every set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measured import FLOOR, Measured
from plan import protocol

PANEL_WIDTH = 2.4  # inches
ROW_HEIGHT = 0.22  # inches
MARGIN = 1.2  # inches, of titles and axis
MEAN_COLOUR, TAIL_COLOUR = "#1f4e79", "#c55a11"
# texts stay texts, and the same cards give the same file
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "taet", "font.size": 8}


def draw(sets: Sequence[Measured], path: Path) -> None:
    """Write the picture of all sets as SVG: one panel a set, rows in the order of the protocol, a
    filled mark for the mean of the classes and a hollow one for the tail."""
    rows = [row for row in protocol().rows if row != FLOOR]
    with matplotlib.rc_context(STYLE):
        picture = Figure(
            figsize=(PANEL_WIDTH * (len(sets) + 1), ROW_HEIGHT * len(rows) + MARGIN),
            layout="constrained",
        )
        panels = picture.subplots(1, len(sets), sharey=True)
        for panel, found in zip(panels, sets, strict=True):
            draw_set(panel, found, rows)
        panels[0].set_yticks(range(len(rows)), [protocol().rows[row].shown for row in rows])
        panels[0].invert_yaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        picture.savefig(path, format="svg", metadata={"Date": None})


def draw_set(panel: Axes, found: Measured, rows: Sequence[str]) -> None:
    """Draw the marks of one set; a row without runs has none."""
    panel.set_title(found.data_set.title)
    panel.set_xlabel(f"accuracy under {found.attack}, %")
    panel.grid(axis="x", alpha=0.3)
    places = range(len(rows))
    for group, label, colour, face in (
        ("balanced", "balanced accuracy", MEAN_COLOUR, MEAN_COLOUR),
        ("tail", "tail: the rarest classes", TAIL_COLOUR, "white"),
    ):
        scores = [found.mean(row, found.attack, group) for row in rows]
        shares = [float("nan") if score is None else 100 * score for score in scores]
        panel.plot(
            shares,
            places,
            "o",
            label=label,
            color=colour,
            markerfacecolor=face,
            markersize=5,
            gid=f"{found.data_set.name}-{group}",
        )
    panel.set_xlim(left=0)
