"""Whether a new model is worse than the one in use: `taet report NEW --fail-if-worse OLD`."""

from collections.abc import Sequence
from dataclasses import dataclass

from taet.card.card import Card
from taet.card.comparison import compare_runs
from taet.errors import UserError
from taet.formatting import join_words, points
from taet.metrics.paired import LEVEL, Difference
from taet.report.read_cards import Sources
from taet.report.results import Results, results


@dataclass(frozen=True)
class AttackVerdict:
    """The new model less the old one under one attack, with the 95 % interval of this attack alone,
    and whether the new one is worse beyond chance among all attacks that were compared."""

    attack: str
    paired: Difference
    worse: bool
    comparisons: int

    def __str__(self) -> str:
        paired = self.paired
        verdict = "worse" if self.worse else "not known to be worse"
        line = (
            f"{verdict} under {self.attack}: {points(paired.value)} points of balanced accuracy "
            f"({points(paired.low)} to {points(paired.high)}), {paired.verdict}"
        )
        if paired.significant and paired.value < 0 and not self.worse:
            line += (
                f" alone, not among {self.comparisons} comparisons (5 %/{self.comparisons} each)"
            )
        return line


def fail_if_worse(new: Sources, old: Sources) -> tuple[bool, list[str]]:
    """Return whether `new` is worse than `old` under an attack beyond chance, and a line for each
    attack.

    Each side is the cards of one model, or of one method with several seeds. Clean images and every
    attack within a ball of `old` are compared by the paired test of balanced accuracy, each of k at
    the level 5 %/k. The lines have the intervals of the report: 95 % for each attack alone.

    Raises:
        UserError: other test images, another number of cards, an attack that `new` lacks or has
            with other settings, or test images that some of the models were trained on.
    """
    ours, theirs = _paired_cards(results(new), results(old))
    attacks = [
        column.name
        for column in theirs[0].columns
        if column.ordinary and (column.bounded or column.norm is None)
    ]
    if not attacks:
        raise UserError(
            "the old card has no column of clean images or of an attack within a ball; evaluate it "
            "again"
        )
    lacking = [attack for attack in attacks if not all(_has(card, attack) for card in ours)]
    verdicts = [
        _verdict(ours, theirs, attack, len(attacks)) for attack in attacks if attack not in lacking
    ]
    # after the comparison, which refuses cards that no further attack makes comparable
    if lacking:
        raise UserError(
            f"the new card lacks {join_words(lacking)}; first evaluate it with --attacks "
            f"{' '.join(lacking)}"
        )
    _refuse_different_leaks([*ours, *theirs])
    worse = any(verdict.worse for verdict in verdicts)
    return worse, [str(verdict) for verdict in verdicts]


def _verdict(
    ours: Sequence[Card], theirs: Sequence[Card], attack: str, comparisons: int
) -> AttackVerdict:
    among_all = compare_runs(ours, theirs, attack, comparisons)
    beyond_chance = among_all.significant and among_all.p < LEVEL / comparisons
    worse = beyond_chance and among_all.value < 0
    return AttackVerdict(attack, compare_runs(ours, theirs, attack), worse, comparisons)


def _paired_cards(new: Results, old: Results) -> tuple[list[Card], list[Card]]:
    """Return the cards of both sides in the order of their seeds.

    Each side is one row; the seeds are the same, or have none in common.
    """
    for side in (new, old):
        if len(side.rows) > 1:
            raise UserError(
                f"got the cards of {join_words(side.rows)}; allowed: one method, or its seeds, on "
                "each side"
            )
    ours, theirs = _by_seed(new.cards), _by_seed(old.cards)
    if ours.keys() != theirs.keys() and ours.keys() & theirs.keys():
        got = " and ".join(join_words(map(str, side)) for side in (ours, theirs))
        raise UserError(f"got the seeds {got}; allowed: the same on both sides, or no common one")
    return _in_order(ours), _in_order(theirs)


def _by_seed(cards: Sequence[Card]) -> dict[int | None, Card]:
    by_seed = {card.seed: card for card in cards}
    if len(by_seed) < len(cards):
        raise UserError("got several cards of one seed; allowed: one")
    return by_seed


def _in_order(by_seed: dict[int | None, Card]) -> list[Card]:
    return [by_seed[seed] for seed in sorted(by_seed, key=lambda seed: seed or 0)]


def _has(card: Card, attack: str) -> bool:
    return attack in {column.name for column in card.columns}


def _refuse_different_leaks(cards: Sequence[Card]) -> None:
    """Refuse cards of which some, and not all, are of models trained on some of the test images."""
    trained_on = [
        flag["text"]
        for card in cards
        for flag in card.flags
        if flag["flag"] == "test-images-in-training"
    ]
    if trained_on and len(trained_on) < len(cards):
        raise UserError(
            f"of some of the models, {trained_on[0]}; allowed: test images that none was trained on"
        )
