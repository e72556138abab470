"""The claims of both papers and the rules that decide them, from claims.toml; written before the runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from taet.errors import UserError, unknown
from taet.reproduce.cell_store import Store, StoredCell
from taet.reproduce.manifest import (
    FOLDER,
    PAPERS,
    Item,
    PaperColumn,
    PaperRow,
    RowEntry,
    Scale,
    items,
    read_toml,
    row_from,
    row_words,
)

Word = Literal["holds", "does not hold", "undecided", "not tested"]
WORDS: tuple[Word, ...] = ("does not hold", "holds", "undecided", "not tested")
Group = Literal["head", "body", "tail"]
BY_RUNS = ("pairs", "order", "reversed", "steady")
"""The kinds of tests that take runs."""
TESTS = (*BY_RUNS, "settled", "open", "theorem")
"""The kinds of tests; a claim has one."""
SIGNIFICANT_ORDER = 0.5
"""A published order holds if the rank correlation exceeds this; it does not hold below 0."""


class OrderEntry(TypedDict):
    """The published order of an item's rows."""

    item: str
    column: str


class ReversedEntry(TypedDict):
    """The rows of an item, ordered by plain and by balanced accuracy."""

    item: str
    columns: list[str]


class SteadyEntry(TypedDict):
    """Rows, and the most that the predicted classes of their training examples may move between recorded epochs."""

    rows: list[RowEntry]
    most: float


class ClaimEntry(TypedDict):
    """The entry of a claim in claims.toml."""

    says: str
    where: str
    pairs: NotRequired[list[list[RowEntry]]]
    columns: NotRequired[dict[str, float]]
    most: NotRequired[dict[str, float]]
    group: NotRequired[Group]
    attacks: NotRequired[list[str]]
    less: NotRequired[str]
    order: NotRequired[OrderEntry]
    reversed: NotRequired[ReversedEntry]
    steady: NotRequired[SteadyEntry]
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
        return bool({*BY_RUNS} & self.entry.keys())

    @property
    def rule(self) -> str:
        """The rule for its verdict, in words."""
        if "order" in self.entry:
            item = self.entry["order"]["item"]
            return f"Spearman's correlation with the order of {item} is above {SIGNIFICANT_ORDER:g}; below 0 it fails"
        if "reversed" in self.entry:
            two = f"two rows of {self.entry['reversed']['item']}"
            return f"plain and balanced accuracy order {two} differently, by intervals that cover together with 95 %"
        if "steady" in self.entry:
            most = f"{100 * self.entry['steady']['most']:g} %"
            moved = "total variation of the shares of predicted classes between recorded epochs"
            return f"the mean {moved} is at most {most} for every row; written after the runs"
        if "open" in self.entry:
            return "not written as a comparison of runs yet"
        if not self.is_tested:
            return "a proof" if "theorem" in self.entry else "decided without a comparison of runs"
        of = f" of {self.entry['group']} classes" if "group" in self.entry else ""
        less = f" less the difference under {self.entry['less']}," if "less" in self.entry else ""
        sizes = ", ".join(f"{column}{of}{less} {size:g}" for column, size in self.sizes.items())
        if "most" in self.entry:
            return f"the intervals of all differences lie within these points: {sizes}"
        return f"the intervals of all differences are above 0 and reach half of these points: {sizes}"

    @property
    def item(self) -> Item:
        """The runs that its test needs and their columns, as an item; a `UserError` if it is not decided by runs."""
        if not self.is_tested:
            raise UserError(f"reproduce: got {self.name}, which is {self.rule}; allowed: claims that runs decide")
        for kind in ("order", "reversed"):
            if kind in self.entry:
                return items()[self.entry[kind]["item"]]
        steady = self.entry.get("steady", {"rows": []})["rows"]
        rows = [row for pair in self.pairs for row in pair] + [row_from(entry, self.paper) for entry in steady]
        named = tuple(dataclasses.replace(row, shown_as=row_words(row)) for row in dict.fromkeys(rows))
        metrics = [*self.sizes, *self.entry.get("attacks", []), *filter(None, [self.entry.get("less")])]
        columns = tuple(PaperColumn(metric) for metric in dict.fromkeys(metrics))
        return Item(self.name, self.entry["says"], "predictions" if steady else "values", named, columns)

    def attacks(self, scale: Scale, first: PaperRow, second: PaperRow, column: str) -> tuple[str | None, str | None]:
        """The attacks on both sides of a pair."""
        left, right = self.entry.get("attacks", [column, column])
        return scale.attack(first, left), scale.attack(second, right)

    def cells(self, store: Store, scale: Scale) -> list[StoredCell]:
        """The runs that its test needs."""
        return store.every_cell(scale, [self.item]) if self.is_tested else []


@functools.cache
def claims() -> Mapping[str, Claim]:
    """Return the claims by name; raise a `UserError` for a mistake in their file."""
    path = FOLDER / "claims.toml"
    found = read_toml(path, dict[str, ClaimEntry])
    for name, entry in found.items():
        kinds = [kind for kind in TESTS if kind in entry]
        if len(kinds) != 1:
            raise UserError(f"{path}: {name}: got {' and '.join(kinds) or 'no test'}; allowed: one kind of test")
        if "pairs" in entry and ("most" in entry) == ("columns" in entry):
            raise UserError(f"{path}: {name}: got pairs without columns or most, or with both; allowed: one of them")
        if any(len(pair) != 2 for pair in entry.get("pairs", [])):
            raise UserError(f"{path}: {name}: got a pair that is none; allowed: [first, second]")
        for item in {one["item"] for one in (entry.get("order"), entry.get("reversed")) if one} - items().keys():
            raise UserError(f"{path}: {name}: got the unknown item {item}; allowed: an item")
    return {name: Claim(name, entry) for name, entry in found.items()}


def chosen(names: Sequence[str], methods: Sequence[str] = ()) -> list[Item]:
    """Return the items that a user named, restricted to some methods; `taet` and `reat` mean a whole paper.

    The name of a claim means the runs that its test needs.

    Raises:
        UserError: an unknown item, with the nearest match, a claim that no run decides, or a method that none of the
            items has.
    """
    every = items()
    for name in names:
        if name not in every and name not in PAPERS.values() and name not in claims():
            raise unknown("item", name, [*every, *PAPERS.values(), *claims()])
    wanted = [item for item in every.values() if not names or {item.name, item.name.partition("/")[0]} & {*names}]
    wanted += [claims()[name].item for name in dict.fromkeys(names) if name in claims()]
    known = {row.method for item in wanted for row in item.rows}
    for method in methods:
        if method not in known:
            raise unknown("method of these items", method, known)
    if not methods:
        return wanted
    cut_to = [(item, tuple(row for row in item.rows if row.method in methods)) for item in wanted]
    return [dataclasses.replace(item, rows=rows) for item, rows in cut_to if rows]
