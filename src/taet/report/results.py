"""Results: the result cards of any number of models as one table, and every view of it."""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from taet.attacks.autoattack import AutoAttack
from taet.card.card import Card
from taet.card.column import Column
from taet.errors import UserError, unknown
from taet.evaluation.flags import raised
from taet.formatting import MISSING, percent
from taet.metrics.accuracies import Ints
from taet.metrics.paired import Difference, difference
from taet.report import doubts, write
from taet.report.entries import TableEntry, entries_of, group_by, place_in_table, shared_images
from taet.report.frames import WholeFrame
from taet.report.read_cards import Sources, read_cards
from taet.report.scores import labels_in, over_seeds, table_of

LEAD = "autoattack"
LEADERBOARD = (
    "data",
    "imbalance_ratio",
    "model",
    "protocol",
    "selection",
    "row",
    "rank",
    LEAD,
    "low",
    "high",
    "clean",
    "pgd-20",
    "tail",
    "worst",
    "seeds",
    "flags",
)
"""Columns of `Results.leaderboard()`; low and high (the 95 % interval), tail and worst are under
AutoAttack."""
COMPARISON = ("attack", "group", "difference", "low", "high", "p", "seeds", "significant")
"""Columns of `Results.compare()`."""


def results(*sources: Sources) -> Results:
    """Return any number of result cards as one object.

    Args:
        *sources: run folders, card files, folders of these, patterns such as "runs/*", or cards in
            memory.

    Raises:
        UserError: a source without a card, or a damaged card.

    Example:
        >>> import taet
        >>> found = taet.results("runs/example")
        >>> found.rows, list(found.columns)
        (('at',), ['clean', 'pgd-2'])
    """
    found = read_cards(sources)
    return Results(tuple(entries_of(found.cards)), tuple(found.waiting), found.title)


