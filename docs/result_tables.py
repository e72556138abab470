"""Tables of docs/which-method.md, docs/evaluation.md and results/README.md, from committed cards.

`make results` writes them, by docs/render.py. A folder of results/ is a comparison; its about.md
says what was run.
"""

import contextlib
import functools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from passes import passes

import taet
from taet.formatting import markdown_table, percent, percent_interval, points
from taet.metrics.paired import Difference
from taet.report import tables
from taet.report.display_names import with_display_names
from taet.report.markup import markdown
from taet.report.results import LEAD, LEADERBOARD, Results

ROOT = Path(__file__).parents[1]
HERE = ROOT / "results"
CHOICE, EVALUATION = ROOT / "docs" / "which-method.md", ROOT / "docs" / "evaluation.md"
PAGES = (CHOICE, EVALUATION, HERE / "README.md")
EVERY_ATTACK = ("cifar10-lt-attacks", "cifar10-lt-fast")
"""Comparisons of attacks, and one whose rows were attacked differently."""
ELSEWHERE = (
    "cifar10-lt-500-epochs",
    "cifar10-lt-class-wise",
    "cifar10-lt-factors-search",
    "cifar10-lt-fast-search",
)
ELSEWHERE += (
    "cifar10-lt-few-passes",
    "cifar10-lt-methods",
    "digits-lt-deepfool",
    "digits-lt-factors-search",
)
ELSEWHERE += (
    "digits-lt-attacks",
    "digits-lt-causes",
    "digits-lt-precision",
    "ham10000-fine-tune",
    "own-data",
)
ELSEWHERE += ("cifar10-lt-ir50",)
"""Comparisons that are elsewhere: on a leaderboard, with longer runs; in docs/; of rows that
another one has."""


class TrainedAs(NamedTuple):
    """What a row of the table on all images of CIFAR-10-LT was trained with."""

    method: str
    loss: str
    recipe: str
    epochs: int


BASELINE = TrainedAs("AT-BSL", "balanced softmax", "protocol", 100)
ALL_IMAGES = {  # rows of the table, and their cards
    TrainedAs("AT-BSL", "balanced softmax", "`fast`, ten attack steps", 100): (
        "results/cifar10-lt-fast/at-bsl-100-epochs-10-steps-none-*"
    ),
    TrainedAs("clean stage + BCL", "BCL alone, weight 1", "`fast`", 41): (
        "results/cifar10-lt-fast/taet-41-epochs-none-*"
    ),
    BASELINE: "results/reproduce/cpu/at-bsl*",
    TrainedAs("clean stage + BCL", "BCL alone, weight 1", "protocol", 100): (
        "results/cifar10-lt-fast/taet-protocol-*"
    ),
    TrainedAs("AT", "cross-entropy", "protocol", 100): "results/reproduce/cpu/at_*",
    TrainedAs("HARL", "BCL, HDL, RCEL, weights 0.1", "protocol", 100): (
        "results/reproduce/cpu/harl*"
    ),
    TrainedAs("TAET", "BCL, HDL, RCEL, weights 0.1", "protocol", 100): (
        "results/reproduce/cpu/taet*"
    ),
}
RANKS = """\
A rank is a range wherever paired tests, corrected for all pairs, do not tell rows apart: a row of
rank 1–22 may be the best row or the 22nd. Where most rows share nearly the same range, the runs
show no ranking of the methods."""


@functools.cache
def committed() -> Results:
    """Return all committed cards, named by their paths from the root of the repository."""
    with contextlib.chdir(ROOT):
        return taet.results("results")


def of_folder(name: str) -> list[Results]:
    """Return the results of the cards of a comparison, named among each other as in a report, one
    for each test set."""
    held = [one.card for one in committed().entries if one.name.startswith(f"results/{name}/")]
    return [with_display_names(one) for one in taet.results(held).by_test_set()]


def folder_tables(name: str) -> Iterator[str]:
    """Yield the tables of a comparison in Markdown, one for each test set.

    They have clean images, PGD-20, the strongest attack with intervals and its tail; comparisons of
    attacks have every attack.
    """
    for one in of_folder(name):
        headline = tables.headline(one)
        wanted = {"clean", "pgd-20", one.strongest, "tail", "seeds"}
        columns = {}
        for head, cells in headline.columns.items():
            if name not in EVERY_ATTACK and head.text not in wanted:
                continue
            detailed = head.text == one.strongest
            columns[head] = {
                row: cell if detailed else cell._replace(detail="") for row, cell in cells.items()
            }
        yield markdown(tables.Table(headline.title, columns, headline.rows))


