"""The claims of both papers and their verdicts from committed runs, by rules that were written before the runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np

from taet import metrics
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.evaluation.paired import Difference
from taet.formatting import words
from taet.reproduce.cell_store import Store, StoredCell, by_seed, load_card
from taet.reproduce.manifest import FOLDER, PaperRow, RowEntry, Scale, errata, items, read_toml, row_from
from taet.reproduce.render import difference_text, filled, paired_cards, rank_correlation

Word = Literal["holds", "does not hold", "undecided", "not tested"]
WORDS: tuple[Word, ...] = ("does not hold", "holds", "undecided", "not tested")
Group = Literal["head", "body", "tail"]
SIGNIFICANT_ORDER = 0.5
"""A published order holds if the rank correlation exceeds this; it does not hold below 0."""
FEWEST_IN_ORDER = 5
WIDTHS_OF = "cifar10-lt-ir10/at-bsl.json"
TAET_TEST = (1000, 774, 599, 464, 359, 278, 215, 166, 129, 100)
"""Test images of each class in TAET's long-tailed CIFAR-10, imbalance ratio 10: 4,084."""


class OrderEntry(TypedDict):
    """The published order of an item's rows."""

    item: str
    column: str


class ClaimEntry(TypedDict):
    """The entry of a claim in claims.toml."""

    says: str
    where: str
    pairs: NotRequired[list[list[RowEntry]]]
    columns: NotRequired[dict[str, float]]
    most: NotRequired[dict[str, float]]
    group: NotRequired[Group]
    attacks: NotRequired[list[str]]
    order: NotRequired[OrderEntry]
    settled: NotRequired[Word]
    because: NotRequired[str]
    open: NotRequired[str]
    theorem: NotRequired[bool]
    worth: NotRequired[float]
    elsewhere: NotRequired[list[list[str]]]


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper and its test."""

    name: str
    entry: ClaimEntry

    @property
    def paper(self) -> str:
        return "TAET" if self.name.startswith("C") else "REAT"

    @property
    def pairs(self) -> list[tuple[PaperRow, PaperRow]]:
        """The pairs of rows whose differences, first minus second, the claim is about."""
        found = self.entry.get("pairs", [])
        return [(row_from(first, self.paper), row_from(second, self.paper)) for first, second in found]

    @property
    def sizes(self) -> Mapping[str, float]:
        """Columns with the claimed points."""
        return self.entry.get("most") or self.entry.get("columns", {})

    @property
    def where(self) -> str:
        """Its location in the paper."""
        return self.entry["where"]

    @property
    def is_tested(self) -> bool:
        """Whether it is decided by runs."""
        return bool({"pairs", "order"} & self.entry.keys())

    @property
    def rule(self) -> str:
        """The rule for its verdict, in words."""
        if "order" in self.entry:
            item = self.entry["order"]["item"]
            return f"Spearman's correlation with the order of {item} is above {SIGNIFICANT_ORDER:g}; below 0 it fails"
        if "open" in self.entry:
            return "not written as a comparison of runs yet"
        if not self.is_tested:
            return "a proof" if "theorem" in self.entry else "decided without a comparison of runs"
        of = f" of {self.entry['group']} classes" if "group" in self.entry else ""
        sizes = ", ".join(f"{column}{of} {size:g}" for column, size in self.sizes.items())
        if "most" in self.entry:
            return f"the intervals of all differences lie within these points: {sizes}"
        return f"the intervals of all differences are above 0 and reach half of these points: {sizes}"

    @property
    def command(self) -> str:
        """The command for its runs at scale mini; empty if no item has them."""
        rows = {row: None for pair in self.pairs for row in pair}
        if "order" in self.entry:
            return f"taet reproduce {self.entry['order']['item']}"
        named = [next((item.name for item in items().values() if row in item.rows), "") for row in rows]
        if not named or "" in named:
            return ""
        methods = dict.fromkeys(row.method for row in rows)
        return f"taet reproduce {' '.join(dict.fromkeys(named))} --methods {' '.join(methods)}"

    def attacks(self, scale: Scale, first: PaperRow, second: PaperRow, column: str) -> tuple[str | None, str | None]:
        """The attacks on both sides of a pair."""
        left, right = self.entry.get("attacks", [column, column])
        return scale.attack(first, left), scale.attack(second, right)

    def cells(self, store: Store, scale: Scale) -> list[StoredCell]:
        """The runs that its test needs."""
        if "order" in self.entry:
            rows = items()[self.entry["order"]["item"]].rows
            return [one for row in rows for one in store.cells(scale, row, [self.entry["order"]["column"]])]
        metrics = [*self.sizes, *self.entry.get("attacks", [])]
        return [one for pair in self.pairs for row in pair for one in store.cells(scale, row, metrics)]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its evidence."""

    word: Word
    because: str
    scale: str = ""


