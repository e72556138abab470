"""Results: the result cards of any number of models as one table, and every view of it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from taet import statistics
from taet.attacks import catalogue
from taet.attacks.autoattack import AutoAttack
from taet.attacks.pgd import ProjectedAscent
from taet.errors import UserError, unknown
from taet.evaluation.card import Card
from taet.evaluation.column import Column
from taet.evaluation.rules import MASKING, raised
from taet.intervals import Difference, difference, student_quantile
from taet.report import rows, write
from taet.report.rows import Sources, StoredCard, read
from taet.statistics import Ints

ABOUT = ("card", "row", "method", "data", "test_sha256", "imbalance_ratio", "model", "protocol", "seed")
COLUMNS = (*ABOUT, "attack", "group", "n", "correct", "accuracy", "low", "high")
GROUPS = ("balanced", "plain", "head", "body", "tail", "worst")  # of classes, before the classes themselves
LEAD = "autoattack"
BOARD = [*("data", "imbalance_ratio", "model", "protocol", "selection", "row", "rank", LEAD, "low", "high")]
BOARD += ["clean", "pgd-20", "tail", "worst", "seeds", "flags"]
"""Columns of a board; low and high (the 95 % interval), tail and worst are under AutoAttack."""
PGD_ALONE = frozenset({"autoattack-far-below-pgd", "logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"})
"""Flags of a loss or scale that misleads PGD but not AutoAttack, whose losses are a margin and scale-invariant."""


def results(*sources: Sources) -> Results:
    """Return the cards of run folders, card files, folders of these, patterns or cards in memory as one object.

    Raises:
        UserError: a source without a card, or a damaged card.
    """
    found, waiting = read(*sources)
    by_images = _grouped((rows.images(one.card), one) for one in found)
    return Results(tuple(one for cards in by_images for one in _with_rows(cards)), tuple(waiting))


def _grouped(pairs: Iterable[tuple[Hashable, StoredCard]]) -> list[list[StoredCard]]:
    groups: dict[Hashable, list[StoredCard]] = defaultdict(list)
    for key, card in pairs:
        groups[key].append(card)
    return [*groups.values()]


def _with_rows(cards: Sequence[StoredCard]) -> Iterator[StoredCard]:
    columns = [sorted((column for column in one.card.columns if not column.curve), key=_order) for one in cards]
    names = rows.attack_names(column.identity for own in columns for column in own)
    for one, (row, setting), own in zip(cards, rows.named([one.card for one in cards]), columns, strict=True):
        by_name = {names[column.identity]: column for column in own}
        yield dataclasses.replace(one, row=row, setting=setting, columns=by_name)


def _order(column: Column) -> tuple[float, ...]:
    """Return the sort key of an attack: clean first, then by norm and radius, unbounded attacks last."""
    norm = (None, "linf", "l2").index(column.norm)
    return column.norm is not None and not column.bounded, norm, column.eps or 0.0, *catalogue.place(column.name)


@dataclass(frozen=True, eq=False)
class Results:
    """Result cards as one table; cards that differ only in their seed are one row.

    Rows are compared only on the same test images and training counts. Where there are several of these, `table`,
    `board` and `report` treat each on its own, and `by_test_set` separates them.
    """

    named: tuple[StoredCard, ...]
    waiting: tuple[str, ...] = ()  # run folders that have not been evaluated
    _differences: dict[tuple[str | int, ...], Difference | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Results({len(self.named)} cards, {len(self.rows)} rows, {len(self.by_test_set())} test sets)"

    @property
    def cards(self) -> tuple[Card, ...]:
        return tuple(one.card for one in self.named)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.row for one in self.named))

    @cached_property
    def columns(self) -> dict[str, Column]:
        """One column of each attack, which has its settings, in the order of a table, clean first."""
        found = {name: column for one in reversed(self.named) for name, column in one.columns.items()}
        return dict(sorted(found.items(), key=lambda pair: (_order(pair[1]), pair[0])))

    @cached_property
    def strongest(self) -> str | None:
        """The bounded attack that most rows have, within the cards' threat if possible. Of several: a complete suite,
        else the lowest mean balanced accuracy, else the last in a table; the worst case only without any other."""
        balls = {(card.threat["norm"], card.threat["eps"]) for card in self.cards}
        bounded = {name: one for name, one in self.columns.items() if one.ordinary and one.bounded and one.norm}
        inside = {name: one for name, one in bounded.items() if one.ball in balls} or bounded
        scores = self.scores("balanced").groupby("attack")["accuracy"].agg(["size", "mean"]).round(12)

        def preference(name: str) -> tuple[int, bool, float, int]:
            column, (rows, mean) = inside[name], scores.loc[name]
            complete = isinstance(column.attack, AutoAttack) and column.attack.version == "standard"
            return -rows, not complete, mean, -list(inside).index(name)

        return min(inside, key=preference, default=None)

    def by_test_set(self) -> list[Results]:
        """Return the results of each test set and its training counts, in the order of their first card."""
        return [Results(tuple(cards)) for cards in _grouped((rows.images(one.card), one) for one in self.named)]

    def _one_test_set(self) -> Results:
        if len(sets := self.by_test_set()) > 1:
            names = ", ".join(f"{one.cards[0].data['name']} ({len(one.cards)} cards)" for one in sets)
            raise UserError(f"results: got {len(sets)} test sets: {names}; allowed: one; choose with .by_test_set()")
        return self

    def table(self) -> pd.DataFrame:
        """Return one line for each card, attack and group of classes, sorted by card, with the columns `COLUMNS`.

        Groups: balanced, plain, head, body, tail, worst (the class with the lowest accuracy), and each class.
        Accuracies are in [0, 1] with 95 % intervals over the test images, of which `test_sha256` (8 digits) tells
        several sets apart; `n` are the images of the group; `correct` is missing where the accuracy is a mean.
        """
        return _numbers(self.named).sort_values("card", kind="stable", ignore_index=True)

    @property
    def labels(self) -> pd.Series:
        """The class of each test image."""
        return pd.Series(self._one_test_set().cards[0].labels, name="label")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The class predicted for each test image (index) by each row, seed and attack (columns)."""
        found: dict[tuple[str, int | None, str], Ints] = {}
        for one in self._one_test_set().named:  # if weights were evaluated again, the first card counts
            for name, column in one.columns.items():
                found.setdefault((one.row, one.card.seed, name), column.predictions)
        return pd.DataFrame(found).rename_axis(columns=["row", "seed", "attack"])

    def scores(self, *groups: str) -> pd.DataFrame:
        """Return the mean over the seeds of each row and attack, for some groups of classes or all.

        The columns are row, attack, group, accuracy, low, high, error and seeds. One seed keeps its interval over the
        test images; of several, it is the mean interval, widened as in `difference` by error, that of the seeds.
        """
        found = self._scores
        return (found[found["group"].isin(groups)] if groups else found).reset_index(drop=True)

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return over_seeds(_numbers(self._one_test_set().named), "row", "attack", "group")

    def compare(self, first: str, second: str, *attacks: str, group: str = "balanced") -> pd.DataFrame:
        """Return the paired differences of two rows on the same images, first minus second, under their attacks.

        The columns are attack, group, difference, low, high, p, seeds and decided. With several shared seeds the
        intervals cover the seeds as well; with one they tell which model is better, not which method.
        """
        for what, names, known in (("row", (first, second), self.rows), ("attack", attacks, self.columns)):
            for name in names:
                if name not in known:
                    raise unknown(what, name, known)
        columns = ["attack", "group", "difference", "low", "high", "p", "seeds", "decided"]
        pairs = ((attack, self.difference(first, second, attack, group)) for attack in attacks or self.columns)
        lines = ((name, group, d.value, d.low, d.high, d.p, d.runs, d.decided) for name, d in pairs if d)
        return pd.DataFrame(lines, columns=columns)

    def difference(
        self, first: str, second: str, attack: str, group: str = "balanced", comparisons: int = 1
    ) -> Difference | None:
        """Return the paired difference of two rows under one attack; None if their runs cannot be paired.

        Runs with equal seeds are pairs. Without a common seed, a single run is paired with each of the other row, and
        equal numbers of runs in order. The intervals of `comparisons` differences hold together (Bonferroni).
        """
        if first > second:
            found = self.difference(second, first, attack, group, comparisons)
            return found and dataclasses.replace(found, value=0.0 - found.value, low=-found.high, high=-found.low)
        if (key := (first, second, attack, group, comparisons)) in self._differences:
            return self._differences[key]
        predicted = [*zip(self.predictions.columns, self.predictions.to_numpy().T, strict=True)]
        ours, theirs = ({of[1]: each for of, each in predicted if of[::2] == (row, attack)} for row in (first, second))
        common = [seed for seed in ours if seed in theirs]
        sides = [[by_seed[seed] for seed in common or by_seed] for by_seed in (ours, theirs)]
        most = max(map(len, sides))
        sides = [runs * most if len(runs) == 1 else runs for runs in sides]
        card, pairs = self.cards[0], len(sides[0]) == len(sides[1]) > 0
        keep = np.isin(card.labels, members(card, group))
        if not keep.any():
            raise UserError(f"group {group}: it has no test images, or the training counts are not known or equal")
        labels = np.zeros(keep.sum(), dtype=np.int64) if group == "plain" else card.labels[keep]
        left, right = ([(run == card.labels)[keep] for run in runs] for runs in sides)
        found = difference(left, right, labels, card.num_classes, comparisons=comparisons) if pairs else None
        return self._differences.setdefault(key, found)

    def board(self) -> pd.DataFrame:
        """Return the leaderboard: the rows of each setting by balanced accuracy under AutoAttack, best first.

        A setting is the test set and `taet.report.rows.SETTING`. A rank is a range where paired tests do not tell rows
        apart; the intervals of all pairs of rows hold together (Bonferroni). Rows that may not be ranked are left out,
        with the reason in `.attrs["left out"]`.
        """
        lines: list[tuple[object, ...]] = []
        left_out: dict[str, str] = {}
        for cards in _grouped(((rows.images(one.card), one.setting), one) for one in self.named):
            by_row = {row: [one.card for one in cards if one.row == row] for row in dict.fromkeys(c.row for c in cards)}
            reasons = {row: _unranked(own) for row, own in by_row.items()}
            left_out |= {one.name: reasons[one.row] for one in cards if reasons[one.row]}
            ranked = Results(tuple(one for one in cards if not reasons[one.row]))
            lines += ranked._ranked() if ranked.named else ()
        found = pd.DataFrame(lines, columns=BOARD)
        found.attrs["left out"] = left_out
        return found

    def _ranked(self) -> Iterator[tuple[object, ...]]:
        scores = self.scores("balanced", "tail", "worst").set_index(["row", "attack", "group"])
        data, model, protocol, *_, selection = self.named[0].setting
        # The names in the table contain the radius if another board has another radius.
        shown = {column.name: name for name, column in reversed(self.columns.items())}
        leading, pgd = shown[LEAD], shown.get("pgd-20", "pgd-20")
        ratio = self.cards[0].data.get("imbalance_ratio")
        order = sorted(self.rows, key=lambda row: -scores.loc[(row, leading, "balanced"), "accuracy"])
        pairs = math.comb(len(order), 2)
        for row in order:
            others = (self.difference(row, other, leading, comparisons=pairs) for other in order if other != row)
            decided = [one.value for one in others if one is not None and one.decided]
            best, worst = 1 + sum(value < 0 for value in decided), len(order) - sum(value > 0 for value in decided)
            rank = str(best) if best == worst else f"{best}–{worst}"
            lead = scores.loc[row, leading, "balanced"]
            beside = (("clean", "balanced"), (pgd, "balanced"), (leading, "tail"), (leading, "worst"))
            numbers = (scores["accuracy"].get((row, *of), math.nan) for of in beside)
            flags = {name for one in self.named if one.row == row for name in raised(one.card)} - {"small-test-set"}
            about = (data, ratio, model, protocol, selection, row, rank, *lead[["accuracy", "low", "high"]])
            yield *about, *numbers, int(lead["seeds"]), " ".join(sorted(flags))

    def report(self, path: str | os.PathLike[str], title: str | None = None, *, force: bool = False) -> Path:
        """Write the report as `taet.report.write` does, and return its path."""
        return write(self, path, title, force=force)