@dataclass(frozen=True, eq=False)
class Results:
    """Result cards as one table; cards that differ only in their seed are one row.

    Rows are compared only on the same test images and training counts. Where there are several of
    these, `table`, `leaderboard` and `report` treat each on its own, and `by_test_set` separates
    them.

    Example:
        >>> import taet
        >>> found = taet.results("runs/example")
        >>> found.scores("balanced", "tail")[["attack", "group"]].values.tolist()
        [['clean', 'balanced'], ['clean', 'tail'], ['pgd-2', 'balanced'], ['pgd-2', 'tail']]
    """

    entries: tuple[TableEntry, ...]
    waiting: tuple[str, ...] = ()  # run folders that have not been evaluated
    title: str | None = None  # of the comparison, if these are the cards of one
    _differences: dict[tuple[str | int, ...], Difference | None] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Results({len(self.entries)} cards, {len(self.rows)} rows, {len(self.by_test_set())} "
            "test sets)"
        )

    def _repr_html_(self) -> str:
        """Return balanced accuracy in per cent, a table for each test set, as a notebook shows
        it."""
        parts = [f"<p>{html.escape(repr(self))}: balanced accuracy in %</p>"]
        for of_set in self.by_test_set():
            scores = of_set.scores("balanced")
            wide = scores.pivot(index="row", columns="attack", values="accuracy")
            attacks = [attack for attack in of_set.columns if attack in wide]
            parts.append(wide[attacks].to_html(float_format=percent, na_rep=MISSING))
        return "".join(parts)

    @property
    def cards(self) -> tuple[Card, ...]:
        return tuple(entry.card for entry in self.entries)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.row for entry in self.entries))

    @cached_property
    def columns(self) -> dict[str, Column]:
        """One column of each attack, which has its settings, in the order of a table, clean
        first."""
        found: dict[str, Column] = {}
        for entry in self.entries:
            for name, column in entry.columns.items():
                found.setdefault(name, column)
        names = sorted(found, key=lambda name: (place_in_table(found[name]), name))
        return {name: found[name] for name in names}

    @property
    def train_class_counts(self) -> tuple[int, ...] | None:
        """Training images of each class, (C,).

        It is None if they are not known, or not the same in all cards, as in replicates whose
        classes are rare in another order.
        """
        counts = {tuple(card.data.get("train_class_counts") or ()) for card in self.cards}
        if len(counts) > 1:
            return None
        (known,) = counts
        return known or None

    def cards_of(self, row: str) -> list[Card]:
        """Return the cards of a row."""
        return [entry.card for entry in self.entries if entry.row == row]

    @cached_property
    def strongest(self) -> str | None:
        """The bounded attack that most rows have, within the cards' threat if possible. Of several:
        a complete suite, else the lowest mean balanced accuracy, else the last in a table; the
        worst case only without any other."""
        balls = {(card.threat["norm"], card.threat["eps"]) for card in self.cards}
        bounded = {
            name: column
            for name, column in self.columns.items()
            if column.ordinary and column.bounded and column.norm is not None
        }
        inside = {name: column for name, column in bounded.items() if column.ball in balls}
        candidates = inside or bounded
        by_attack = self.scores("balanced").groupby("attack")["accuracy"]
        rows, means = by_attack.size(), by_attack.mean().round(12)
        places = {name: place for place, name in enumerate(candidates)}

        def preference(name: str) -> tuple[int, bool, float, int]:
            attack = candidates[name].attack
            complete = isinstance(attack, AutoAttack) and attack.version == "standard"
            return -rows[name], not complete, means[name], -places[name]

        return min(candidates, key=preference, default=None)

    def by_test_set(self) -> list[Results]:
        """Return the results of each test set and its training counts, one object for each.

        They have the order of their first card.
        """
        groups = group_by(self.entries, lambda entry: shared_images(entry.card))
        return [Results(tuple(entries)) for entries in groups]

    def _one_test_set(self) -> Results:
        test_sets = self.by_test_set()
        if len(test_sets) > 1:
            names = [
                f"{each.cards[0].data['name']} ({len(each.cards)} cards)" for each in test_sets
            ]
            raise UserError(
                f"results: got {len(test_sets)} test sets: {', '.join(names)}; allowed: one; "
                "choose with .by_test_set()"
            )
        return self

    def table(self) -> pd.DataFrame:
        """Return one line for each card, attack and group of classes, sorted by card.

        The columns are `taet.report.scores.COLUMNS`. Groups: balanced, plain, head, body, tail,
        worst (the class with the lowest accuracy), and each class. Accuracies are in [0, 1],
        with 95 % intervals over the test images. `test_sha256` (8 digits) tells test sets apart,
        `n` are the images of the group, and `correct` is missing where the accuracy is a mean. The
        accuracy of a class is its recall; `precision` and `f1` are those of a class, and the `f1`
        of balanced is their mean.
        """
        return WholeFrame(self._table.sort_values("card", kind="stable", ignore_index=True))

    @cached_property
    def _table(self) -> pd.DataFrame:
        return table_of(self.entries)

    @property
    def labels(self) -> pd.Series:
        """The class of each test image."""
        return pd.Series(self._one_test_set().cards[0].labels, name="label")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predicted classes: one line for each test image, a column for each row and attack.

        A row has a column for each of its seeds.
        """
        found: dict[tuple[str, int | None, str], Ints] = {}
        # if weights were evaluated again, the first card counts
        for entry in self._one_test_set().entries:
            for attack, column in entry.columns.items():
                found.setdefault((entry.row, entry.card.seed, attack), column.predictions)
        return pd.DataFrame(found).rename_axis(columns=["row", "seed", "attack"])

    def predictions_by_seed(self, row: str, attack: str) -> dict[int | None, Ints]:
        """Return the predicted classes (N,) of a row under an attack, by its seeds."""
        found = {}
        for name in self.predictions.columns:
            its_row, seed, its_attack = name
            if its_row == row and its_attack == attack:
                found[seed] = self.predictions[name].to_numpy()
        return found

    def scores(self, *groups: str) -> pd.DataFrame:
        """Return the mean over the seeds of each row and attack, for some groups of classes or all.

        The columns are row, attack, group, accuracy, low, high, error and seeds. One seed keeps its
        interval over the test images; of several, it is the mean interval, widened as in
        `difference` by error, that of the seeds.
        """
        scores = self._scores
        if groups:
            scores = scores[scores["group"].isin(groups)]
        return WholeFrame(scores.reset_index(drop=True))

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return over_seeds(self._one_test_set()._table, "row", "attack", "group")

    def compare(
        self, first: str, second: str, *attacks: str, group: str = "balanced"
    ) -> pd.DataFrame:
        """Return the paired differences of two rows on the same images, first minus second.

        There is a line for each of their common attacks. The columns are `COMPARISON`. With several
        shared seeds the intervals cover the seeds as well; with one they tell which model is
        better, not which method.
        """
        for row in (first, second):
            if row not in self.rows:
                raise unknown("row", row, self.rows)
        for attack in attacks:
            if attack not in self.columns:
                raise unknown("attack", attack, self.columns)
        lines = []
        for attack in attacks or self.columns:
            paired = self.difference(first, second, attack, group)
            if paired is not None:
                numbers = paired.value, paired.low, paired.high, paired.p, paired.runs
                lines.append((attack, group, *numbers, paired.significant))
        return pd.DataFrame(lines, columns=[*COMPARISON])

    def difference(
        self, first: str, second: str, attack: str, group: str = "balanced", comparisons: int = 1
    ) -> Difference | None:
        """Return the paired difference of two rows under one attack, first minus second.

        It is None if their runs cannot be paired, or have other classes in the group. Runs with
        equal seeds are pairs. Without a common seed, a single run is paired with each of the other
        row, and equal numbers of runs in order. The intervals of `comparisons` differences hold
        together (Bonferroni).
        """
        if first > second:
            reverse = self.difference(second, first, attack, group, comparisons)
            return None if reverse is None else _negated(reverse)
        key = first, second, attack, group, comparisons
        if key not in self._differences:
            self._differences[key] = self._difference(*key)
        return self._differences[key]

    def _difference(
        self, first: str, second: str, attack: str, group: str, comparisons: int
    ) -> Difference | None:
        cards = [*self.cards_of(first), *self.cards_of(second)]
        groups = {tuple(labels_in(card, group)) for card in cards}
        if len(groups) > 1:  # replicates whose classes are rare in another order
            return None
        card = cards[0]
        in_group = np.isin(card.labels, labels_in(card, group))
        if not in_group.any():
            raise UserError(
                f"group {group}: it has no test images, or the training counts are not known or "
                "equal"
            )
        ours, theirs = _paired_runs(
            self.predictions_by_seed(first, attack), self.predictions_by_seed(second, attack)
        )
        if not ours or len(ours) != len(theirs):
            return None
        labels = card.labels[in_group]
        left = [predicted[in_group] == labels for predicted in ours]
        right = [predicted[in_group] == labels for predicted in theirs]
        # the share of all images is a mean over one class that holds them all
        classes = np.zeros_like(labels) if group == "plain" else labels
        return difference(left, right, classes, card.num_classes, comparisons=comparisons)

    def leaderboard(self) -> pd.DataFrame:
        """Return the rows of each setting by balanced accuracy under AutoAttack, best first.

        The columns are `LEADERBOARD`. A setting is the test set and
        `taet.report.row_labels.Setting`. A rank is a range where paired tests do not tell rows
        apart; the intervals of all pairs of rows hold together (Bonferroni). Rows that may not be
        ranked are left out, with the reason in `.attrs["left out"]`.
        """
        lines: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        for entries in group_by(self.entries, lambda e: (shared_images(e.card), e.setting)):
            ranked = []
            for of_row in group_by(entries, lambda entry: entry.row):
                reason = _reason_not_to_rank([entry.card for entry in of_row])
                if reason:
                    left_out |= {entry.name: reason for entry in of_row}
                else:
                    ranked += of_row
            if ranked:
                lines += Results(tuple(ranked))._ranked()
        found = pd.DataFrame(lines, columns=[*LEADERBOARD])
        found.attrs["left out"] = left_out
        return found

    def board(self) -> pd.DataFrame:
        """Return `leaderboard()`, which is its new name; this one leaves with the next version."""
        return self.leaderboard()

    def _ranked(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of a leaderboard: those of one setting."""
        scores = self.scores("balanced", "tail", "worst").set_index(["row", "attack", "group"])
        setting = self.entries[0].setting
        about = {
            "data": setting.data,
            "imbalance_ratio": self.cards[0].data.get("imbalance_ratio"),
            "model": setting.model,
            "protocol": setting.protocol,
            "selection": setting.selection,
        }
        # in a table with several radii the name of an attack contains its radius
        names = {column.name: name for name, column in reversed(self.columns.items())}
        lead, pgd = names[LEAD], names.get("pgd-20", "pgd-20")
        accuracies = scores["accuracy"]
        balanced = {row: accuracies[row, lead, "balanced"] for row in self.rows}
        order = sorted(self.rows, key=lambda row: -balanced[row])
        for row in order:
            numbers = scores.loc[row, lead, "balanced"]
            yield {
                **about,
                "row": row,
                "rank": self._rank(row, order, lead),
                LEAD: numbers["accuracy"],
                "low": numbers["low"],
                "high": numbers["high"],
                "clean": accuracies.get((row, "clean", "balanced"), math.nan),
                "pgd-20": accuracies.get((row, pgd, "balanced"), math.nan),
                "tail": accuracies.get((row, lead, "tail"), math.nan),
                "worst": accuracies.get((row, lead, "worst"), math.nan),
                "seeds": int(numbers["seeds"]),
                "flags": " ".join(_flags(self.cards_of(row))),
            }

    def _rank(self, row: str, rows: Sequence[str], attack: str) -> str:
        """Return the rank of a row among all rows of a leaderboard: a range, e.g. 2–4, where paired
        tests do not tell rows apart."""
        pairs = math.comb(len(rows), 2)
        better = worse = 0  # rows that are significantly better or worse than this one
        for other in rows:
            if other == row:
                continue
            paired = self.difference(row, other, attack, "balanced", pairs)
            if paired is not None and paired.significant:
                better += paired.value < 0
                worse += paired.value > 0
        first, last = 1 + better, len(rows) - worse
        return str(first) if first == last else f"{first}–{last}"

    def report(
        self, path: str | os.PathLike[str], title: str | None = None, *, force: bool = False
    ) -> Path:
        """Write the report as `taet.report.write` does, and return its path."""
        return write(self, path, title, force=force)


