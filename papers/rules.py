"""The rules by which the runs decide a claim of a paper: pure functions of result cards."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special, stats

from items import Item, Row, Scale
from paired import Cards, attacks_on, paired, text
from runs import RESULTS, Runs, load, thinned
from taet import statistics
from taet.evaluation import ResultCard
from taet.formatting import listed, percent
from taet.intervals import LEVEL, Difference

Word = Literal["holds", "does not hold", "undecided", "not tested"]
WORDS: tuple[Word, ...] = ("does not hold", "holds", "undecided", "not tested")
SHORT = {"steps": "threat.steps", "step_size": "threat.step_size", "outer": "outer.name", "awp": "training.awp"}
RATIOS = {"taet": 10, "reat": 50}
FEWEST_ROWS, FEWEST_EPOCHS = 8, 5
"""Least number of rows whose order is compared, of the eleven of TAET's table 1; and of epochs in a mean."""

Points = Mapping[str, float]
"""Claimed points of balanced accuracy by attack; 0 if only the sign is claimed."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its evidence in words."""

    word: Word
    evidence: tuple[str, ...]
    outside: tuple[str, ...] = ()
    """What committed runs with other settings say; it decides nothing."""
    scale: str = ""


@dataclass(frozen=True)
class Study:
    """The runs at one scale."""

    runs: Runs
    scale: Scale

    def cards(self, row: Row) -> Cards:
        """Return the cards of a row by seed."""
        return {seed: one.card for seed, one in self.runs.of(self.scale.run(row)).items()}


def row(
    protocol: str, method: str, data: str = "cifar10-lt", ratio: int = 0, model: str = "resnet18", **own: Any
) -> Row:
    """Return a run of a paper, named by how it differs from the paper's usual one."""
    settings = {SHORT.get(name, f"method.{name}"): value for name, value in own.items()}
    said = [str(value) if name == "outer" else f"{name} {value}" for name, value in own.items()]
    said += [data] * (data != "cifar10-lt") + [f"IR {ratio}"] * (ratio not in (0, RATIOS[protocol]))
    imbalance = None if data == "dermamnist" else float(ratio or RATIOS[protocol])
    name = f"{method} ({', '.join(said)})" if said else method
    return Row(name, method, protocol, data, imbalance, {"model.name": model, **settings}, ())


def above(found: Difference, size: float) -> Word:
    """It holds if the interval is above 0 and reaches half of the claimed size, and fails below that half."""
    return "does not hold" if found.high < size / 200 else "holds" if found.low > 0 else "undecided"


def within(found: Difference, size: float) -> Word:
    """It holds if the interval is within the claimed points on both sides of 0, and fails if it is outside."""
    size /= 100
    if found.low > size or found.high < -size:
        return "does not hold"
    return "holds" if -size <= found.low and found.high <= size else "undecided"


def together(parts: Iterable[Word]) -> Word:
    """All parts must hold, and one that fails is enough."""
    found, order = [*parts], ("does not hold", "not tested", "undecided")
    worst: list[Word] = [word for word in order if word in found]
    return worst[0] if worst else "holds" if found else "not tested"