def _unranked(cards: Sequence[Card]) -> str:
    """Return why the cards of a row may not stand on a board; "" if they may."""
    columns = {column.name: column for card in cards for column in card.columns}
    if missing := [name for name in (LEAD, "clean") if name not in columns]:
        return f"no column {missing[0]}"
    return doubt(cards, columns[LEAD]) if all(card.probe for card in cards) else "no probe of its gradients"


def doubt(cards: Sequence[Card], column: Column) -> str:
    """Return why a column of a row may be too high, e.g. a flag that every card raises; "" if nothing says so."""
    if any(card.model.get("leak") for card in cards):
        return "its epoch was chosen on the test images"
    harmless = MASKING if column.norm is None else set() if isinstance(column.attack, ProjectedAscent) else PGD_ALONE
    misled = MASKING.intersection(*(raised(card) for card in cards)) - harmless
    return f"gradients may mislead attacks: {', '.join(sorted(misled))}" if misled else ""


def _numbers(cards: Sequence[StoredCard]) -> pd.DataFrame:
    lines = list[tuple[object, ...]]()
    for one, attack, column in ((card, *pair) for card in cards for pair in card.columns.items()):
        of = one.card.summary_of(column)
        classes = [*zip(of.total, of.correct, of.per_class, *of.per_class_interval, strict=True)]
        parts = {"balanced": (of.total.sum(), pd.NA, of.balanced, *of.balanced_interval)}
        parts["plain"] = (of.total.sum(), of.correct.sum(), of.accuracy, *of.accuracy_interval)
        for group in ("head", "body", "tail"):
            if len(labels := members(one.card, group)):
                parts[group] = (of.total[labels].sum(), pd.NA, of.groups[group], *of.group_intervals[group])
        # The lowest class is chosen by chance too, so the intervals of all classes must hold together (Bonferroni).
        ends = statistics.exact_interval(of.correct, of.total, 1 - 0.05 / np.count_nonzero(of.total))
        parts["worst"] = (*classes[of.worst_class[0]][:3], *map(np.nanmin, ends))
        parts |= dict(zip(class_names(one.card), classes, strict=True))
        lines += [(*one.about, attack, group, *numbers) for group, numbers in parts.items()]
    return pd.DataFrame(lines, columns=[*COLUMNS]).astype({"seed": "Int64", "n": "Int64", "correct": "Int64"})


