"""Print the tables of README.md and results/README.md from the result cards beside this file.

python results/render.py            prints the tables
python results/render.py --write    puts them between the markers of both files
"""

from __future__ import annotations

import sys
from pathlib import Path

from taet.evaluation import ResultCard

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: python results/render.py --write -->", "<!-- end of results -->"
PAGES = (HERE.parent / "README.md", HERE / "README.md")


def cell(value: float, interval: tuple[float, float], best: bool) -> str:
    """A percentage with its interval, bold where it is the highest of its column."""
    text = f"{100 * value:.1f}"
    return f"{f'**{text}**' if best else text} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def table(folder: Path) -> str:
    """Balanced accuracy of every card in `folder`, and that of the tail under AutoAttack."""
    cards = [ResultCard.load(path) for path in sorted(folder.glob("*.json"))]
    columns = [column.name for column in cards[0].columns]
    rows = []
    for card in cards:
        summaries = [card.summary(name) for name in columns]
        values = [(s.balanced, s.balanced_interval) for s in summaries]
        tail = summaries[-1]
        rows.append((card.title, [*values, (tail.groups["tail"], tail.group_intervals["tail"])]))
    best = [max(values[i][0] for _, values in rows) for i in range(len(columns) + 1)]
    lines = [
        "| method | " + " | ".join([*columns, f"tail, {columns[-1]}"]) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for title, values in rows:
        cells = [cell(value, interval, value == top) for (value, interval), top in zip(values, best, strict=True)]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables() -> str:
    """Every folder's table under its heading, which is the first line of the folder's about.md."""
    abouts = sorted(HERE.glob("*/about.md"))
    return "\n\n".join(f"{about.read_text(encoding='utf-8').strip()}\n\n{table(about.parent)}" for about in abouts)


def rendered(page: str) -> str:
    """The text of a page with the tables between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        for path in PAGES:
            path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