def differ(
    at: Study,
    pairs: Sequence[tuple[Row, Row]],
    claimed: Points,
    rule: Callable[[Difference, float], Word] = above,
    *,
    ranks: tuple[int, int] | None = None,
    attacks: tuple[str, str] | None = None,
    less: str = "",
    outside: Sequence[str] = (),
    parts: int = 1,
) -> Verdict:
    """Decide a claim about first minus second of each pair; all differences cover together with 95 %.

    Args:
        at: the runs.
        pairs: two rows each.
        claimed: points by attack.
        rule: above or within.
        ranks: the classes that count, ranked by training images from 1, as (first, last); by default all.
        attacks: those of the two sides, in place of the claimed one.
        less: the attack under which the same difference is subtracted.
        outside: committed cards as "folder: first - second", compared in the same way.
        parts: how many such calls one claim has.
    """
    words, said, beside, missing = list[Word](), list[str](), list[str](), dict[str, None]()
    on = f", classes of rank {ranks[0]} to {ranks[1]}" if ranks else ""
    for column, size in claimed.items():
        both, values = attacks or (column, column), list[str]()
        for first, second in pairs:
            sides = at.cards(first), at.cards(second)
            found = paired(*sides, both, ranks=ranks, less=less, comparisons=len(pairs) * len(claimed) * parts)
            words.append("not tested" if found is None else rule(found, size))
            names = first.name if first == second else f"{first.name} − {second.name}"
            values += [] if found is None else [f"{names} {text(found)}"]
            for one, cards, attack in zip((first, second), sides, both, strict=True):
                has = any({attack, less or attack} <= attacks_on(card) for card in cards.values())
                missing |= {} if has else {f"{attack} of {one.name}" if cards else one.name: None}
        under = " − ".join(filter(None, dict.fromkeys((*both, less))))
        said += [f"{under}{on}: {'; '.join(values)}"] if values else []
        for folder, names, found in _outside(outside, both, ranks, less):
            more = f", {names}" * (len(pairs) > 1) + f", {column}" * (len(claimed) > 1)
            beside.append(f"{folder}{more} {text(found)}")
    said += [f"missing: {listed(missing, 2)}"] if missing else []
    return Verdict(together(words), tuple(said), tuple(beside))


def _outside(
    outside: Iterable[str], attacks: tuple[str, str], ranks: tuple[int, int] | None = None, less: str = ""
) -> Iterator[tuple[str, str, Difference]]:
    """Yield folder, names and difference of committed cards, "folder: first - second", each with its own interval."""
    for words in outside:
        folder, _, names = words.partition(": ")
        first, _, second = names.partition(" - ")
        found = paired(committed(folder, first), committed(folder, second or first), attacks, ranks=ranks, less=less)
        if found is not None:
            yield folder, names.replace(" - ", " − ") if second else " − ".join(attacks), found


def committed(folder: str, name: str) -> Cards:
    """Return the cards NAME.json and NAME-seedN.json of a folder of results, by seed."""
    paths = [*(RESULTS / folder).glob(f"{name}.json"), *(RESULTS / folder).glob(f"{name}-seed[0-9].json")]
    assert paths, f"no card {name} in results/{folder}"
    return {card.seed or 0: card for card in map(load, sorted(paths))}


def published_order(at: Study, item: Item, column: str) -> Verdict:
    """It holds if Spearman's correlation with the paper is above 0.5 over all orders that no decided test contradicts.

    Tests are of all pairs of rows, and cover together with 95 %. It fails if it is below 0.5 over all of them. A
    bootstrap of the correlation would not cover it: resampling mixes the order of level rows and draws it to 0.
    """
    held = [(cards, item.published[place, column, ""]) for place, cards in _held(at, item, column)]
    if len(held) < FEWEST_ROWS:
        return Verdict("not tested", (f"{len(held)} rows of {item.name} have runs, of {FEWEST_ROWS} that it takes",))
    means = [np.mean([card.summary(column).balanced for card in cards.values()]) for cards, _ in held]
    said = [value for _, value in held]
    below = [0] * len(held)  # for every row the rows that are decidedly below it, as bits
    pairs = [*itertools.combinations(range(len(held)), 2)]
    for i, j in pairs:
        found = paired(held[i][0], held[j][0], (column, column), comparisons=len(pairs))
        if found is None:
            return Verdict("undecided", ("the rows cannot be compared in pairs",))
        below[i] |= (found.low > 0) << j
        below[j] |= (found.high < 0) << i
    low, high = correlations(said, below)
    each = (f"{number:+.2f}".replace("-", "−") for number in (stats.spearmanr(said, means).statistic, low, high))
    value, *ends = each
    word: Word = "holds" if low > 0.5 else "does not hold" if high < 0.5 else "undecided"
    return Verdict(word, (f"Spearman's correlation {value} ({' to '.join(ends)}) over {len(held)} methods",))


