"""The cards of one table: each with its row, and its attacks under the names of the table."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from taet.attacks import catalogue
from taet.card.card import Card
from taet.card.column import Column
from taet.report.read_cards import StoredCard
from taet.report.row_labels import Setting, attack_names, label_rows

T = TypeVar("T")
NORMS = (None, "linf", "l2")  # their order in a table


@dataclass(frozen=True, eq=False)
class TableEntry(StoredCard):
    """A card of a table: its row, what the cards of one leaderboard share, and its columns by the
    names of their attacks, in the order of the table."""

    row: str
    setting: Setting
    columns: Mapping[str, Column]


class SharedImages(NamedTuple):
    """What the cards of one table share: test images, classes, and how training images are spread
    over classes."""

    test_sha256: str
    class_names: tuple[str, ...]
    trained_on: tuple[int, ...] | str | None


def shared_images(card: Card) -> SharedImages:
    """Return the test images and classes of a card, and the number of training images of its
    classes, from the largest to the smallest.

    Replicates share it though their classes are rare in another order. Where a share of the groups
    is drawn, the class counts differ from draw to draw; the cards then share the share.
    """
    trained_on: tuple[int, ...] | str | None = None
    share = card.run.get("config", {}).get("data", {}).get("group_share", 1.0)
    if share < 1:
        trained_on = f"{share:g} of the groups of {card.data['name']}"
    elif card.data.get("train_class_counts") is not None:
        trained_on = tuple(sorted(card.data["train_class_counts"], reverse=True))
    return SharedImages(card.data["test_sha256"], card.class_names, trained_on)


def group_by(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items with equal keys together, in the order of the first of each."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def entries_of(cards: Iterable[StoredCard]) -> list[TableEntry]:
    """Return the cards as entries of one table for each test set."""
    entries: list[TableEntry] = []
    for of_one_table in group_by(cards, lambda stored: shared_images(stored.card)):
        entries += _entries_of_table(of_one_table)
    return entries


def _entries_of_table(cards: Sequence[StoredCard]) -> list[TableEntry]:
    columns_of = [
        sorted((column for column in stored.card.columns if not column.curve), key=place_in_table)
        for stored in cards
    ]
    names = attack_names(column.identity for columns in columns_of for column in columns)
    labels = label_rows([stored.card for stored in cards])
    entries = []
    for stored, label, columns in zip(cards, labels, columns_of, strict=True):
        by_name = {names[column.identity]: column for column in columns}
        entries.append(
            TableEntry(**vars(stored), row=label.row, setting=label.setting, columns=by_name)
        )
    return entries


def place_in_table(column: Column) -> tuple[float, ...]:
    """Return the sort key of an attack: clean first, then by norm and radius, unbounded attacks
    last."""
    unbounded = column.norm is not None and not column.bounded
    norm = NORMS.index(column.norm)
    return unbounded, norm, column.eps or 0.0, *catalogue.place(column.name)