def over_seeds(scores: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return mean and interval over the seeds for equal keys, each seed counted once, as in `Results.scores`."""
    groups = scores.drop_duplicates([*keys, "seed"]).groupby([*keys], sort=False)
    means, accuracy = groups[["accuracy", "low", "high"]].agg("mean"), groups["accuracy"]
    mean, error, seeds = accuracy.apply(lambda values: values.to_numpy().mean()), accuracy.sem(), accuracy.size()
    reach = error * seeds.map(lambda n: student_quantile(0.95, n - 1) if n > 1 else math.nan)
    low = means["low"].mask(seeds > 1, (mean - np.hypot(mean - means["low"], reach)).clip(lower=0))
    high = means["high"].mask(seeds > 1, (mean + np.hypot(means["high"] - mean, reach)).clip(upper=1))
    return means.assign(accuracy=mean, low=low, high=high, error=error, seeds=seeds).reset_index()


def class_names(card: Card) -> list[str]:
    """Return the names of the classes as groups of the table: a class called "tail" is not the tail."""
    return [f"class {name}" if {*GROUPS} & {*card.class_names} else name for name in card.class_names]


def members(card: Card, group: str) -> Ints:
    """Return the labels of a group of classes that have test images; none if training counts are not known or equal."""
    counts, names = card.data.get("train_class_counts"), class_names(card)
    present = np.flatnonzero(card.test_class_counts)
    if group in ("balanced", "plain"):
        return present
    if group in ("head", "body", "tail"):
        found = [] if counts is None or len({*counts}) == 1 else statistics.class_groups(counts)[group]
        return np.array([label for label in found if label in present], dtype=np.int64)
    if group not in names:
        raise unknown("group", group, [*GROUPS[:-1], *names])
    return np.array([names.index(group)])
