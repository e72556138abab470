"""Results: the result cards of any number of models as one table, and every view of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from taet import statistics
from taet.attacks import catalogue
from taet.attacks.suite import Suite
from taet.errors import UserError, unknown
from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE, Column
from taet.intervals import Difference, difference, mean_recall_limits
from taet.report.rows import Setting, attack_names, images, named
from taet.report.sources import Source, Sources, read

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("card", "row", "method", "data", "imbalance_ratio", "model", "protocol", "seed"),
    *("attack", "group", "n", "correct", "accuracy", "low", "high"),
)
GROUPS = ("balanced", "plain", "head", "body", "tail", "worst")
"""Groups of classes in the table, before the classes themselves."""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Entry:
    """One card of a table, with the name of its row and its columns by the names of their attacks, in order."""

    source: Source
    row: str
    setting: Setting
    columns: Mapping[str, Column]

    @property
    def card(self) -> ResultCard:
        return self.source.card


def results(*sources: Sources) -> Results:
    """Return the cards of run folders, card files, folders of these, patterns or cards in memory as one object.

    Example: `taet.results("runs/*").table()`.

    Raises:
        UserError: a source without a card, or a damaged card.
    """
    found, waiting = read(sources)
    by_images: dict[tuple[object, ...], list[Source]] = {}
    for source in found:
        by_images.setdefault(images(source.card), []).append(source)
    return Results(tuple(entry for group in by_images.values() for entry in _entries(group)), tuple(waiting))


def _entries(sources: Sequence[Source]) -> Iterator[Entry]:
    """Yield the entries of the cards of one table, named among each other."""
    columns = [[column for column in source.card.columns if column.ordinary] for source in sources]
    names = attack_names(column.identity for each in columns for column in each)
    rows = named([source.card for source in sources])
    for source, (row, setting), each in zip(sources, rows, columns, strict=True):
        yield Entry(source, row, setting, {names[column.identity]: column for column in sorted(each, key=_place)})


def _place(column: Column) -> tuple[Any, ...]:
    """Sort key of attacks: clean first, then by norm and radius, the worst case last; unbounded attacks after all."""
    norms = (None, "linf", "l2", "l1", "l0")
    norm = norms.index(column.norm) if column.norm in norms else len(norms)
    worst = column.name in WORST_CASE.values()
    return column.norm is not None and not column.bounded, norm, column.eps or 0.0, worst, *catalogue.place(column.name)


@dataclass(frozen=True, eq=False)
class Results:
    """Result cards as one table; seeds of one method are one row.

    Rows are compared only on the same test images and training counts. Where several of these are held, `table`,
    `board` and `report` show each on its own, and `by_test_set` separates them.
    """

    entries: tuple[Entry, ...]
    waiting: tuple[str, ...] = ()
    """Run folders that have not been evaluated."""
    _known: dict[tuple[str, ...], Difference | None] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        sets = {images(entry.card) for entry in self.entries}
        return f"Results({len(self.entries)} cards, {len(self.rows)} rows, {len(sets)} test sets)"

    @property
    def cards(self) -> tuple[ResultCard, ...]:
        return tuple(entry.card for entry in self.entries)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the order of their first card."""
        return tuple(dict.fromkeys(entry.row for entry in self.entries))

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks of all cards, clean first, in the order of a table."""
        found = {name: column for entry in self.entries for name, column in entry.columns.items()}
        return tuple(sorted(found, key=lambda name: (_place(found[name]), name)))

    @cached_property
    def strongest(self) -> str | None:
        """The strongest attack: a complete suite, else that with the lowest mean balanced accuracy.

        Only bounded attacks of the cards' threat that most rows have; the worst case only where there is no other.
        """

        def order(name: str) -> tuple[bool, int, bool, float]:
            of = [(entry, entry.columns[name]) for entry in self.entries if name in entry.columns]
            whole = any(isinstance(c.attack, Suite) and c.attack.is_reference for _, c in of)
            values = [_balanced(entry.card, column) for entry, column in of]
            worst = of[0][1].name in WORST_CASE.values()
            return worst, -len({entry.row for entry, _ in of}), not whole, sum(values) / len(values)

        inside = {
            name
            for entry in self.entries
            for name, column in entry.columns.items()
            if column.bounded and (column.norm, column.eps) == (entry.card.threat["norm"], entry.card.threat["eps"])
        }
        return min((name for name in self.attacks if name in inside), key=order, default=None)

    def by_test_set(self) -> list[Results]:
        """Return the results of each test set and its training counts, in the order of their first card."""
        found: dict[tuple[object, ...], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(images(entry.card), []).append(entry)
        return [Results(tuple(entries)) for entries in found.values()]

    def on(self, *, rows: Sequence[str] | None = None, **columns: object) -> Results:
        """Return the entries of some rows, or whose columns of the table have these values, e.g. `data="digits-lt"`."""
        for name in columns.keys() - set(COLUMNS[1:8]):
            raise unknown("column", name, COLUMNS[1:8])
        kept = [
            entry
            for entry in self.entries
            if (rows is None or entry.row in rows)
            and all(value == dict(zip(COLUMNS, _about(entry), strict=False))[name] for name, value in columns.items())
        ]
        if not kept:
            raise UserError(f"results: no card has {', '.join(f'{n} {v}' for n, v in columns.items()) or rows}")
        return dataclasses.replace(self, entries=tuple(kept), _known={})

    def table(self) -> pd.DataFrame:
        """Return one line for each card, attack and group of classes, with `COLUMNS`, sorted by card.

        Accuracies are in [0, 1] with 95 % intervals over the test images; `n` are the images of the group, and
        `correct` is missing where the accuracy is a mean over classes.
        """
        import pandas as pd

        lines = [line for one in self.by_test_set() for line in one._lines()]
        found = pd.DataFrame(sorted(lines, key=lambda line: str(line[0])), columns=list(COLUMNS))
        return found.astype({"seed": "Int64", "n": "Int64", "correct": "Int64"})

    @property
    def labels(self) -> pd.Series:
        """The class of each test image."""
        import pandas as pd

        card = self._one().entries[0].card
        return pd.Series(card.labels, name="label")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The class predicted for each test image (index) by each row, seed and attack (columns)."""
        import pandas as pd

        found = {key: column.predictions for key, (_, column) in self._one()._measured.items()}
        return pd.DataFrame(found).rename_axis(columns=["row", "seed", "attack"])

    @cached_property
    def _measured(self) -> dict[tuple[str, int | None, str], tuple[ResultCard, Column]]:
        """The card and column of each row, seed and attack; of equal weights evaluated again the first."""
        found: dict[tuple[str, int | None, str], tuple[ResultCard, Column]] = {}
        for entry in self.entries:
            for name, column in entry.columns.items():
                found.setdefault((entry.row, entry.card.seed, name), (entry.card, column))
        return found

    def _one(self) -> Results:
        """Return these results if they are on one test set."""
        sets = self.by_test_set()
        if len(sets) > 1:
            names = ", ".join(f"{one.entries[0].card.data['name']} ({len(one.entries)} cards)" for one in sets)
            raise UserError(f"results: got {len(sets)} test sets: {names}; allowed: one; choose by .by_test_set()")
        return self

    def scores(self, *groups: str) -> pd.DataFrame:
        """Return the mean over the seeds of each row and attack, for some groups of classes or all.

        Columns: row, attack, group, accuracy, low, high, error, seeds. One seed keeps its interval over the test
        images; several have Student's interval of their mean, and its standard error.
        """
        import pandas as pd

        table = self._one()._scores
        table = table[table["group"].isin(groups)] if groups else table
        return pd.DataFrame(table).reset_index(drop=True)

    @cached_property
    def _scores(self) -> pd.DataFrame:
        import pandas as pd

        table = self.table().drop_duplicates(["row", "seed", "attack", "group"])
        lines = []
        for of in (found for _, found in table.groupby(["row", "attack", "group"], sort=False)):
            numbers = of[["accuracy", "low", "high"]].to_numpy()
            lines.append((*of.iloc[0][["row", "attack", "group"]], *over_seeds(numbers), len(of)))
        return pd.DataFrame(lines, columns=["row", "attack", "group", "accuracy", "low", "high", "error", "seeds"])

    def compare(self, first: str, second: str, *attacks: str, group: str = "balanced") -> pd.DataFrame:
        """Return the paired differences of two rows on the same images, first minus second, under their attacks.

        Columns: attack, group, difference, low, high, p, seeds, decided. With several shared seeds the intervals cover
        the seeds as well; with one they tell which model is better, not which method.
        """
        import pandas as pd

        for row in (first, second):
            if row not in self.rows:
                raise unknown("row", row, self.rows)
        for attack in attacks:
            if attack not in self.attacks:
                raise unknown("attack", attack, self.attacks)
        lines = []
        for attack in attacks or self.attacks:
            found = self.difference(first, second, attack, group)
            if found is not None:
                lines.append((attack, group, found.value, found.low, found.high, found.p, found.runs, found.decided))
        columns = ["attack", "group", "difference", "low", "high", "p", "seeds", "decided"]
        return pd.DataFrame(lines, columns=columns)

    def difference(self, first: str, second: str, attack: str, group: str = "balanced") -> Difference | None:
        """Return the paired difference of two rows under one attack; None if one of them was not attacked so.

        Runs with equal seeds are pairs; without a common seed they are paired in order.
        """
        if first > second:
            found = self.difference(second, first, attack, group)
            return found and dataclasses.replace(found, value=-found.value, low=-found.high, high=-found.low)
        key = (first, second, attack, group)
        if key not in self._known:
            self._known[key] = self._one()._difference(*key)
        return self._known[key]

    def _difference(self, first: str, second: str, attack: str, group: str) -> Difference | None:
        sides = [
            {seed: column for (row, seed, name), (_, column) in self._measured.items() if (row, name) == (one, attack)}
            for one in (first, second)
        ]
        common = [seed for seed in sides[0] if seed in sides[1]]
        pairs = [(sides[0][s], sides[1][s]) for s in common] or list(zip(*(s.values() for s in sides), strict=False))
        if not pairs:
            return None
        card = self.entries[0].card
        keep = np.isin(card.labels, _members(card, group))
        labels = np.zeros(keep.sum(), dtype=np.int64) if group == "plain" else card.labels[keep]
        masks = [[pair[side].correct[keep] for pair in pairs] for side in (0, 1)]
        return difference(masks[0], masks[1], labels, card.num_classes)

    def board(self) -> pd.DataFrame:
        """Return the leaderboard: the rows of each setting by balanced accuracy under AutoAttack, best first."""
        from taet.report.board import board

        return board(self)

    def _lines(self) -> Iterator[tuple[object, ...]]:
        """Yield the lines of the table for cards of one test set."""
        columns = [(entry, name, column) for entry in self.entries for name, column in entry.columns.items()]
        first = self.entries[0].card
        right = np.stack(
            [statistics.class_counts(c.correct, first.labels, first.num_classes)[0] for _, _, c in columns]
        )
        total = first.test_class_counts
        means = {group: of for group in ("balanced", "head", "body", "tail") if len(of := _members(first, group))}
        limits = {group: mean_recall_limits(right[:, of], total[of], LEVEL) for group, of in means.items()}
        single = statistics.wilson_interval(right, total, LEVEL)
        plain = statistics.wilson_interval(right.sum(1), total.sum(), LEVEL)
        classes = [f"class {name}" if name in GROUPS else name for name in first.class_names]
        for at, (entry, attack, _) in enumerate(columns):
            head, k = (*_about(entry), attack), right[at]
            numbers: dict[str, tuple[object, ...]] = {
                group: (
                    total[of].sum(),
                    None,
                    statistics.balanced_accuracy(k[of], total[of]),
                    *(e[at] for e in limits[group]),
                )
                for group, of in means.items()
            }
            numbers["plain"] = (total.sum(), k.sum(), statistics.accuracy(k, total), plain[0][at], plain[1][at])
            recalls = statistics.per_class_accuracy(k, total)
            each = list(zip(total, k, recalls, single[0][at], single[1][at], strict=True))
            numbers["worst"] = each[statistics.worst_class(k, total)[0]]
            yield from ((*head, group, *numbers[group]) for group in GROUPS if group in numbers)
            yield from ((*head, name, *one) for name, one in zip(classes, each, strict=True))