def _held(at: Study, item: Item, *attacks: str) -> list[tuple[int, Cards]]:
    """Return number and cards of each row of an item that has runs under these attacks."""
    found = ((place, at.cards(one)) for place, one in enumerate(item.rows))
    have = ((place, {n: c for n, c in cards.items() if attacks_on(c) >= {*attacks}}) for place, cards in found)
    return [(place, cards) for place, cards in have if cards]


def correlations(published: Sequence[float], below: Sequence[int]) -> tuple[float, float]:
    """Return the least and greatest Spearman correlation over all orders without ties that keep rows above others.

    `below` has for every row the rows that must be below it, as bits. An order is built from below: what the rows of a
    set add to the correlation does not depend on the rows above it, so the best order of each set is enough.
    """
    count, ranks = len(published), stats.rankdata(published)
    ranks = ranks - ranks.mean()
    ends = []
    for sign in (-1, 1):
        best = {0: 0.0}
        for rows in range(2**count):
            for one in range(count) if rows in best else ():
                if not rows >> one & 1 and not below[one] & ~rows:
                    value = best[rows] + sign * (rows.bit_count() + 1) * ranks[one]
                    best[rows | 1 << one] = max(value, best.get(rows | 1 << one, -math.inf))
        ends.append(sign * best[2**count - 1] / math.sqrt((ranks**2).sum() * (count**3 - count) / 12))
    return float(ends[0]), float(ends[1])


def orders_reversed(at: Study, item: Item, columns: Sequence[str]) -> Verdict:
    """It holds if balanced and plain accuracy order one pair of rows differently; all intervals cover with 95 %. Plain
    accuracy is the mean of the recalls, weighted by the classes' shares in training.
    """
    held = _held(at, item)
    if len(held) < FEWEST_ROWS:
        return Verdict("not tested", (f"{len(held)} rows of {item.name} have runs, of {FEWEST_ROWS} that it takes",))
    pairs = [*itertools.combinations([cards for _, cards in held], 2)]
    limit = float(special.ndtri(1 - LEVEL / (4 * len(pairs) * len(columns))))  # two sides, two averages
    counts = {column: [_is_reversed(*pair, column, limit) for pair in pairs] for column in columns}
    said = (f"{column} {sum(of)} of {len(of)}" for column, of in counts.items())
    word: Word = "holds" if any(any(of) for of in counts.values()) else "undecided"
    return Verdict(word, (f"pairs of rows of {item.name} with opposite orders: {', '.join(said)}",))


