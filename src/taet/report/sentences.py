"""The sentences of the report: what was tested, which row is best, and what the evaluation warns
of."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from taet.evaluation.flags import MASKING, raised
from taet.formatting import join_words, percent, percent_interval, plural
from taet.metrics.paired import Difference
from taet.report.doubts import reason_for_doubt
from taet.report.results import Results
from taet.report.tables import lead_attacks, order, threat
from taet.training.curve import training_flags

MOST_NAMED = 3  # rows or classes that a sentence names
AT_CHANCE = "at-chance"  # flag of a card that recognises too little
GREY_LEVELS = 255


class RaisedFlag(NamedTuple):
    """A warning of the evaluation: its flag, the rows that raise it, and its sentence."""

    flag: str
    rows: str
    text: str


def name(results: Results) -> str:
    """Return the name of a test set, with the imbalance of its training set."""
    data = results.cards[0].data
    ratio = data.get("imbalance_ratio")
    return f"{data['name']}, imbalance ratio {ratio:.4g}" if ratio else str(data["name"])


def about(results: Results) -> str:
    """Return a sentence on how many models were attacked, on which images, and how."""
    card = results.cards[0]
    models = {(entry.row, entry.card.seed) for entry in results.entries}
    images = f"{len(card.labels):,} test images"
    counts = results.train_class_counts
    if counts is not None:
        whose = "" if card.run else " of this data set"
        ends = f"from {max(counts):,} to {min(counts):,} of a class"
        images = f"{sum(counts):,} training images{whose} ({ends}), {images}"
    if results.strongest is not None:
        images += f", attacks within {threat(results.columns[results.strongest])}"
    tested = f"{plural(len(models), 'model')}, {card.num_classes} classes, {images}"
    return "; ".join([tested, *_notes(results)]) + "."


def _notes(results: Results) -> list[str]:
    """Return what the cards note about their data, and where extra images come from, each once."""
    notes, sources = list[str](), list[str]()
    for card in results.cards:
        notes += card.data.get("notes", ())
        if "extra" in card.data:
            sources.append(f"extra images: {card.data['extra']['source']}")
    return list(dict.fromkeys([*notes, *sources]))


def lead(results: Results) -> str:
    """Return what a reader must know first, and which row is best under the strongest attack and
    whether its lead is significant."""
    at_chance = _rows_at_chance(results)
    first = [*_on_missing_classes(results), *_on_chance(at_chance, results)]
    if len(at_chance) == len(results.rows):
        return " ".join([*first, _range_of_accuracies(results)])
    return " ".join([*first, _on_the_best(results)])


def in_plain_words(results: Results) -> str:
    """Return what the strongest attack does to the best row, in numbers of images that a reader
    without the field's words understands; "" where it is no small change of each pixel."""
    attack, best = results.strongest, order(results)[0]
    column = None if attack is None else results.columns[attack]
    if column is None or column.norm != "linf" or column.eps is None:
        return ""
    plain = results.scores("plain").query("row == @best").set_index("attack")["accuracy"]
    if "clean" not in plain or attack not in plain or best in _rows_at_chance(results):
        return ""
    before, after = (f"{100 * plain[name]:.0f}" for name in ("clean", attack))
    levels = f"{GREY_LEVELS * column.eps:.3g}"
    seeds = len(results.cards_of(best))
    mean = f", the mean of {seeds} runs," if seeds > 1 else ""
    return (
        f"Of every 100 test images, the model “{best}”{mean} classifies {before} correctly; after "
        f"a change of each pixel by at most {levels} of {GREY_LEVELS} grey levels, chosen to "
        f"mislead it, {after}.{_on_the_largest_class(results, plain['clean'])}"
    )


def _on_the_largest_class(results: Results, share: float) -> str:
    """Return what the answer of always the same class would reach, if that is as much or more."""
    card = results.cards[0]
    counts = card.test_class_counts
    largest = counts.max() / counts.sum()
    if share > largest:
        return ""
    name = card.class_names[counts.argmax()]
    return f" To answer always “{name}” would be right for {100 * largest:.0f}."


def _on_missing_classes(results: Results) -> list[str]:
    card = results.cards[0]
    missing = [
        name
        for name, images in zip(card.class_names, card.test_class_counts, strict=True)
        if images == 0
    ]
    if not missing:
        return []
    tested = card.num_classes - len(missing)
    have = "has" if len(missing) == 1 else "have"
    return [
        f"{join_words(missing, MOST_NAMED)} {have} no test images: all numbers are about the other "
        f"{tested} of {card.num_classes} classes."
    ]


def _rows_at_chance(results: Results) -> list[str]:
    """Return the rows of which no card is shown to be above chance on clean images."""
    return [
        row
        for row in results.rows
        if all(AT_CHANCE in raised(card) for card in results.cards_of(row))
    ]


