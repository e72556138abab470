"""The tests of claims: what the runs at one scale say of a claim, and by which rule.

The rules are those that were written before the first run.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from items import Row, Scale, items
from paired import Cards, attacks_on, paired, text
from runs import RESULTS, Measured, Runs, load
from taet.evaluation import ResultCard
from taet.formatting import percent
from taet.metrics import accuracies
from taet.metrics.paired import LEVEL, Difference, difference

Word = Literal["holds", "does not hold", "undecided", "not tested"]
WORDS: tuple[Word, ...] = ("holds", "does not hold", "undecided", "not tested")
SHORT_NAMES = {
    "steps": "threat.steps",
    "step_size": "threat.step_size",
    "outer": "outer.name",
    "awp": "training.awp",
}
USUAL_RATIO = {"taet": 10, "reat": 50}
FEWEST_METHODS = 5
"""Least number of methods whose order is compared."""
HIGHEST_CHANCE = 2
"""Balanced accuracy, times the number of classes, below which a training has failed."""
Points = Mapping[str, float]
"""Claimed points of balanced accuracy by attack; 0 if only the sign is claimed."""


@dataclass(frozen=True)
class Line:
    """A line of evidence: what was compared, and what was found."""

    what: str
    found: str


@dataclass(frozen=True)
class Outcome:
    """What the runs at one scale say."""

    word: Word
    evidence: tuple[Line, ...] = ()
    missing: tuple[str, ...] = ()
    """The runs that the test needs and that are not there."""
    seeds: int = 0
    """Training seeds behind every part of the test."""


@dataclass(frozen=True)
class Study:
    """The runs at one scale."""

    runs: Runs
    scale: Scale

    def measured(self, row: Row) -> dict[int, Measured]:
        """Return the runs of a row by seed."""
        return self.runs.of(self.scale.run(row))

    def cards(self, row: Row, *attacks: str) -> dict[int, ResultCard]:
        """Return the cards of a row that have all these attacks, by seed."""
        cards = {seed: run.card for seed, run in self.measured(row).items()}
        return {seed: card for seed, card in cards.items() if attacks_on(card) >= {*attacks}}


class Test(Protocol):
    """The test of a claim."""

    @property
    def rule(self) -> str:
        """When the claim holds and when it does not, as a sentence."""

    def apply(self, study: Study) -> Outcome:
        """Return what the runs at a scale say."""


def row(
    protocol: str,
    method: str,
    data: str = "cifar10-lt",
    ratio: int | None = None,
    model: str = "resnet18",
    **options: Any,
) -> Row:
    """Return a run of a paper, named by how it differs from the paper's usual one.

    `options` are the method's, or one of `SHORT_NAMES`.
    """
    settings: dict[str, Any] = {"model.name": model}
    differences = []
    for name, value in options.items():
        settings[SHORT_NAMES.get(name, f"method.{name}")] = value
        differences.append(str(value) if name == "outer" else f"{name} {value}")
    if data != "cifar10-lt":
        differences.append(data)
    if ratio not in (None, USUAL_RATIO[protocol]):
        differences.append(f"ratio {ratio}")
    name = f"{method} ({', '.join(differences)})" if differences else method
    imbalance = None if data == "dermamnist" else float(ratio or USUAL_RATIO[protocol])
    return Row(name, method, protocol, data, imbalance, settings, ())


def committed(folder: str, name: str) -> Cards:
    """Return the cards NAME.json and NAME-seedN.json of a folder of results, by seed."""
    place = RESULTS / folder
    paths = sorted([*place.glob(f"{name}.json"), *place.glob(f"{name}-seed[0-9].json")])
    assert paths, f"no card {name} in results/{folder}"
    cards = [load(path) for path in paths]
    return {card.seed or 0: card for card in cards}


def larger(found: Difference, size: float) -> Word:
    """Return the word on a claimed gain of `size` points, by the interval of a difference."""
    if found.high < 0:
        return "does not hold"
    if found.low <= 0:
        return "undecided"
    return "holds" if found.high >= size / 200 else "does not hold"


def within(found: Difference, size: float) -> Word:
    """Return the word on a difference that is claimed to be at most `size` points."""
    limit = size / 100
    if found.low > limit or found.high < -limit:
        return "does not hold"
    return "holds" if -limit <= found.low and found.high <= limit else "undecided"


def together(parts: Iterable[Word]) -> Word:
    """Return the word on a claim whose parts must all hold; one that fails is enough."""
    words = [*parts]
    decisive: tuple[Word, ...] = ("does not hold", "not tested", "undecided")
    for word in decisive:
        if word in words:
            return word
    return "holds" if words else "not tested"


@dataclass(frozen=True)
class Differences:
    """Differences of balanced accuracy between the two rows of each pair, which must all be larger.

    All intervals of a test cover together with 95 %.
    """

    pairs: tuple[tuple[Row, Row], ...]
    points: Points
    ranks: tuple[int, int] | None = None
    """First and last rank of the classes that count, by training images from 1; None: all."""
    attacks: tuple[str, str] | None = None
    """The attacks on the two rows, in place of the claimed one."""
    minus_attack: str = ""
    """The attack under which the same difference is subtracted."""
    family: int = 1
    """How many such tests one claim has."""
    rule: str = (
        "*Holds*: the whole interval is above 0, and its upper end reaches half of the claimed "
        "gain. *Does not hold*: the interval is below 0, or above 0 and below half of the gain. "
        "Otherwise *undecided*."
    )

    def word(self, found: Difference, size: float) -> Word:
        """Return the word on one difference."""
        return larger(found, size)

    def apply(self, study: Study) -> Outcome:
        comparisons = len(self.pairs) * len(self.points) * self.family
        words: list[Word] = []
        evidence: list[Line] = []
        missing: dict[str, None] = {}
        seeds: list[int] = []
        for attack, size in self.points.items():
            attacks = self.attacks or (attack, attack)
            for first, second in self.pairs:
                sides = (study.cards(first), study.cards(second))
                found = self.difference(*sides, attacks, comparisons)
                if found is None:
                    words.append("not tested")
                    missing |= self.lacking(first, attacks[0], sides[0])
                    missing |= self.lacking(second, attacks[1], sides[1])
                else:
                    words.append(self.word(found, size))
                    seeds.append(found.runs)
                    what = self.what(first.name, second.name, attacks)
                    evidence.append(Line(what, text(found, comparisons)))
        return Outcome(together(words), tuple(evidence), tuple(missing), min(seeds, default=0))

    def difference(
        self, first: Cards, second: Cards, attacks: tuple[str, str], comparisons: int = 1
    ) -> Difference | None:
        """Return the difference of two rows, or None if they cannot be compared."""
        return paired(
            first,
            second,
            attacks,
            ranks=self.ranks,
            less=self.minus_attack,
            comparisons=comparisons,
        )

    def lacking(self, of: Row, attack: str, cards: Cards) -> dict[str, None]:
        """Return the name of a row that lacks an attack, or all runs."""
        needed = {attack, self.minus_attack or attack}
        if any(needed <= attacks_on(card) for card in cards.values()):
            return {}
        return {f"{attack} of {of.name}" if cards else of.name: None}

    def what(self, first: str, second: str, attacks: tuple[str, str]) -> str:
        """Return what a line of evidence compares."""
        under = " − ".join(filter(None, dict.fromkeys((*attacks, self.minus_attack))))
        classes = f", classes of rank {self.ranks[0]} to {self.ranks[1]}" if self.ranks else ""
        names = first if first == second else f"{first} − {second}"
        return f"{names}, {under}{classes}"


@dataclass(frozen=True)
class WithinPoints(Differences):
    """Differences that are claimed to be at most so many points, in either direction."""

    rule: str = (
        "*Holds*: every interval is within the claimed points on both sides of 0. *Does not hold*: "
        "an interval is outside."
    )

    def word(self, found: Difference, size: float) -> Word:
        return within(found, size)


@dataclass(frozen=True)
class All:
    """Several tests, which must all hold."""

    parts: tuple[Test, ...]

    @property
    def rule(self) -> str:
        return self.parts[0].rule

    def apply(self, study: Study) -> Outcome:
        outcomes = [part.apply(study) for part in self.parts]
        return Outcome(
            together(outcome.word for outcome in outcomes),
            tuple(line for outcome in outcomes for line in outcome.evidence),
            tuple(name for outcome in outcomes for name in outcome.missing),
            min(outcome.seeds for outcome in outcomes),
        )


@dataclass(frozen=True)
class Untested:
    """A claim that no comparison of runs tests; `because` says what is known."""

    because: str
    lines: tuple[Line, ...] = ()
    """What was measured beside it, at the scale `measured_at`."""
    measured_at: str = ""
    rule: ClassVar[str] = ""

    def apply(self, study: Study) -> Outcome:
        here = study.scale.name == self.measured_at
        return Outcome("not tested", self.lines if here else ())


@dataclass(frozen=True)
class SameOrder:
    """The rows of an item are claimed to have the published order."""

    item: str
    attack: str
    rule: ClassVar[str] = (
        "*Holds*: Spearman's correlation of the rows with the published order is above 0.5. *Does "
        "not hold*: it is below 0."
    )

    def apply(self, study: Study) -> Outcome:
        item = items()[self.item]
        published, measured, seeds = [], [], []
        for place, one in enumerate(item.rows):
            cards = study.cards(one, self.attack)
            if cards:
                balanced = [card.summary(self.attack).balanced for card in cards.values()]
                published.append(item.published[place, self.attack, ""])
                measured.append(np.mean(balanced))
                seeds.append(len(cards))
        if len(measured) < FEWEST_METHODS:
            return Outcome("not tested", missing=(f"{FEWEST_METHODS} rows of {self.item}",))
        correlation = float(stats.spearmanr(published, measured).statistic)
        word: Word = "undecided"
        if correlation > 0.5 or correlation < 0:
            word = "holds" if correlation > 0.5 else "does not hold"
        found = f"{correlation:+.2f}".replace("-", "−")
        line = Line(f"Spearman's correlation of {len(measured)} methods, {self.attack}", found)
        return Outcome(word, (line,), seeds=min(seeds))


@dataclass(frozen=True)
class OrdersReversed:
    """Plain and balanced accuracy are claimed to order the rows of an item differently."""

    item: str
    attacks: tuple[str, ...]
    rule: ClassVar[str] = (
        "*Holds*: plain and balanced accuracy order one pair of rows differently, and all "
        "intervals together cover with 95 %. Plain accuracy is the mean of the recalls, weighted "
        "by the classes' shares in training."
    )

    def apply(self, study: Study) -> Outcome:
        rows = [study.cards(one) for one in items()[self.item].rows]
        rows = [cards for cards in rows if cards]
        if len(rows) < FEWEST_METHODS:
            return Outcome("not tested", missing=(f"{FEWEST_METHODS} rows of {self.item}",))
        pairs = [*itertools.combinations(rows, 2)]
        two_sides, two_averages = 2, 2
        error = LEVEL / (two_sides * two_averages * len(pairs) * len(self.attacks))
        limit = float(special.ndtri(1 - error))
        evidence = []
        for attack in self.attacks:
            count = sum(is_reversed(*pair, attack, limit) for pair in pairs)
            what = f"pairs of methods whose order differs, {attack}"
            evidence.append(Line(what, f"{count} of {len(pairs)}"))
        seen = any(not line.found.startswith("0 ") for line in evidence)
        return Outcome("holds" if seen else "undecided", tuple(evidence), seeds=min(map(len, rows)))


def is_reversed(first: Cards, second: Cards, attack: str, limit: float) -> bool:
    """Return whether plain and balanced accuracy differ in opposite directions, each by `limit`
    standard errors.

    Plain accuracy is that of a test set with the classes' shares in training. Of several common
    seeds, an image counts with its mean. The standard error over the test images is
    sqrt(sum_c w_c^2 s_c^2 / n_c), with the weight w_c of class c in the average.
    """
    seeds = [
        seed
        for seed in sorted(first.keys() & second.keys())
        if attack in attacks_on(first[seed]) & attacks_on(second[seed])
    ]
    if not seeds:
        return False
    card = first[seeds[0]]
    counts = np.array(card.data["train_class_counts"], dtype=float)
    gain = mean_correct(first, seeds, attack) - mean_correct(second, seeds, attack)
    by_class = [gain[card.labels == label] for label in range(len(counts))]
    means = np.array([of.mean() for of in by_class])
    errors = np.array([of.std(ddof=1) / math.sqrt(len(of)) for of in by_class])
    weights = np.stack([counts / counts.sum(), np.full(len(counts), 1 / len(counts))])
    plain, balanced = weights @ means
    clear = np.abs(weights @ means) > limit * np.sqrt(weights**2 @ errors**2)
    return bool(plain * balanced < 0 and clear.all())


def mean_correct(cards: Cards, seeds: Sequence[int], attack: str) -> NDArray[np.float64]:
    """Return the share of the seeds that classify each test image correctly."""
    correct = [cards[seed].column(attack).correct for seed in seeds]
    return np.asarray(np.mean(correct, axis=0))


@dataclass(frozen=True)
class Collapses:
    """Trainings of these rows are claimed to fail."""

    rows: tuple[Row, ...]
    rule: ClassVar[str] = (
        "*Holds*: in every row the interval of clean balanced accuracy is below twice chance. "
        "*Does not hold*: it is above in one of them."
    )

    def apply(self, study: Study) -> Outcome:
        words: list[Word] = []
        evidence: list[Line] = []
        missing: list[str] = []
        seeds: list[int] = []
        for one in self.rows:
            cards = study.cards(one)
            seeds.append(len(cards))
            if not cards:
                words.append("not tested")
                missing.append(one.name)
            for seed, card in cards.items():
                clean = card.summary("clean")
                words.append(self.word(*clean.balanced_interval, len(clean.total)))
                what = f"{one.name}, clean, seed {seed}"
                evidence.append(Line(what, f"{percent(clean.balanced)} %"))
        return Outcome(together(words), tuple(evidence), tuple(missing), min(seeds))

    def word(self, low: float, high: float, classes: int) -> Word:
        """Return the word on one run."""
        limit = HIGHEST_CHANCE / classes
        if high < limit:
            return "holds"
        return "does not hold" if low > limit else "undecided"


@dataclass(frozen=True)
class MoreSeparable:
    """The features of the first row are claimed to be more separable than those of the second."""

    first: Row
    second: Row
    rule: ClassVar[str] = (
        "*Holds*: a linear classifier tells the features of the first row better apart, clean and "
        "attacked. It is fitted to the same test images in both rows, so its answers are paired."
    )
    SAME: ClassVar[tuple[str, ...]] = ("test_sha256", "rows", "labels", "attack", "seed")

    def apply(self, study: Study) -> Outcome:
        first, second = self.features(study, self.first), self.features(study, self.second)
        seeds = [
            seed
            for seed in sorted(first.keys() & second.keys())
            if all(first[seed][name] == second[seed][name] for name in self.SAME)
        ]
        if not seeds:
            names = f"features of {self.first.name} and {self.second.name}"
            return Outcome("not tested", missing=(names,))
        about = first[seeds[0]]
        labels = np.array(about["labels"])
        words, evidence = [], []
        for side in about["separated"]:
            found = difference(
                [np.array(first[seed]["separated"][side]) == labels for seed in seeds],
                [np.array(second[seed]["separated"][side]) == labels for seed in seeds],
                labels,
                len(about["class_names"]),
                comparisons=2,
            )
            words.append(larger(found, 0))
            what = f"{self.first.name} − {self.second.name}, {side} images classified by features"
            evidence.append(Line(what, text(found, 2)))
        return Outcome(together(words), tuple(evidence), seeds=len(seeds))

    def features(self, study: Study, of: Row) -> dict[int, dict[str, Any]]:
        """Return what is kept of the features of a row, by seed."""
        kept = {seed: run.features("features") for seed, run in study.measured(of).items()}
        return {seed: features for seed, features in kept.items() if "separated" in features}


@dataclass(frozen=True)
class PredictedShares:
    """How often the training examples of a row are predicted as classes of some ranks; it decides
    nothing."""

    rows: tuple[Row, ...]
    ranks: tuple[int, int]
    rule: ClassVar[str] = ""

    def apply(self, study: Study) -> Outcome:
        evidence = []
        for one in self.rows:
            shares = [self.share(run) for run in study.measured(one).values()]
            known = [share for share in shares if not math.isnan(share)]
            if known:
                seeds = f", {len(known)} seeds" if len(known) > 1 else ""
                what = (
                    f"{one.name}, training examples predicted as classes of rank "
                    f"{self.ranks[0]} to {self.ranks[1]}, mean of the recorded epochs"
                )
                evidence.append(Line(what, f"{100 * np.mean(known):.0f} %{seeds}"))
        return Outcome("not tested", tuple(evidence))

    def share(self, run: Measured) -> float:
        """Return the share of one run, the mean over its recorded epochs; nan without any."""
        order = accuracies.class_ranks(run.card.data["train_class_counts"])
        counted = (order + 1 >= self.ranks[0]) & (order + 1 <= self.ranks[1])
        rows = [np.array(e["predicted"], dtype=float) for e in run.epochs if e.get("predicted")]
        shares = [predicted[counted].sum() / predicted.sum() for predicted in rows]
        return float(np.mean(shares)) if shares else math.nan


def bound_gap(card: ResultCard) -> float:
    """Return by how much theorem 1 of REAT exceeds the robust error of a card, at most over its
    attacks.

    The bound is the mean over classes of natural error and disagreement. nan if no attack of the
    card stays in its ball.
    """
    gaps = [math.nan]
    for column in card.columns if card.clean is not None else ():
        if column.bounded and column.ordinary:
            summary = card.summary_of(column)
            bound = summary.natural_error + summary.class_flip_rate
            gaps.append(float(np.nanmean(bound - (1 - summary.per_class))))
    return float(np.nanmax(gaps)) if len(gaps) > 1 else math.nan