def over_seeds(numbers: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float, float, float]:
    """Return mean, interval and standard error of seeds, whose accuracy, low and high are the rows of `numbers`."""
    if len(numbers) == 1:
        accuracy, low, high = map(float, numbers[0])
        return accuracy, low, high, math.nan
    mean, error = (float(value) for value in statistics.mean_and_standard_error(numbers[:, 0]))
    reach = statistics.student_quantile(LEVEL, len(numbers) - 1) * error
    return mean, max(mean - reach, 0.0), min(mean + reach, 1.0), error


def _balanced(card: ResultCard, column: Column) -> float:
    return statistics.balanced_accuracy(*statistics.class_counts(column.correct, card.labels, card.num_classes))


def _about(entry: Entry) -> tuple[object, ...]:
    """Return what the table says of a card, from its name to its seed."""
    card = entry.card
    data, model = card.data, card.model["name"]
    ratio = data.get("imbalance_ratio")
    return entry.source.name, entry.row, card.method, data["name"], ratio, model, card.protocol, card.seed


def _members(card: ResultCard, group: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the labels of a group of classes that have test images; none if its training counts are not known."""
    counts, present = card.data.get("train_class_counts"), np.flatnonzero(card.test_class_counts)
    if group in ("balanced", "plain"):
        return present
    if group in ("head", "body", "tail"):
        found = [] if counts is None else statistics.class_groups(counts)[group]
        return np.array([label for label in found if label in present], dtype=np.int64)
    names = [f"class {name}" if name in GROUPS else name for name in card.class_names]
    if group not in names:
        raise unknown("group", group, [*GROUPS[:-1], *names])
    return np.array([names.index(group)])