def _is_reversed(first: Cards, second: Cards, attack: str, limit: float) -> bool:
    """Return whether plain and balanced accuracy differ in opposite directions, each by `limit` standard errors.

    Plain accuracy is that of a test set with the classes' shares in training. Of several common seeds, an image counts
    with its mean. The standard error over the test images is sqrt(sum_c w_c^2 s_c^2 / n_c), with the weight w_c of
    class c in the average.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return False
    sides = [[cards[seed] for seed in seeds] for cards in (first, second)]
    card = sides[0][0]
    counts = np.array(card.data["train_class_counts"], dtype=float)
    left, right = (np.mean([one.column(attack).correct for one in side], axis=0) for side in sides)
    gains = [(left - right)[card.labels == label] for label in range(len(counts))]
    means = np.array([gain.mean() for gain in gains])
    errors = np.array([gain.std(ddof=1) / math.sqrt(len(gain)) for gain in gains])
    weights = np.stack([counts / counts.sum(), np.full(len(gains), 1 / len(gains))])
    plain, balanced = weights @ means
    return bool(plain * balanced < 0 and (np.abs(weights @ means) > limit * np.sqrt(weights**2 @ errors**2)).all())


STEADY, CHANCES = 0.05, 2  # most change of the shares of the predicted classes; balanced accuracy times C of "fails"


def steady(at: Study, rows: Sequence[Row]) -> Verdict:
    """It fails if the mean total variation of the predicted classes between recorded epochs is above 5 % in one row.

    Equal shares of the classes do not prove equal predictions, so it never holds.
    """
    parts, said = list[Word](), list[str]()
    for one in rows:
        moved = {}
        for seed, run in at.runs.of(at.scale.run(one)).items():
            counts = np.array([e["predicted"] for e in thinned(run.epochs) if e["predicted"] is not None], dtype=float)
            if len(counts) >= FEWEST_EPOCHS:
                shares = counts / counts.sum(1, keepdims=True)
                moved[seed] = float(np.abs(np.diff(shares, axis=0)).sum(1).mean() / 2)
        mean = np.mean([*moved.values()]) if moved else math.nan
        parts.append("does not hold" if mean > STEADY else "undecided" if moved else "not tested")
        values = ", ".join(f"{100 * of:.0f} % (seed {seed})" for seed, of in moved.items())
        said.append(f"{one.name} {values or 'missing'}")
    return Verdict(together(parts), (f"mean total variation: {'; '.join(said)}",))


def fails(at: Study, rows: Sequence[Row], *outside: str) -> Verdict:
    """It holds if the interval of clean balanced accuracy is below 2 / C, twice chance, in every row; fails above."""
    parts, said = list[Word](), list[str]()
    for one in rows:
        found = {seed: card.summary("clean") for seed, card in at.cards(one).items()}
        for of in found.values():
            (low, high), limit = of.balanced_interval, CHANCES / len(of.total)
            parts.append("holds" if high < limit else "does not hold" if low > limit else "undecided")
        parts += [] if found else ["not tested"]
        values = ", ".join(f"{percent(of.balanced)} % (seed {seed})" for seed, of in found.items())
        said.append(f"{one.name} {values or 'missing'}")
    beside = (f"{folder} {names} {text(found)}" for folder, names, found in _outside(outside, ("clean", "clean")))
    return Verdict(together(parts), (f"clean balanced accuracy: {'; '.join(said)}",), tuple(beside))


def more_separable(at: Study, first: Row, second: Row) -> Verdict:
    """It holds if a linear classifier tells the features of the first row better apart, clean and attacked.

    A fold's classifier is fitted to features of the same test images in both rows, so the answers are paired by image.
    """
    each = [at.runs.of(at.scale.run(one)) for one in (first, second)]
    sides = [
        {seed: of for seed, run in runs.items() if "separated" in (of := run.features("features"))} for runs in each
    ]
    same = ("test_sha256", "rows", "labels", "attack", "seed")
    common = sorted(sides[0].keys() & sides[1].keys())
    seeds = [seed for seed in common if all(sides[0][seed][what] == sides[1][seed][what] for what in same)]
    if not seeds:
        return Verdict("not tested", (f"missing: features of {first.name} and {second.name}",))
    one = sides[0][seeds[0]]
    labels, parts, said = np.array(one["labels"]), list[Word](), list[str]()
    for side in one["separated"]:
        right = ([np.array(of[seed]["separated"][side]) == labels for seed in seeds] for of in sides)
        found = statistics.difference(*right, labels, len(one["class_names"]), comparisons=2)
        parts.append(above(found, 0))
        said.append(f"{first.name} − {second.name}, {side} {text(found)}")
    return Verdict(together(parts), tuple(said))


def bound_gaps(card: ResultCard) -> list[tuple[float, float]]:
    """Return balanced accuracy, and natural error + disagreement - robust error, under each attack in its ball."""
    found = []
    for column in card.columns if card.clean is not None else ():
        if column.bounded and column.ordinary:
            of = card.summary_of(column)
            gap = of.natural_error + of.class_flip_rate - (1 - of.per_class)
            found.append((of.balanced, float(np.nanmean(gap))))
    return found