def boards() -> list[tuple[str, pd.DataFrame]]:
    """Return title and rows of each board of runs of the papers' settings."""
    current = [one for one in committed().entries if not one.name.startswith("results/archive/")]
    reproduced = {id(one.card) for one in current if one.name.startswith("results/reproduce/")}
    found = []
    # rows are named without archived ones
    for one in taet.results([card.card for card in current]).by_test_set():
        if any(id(card) in reproduced for card in one.cards):
            for (data, ratio, model, protocol, rule), rows in (
                with_display_names(one).leaderboard().groupby(list(LEADERBOARD[:5]), sort=False)
            ):
                if len(rows) < 3 or rule != "last":
                    continue
                about = (
                    f"{data}, imbalance ratio {ratio:.4g}, {model}, protocol {protocol}, {rule} "
                    "epoch"
                )
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


def on_all_images() -> str:
    """Return the table of methods on all images of CIFAR-10-LT, with their differences to the
    baseline."""
    trained_as = {
        id(stored.card): trained
        for stored in committed().entries
        for trained, cards in ALL_IMAGES.items()
        if fnmatch(stored.name, cards)
    }
    found = taet.results([one.card for one in committed().entries if id(one.card) in trained_as])
    by_row = {stored.row: stored for stored in found.entries}
    baseline = next(
        row for row, stored in by_row.items() if trained_as[id(stored.card)] == BASELINE
    )
    lines = [
        [
            *("method", "loss", "recipe", "epochs", "passes", "clean", "AutoAttack", "tail"),
            *("AutoAttack − AT-BSL", "tail − AT-BSL", "seeds"),
        ]
    ]
    for one in found.leaderboard().itertuples():
        card = by_row[one.row].card
        method, loss, recipe, epochs = trained_as[id(card)]
        gains = ["", ""]
        if one.row != baseline:
            gains = [
                in_points(found.difference(one.row, baseline, LEAD, group))
                for group in ("balanced", "tail")
            ]
        lines.append(
            [
                *(method, loss, recipe, str(epochs), f"{passes(card.run['config']):,}"),
                percent(one.clean),
                f"{percent(one.autoattack)} ({percent_interval(one.low, one.high)})",
                percent(one.tail),
                *gains,
                str(one.seeds),
            ]
        )
    return markdown_table(lines)


def verdicts() -> str:
    """Return how far the cheap tier is from the official suite, and what a search in bfloat16
    changes."""
    measured = json.loads((HERE / "verdicts.json").read_text(encoding="utf-8"))
    beside_autoattack = [
        [
            *("pairs of model and ball", "images of each", "`quick` minus AutoAttack, largest"),
            *("mean", "broken by AutoAttack alone", "by `quick` alone", "times fewer passes"),
        ]
    ]
    for size in (1000, 300):
        of_size = [row for row in measured["quick"] if row["images"] == size]
        beside_autoattack.append(_quick_beside_autoattack(of_size))
    in_bfloat16 = [["attack in bfloat16", "models", "images unlike float32", "minus float32"]]
    for attack in sorted({row["attack"] for row in measured["search"]}):
        of = [row for row in measured["search"] if row["attack"] == attack]
        gaps = [100 * (row["correct"][1] - row["correct"][0]) / row["images"] for row in of]
        differing, images = (sum(row[name] for row in of) for name in ("differing", "images"))
        in_bfloat16.append(
            [
                *(f"`{attack.partition(':')[0]}`", str(len(of)), f"{differing} of {images:,}"),
                f"{_signed(min(gaps))} to {_signed(max(gaps))}",
            ]
        )
    return f"{markdown_table(beside_autoattack)}\n\n{markdown_table(in_bfloat16)}"


def _signed(points_of_accuracy: float) -> str:
    """Return a difference in points with its sign and two decimals."""
    return f"{points_of_accuracy:+.2f}".replace("-", "−")


def _quick_beside_autoattack(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cells of what rows with the same number of images say together; differences of
    accuracy in points."""
    gaps = [row["quick"] - row["autoattack"] for row in rows]
    images, fewer = rows[0]["images"], [row["fewer_passes"] for row in rows]
    whole = images * len(rows)
    theirs, ours = (
        sum(row[f"only_{which}_breaks"] for row in rows) for which in ("autoattack", "quick")
    )
    return [
        *(str(len(rows)), f"{images:,}", _signed(max(gaps))),
        *(_signed(statistics.mean(gaps)), f"{theirs} of {whole:,}", f"{ours} of {whole:,}"),
        f"{min(fewer):.0f} to {max(fewer):.0f}",
    ]


def rendered(page: Path) -> str:
    """Return the tables of a page."""
    if page == CHOICE:
        return on_all_images()
    if page == EVALUATION:
        return verdicts()
    parts = []
    for about in sorted(HERE.glob("*/about.md")):
        if about.parent.name not in ELSEWHERE:
            parts += [about.read_text(encoding="utf-8").strip(), *folder_tables(about.parent.name)]
    parts += ["## Leaderboards", RANKS]
    parts += [f"{title}:\n\n{board_table(rows)}" for title, rows in boards()]
    return "\n\n".join(parts)
