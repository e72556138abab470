"""The measurements of each series: the columns of its cards, grouped by attack, and their numbers.

Columns measured only for a curve and columns with examples of another model are excluded. A stored worst case is
replaced by the worst case over the attacks of the card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taet import statistics
from taet.attacks import catalogue
from taet.attacks.identity import Identity
from taet.attacks.suite import Suite
from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE, Column
from taet.evaluation.summary import Summary
from taet.formatting import size
from taet.report.series import Series

NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


class AttackKey(Identity):
    """The identity of an attack, equal for comparable columns of two cards, with its position and words in a table."""

    @property
    def is_worst_case(self) -> bool:
        return self.name in WORST_CASE.values()

    @property
    def ranked(self) -> bool:
        """Whether accuracies under it rank models: not if it is unbounded, as its measure is the distance."""
        return self.bounded or self.norm is None

    @property
    def threat(self) -> str:
        """The threat model in words; empty for clean images."""
        if self.norm is None:
            return ""
        radius = "" if self.eps is None else size(self.eps) if self.norm == "linf" else f"{self.eps:.4g}"
        return f"{NORMS.get(self.norm, self.norm)}, {f'ε {radius}' if self.bounded and radius else 'unbounded'}"

    @property
    def title(self) -> str:
        """The heading of a figure of accuracies under the attack."""
        return "Clean" if self.norm is None else f"Under {self.name}"

    @property
    def place(self) -> tuple[int | float, ...]:
        """Sort key of the columns of a table: clean first, then by norm, radius and worst case; unbounded attacks last.

        Attacks of one ball are in the order of `taet list attacks`, fewer steps first.
        """
        norms = [None, *NORMS]
        return (
            norms.index(self.norm) if self.norm in norms else len(norms),
            not self.bounded,
            self.eps or 0.0,
            self.is_worst_case,
            *catalogue.place(self.name),
        )


@dataclass(frozen=True)
class TextCell:
    """A text with a detail below it: the heading of a column, or a cell that is not ranked."""

    text: str
    detail: str = ""


def heads(attacks: Sequence[AttackKey]) -> list[TextCell]:
    """Return the heading of each attack; attacks of equal name in one ball show their settings."""
    names = Counter((attack.name, attack.threat) for attack in attacks)

    def detail(attack: AttackKey) -> str:
        if attack.is_worst_case:
            members = [member.name for member in attack.members]
            shown = f"{len(members)} attacks" if names[attack.name, attack.threat] == 1 else " ".join(members)
            return f"{attack.threat}; {shown}"
        words = (f"{name} {[*value] if isinstance(value, tuple) else value}" for name, value in attack.settings)
        return attack.threat if names[attack.name, attack.threat] == 1 else ", ".join([attack.threat, *words])

    return [TextCell(attack.name, detail(attack)) for attack in attacks]


def key(column: Column) -> AttackKey:
    """Return the identity of a column of a card."""
    return AttackKey(**vars(column.identity))


@dataclass(frozen=True, eq=False)
class Measured:
    """The evaluated runs of one series: each column with its numbers, one per seed."""

    series: Series
    columns: Mapping[AttackKey, Sequence[tuple[ResultCard, Column]]]
    summaries: Mapping[AttackKey, Sequence[Summary]]

    def balanced(self, attack: AttackKey) -> float:
        """Return the mean balanced accuracy under an attack; nan if it was not measured."""
        found = self.summaries.get(attack, ())
        return float(statistics.mean_and_standard_error([summary.balanced for summary in found])[0])

    def confusion(self, attack: AttackKey) -> statistics.Ints:
        """Return images by true class (rows) and predicted class under an attack, (C, C), summed over seeds."""
        pairs = self.columns[attack]
        each = (
            statistics.confusion_matrix(card.labels, column.predictions, card.num_classes) for card, column in pairs
        )
        return np.asarray(sum(each))

    def mistakes(self, attack: AttackKey, most: int) -> list[tuple[int, int, int, float]]:
        """Return the `most` frequent mistakes: true class, predicted class, images, and their share of the true class,
        over all seeds."""
        pairs = self.columns[attack]
        labels = np.concatenate([card.labels for card, _ in pairs])
        predictions = np.concatenate([column.predictions for _, column in pairs])
        wrong, classes = labels != predictions, len(self.series.data.class_names)
        codes, counts = np.unique(labels[wrong] * classes + predictions[wrong], return_counts=True)
        images, first = np.bincount(labels, minlength=classes), np.argsort(-counts, kind="stable")[:most]
        found = [(*divmod(int(codes[i]), classes), int(counts[i])) for i in first]
        return [(true, predicted, number, number / images[true]) for true, predicted, number in found]

    def of_threat(self) -> list[AttackKey]:
        """Return the attacks that had to stay in the ball of the cards' threat model."""

        return [
            attack
            for attack, pairs in self.columns.items()
            if attack.bounded
            and all(attack.ball == (card.threat.get("norm"), card.threat.get("eps")) for card, _ in pairs)
        ]


def measured(all_series: Sequence[Series]) -> list[Measured]:
    """Return the evaluated series with every number recomputed from the masks."""
    runs = []
    for series in all_series:
        columns: dict[AttackKey, list[tuple[ResultCard, Column]]] = {}
        for card in series.cards:
            for column in shown(card):
                columns.setdefault(key(column), []).append((card, column))
        summaries = {attack: [card.summary_of(column) for card, column in pairs] for attack, pairs in columns.items()}
        if columns:
            runs.append(Measured(series, columns, summaries))
    return runs


def shown(card: ResultCard) -> Iterator[Column]:
    """Yield the columns that tables show: clean images, every attack, and the worst case within each ball."""
    own = [column for column in card.columns if column.ordinary]
    stored = [column for column in own if column.name in WORST_CASE.values()]
    yield from (column for column in own if column not in stored)
    balls = Counter((column.norm, column.eps) for column in own if column.bounded and column.norm is not None)
    for (norm, eps), count in balls.items():
        if norm in WORST_CASE and count > 1:
            yield card.worst_case(norm, eps)
        else:
            yield from (column for column in stored if (column.norm, column.eps) == (norm, eps))


def strongest(runs: Sequence[Measured]) -> AttackKey | None:
    """Return the strongest attack: a complete suite, or else the one with the lowest mean balanced robustness.

    Only bounded attacks of the cards' threat model that most runs have are considered; a worst case only if there is
    no other attack.
    """

    def order(attack: AttackKey) -> tuple[bool, int, bool, float]:
        values = [run.balanced(attack) for run in runs if attack in run.summaries]
        specs = (column.attack for run in runs for _, column in run.columns.get(attack, ()))
        whole = any(isinstance(spec, Suite) and spec.is_reference for spec in specs)
        return attack.is_worst_case, -len(values), not whole, sum(values) / len(values)

    return min((attack for run in runs for attack in run.of_threat()), key=order, default=None)


def ranked(runs: Sequence[Measured]) -> list[Measured]:
    """Return the runs sorted by balanced accuracy under the strongest attack, highest first, runs without it last."""
    attack = strongest(runs)
    if attack is None:
        return list(runs)
    return sorted(runs, key=lambda run: -np.nan_to_num(run.balanced(attack), nan=-1.0))


def attacks_of(runs: Sequence[Measured]) -> list[AttackKey]:
    """Return every attack of the runs, in the order of the columns of a table."""
    return sorted(dict.fromkeys(attack for run in runs for attack in run.summaries), key=lambda attack: attack.place)
