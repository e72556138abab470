"""The verdicts on the claims from runs: pure functions of cards, epochs and claims.toml."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.evaluation.embedding import Embedding
from taet.experiments.comparison import OPEN
from taet.formatting import listed, percent, percent_interval, sentence
from taet.reproduce.cell_store import Store, StoredCell, attacks_on, by_seed, load_card, thinned
from taet.reproduce.claims import FEWEST_ROWS, SIGNIFICANT_ORDER, Claim, ReversedEntry, SteadyEntry, Word, claims
from taet.reproduce.differences import difference_text, paired_cards
from taet.reproduce.manifest import Item, PaperColumn, PaperRow, Scale, items, row_words
from taet.reproduce.possible_orders import correlations
from taet.reproduce.render import Filled, correlation_text, filled, rank_correlation
from taet.reproduce.text_table import TextTable
from taet.statistics import LEVEL, Difference, difference

FEWEST_EPOCHS = 5
"""Least number of recorded epochs in a mean over epochs."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its evidence."""

    word: Word
    because: str
    scale: str = ""


def verdict(claim: Claim, store: Store, scale: Scale) -> Verdict:
    """Return the verdict on a claim by the runs of a scale."""
    entry = claim.entry
    match claim.test:
        case "settled":
            return Verdict(entry["settled"], entry.get("because", ""))
        case "open":
            return Verdict("not tested", f"Missing: {entry['open']}")
        case "theorem":
            return _theorem(store)
        case "order":
            return _order(claim, store, scale)
        case "reversed":
            return _reversed(entry["reversed"], store, scale)
        case "steady":
            return _steady(claim, entry["steady"], store, scale)
        case "fails":
            return _fails(claim, entry["fails"]["chances"], store, scale)
        case "separable":
            return _separable(claim, store, scale)
    return _of_pairs(claim, store, scale)


def best_verdicts(store: Store, scales: Sequence[Scale]) -> dict[str, Verdict]:
    """Return the verdict on each claim by its name, at the largest scale that has one."""
    found: dict[str, Verdict] = {}
    for name, claim in claims().items():
        for scale in scales:
            found[name] = verdict(claim, store, scale)
            if found[name].word != "not tested" or not claim.is_tested:
                break
    return found


def verdicts(names: Sequence[str], store: Store, scale: Scale) -> list[TextTable]:
    """Return the table of the verdicts on the claims among these names, by the runs of a scale, if there are any."""
    found = [
        (claims()[name], verdict(claims()[name], store, scale)) for name in dict.fromkeys(names) if name in claims()
    ]
    notes = tuple(f"{claim.name}: {sentence(claim.rule)} {sentence(one.because)}" for claim, one in found)
    lines = tuple((f"{claim.name} · {claim.entry['says']}", one.word) for claim, one in found)
    return [TextTable(f"Claims · scale {scale.name}", ("", "verdict"), lines, notes)] if found else []


def word_of(found: Difference, size: float, most: bool) -> Word:
    """Return the verdict on one paired difference, by its interval.

    A claim of `size` points holds if the interval is above 0 and reaches half the size; it does not hold if the
    interval is below half the size; otherwise it is undecided. A claim of at most `size` points holds if the interval
    is within +-size, and does not hold if it is outside.
    """
    size /= 100
    if most:
        outside = found.low > size or found.high < -size
        return "holds" if -size <= found.low and found.high <= size else "does not hold" if outside else "undecided"
    return "does not hold" if found.high < size / 2 else "holds" if found.low > 0 else "undecided"


def combined(parts: Sequence[Word]) -> Word:
    """Return the verdict on a claim with several parts, whose intervals share an error of 5 %: all must hold."""
    if not parts:
        return "not tested"
    return next((word for word in ("does not hold", "not tested", "undecided") if word in parts), "holds")


