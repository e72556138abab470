"""The tables of README.md, docs/evaluation.md and results/README.md, from committed cards.

`make results` writes them, by docs/render.py. A folder of results/ is a comparison; its about.md says what was run.
"""

import contextlib
import functools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
from passes import passes

import taet
from taet.formatting import markdown_table, percent, percent_interval, points
from taet.report import tables
from taet.report.results import BOARD, LEAD, Results
from taet.statistics import Difference

ROOT = Path(__file__).parents[1]
HERE = ROOT / "results"
README, EVALUATION = ROOT / "README.md", ROOT / "docs" / "evaluation.md"
PAGES = (README, EVALUATION, HERE / "README.md")
EVERY_ATTACK = ("cifar10-lt-attacks", "cifar10-lt-fast")
"""Comparisons of attacks, and one whose rows were attacked differently."""
ELSEWHERE = ("cifar10-lt-500-epochs", "cifar10-lt-class-wise", "cifar10-lt-factors-search", "cifar10-lt-fast-search")
ELSEWHERE += ("cifar10-lt-few-passes", "cifar10-lt-methods", "digits-lt-deepfool", "digits-lt-factors-search")
ELSEWHERE += ("digits-lt-attacks", "digits-lt-causes", "digits-lt-precision", "ham10000-fine-tune", "own-data")
ELSEWHERE += ("cifar10-lt-ir50",)
"""Comparisons that are elsewhere: on a leaderboard, with longer runs; in docs/; of rows that another one has."""
BASELINE = "AT-BSL"
FRONT = {  # rows of the README's table, and their cards
    "AT-BSL by `fast`, ten steps, 100 epochs": "results/cifar10-lt-fast/at-bsl-100-epochs-10-steps-none-*",
    "TAET by `fast`, BCL alone, 41 epochs": "results/cifar10-lt-fast/taet-41-epochs-none-*",
    BASELINE: "results/reproduce/cpu/at-bsl*",
    "TAET, BCL alone": "results/cifar10-lt-fast/taet-protocol-*",
    "AT": "results/reproduce/cpu/at_*",
    "HARL": "results/reproduce/cpu/harl*",
    "TAET": "results/reproduce/cpu/taet*",
}


@functools.cache
def committed() -> Results:
    """Return all committed cards, named by their paths from the root of the repository."""
    with contextlib.chdir(ROOT):
        return taet.results("results")


def of_folder(name: str) -> list[Results]:
    """Return the results of the cards of a comparison, named among each other, one for each test set."""
    held = [one.card for one in committed().named if one.name.startswith(f"results/{name}/")]
    return taet.results(held).by_test_set()


def folder_tables(name: str) -> Iterator[str]:
    """Yield the tables of a comparison in Markdown, one for each test set.

    They have clean images, PGD-20, the strongest attack with intervals and its tail; comparisons of attacks have every
    attack.
    """
    for one in of_folder(name):
        shown = tables.headline(one)
        wanted = {"clean", "pgd-20", one.strongest, "tail", "seeds"}
        frame = shown[[head for head in shown.columns if name in EVERY_ATTACK or head.text in wanted]].copy()
        for head in frame.columns:
            if head.text != one.strongest:
                frame[head] = [cell._replace(detail="") for cell in frame[head]]
        yield tables.markdown(frame)


def boards() -> list[tuple[str, pd.DataFrame]]:
    """Return title and rows of each board of runs of the papers' settings."""
    current = [one for one in committed().named if not one.name.startswith("results/archive/")]
    reproduced = {id(one.card) for one in current if one.name.startswith("results/reproduce/")}
    found = []
    for one in taet.results([card.card for card in current]).by_test_set():  # rows are named without archived ones
        if any(id(card) in reproduced for card in one.cards):
            for (data, ratio, model, protocol, rule), rows in one.board().groupby(list(BOARD[:5]), sort=False):
                if len(rows) < 3 or rule != "last":
                    continue
                about = f"{data}, imbalance ratio {ratio:.4g}, {model}, protocol {protocol}, {rule} epoch"
                found.append((f"{about}, {len(one.cards[0].labels):,} test images", rows))
    return found