def _on_chance(at_chance: Sequence[str], results: Results) -> list[str]:
    if not at_chance:
        return []
    if len(at_chance) == len(results.rows) > 1:
        rows, end = "no row is", "robustness cannot be measured, and none is the best"
    else:
        verb = "is" if len(at_chance) == 1 else "are"
        rows = f"{join_words(at_chance, MOST_NAMED)} {verb} not"
        end = "there is no robustness to measure"
    return [f"On clean images, {rows} shown to be better than chance: {end}."]


def _range_of_accuracies(results: Results) -> str:
    attack = lead_attacks(results)[-1]
    scores = results.scores("balanced").query("attack == @attack")["accuracy"]
    low, high = percent(scores.min()), percent(scores.max())
    number = f"is {low} %" if len(scores) == 1 else f"is between {low} and {high} %"
    return f"{_under(attack)}, balanced accuracy {number}."


def _under(attack: str) -> str:
    return "On clean images" if attack == "clean" else f"Under {attack}"


def _on_the_best(results: Results) -> str:
    attack = lead_attacks(results)[-1]
    scores = results.scores("balanced").query("attack == @attack").set_index("row")
    best, *others = [row for row in order(results) if row in scores.index]
    score = scores.loc[best]
    number = f"{percent(score['accuracy'])} % ({percent_interval(score['low'], score['high'])})"
    doubt = reason_for_doubt(results.cards_of(best), results.columns[attack])
    if doubt:
        number += f", which may be too high ({doubt})"
    tested = int(np.count_nonzero(results.cards[0].test_class_counts))
    chance = 1 / tested if tested else 0.0
    begin = f"{_under(attack)}, "
    if tested > 1 and score["low"] <= chance:
        whom = "even the best row" if others else best
        begin += f"{whom} is not shown to be above chance ({percent(chance)} %): "
    without = _on_rows_without([row for row in results.rows if row not in scores.index], attack)
    if not others:
        return f"{begin}{best} keeps a balanced accuracy of {number}.{without}"
    paired = {row: results.difference(best, row, attack) for row in others}
    highest = f"{begin}{best} has the highest balanced accuracy, {number}"
    return f"{highest}; {_how_sure(paired)}.{without}"


def _on_rows_without(rows: Sequence[str], attack: str) -> str:
    """Return a sentence on the rows that have no number under the attack, if there are any."""
    if not rows:
        return ""
    verb = "was" if len(rows) == 1 else "were"
    return f" {join_words(rows, MOST_NAMED)} {verb} not attacked with {attack}."


def _how_sure(paired: dict[str, Difference | None]) -> str:
    """Return whether the differences of the best row to the others exceed chance."""
    uncertain, better = [], []
    for row, difference in paired.items():
        if difference is None or not difference.significant:
            uncertain.append(row)
        elif difference.value < 0:
            better.append(row)
    if better:
        rows = join_words(better, MOST_NAMED)
        return f"of the runs with seeds of both, those of {rows} are better"
    if uncertain:
        return f"the difference to {join_words(uncertain, MOST_NAMED)} is not significant"
    ahead = f"its lead over {join_words(paired, MOST_NAMED)} is significant"
    if any(difference is not None and difference.runs == 1 for difference in paired.values()):
        ahead += "; with one seed this says which model is better, not which method"
    return ahead


def warnings(results: Results) -> list[RaisedFlag]:
    """Return the warnings of the present rules, with the text of the first card of each row; those
    of one flag together, and first those that leave a number without meaning."""
    cards_in = {row: len(results.cards_of(row)) for row in results.rows}
    raised_by = _raised_by(results)
    rows_by_text: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (flag, row), texts_by_card in raised_by.items():
        seed, text = texts_by_card[0]
        if len({text for _, text in texts_by_card}) > 1:
            text = f"Of one: {text}" if seed is None else f"Of seed {seed}: {text}"
        number = len(texts_by_card)
        all_cards = number == cards_in[row]
        row_words = row if all_cards else f"{row} ({number} of {cards_in[row]} cards)"
        rows_by_text[flag, text].append(row_words)
    flags = list(dict.fromkeys(flag for flag, _ in rows_by_text))
    found = [
        RaisedFlag(flag, join_words(rows), text) for (flag, text), rows in rows_by_text.items()
    ]
    return sorted(found, key=lambda warning: (_rank(warning.flag), flags.index(warning.flag)))


def _rank(flag: str) -> int:
    """Return the place of a warning among others: chance, misled attacks, and the rest."""
    if flag == AT_CHANCE:
        return 0
    return 1 if flag in MASKING else 2


def _raised_by(results: Results) -> dict[tuple[str, str], list[tuple[int | None, str]]]:
    """Return, for each flag and row, the seed and the text of each card that raises it."""
    found: dict[tuple[str, str], list[tuple[int | None, str]]] = defaultdict(list)
    for entry in results.entries:
        flags = {**raised(entry.card), **training_flags(entry.epochs)}
        for flag, text in flags.items():
            found[flag, entry.row].append((entry.card.seed, text))
    return found
