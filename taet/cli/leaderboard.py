"""`taet leaderboard`: print it; `taet leaderboard submit CARD...`: check result cards against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.errors import UserError, unknown
from taet.evaluation.card import ResultCard
from taet.reproduce.cell_store import Store
from taet.reproduce.leaderboard import SUBMITTED, boards, placed
from taet.reproduce.manifest import scales
from taet.reproduce.text_table import rendered

EXAMPLES = (
    "taet leaderboard",
    "taet leaderboard submit runs/mine/evaluation.json",
    "taet leaderboard submit seed?.json",
)
DESCRIPTION = """Print the leaderboard of the committed cards: a table for each scale, protocol, data set, imbalance
ratio and network. With submit CARD...: check the result cards of a method, one per seed, and print its rank. Checksum
and format are verified, the numbers are recomputed from the predictions, and test images, training counts, network,
threat model and the settings of AutoAttack must be those of a table. Nothing is stored: a table lists the cards below
the folders of --results that fit it.

Exit status: 0 success; 1 the card is refused, with one line per reason; 2 a mistake in the call or a damaged card."""


@dataclass(frozen=True)
class LeaderboardOptions:
    """Cards to check, or nothing."""

    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Nothing, or submit and the files of result cards of one method, one per seed."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs of taet reproduce."""
    results: tuple[Path, ...] | None = None
    """Folders with committed cards. Default: results of the repository."""
    form: Literal["terminal", "markdown", "latex", "html"] = "terminal"
    """Format of the tables."""


def run(arguments: list[str]) -> int:
    """Print the boards, or the place of a card; return 1 if it is refused."""
    parsed = read(arguments)
    cards = [ResultCard.load(Path(path)) for path in parsed.words[1:]]
    found = boards(Store(parsed.out, parsed.results), [one for one in scales().values() if one.name != "smoke"])
    if not cards:
        print(rendered([board.table() for board in found], parsed.form) if found else "no run under AutoAttack")
        return 0
    board, reasons = placed(found, cards)
    if board is None:
        print("\n".join(f"refused: {reason}" for reason in reasons))
        return 1
    row = next(one for one in board.rows if one.label.endswith(SUBMITTED))
    print(f"accepted: rank {board.rank(row)} of {len(board.rows)}\n\n{rendered([board.table()], parsed.form)}")
    return 0


def read(arguments: list[str]) -> LeaderboardOptions:
    """Parse a call; other words than submit CARD are refused."""
    parsed = flags.parse(LeaderboardOptions, arguments, "taet leaderboard", DESCRIPTION, EXAMPLES)
    if parsed.words and parsed.words[0] != "submit":
        raise unknown("action", parsed.words[0], ["submit"])
    if len(parsed.words) == 1:
        raise UserError("leaderboard: got no card; allowed: submit and one or more result cards")
    return parsed