def _of_pairs(claim: Claim, store: Store, scale: Scale) -> Verdict:
    """Return the verdict on differences between rows."""
    parts: list[Word] = []
    said, missing = list[str](), dict[str, None]()
    count = len(claim.pairs) * len(claim.sizes)
    for first, second in claim.pairs:
        for column, size in claim.sizes.items():
            sides = [by_seed(store.cells(scale, row, [column])) for row in (first, second)]
            attacks = claim.attacks(scale, first, second, column)
            less = claim.less(scale, first)
            found = paired_cards(sides[0], sides[1], attacks, claim.entry.get("group"), comparisons=count, less=less)
            parts.append("not tested" if found is None else word_of(found, size, "most" in claim.entry))
            if found is not None:
                under = " minus ".join(map(str, dict.fromkeys(attacks))) if first == second else column
                start = "" if said else "Measured: "  # a sentence should not begin with the name of a method
                said.append(f"{start}{_named(first, second)}{under}{_of_what(claim, less)} {_text(found)}")
            for row, cards, attack in zip((first, second), sides, attacks, strict=True):
                missing |= dict.fromkeys(_missing(row, cards, {attack, less}))
            if found is None and all(sides) and not missing:
                said.append(f"no seed of both {row_words(first)} and {row_words(second)} has all attacks")
    said += [f"Missing at scale {scale.name}: {', '.join(missing)}"] if missing else []
    return Verdict(combined(parts), "; ".join(said), scale.name)


def _of_what(claim: Claim, less: str | None = None) -> str:
    """What a difference is of, besides an attack: less another attack, and of which classes."""
    other = less or claim.entry.get("less")
    group = f" on {claim.entry['group']} classes" if "group" in claim.entry else ""
    return (f" minus the same under {other}" if other else "") + group


def _missing(row: PaperRow, cards: Mapping[int, ResultCard], attacks: set[str | None]) -> list[str]:
    """Return what a row lacks for a difference: its runs, or attacks that no card of it has."""
    held = set().union(*map(attacks_on, cards.values()))
    lacking = sorted(name for name in attacks if name is not None and name not in held)
    return [f"{name} of {row_words(row)}" for name in lacking] if cards else [row_words(row)]


def _named(first: PaperRow, second: PaperRow) -> str:
    return f"{row_words(first)}, " if first == second else f"{row_words(first)} minus {row_words(second)}, "


def _text(found: Difference) -> str:
    return f"{difference_text(found)}, {found.runs} seed{'s' if found.runs > 1 else ''}"


def _order(claim: Claim, store: Store, scale: Scale) -> Verdict:
    item = items()[claim.entry["order"]["item"]]
    column = next(column for column in item.columns if column.metric == claim.entry["order"]["column"])
    rows = filled(store, scale, item)
    found = rank_correlation(item, rows, column)
    if found is None or found[1] < FEWEST_ROWS:
        takes = f"It takes {FEWEST_ROWS} rows of {item.name} with runs"
        there = "" if found is None else f"; over {found[1]} rows the correlation is {correlation_text(found[0])}"
        return Verdict("not tested", takes + there, scale.name)
    value, count = found
    said = f"Measured: Spearman's correlation {correlation_text(value)}"
    ends = _correlation_interval(item, rows, column)
    if ends is None:
        return Verdict("undecided", f"{said} over {count} methods, which cannot be compared in pairs", scale.name)
    low, high = ends
    word: Word = "holds" if low > SIGNIFICANT_ORDER else "does not hold" if high < SIGNIFICANT_ORDER else "undecided"
    interval = f"({correlation_text(low)} to {correlation_text(high)})"
    return Verdict(word, f"{said} {interval} over {count} methods", scale.name)


def _correlation_interval(item: Item, rows: Sequence[Filled], column: PaperColumn) -> tuple[float, float] | None:
    """Return the 95 % interval of Spearman's correlation with a published column, over the test images.

    It spans the correlations of all orders that no decided paired test of two rows contradicts; the tests share the
    error of 5 %. A bootstrap of the correlation would not cover it: resampling mixes the order of level rows and draws
    the correlation to 0. None if two rows have no common seed, attack and test images.
    """
    published = [item.published.get((one.row, column)) for one in rows]
    held = [(one, value) for one, value in zip(rows, published, strict=True) if value is not None and one.cards]
    below = [0] * len(held)  # for every row the set of rows that are decidedly below it, as bits
    count = len(held) * (len(held) - 1) // 2
    for (i, (one, _)), (j, (other, _)) in itertools.combinations(enumerate(held), 2):
        attacks = one.attack(column.metric), other.attack(column.metric)
        found = paired_cards(one.cards, other.cards, attacks, comparisons=count)
        if found is None:
            return None
        below[i] |= (found.low > 0) << j
        below[j] |= (found.high < 0) << i
    return correlations([value for _, value in held], below)