def _negated(paired: Difference) -> Difference:
    """Return the difference of the two sides the other way round."""
    value = 0.0 - paired.value  # which turns 0.0 into 0.0, not into -0.0
    return dataclasses.replace(paired, value=value, low=-paired.high, high=-paired.low)


def _paired_runs(
    ours: Mapping[int | None, Ints], theirs: Mapping[int | None, Ints]
) -> tuple[list[Ints], list[Ints]]:
    """Return the runs of both sides in the order in which they are pairs.

    Of common seeds if there are any; else all runs, a single one as often as the other side has
    runs.
    """
    common = [seed for seed in ours if seed in theirs]
    if common:
        return [ours[seed] for seed in common], [theirs[seed] for seed in common]
    left, right = list(ours.values()), list(theirs.values())
    if len(left) == 1:
        left = left * max(1, len(right))
    elif len(right) == 1:
        right = right * max(1, len(left))
    return left, right


def _reason_not_to_rank(cards: Sequence[Card]) -> str:
    """Return why the cards of a row may not stand on a leaderboard; "" if they may."""
    columns = {column.name: column for card in cards for column in card.columns}
    for name in (LEAD, "clean"):
        if name not in columns:
            return f"no column {name}"
    if not all(card.probe for card in cards):
        return "no probe of its gradients"
    return doubts.reason_for_doubt(cards, columns[LEAD])


def _flags(cards: Sequence[Card]) -> list[str]:
    flags = {flag for card in cards for flag in raised(card)}
    return sorted(flags - {"small-test-set"})
