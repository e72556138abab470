"""Figures as inline SVG of one width, legible without colour, the same bytes for the same numbers."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GREY, INK = "#6b6b6b", "#1a1a1a"
WIDTH = 4.8
"""Width of a figure in inches: 460 CSS pixels."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito (Color Universal Design, 2008), ordered so that the first three differ in lightness."""
MARKERS = "osD^vP*"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "taet",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


class Panel(NamedTuple):
    """A drawing and its title; `svg` is markup, `title` is text."""

    title: str
    svg: str


class Picture(NamedTuple):
    """An image under attack: what is seen, and its clean, adversarial and magnified forms as data URIs."""

    title: str
    images: list[str]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Set the style of all figures within this block and restore matplotlib's settings afterwards."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks is not missing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def axes(height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a height in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def look(place: int) -> dict[str, Any]:
    """Return the colour and marker at a place in a legend."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def draw(figure: Figure, title: str, description: str) -> Panel:
    """Return a figure as markup, without a date and without style rules for the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<defs>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    head = f'<svg class="figure" role="img" aria-label="{escape(f"{title}: {description}")}"'
    return Panel(title, svg.replace("<svg", head, 1).rstrip())


def png(image: NDArray[np.floating]) -> str:
    """Return an image (H, W, 1 or 3) in [0, 1] as a data URI at its own size; the page enlarges it pixel by pixel."""
    from PIL import Image

    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def percent_axis(axis: Axis) -> None:
    """Label an axis in per cent, with a grid."""
    from matplotlib.ticker import PercentFormatter

    axis.grid(visible=True)
    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %", decimals=0))


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of a figure from top to bottom, all of up to 60 and else some of them."""
    count = len(names)
    shown = range(count) if count <= 60 else sorted({int(row) for row in np.linspace(0, count - 1, 41)})
    texts = ["\n".join(textwrap.wrap(short(names[row], 44), 23)) for row in shown]
    axes.set_yticks(shown, texts, fontsize=9 if count <= 30 else 7, linespacing=1.0)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def legend(figure: Figure, axes: Axes) -> None:
    """Put the names of what is drawn above the axes, row by row, as many side by side as fit."""
    handles, labels = axes.get_legend_handles_labels()
    widths = [len(label) + 5 for label in labels]
    columns = len(labels) if sum(widths) <= 66 else max(1, 66 // max(widths))
    across = [place for column in range(columns) for place in range(column, len(labels), columns)]  # else column-wise
    places: Any = {"loc": "outside upper left", "handletextpad": 0.3, "columnspacing": 1.2, "handlelength": 1.4}
    figure.legend([handles[i] for i in across], [labels[i] for i in across], ncols=columns, fontsize=8.5, **places)


def short(name: str, length: int = 30) -> str:
    """Shorten a name that is too long for a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"