@functools.cache
def claims() -> Mapping[str, Claim]:
    """Return the claims by name; raise a `UserError` for a mistake in their file."""
    path = FOLDER / "claims.toml"
    found = read_toml(path, dict[str, ClaimEntry])
    for name, entry in found.items():
        kinds = [kind for kind in ("pairs", "order", "settled", "open", "theorem") if kind in entry]
        if len(kinds) != 1:
            raise UserError(f"{path}: {name}: got {' and '.join(kinds) or 'no test'}; allowed: one kind of test")
        if "pairs" in entry and ("most" in entry) == ("columns" in entry):
            raise UserError(f"{path}: {name}: got pairs without columns or most, or with both; allowed: one of them")
        if any(len(pair) != 2 for pair in entry.get("pairs", [])):
            raise UserError(f"{path}: {name}: got a pair that is none; allowed: [first, second]")
        if "order" in entry and entry["order"]["item"] not in items():
            raise UserError(f"{path}: {name}: got the unknown item {entry['order']['item']}; allowed: an item")
    return {name: Claim(name, entry) for name, entry in found.items()}


def word_of(found: Difference, size: float, most: bool) -> Word:
    """Return the verdict on one paired difference, by its interval.

    A claim of `size` points holds if the interval is above 0 and reaches half the size; it does not hold if the
    interval is below 0, or above 0 and below half the size; otherwise it is undecided. A claim of at most `size` points
    holds if the interval is within +-size, and does not hold if it is outside.
    """
    size /= 100
    if most:
        outside = found.low > size or found.high < -size
        return "holds" if -size <= found.low and found.high <= size else "does not hold" if outside else "undecided"
    if found.low > 0:
        return "holds" if found.high >= size / 2 else "does not hold"
    return "does not hold" if found.high < 0 else "undecided"


def combined(parts: Sequence[Word]) -> Word:
    """Return the verdict on a claim with several parts, whose intervals share an error of 5 %: all must hold."""
    if not parts:
        return "not tested"
    return next((word for word in ("does not hold", "not tested", "undecided") if word in parts), "holds")


def verdict(claim: Claim, store: Store, scale: Scale) -> Verdict:
    """Return the verdict on a claim by the runs of a scale."""
    entry = claim.entry
    if "settled" in entry:
        return Verdict(entry["settled"], entry.get("because", ""))
    if "open" in entry:
        return Verdict("not tested", f"Missing: {entry['open']}")
    if "theorem" in entry:
        return _theorem(store)
    return _order(claim, store, scale) if "order" in entry else _of_pairs(claim, store, scale)


def _of_pairs(claim: Claim, store: Store, scale: Scale) -> Verdict:
    """Return the verdict on differences between rows."""
    parts: list[Word] = []
    said, missing = list[str](), dict[str, None]()
    count = len(claim.pairs) * len(claim.sizes)
    for first, second in claim.pairs:
        for column, size in claim.sizes.items():
            sides = [by_seed(store.cells(scale, row, [column])) for row in (first, second)]
            attacks = claim.attacks(scale, first, second, column)
            found = paired_cards(sides[0], sides[1], attacks, claim.entry.get("group"), comparisons=count)
            parts.append("not tested" if found is None else word_of(found, size, "most" in claim.entry))
            if found is not None:
                said.append(f"{_named(first, second)}{column} {_text(found)}")
            missing |= {row_words(row): None for row, cards in zip((first, second), sides, strict=True) if not cards}
    said += [f"Missing at scale {scale.name}: {', '.join(missing)}"] if missing else []
    return Verdict(combined(parts), "; ".join(said), scale.name)


def _named(first: PaperRow, second: PaperRow) -> str:
    return "" if first == second else f"{row_words(first)} minus {row_words(second)}, "


def row_words(row: PaperRow) -> str:
    """Return a row in words: its method, and how it differs from the paper's usual run."""
    usual = row_from({"method": row.method}, row.paper)
    own = [
        words(value) if name == "outer.name" else f"{name.rpartition('.')[2]} {words(value)}"
        for name, value in row.settings
    ]
    own += [] if row.data == usual.data else [row.data]
    own += [] if row.imbalance in (None, usual.imbalance) else [f"IR {row.imbalance:g}"]
    return f"{row.method} ({', '.join(own)})" if own else row.method