def _reversed(entry: ReversedEntry, store: Store, scale: Scale) -> Verdict:
    """Count the pairs of rows whose order depends on the average: over images as in training, or over classes.

    Such a pair confirms the claim. No number of pairs without one refutes it.
    """
    rows = [one for one in filled(store, scale, items()[entry["item"]]) if one.cards]
    if len(rows) < FEWEST_ROWS:
        takes = f"It takes {FEWEST_ROWS} rows of {entry['item']} with runs"
        return Verdict("not tested", f"{takes}; there are {len(rows)}", scale.name)
    pairs = [*itertools.combinations(rows, 2)]
    limit = float(special.ndtri(1 - LEVEL / (4 * len(pairs) * len(entry["columns"]))))  # two sides, two averages
    said, most = list[str](), 0
    for column in entry["columns"]:
        found = [one for pair in pairs if (one := _is_reversed(*pair, column, limit)) is not None]
        said += [f"{column} {sum(found)} of {len(found)}"] if found else []
        most = max(most, sum(found))
    word: Word = "holds" if most else "undecided" if said else "not tested"
    return Verdict(word, f"Pairs of rows of {entry['item']} with opposite orders: {', '.join(said)}", scale.name)


def _is_reversed(first: Filled, second: Filled, column: str, limit: float) -> bool | None:
    """Return whether plain and balanced accuracy differ in opposite directions, each by `limit` standard errors.

    Plain accuracy is that of a test set with the classes' shares in training. Of several common seeds, an image counts
    with its mean. The standard error of the paired difference over the test images is sqrt(sum_c w_c^2 s_c^2 / n_c),
    with the weight w_c of class c in the average. None if the rows have no common seed, attack and test images.
    """
    seeds, attack = sorted(first.cards.keys() & second.cards.keys()), first.attack(column)
    sides = [[one.cards[seed] for seed in seeds] for one in (first, second)]
    cards = [card for side in sides for card in side]
    held = all(attack in attacks_on(card) for card in cards)
    if not cards or not held or attack is None or second.attack(column) != attack:
        return None
    counts = np.array(cards[0].data["train_class_counts"] or [], dtype=float)
    same = {(card.data["test_sha256"], card.column(attack).identity) for card in cards}
    if len(same) > 1 or not counts.size or min(cards[0].summary("clean").total) < 2:
        return None
    left, right = (np.mean([card.column(attack).correct for card in side], axis=0) for side in sides)
    gains = [(left - right)[cards[0].labels == label] for label in range(len(counts))]
    means = np.array([gain.mean() for gain in gains])
    errors = np.array([gain.std(ddof=1) / math.sqrt(len(gain)) for gain in gains])
    weights = np.stack([counts / counts.sum(), np.full(len(gains), 1 / len(gains))])
    plain, balanced = weights @ means
    return bool(plain * balanced < 0 and (np.abs(weights @ means) > limit * np.sqrt(weights**2 @ errors**2)).all())


def _steady(claim: Claim, entry: SteadyEntry, store: Store, scale: Scale) -> Verdict:
    """Total variation between the classes that training examples are predicted as, mean over epochs 1, 5, 10, ...

    Equal shares of the classes do not prove equal predictions, so the claim is refuted or undecided.
    """
    parts: list[Word] = []
    said, missing = list[str](), list[str]()
    for row in claim.rows:
        found = {one.cell.seed: moved for one in store.cells(scale, row, []) if (moved := _moved(one)) is not None}
        if found:
            parts.append("does not hold" if np.mean([*found.values()]) > entry["most"] else "undecided")
            values = (f"{100 * moved:.0f} % (seed {seed})" for seed, moved in found.items())
            said.append(f"{row_words(row)} {', '.join(values)}")
        else:
            parts.append("not tested")
            missing.append(row_words(row))
    if missing:
        said.append(f"missing at scale {scale.name}: {FEWEST_EPOCHS} recorded epochs of {' and '.join(missing)}")
    return Verdict(combined(parts), f"Mean total variation: {'; '.join(said)}", scale.name)


