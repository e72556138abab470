"""Results: the result cards of any number of models as one table, and every view of it."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taet.attacks import catalogue
from taet.attacks.autoattack import AutoAttack
from taet.errors import UserError, unknown
from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE, Column
from taet.evaluation.rules import MASKING, raised
from taet.intervals import Difference, difference
from taet.report.numbers import COLUMNS, NamedCard, about, lines, members, over_seeds
from taet.report.rows import attack_names, images, named
from taet.report.sources import Sources, StoredCard, read
from taet.statistics import balanced_accuracy, class_counts

if TYPE_CHECKING:
    import pandas as pd

LEAD = "autoattack"
BOARD = (
    *("data", "imbalance_ratio", "model", "protocol", "selection", "row", "rank", LEAD, "low", "high"),
    *("clean", "pgd-20", "tail", "worst", "seeds", "flags"),
)
"""Columns of a board; low and high are the 95 % interval under AutoAttack, tail and worst are under it as well."""
PGD_ALONE = frozenset({"autoattack-far-below-pgd", "logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"})
"""Flags of a loss or scale that misleads PGD but not AutoAttack, whose losses are a margin and free of the scale."""


def results(*sources: Sources) -> Results:
    """Return the cards of run folders, card files, folders of these, patterns or cards in memory as one object.

    Example: `taet.results("runs/*").table()`.

    Raises:
        UserError: a source without a card, or a damaged card.
    """
    found, waiting = read(sources)
    by_images: dict[tuple[object, ...], list[StoredCard]] = {}
    for source in found:
        by_images.setdefault(images(source.card), []).append(source)
    return Results(tuple(card for group in by_images.values() for card in _named(group)), tuple(waiting))


def _named(sources: Sequence[StoredCard]) -> Iterator[NamedCard]:
    """Yield the cards of one table with their rows and attacks, named among each other.

    Columns measured only for a curve and examples of another model are left out.
    """
    columns = [[column for column in source.card.columns if column.ordinary] for source in sources]
    names = attack_names(column.identity for each in columns for column in each)
    rows = named([source.card for source in sources])
    for source, (row, setting), each in zip(sources, rows, columns, strict=True):
        yield NamedCard(source, row, setting, {names[column.identity]: column for column in sorted(each, key=_place)})


def _place(column: Column) -> tuple[float, ...]:
    """Sort key of attacks: clean first, then by norm and radius, the worst case last; unbounded attacks after all."""
    norms = (None, "linf", "l2", "l1", "l0")
    norm = norms.index(column.norm) if column.norm in norms else len(norms)
    worst = column.name in WORST_CASE.values()
    return column.norm is not None and not column.bounded, norm, column.eps or 0.0, worst, *catalogue.place(column.name)


@dataclass(frozen=True, eq=False)
class Results:
    """Result cards as one table; cards that differ only in their seed are one row.

    Rows are compared only on the same test images and training counts. Where there are several of these, `table`,
    `board` and `report` treat each on its own, and `by_test_set` separates them.
    """

    named: tuple[NamedCard, ...]
    waiting: tuple[str, ...] = ()
    """Run folders that have not been evaluated."""
    _differences: dict[tuple[str, ...], Difference | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Results({len(self.named)} cards, {len(self.rows)} rows, {len(self.by_test_set())} test sets)"

    @property
    def cards(self) -> tuple[ResultCard, ...]:
        return tuple(one.card for one in self.named)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the order of their first card."""
        return tuple(dict.fromkeys(one.row for one in self.named))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks of all cards, clean first, in the order of a table."""
        found = {name: column for one in self.named for name, column in one.columns.items()}
        return tuple(sorted(found, key=lambda name: (_place(found[name]), name)))

    @cached_property
    def strongest(self) -> str | None:
        """The strongest attack: a complete suite, else that with the lowest mean balanced accuracy.

        Only bounded attacks of the cards' threat that most rows have; the worst case only where there is no other.
        """

        def order(name: str) -> tuple[bool, int, bool, float]:
            of = [(one, one.columns[name]) for one in self.named if name in one.columns]
            whole = any(isinstance(column.attack, AutoAttack) and column.attack.is_reference for _, column in of)
            counts = (class_counts(column.correct, one.card.labels, one.card.num_classes) for one, column in of)
            mean = sum(balanced_accuracy(*each) for each in counts) / len(of)
            return of[0][1].name in WORST_CASE.values(), -len({one.row for one, _ in of}), not whole, mean

        threats = [(one.columns, (one.card.threat["norm"], one.card.threat["eps"])) for one in self.named]
        inside = {
            name
            for columns, ball in threats
            for name, column in columns.items()
            if column.bounded and (column.norm, column.eps) == ball
        }
        return min((name for name in self.attacks if name in inside), key=order, default=None)

    def by_test_set(self) -> list[Results]:
        """Return the results of each test set and its training counts, in the order of their first card."""
        found: dict[tuple[object, ...], list[NamedCard]] = {}
        for one in self.named:
            found.setdefault(images(one.card), []).append(one)
        return [Results(tuple(cards)) for cards in found.values()]

    def on(self, **columns: object) -> Results:
        """Return the cards with these values in columns of the table, e.g. `data="digits-lt"`, `row=["at", "taet"]`.

        Rows and attacks keep their names.
        """
        for name in columns:
            if name not in COLUMNS[:8]:
                raise unknown("column", name, COLUMNS[:8])
        wanted = {name: value if isinstance(value, list | tuple) else [value] for name, value in columns.items()}
        kept = [one for one in self.named if all(about(one)[name] in values for name, values in wanted.items())]
        if not kept:
            raise UserError(f"results: no card has {', '.join(f'{name} {value}' for name, value in columns.items())}")
        return Results(tuple(kept))

    def table(self) -> pd.DataFrame:
        """Return one line for each card, attack and group of classes, sorted by card.

        The columns are card, row, method, data, imbalance_ratio, model, protocol, seed, attack, group, n, correct,
        accuracy, low and high. Groups: balanced, plain, head, body, tail, worst (the class with the lowest accuracy),
        and each class. Accuracies are in [0, 1] with 95 % intervals over the test images; `n` are the images of the
        group, and `correct` is missing where the accuracy is a mean over classes.
        """
        import pandas as pd

        found = [line for one in self.by_test_set() for line in lines(one.named)]
        table = pd.DataFrame(sorted(found, key=lambda line: str(line[0])), columns=list(COLUMNS))
        return table.astype({"seed": "Int64", "n": "Int64", "correct": "Int64"})

    @property
    def labels(self) -> pd.Series:
        """The class of each test image."""
        import pandas as pd

        return pd.Series(self._one().cards[0].labels, name="label")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The class predicted for each test image (index) by each row, seed and attack (columns)."""
        import pandas as pd

        found = {key: column.predictions for key, column in self._one()._columns.items()}
        return pd.DataFrame(found).rename_axis(columns=["row", "seed", "attack"])

    @cached_property
    def _columns(self) -> dict[tuple[str, int | None, str], Column]:
        """The column of each row, seed and attack; of equal weights that were evaluated again the first."""
        found: dict[tuple[str, int | None, str], Column] = {}
        for one in self.named:
            for name, column in one.columns.items():
                found.setdefault((one.row, one.card.seed, name), column)
        return found

    def _one(self) -> Results:
        """Return these results if they are on one test set."""
        sets = self.by_test_set()
        if len(sets) > 1:
            names = ", ".join(f"{one.cards[0].data['name']} ({len(one.cards)} cards)" for one in sets)
            raise UserError(f"results: got {len(sets)} test sets: {names}; allowed: one; choose with .by_test_set()")
        return self

    def scores(self, *groups: str) -> pd.DataFrame:
        """Return the mean over the seeds of each row and attack, for some groups of classes or all.

        The columns are row, attack, group, accuracy, low, high, error and seeds. One seed keeps its interval over the
        test images; several have Student's interval of their mean, and its standard error.
        """
        found = self._one()._scores
        return (found[found["group"].isin(groups)] if groups else found).reset_index(drop=True)

    @cached_property
    def _scores(self) -> pd.DataFrame:
        import pandas as pd

        by_key: dict[tuple[object, ...], dict[object, tuple[object, ...]]] = {}
        for line in lines(self.named):
            of = dict(zip(COLUMNS, line, strict=True))
            seeds = by_key.setdefault((of["row"], of["attack"], of["group"]), {})
            seeds.setdefault(of["seed"], (of["accuracy"], of["low"], of["high"]))
        found = [(*key, *over_seeds(np.array([*of.values()], dtype=float)), len(of)) for key, of in by_key.items()]
        return pd.DataFrame(found, columns=["row", "attack", "group", "accuracy", "low", "high", "error", "seeds"])

    def compare(self, first: str, second: str, *attacks: str, group: str = "balanced") -> pd.DataFrame:
        """Return the paired differences of two rows on the same images, first minus second, under their attacks.

        The columns are attack, group, difference, low, high, p, seeds and decided. With several shared seeds the
        intervals cover the seeds as well; with one they tell which model is better, not which method.
        """
        import pandas as pd

        for row in (first, second):
            if row not in self.rows:
                raise unknown("row", row, self.rows)
        for attack in attacks:
            if attack not in self.attacks:
                raise unknown("attack", attack, self.attacks)
        found = []
        for attack in attacks or self.attacks:
            one = self.difference(first, second, attack, group)
            if one is not None:
                found.append((attack, group, one.value, one.low, one.high, one.p, one.runs, one.decided))
        names = ["attack", "group", "difference", "low", "high", "p", "seeds", "decided"]
        return pd.DataFrame(found, columns=names)

    def difference(self, first: str, second: str, attack: str, group: str = "balanced") -> Difference | None:
        """Return the paired difference of two rows under one attack; None if one of them was not attacked so.

        Runs with equal seeds are pairs; without a common seed they are paired in order.
        """
        if first > second:
            found = self.difference(second, first, attack, group)
            return found and dataclasses.replace(found, value=-found.value, low=-found.high, high=-found.low)
        key = (first, second, attack, group)
        if key not in self._differences:
            self._differences[key] = self._one()._difference(*key)
        return self._differences[key]

    def _difference(self, first: str, second: str, attack: str, group: str) -> Difference | None:
        sides = [
            {seed: column for (row, seed, name), column in self._columns.items() if (row, name) == (side, attack)}
            for side in (first, second)
        ]
        common = [seed for seed in sides[0] if seed in sides[1]]
        ours, theirs = ([side[s] for s in common] if common else [*side.values()] for side in sides)
        if not ours or not theirs:
            return None
        card = self.cards[0]
        keep = np.isin(card.labels, members(card, group))
        labels = np.zeros(keep.sum(), dtype=np.int64) if group == "plain" else card.labels[keep]
        pairs = min(len(ours), len(theirs))
        masks = [[column.correct[keep] for column in side[:pairs]] for side in (ours, theirs)]
        return difference(masks[0], masks[1], labels, card.num_classes)

    def board(self) -> pd.DataFrame:
        """Return the leaderboard: the rows of each setting by balanced accuracy under AutoAttack, best first.

        A setting is data, imbalance ratio, training counts, network, protocol, threat, and the rule that chose the
        epoch. A rank is a range where paired tests over common seeds do not tell rows apart. Rows that may not be
        ranked are left out, with the reason in `.attrs["left out"]`.
        """
        import pandas as pd

        places: dict[object, list[NamedCard]] = {}
        for one in self.named:
            places.setdefault((images(one.card), one.setting), []).append(one)
        boards: list[pd.DataFrame] = []
        left: dict[str, str] = {}
        for cards in places.values():
            here = Results(tuple(cards))
            reasons = {row: unranked([one.card for one in cards if one.row == row]) for row in here.rows}
            if fair := [row for row, why in reasons.items() if not why]:
                boards.append(here.on(row=fair)._ranked())
            left |= {one.source.name: reasons[one.row] for one in cards if reasons[one.row]}
        found = pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=list(BOARD))
        found.attrs["left out"] = left
        return found

    def report(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write the report as HTML, Markdown, CSV or LaTeX, by the ending of `path`, and return its path."""
        report = importlib.import_module("taet.report")  # which is made of results
        return Path(report.write(self, path, title))

    def _ranked(self) -> pd.DataFrame:
        """Return the board of one setting."""
        import pandas as pd

        scores = self.scores("balanced", "tail", "worst").set_index(["row", "attack", "group"])
        means = scores["accuracy"]
        order = sorted(self.rows, key=lambda row: -means[row, LEAD, "balanced"])
        setting, ratio, found = self.named[0].setting, self.cards[0].data.get("imbalance_ratio"), []
        for row in order:
            others = (self.difference(row, other, LEAD) for other in order if other != row)
            decided = [one.value for one in others if one is not None and one.decided]
            best, worst = 1 + sum(value < 0 for value in decided), len(order) - sum(value > 0 for value in decided)
            lead = scores.loc[row, LEAD, "balanced"]
            flags = {name for one in self.named if one.row == row for name in raised(one.card)}
            found.append(
                (
                    *(setting.data, ratio, setting.model, setting.protocol, setting.selection, row),
                    str(best) if best == worst else f"{best}–{worst}",
                    *(lead["accuracy"], lead["low"], lead["high"]),
                    *(means.get((row, attack, "balanced"), math.nan) for attack in ("clean", "pgd-20")),
                    *(means.get((row, LEAD, group), math.nan) for group in ("tail", "worst")),
                    int(lead["seeds"]),
                    " ".join(sorted(flags - {"small-test-set"})),
                )
            )
        return pd.DataFrame(found, columns=list(BOARD))


def unranked(cards: Sequence[ResultCard]) -> str:
    """Return why the cards of a row may not stand on a board; empty if they may."""
    for name in (LEAD, "clean"):
        if not any(column.name == name for card in cards for column in card.columns):
            return f"no column {name}"
    if any(card.model.get("leak") for card in cards):
        return "its epoch was chosen on the test images"
    if not any(card.probe for card in cards):
        return "no probe of its gradients"
    misled = MASKING.intersection(*(raised(card) for card in cards)) - PGD_ALONE
    return f"gradients may mislead AutoAttack: {', '.join(sorted(misled))}" if misled else ""