def _text(found: Difference) -> str:
    return f"{difference_text(found)}, {found.runs} seed{'s' if found.runs > 1 else ''}"


def _order(claim: Claim, store: Store, scale: Scale) -> Verdict:
    item = items()[claim.entry["order"]["item"]]
    column = next(column for column in item.columns if column.metric == claim.entry["order"]["column"])
    found = rank_correlation(scale, item, filled(store, scale, item), column)
    if found is None or found[1] < FEWEST_IN_ORDER:
        return Verdict("not tested", f"Missing: {FEWEST_IN_ORDER} rows of {item.name}.", scale.name)
    value, count = found
    word: Word = "holds" if value > SIGNIFICANT_ORDER else "does not hold" if value < 0 else "undecided"
    return Verdict(word, f"Spearman's correlation {value:+.2f} over {count} methods", scale.name)


def _theorem(store: Store) -> Verdict:
    """Natural error + disagreement - robust error of every committed card: at most 0 by the theorem."""
    gaps = [gap for card in store.every_card() if (gap := bound_gap(card)) is not None]
    broken = [gap for gap in gaps if gap > 1e-9]
    if not broken:
        return Verdict("undecided" if gaps else "not tested", f"None of {len(gaps)} committed cards contradicts it")
    said = f"{len(broken)} of {len(gaps)} committed cards exceed the bound under one of their attacks, by up to"
    why = "an image that is misclassified and changes its class under attack is counted twice"
    return Verdict("does not hold", f"{said} {100 * max(gaps):.1f} points: {why}")


def bound_gap(card: ResultCard) -> float | None:
    """Return the maximum over attacks of natural error + disagreement - robust error, each a mean over classes."""
    names = [column.name for column in card.columns if column.bounded and column.ordinary]
    found = [card.summary(name) for name in names] if card.clean is not None else []
    gaps = [s.natural_error + s.class_flip_rate - (1 - s.per_class) for s in found]
    return max((float(np.nanmean(gap)) for gap in gaps), default=None)