def _moved(one: StoredCell) -> float | None:
    """Return the mean total variation of the epochs that are committed, so that a card and its run give one number."""
    counts = np.array([row["predicted"] for row in thinned(one.rows) if row["predicted"] is not None], dtype=float)
    if len(counts) < FEWEST_EPOCHS:
        return None
    return float(np.abs(np.diff(counts / counts.sum(1, keepdims=True), axis=0)).sum(1).mean() / 2)


def _fails(claim: Claim, chances: float, store: Store, scale: Scale) -> Verdict:
    """Return whether the clean balanced accuracy of each row is near chance, as after a training that diverged."""
    parts: list[Word] = []
    said, missing = list[str](), list[str]()
    for row in claim.rows:
        cards = by_seed(one for one in store.cells(scale, row, ["clean"]) if one.state == "done")
        sides = {seed: _above(card, chances / card.num_classes) for seed, card in cards.items()}
        parts.append(combined([*sides.values()]))
        if cards:
            values = (f"{100 * card.summary('clean').balanced:.1f} % (seed {seed})" for seed, card in cards.items())
            said.append(f"{row_words(row)} {', '.join(values)}")
        else:
            missing.append(row_words(row))
    said += [f"missing at scale {scale.name}: {', '.join(missing)}"] if missing else []
    return Verdict(combined(parts), f"Clean balanced accuracy: {'; '.join(said)}", scale.name)


def _above(card: ResultCard, limit: float) -> Word:
    low, high = card.summary("clean").balanced_interval
    return "holds" if high < limit else "does not hold" if low > limit else "undecided"


def _separable(claim: Claim, store: Store, scale: Scale) -> Verdict:
    """Return whether a linear classifier tells the features of the first row better apart than those of the second.

    A fold's classifier is fitted to features of the same test images that the other row has in this fold, so the
    answers are paired by image.
    """
    sides = [_embeddings(store, scale, row) for row in claim.rows]
    first, second = sides
    seeds = [seed for seed in sorted(first.keys() & second.keys()) if _images(first[seed]) == _images(second[seed])]
    if not seeds or len({_images(first[seed]) for seed in seeds}) > 1:
        return Verdict("not tested", f"Missing at scale {scale.name}: embeddings of both rows, of one seed", scale.name)
    labels, classes = np.array(first[seeds[0]].labels), len(first[seeds[0]].class_names)
    parts: list[Word] = []
    said = []
    for side in first[seeds[0]].separated:
        left, right = ([np.array(one[seed].separated[side]) == labels for seed in seeds] for one in sides)
        found = difference(left, right, labels, classes, comparisons=2)
        parts.append(word_of(found, 0.0, most=False))
        said.append(f"{side} {_text(found)}")
    return Verdict(combined(parts), f"Measured: {_named(*claim.rows)}{'; '.join(said)}", scale.name)


def _embeddings(store: Store, scale: Scale, row: PaperRow) -> dict[int, Embedding]:
    """The embeddings of a row by seed; older files lack the answers per image."""
    found = {one.cell.seed: store.embedding(one, "features") for one in store.cells(scale, row, [])}
    return {seed: one for seed, one in found.items() if one is not None and one.separated}


def _images(one: Embedding) -> tuple[object, ...]:
    """What two embeddings share that are compared image by image."""
    return one.test_sha256, one.rows, one.labels, one.attack, one.seed


def _theorem(store: Store) -> Verdict:
    """Natural error + disagreement - robust error of every committed card: at most 0 by the theorem."""
    gaps = [gap for card in store.every_card() if (gap := bound_gap(card)) is not None]
    broken = [gap for gap in gaps if gap > 1e-9]
    if not broken:
        return Verdict("undecided" if gaps else "not tested", f"None of {len(gaps)} committed cards contradicts it")
    worst = [gap for card in store.every_card() if (gap := bound_gap(card, worst=True)) is not None]
    under = f"under one of their attacks ({sum(gap > 1e-9 for gap in worst)} under the strongest)"
    said = f"{len(broken)} of {len(gaps)} committed cards exceed the bound {under}, by up to"
    why = "an image that is misclassified and changes its class under attack is counted twice"
    return Verdict("does not hold", f"{said} {100 * max(gaps):.1f} points: {why}")


