"""`taet leaderboard`: print it; `taet leaderboard submit CARD`: check a result card against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.errors import UserError, unknown
from taet.evaluation.card import ResultCard
from taet.reproduce.cell_store import Store
from taet.reproduce.leaderboard import boards, placed, submitted
from taet.reproduce.manifest import scales
from taet.reproduce.text_table import rendered

EXAMPLES = ("taet leaderboard", "taet leaderboard submit runs/mine/evaluation.json")
DESCRIPTION = """Print the leaderboard of the committed cards: a table for each scale, protocol, data set, imbalance
ratio and network. With submit CARD: check a submitted result card and print its rank. Its checksum and format are
verified, its numbers are recomputed from its predictions, and test images, training counts, network, threat model and
the settings of AutoAttack must be those of a table.

Exit status: 0 success; 1 the card is refused, with one line per reason; 2 a mistake in the call or a damaged card."""


@dataclass(frozen=True)
class LeaderboardOptions:
    """A card to check, or nothing."""

    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Nothing, or submit and the file of a result card."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs of taet reproduce."""
    results: tuple[Path, ...] | None = None
    """Folders with committed cards. Default: results of the repository."""
    form: Literal["terminal", "markdown", "latex", "html"] = "terminal"
    """Format of the tables."""


def run(arguments: list[str]) -> int:
    """Print the boards, or the place of a card; return 1 if it is refused."""
    parsed = read(arguments)
    card = ResultCard.load(Path(parsed.words[1])) if parsed.words else None
    found = boards(Store(parsed.out, parsed.results), [one for one in scales().values() if one.name != "smoke"])
    if card is None:
        print(rendered([board.table() for board in found], parsed.form) if found else "no run under AutoAttack")
        return 0
    board, reasons = placed(found, card)
    if board is None:
        print("\n".join(f"refused: {reason}" for reason in reasons))
        return 1
    row = next(one for one in board.rows if one.label == submitted(card))
    print(f"accepted: rank {board.rank(row)} of {len(board.rows)}\n\n{rendered([board.table()], parsed.form)}")
    return 0


def read(arguments: list[str]) -> LeaderboardOptions:
    """Parse a call; other words than submit CARD are refused."""
    parsed = flags.parse(LeaderboardOptions, arguments, "taet leaderboard", DESCRIPTION, EXAMPLES)
    if parsed.words and parsed.words[0] != "submit":
        raise unknown("action", parsed.words[0], ["submit"])
    if len(parsed.words) not in (0, 2):
        raise UserError(f"leaderboard: got {len(parsed.words) - 1} cards; allowed: submit and one result card")
    return parsed