def elsewhere(claim: Claim, folders: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each result about a claim from committed cards outside the scales."""
    for first, second in claim.entry.get("elsewhere", []):
        sides = [committed(folders, pattern) for pattern in (first, second)]
        for column, size in (claim.sizes or {"": 0.0}).items():
            own = claim.entry.get("attacks", [column, column])
            found = paired_cards(sides[0], sides[1], own, claim.entry.get("group"))
            if found is not None:
                word = f" ({word_of(found, size, 'most' in claim.entry)})" if "pairs" in claim.entry else ""
                names = "" if first == second else f"{_stem(first)} minus {_stem(second)}, "
                under = " minus ".join(dict.fromkeys(own))
                yield f"results/{first.partition('/')[0]}: {names}{under} {_text(found)}{word}"


def _stem(pattern: str) -> str:
    return Path(pattern).stem.removesuffix("-seed?")


def committed(folders: Sequence[Path], pattern: str) -> dict[int, ResultCard]:
    """Return the cards by seed; a card without a seed counts as seed 0."""
    paths = sorted(path for folder in folders for path in folder.glob(pattern))
    return {card.seed or 0: card for card in map(load_card, paths)}


def worths(store: Store, scale: Scale, price: Mapping[str, float]) -> dict[str, float]:
    """Return, by hash of a run, the worth of the claims that it helps to settle, each per hour of its missing runs."""
    found: dict[str, float] = {}
    for claim in claims().values():
        missing = {one.key for one in claim.cells(store, scale) if one.state in ("started", "missing")}
        hours = sum(price.get(key, 0.0) for key in missing) / 3600
        for key in missing:
            found[key] = found.get(key, 0.0) + claim.entry.get("worth", 1.0) / max(hours, 1e-3)
    return found


def findings(store: Store, scales: Sequence[Scale]) -> str:
    """The page of all claims with their verdicts, as Markdown: a pure function of cards and manifest."""
    found = {name: best_verdict(claim, store, scales) for name, claim in claims().items()}
    counts = ", ".join(f"{word} {[v.word for v in found.values()].count(word)}" for word in WORDS)
    parts = [
        HEAD.format(counts=counts, claims=len(found)),
        *(_section(word, [name for name in found if found[name].word == word], found, store) for word in WORDS),
        _protocols(store, scales),
        "## Errata and open points of the papers\n",
        *(f"- {paper}: {note}" for paper, notes in errata().items() for note in notes),
        *(f"- **{name}**: {note}" for name, item in items().items() for note in item.notes),
    ]
    return "\n".join(parts) + "\n"


def _seeds(store: Store, scale: Scale) -> str:
    """Balanced accuracy under AutoAttack of each run that was trained with several seeds."""
    found = {}
    for row in dict.fromkeys(row for claim in claims().values() for pair in claim.pairs for row in pair):
        cells = store.cells(scale, row, ["autoattack"])
        cards = by_seed(one for one in cells if one.state == "done")
        if len(cards) > 1:
            values = " and ".join(f"{100 * card.summary('autoattack').balanced:.1f} %" for card in cards.values())
            found[cells[0].any_seed] = f"{row_words(row)} {values} (seeds {', '.join(map(str, cards))})"
    return "; ".join(sorted(found.values()))


def _protocols(store: Store, scales: Sequence[Scale]) -> str:
    """Return how the papers' test protocols change a number, on the recalls of one committed model and over seeds."""
    lines = ["## How the papers test\n"]
    for path in (path for folder in store.results for path in folder.glob(WIDTHS_OF)):
        recalls = load_card(path).summary("autoattack").per_class
        counts = {"balanced": np.full(len(recalls), sum(TAET_TEST) // len(recalls)), "long-tailed": np.array(TAET_TEST)}
        wide = []
        for name, total in counts.items():
            low, high = metrics.balanced_interval(np.round(recalls * total), total)
            wide.append(f"{name} {100 * (high - low):.1f} points ({total.min()} to {total.max()} images of a class)")
        rarest = [metrics.wilson_interval(np.round(recalls[-1:] * total[-1]), total[-1:]) for total in counts.values()]
        tail = [f"{100 * float(high[0] - low[0]):.1f}" for low, high in rarest]
        said = f"Interval of balanced accuracy under AutoAttack, with the recalls of results/{WIDTHS_OF}"
        lines.append(f"- **Long-tailed against balanced test set** (TAET, 5). {said}: {'; '.join(wide)}.")
        lines.append(f"  - Interval of the rarest class: {tail[0]} points balanced, {tail[1]} long-tailed.")
    spreads = {scale.name: _seeds(store, scale) for scale in scales}
    said = "- **One seed** (TAET). At scale {} the seed alone moves AutoAttack: {}."
    lines += [said.format(name, spread) for name, spread in spreads.items() if spread]
    why = "not tested: it takes runs that keep both their best epoch on test images and that on validation images"
    lines.append(f"- **Selection on the test set** (REAT, public code). {sentence(why)}")
    lines.append(
        "  - Such a run is marked as a leak here, and its card joins only a leaderboard of cards that were chosen so.\n"
    )
    return "\n".join(lines)


def best_verdict(claim: Claim, store: Store, scales: Sequence[Scale]) -> Verdict:
    """The verdict at the largest scale that has one."""
    for scale in scales:
        found = verdict(claim, store, scale)
        if found.word != "not tested" or not {"pairs", "order"} & claim.entry.keys():
            break
    return found


def _section(word: Word, names: Sequence[str], found: Mapping[str, Verdict], store: Store) -> str:
    lines = [f"## {word.capitalize()}\n"]
    for name in names:
        claim, one = claims()[name], found[name]
        scale = f", scale {one.scale}" if one.scale and one.word != "not tested" else ""
        where = f"({claim.paper}, {claim.where}{scale})"
        lines.append(f"- **{name}** {claim.entry['says']} {where}. {sentence(one.because)}".rstrip())
        lines += [f"  - Outside the scales, {line}." for line in elsewhere(claim, store.results)]
    return "\n".join([*lines, ""])


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else text


HEAD = """# Findings

What the two papers claim, and what our runs say of it. Verdicts on {claims} claims: {counts}.

This page is computed from the committed cards and from `taet/reproduce/claims.toml` (`python docs/render.py --write`).
No number is written by hand, except in the reasons of claims that a proof or a measurement of cost settles.

A verdict is that of the largest [scale](reproduce.md#scales) with runs. Differences are in points of balanced accuracy,
paired on the same test images, with 95 % intervals. A claim **holds** if the interval is above 0 and reaches half the
claimed size. It **does not hold** if the interval is below 0, or above 0 and below half the size. Otherwise it is
**undecided**. A claim with k differences holds if all do, and does not if one does not; their intervals cover together
with 95 %, so each is one of 1 - 5 %/k. With one seed an interval covers the test images only: it says which of two
models is better, not which method. *Outside the scales* are committed runs with other settings, which give no verdict;
their differences are taken one by one.
"""