def board_table(rows: pd.DataFrame) -> str:
    """Return the rows of a board in Markdown."""
    lines = [["method", "rank", "AutoAttack", "clean", "PGD-20", "tail", "seeds"]]
    for one in rows.to_dict("records"):
        under = f"{percent(one['autoattack'])} ({percent_interval(one['low'], one['high'])})"
        others = (percent(one[name]) for name in ("clean", "pgd-20", "tail"))
        lines.append([one["row"], one["rank"], under, *others, str(one["seeds"])])
    return markdown_table(lines)


def in_points(found: Difference) -> str:
    """Return a paired difference with its interval, in points."""
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def front() -> str:
    """Return the README's table: methods on all images of CIFAR-10-LT, with their differences to the baseline."""
    named = committed().named
    names = {id(one.card): name for one in named for name, cards in FRONT.items() if fnmatch(one.name, cards)}
    found = taet.results([one.card for one in named if id(one.card) in names])
    of = {one.row: (names[id(one.card)], one.card.run["config"]) for one in found.named}
    heads = ["clean", "AutoAttack", "tail", f"AutoAttack − {BASELINE}", f"tail − {BASELINE}"]
    lines = [["method", "passes", *heads, "seeds"]]
    baseline = next(row for row, (name, _) in of.items() if name == BASELINE)
    for one in found.board().itertuples():
        name, run = of[one.row]
        under = f"{percent(one.autoattack)} ({percent_interval(one.low, one.high)})"
        paired = [found.difference(one.row, baseline, LEAD, group) for group in ("balanced", "tail")]
        gains = ["", ""] if name == BASELINE else [in_points(each) for each in paired]
        lines.append([name, f"{passes(run):,}", percent(one.clean), under, percent(one.tail), *gains, str(one.seeds)])
    return markdown_table(lines)


def verdicts() -> str:
    """Return how far the cheap tier is above the official suite, and what a search in bfloat16 changes."""
    measured = json.loads((HERE / "verdicts.json").read_text(encoding="utf-8"))
    lines = [gap_of([row for row in measured["quick"] if row["images"] == size]) for size in (1000, 300)]
    for attack in sorted({row["attack"] for row in measured["search"]}):
        of = [row for row in measured["search"] if row["attack"] == attack]
        points = [100 * (row["correct"][1] - row["correct"][0]) / row["images"] for row in of]
        lines.append(
            f"- `{attack}` in bfloat16, {len(of)} models: {sum(row['differing'] for row in of)} of "
            f"{sum(row['images'] for row in of):,} images differ from float32; accuracy by {min(points):+.2f} to "
            f"{max(points):+.2f} points."
        )
    return "\n".join(lines)


def gap_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what rows with the same number of images say together."""
    gaps = [row["quick"] - row["autoattack"] for row in rows]
    images, fewer = rows[0]["images"], [row["fewer_passes"] for row in rows]
    theirs, ours = (sum(row[f"only_{which}_breaks"] for row in rows) for which in ("autoattack", "quick"))
    return (
        f"- `quick`, {len(rows)} pairs of model and ball, {images:,} images: at most {max(gaps):.2f} points above "
        f"AutoAttack, {statistics.mean(gaps):+.2f} on average; AutoAttack alone breaks {theirs} of "
        f"{images * len(rows):,} images, `quick` alone {ours}; {min(fewer):.0f} to {max(fewer):.0f} times fewer passes."
    )


def rendered(page: Path) -> str:
    """Return the tables of a page."""
    if page == README:
        return front()
    if page == EVALUATION:
        return verdicts()
    parts = []
    for about in sorted(HERE.glob("*/about.md")):
        if about.parent.name not in ELSEWHERE:
            parts += [about.read_text(encoding="utf-8").strip(), *folder_tables(about.parent.name)]
    parts += ["## Leaderboards", *(f"{title}:\n\n{board_table(rows)}" for title, rows in boards())]
    return "\n\n".join(parts)