def bound_gap(card: ResultCard, worst: bool = False) -> float | None:
    """Return the maximum over attacks of natural error + disagreement - robust error, each a mean over classes.

    Of the attack that leaves the least balanced accuracy alone, if `worst`.
    """
    names = [column.name for column in card.columns if column.bounded and column.ordinary]
    names = [min(names, key=lambda name: card.summary(name).balanced)] if worst and names else names
    found = [card.summary(name) for name in names] if card.clean is not None else []
    gaps = [s.natural_error + s.class_flip_rate - (1 - s.per_class) for s in found]
    return max((float(np.nanmean(gap)) for gap in gaps), default=None)


def shown_beside(claim: Claim, store: Store, scales: Sequence[Scale]) -> Iterator[str]:
    """Yield a line for each run of the rows that are shown with a claim but do not decide it."""
    for scale, row in itertools.product(scales, claim.beside):
        for seed, card in by_seed(store.cells(scale, row, [*claim.sizes])).items():
            wanted = [scale.attack(row, column) for column in ("clean", *claim.sizes)]
            said = accuracies(card, [name for name in wanted if name in attacks_on(card)])
            yield f"{row_words(row)}, seed {seed}, scale {scale.name}: {said}"


def accuracies(card: ResultCard, attacks: Sequence[str | None]) -> str:
    """Return the balanced accuracies of a card under these attacks, with their 95 % intervals, in words."""
    found = ((name, card.summary(name)) for name in attacks if name is not None)
    return ", ".join(
        f"{name} {percent(of.balanced)} % ({percent_interval(*of.balanced_interval)})" for name, of in found
    )


def elsewhere(claim: Claim, folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each result about a claim from committed cards outside the scales."""
    for first, second in claim.entry.get("elsewhere", []):
        sides = [committed(folders, pattern) for pattern in (first, second)]
        for column, size in (claim.sizes or {"": 0.0}).items():
            own = claim.entry.get("attacks", [column, column])
            less = claim.entry.get("less")  # committed cards name attacks as the claim does
            found = paired_cards(sides[0], sides[1], own, claim.entry.get("group"), less=less)
            if found is not None:
                word = f" ({word_of(found, size, 'most' in claim.entry)})" if "pairs" in claim.entry else ""
                names = "" if first == second else f"{_stem(first)} minus {_stem(second)}, "
                under = f"{' minus '.join(dict.fromkeys(own))}{_of_what(claim)}"
                yield f"results/{Path(first).parent.as_posix()}: {names}{under} {_text(found)}{word}"


def _stem(pattern: str) -> str:
    return Path(pattern).stem.removesuffix("-seed?")


def committed(folders: Sequence[Path], pattern: str) -> dict[int, ResultCard]:
    """Return the cards by seed; a card without a seed counts as seed 0."""
    paths = sorted(path for folder in folders for path in folder.glob(pattern))
    if not paths and any((folder / pattern).parent.is_dir() for folder in folders):
        raise UserError(f"claims.toml: elsewhere: no card {pattern} in {listed(map(str, folders))}")
    return {card.seed or 0: card for card in map(load_card, paths)}


def worths(store: Store, scale: Scale, price: Mapping[str, float]) -> dict[str, float]:
    """Return, by name of a run, the worth of the claims that it helps to settle, each per hour of its missing runs."""
    found: dict[str, float] = {}
    for claim in claims().values():
        missing = {one.cell.name for one in claim.cells(store, scale) if one.state in OPEN}
        hours = sum(price.get(name, 0.0) for name in missing) / 3600
        for name in missing:
            found[name] = found.get(name, 0.0) + claim.entry.get("worth", 1.0) / max(hours, 1e-3)
    return found
