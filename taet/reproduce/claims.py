"""The claims of both papers and the rules that decide them, from claims.toml."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from taet.errors import UserError, cut, nearest, unknown
from taet.formatting import listed
from taet.reproduce.cell_store import Store, StoredCell
from taet.reproduce.manifest import (
    FOLDER,
    PAPERS,
    Item,
    PaperColumn,
    PaperRow,
    RowEntry,
    Scale,
    Shows,
    items,
    read_toml,
    row_from,
    row_words,
)

Word = Literal["holds", "does not hold", "undecided", "not tested"]
WORDS: tuple[Word, ...] = ("does not hold", "holds", "undecided", "not tested")
Group = Literal["head", "body", "tail"]
BY_RUNS = ("pairs", "order", "reversed", "steady", "fails", "separable")
"""The kinds of tests that take runs."""
ITEMS: Mapping[str, tuple[Shows, tuple[str, ...]]] = {
    "steady": ("predictions", ()),
    "fails": ("values", ("clean",)),
    "separable": ("embedding", ("clean", "pgd-20")),
}
"""What the item of a test of single rows shows, and its columns."""
TESTS = (*BY_RUNS, "settled", "open", "theorem")
"""The kinds of tests; a claim has one."""
FEWEST_ROWS = 8
"""Least number of rows whose order is compared, of the eleven of TAET's table 1."""
SIGNIFICANT_ORDER = 0.5
"""A published order holds if the interval of the rank correlation is above this, and not if it is below."""


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


class FailsEntry(TypedDict):
    """Rows, and how many times chance their clean balanced accuracy reaches at most if their training fails."""

    rows: list[RowEntry]
    chances: float


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
    fails: NotRequired[FailsEntry]
    separable: NotRequired[list[RowEntry]]
    settled: NotRequired[Word]
    because: NotRequired[str]
    open: NotRequired[str]
    theorem: NotRequired[bool]
    worth: NotRequired[float]
    beside: NotRequired[list[RowEntry]]
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
    def rows(self) -> list[PaperRow]:
        """The rows that a test names one by one."""
        entry = self.entry
        named = entry.get("separable") or entry.get("steady", entry.get("fails", {"rows": []}))["rows"]
        return [row_from(one, self.paper) for one in named]

    @property
    def beside(self) -> list[PaperRow]:
        """Rows that are run and shown with the claim, but do not decide it."""
        return [row_from(one, self.paper) for one in self.entry.get("beside", [])]

    @property
    def sizes(self) -> Mapping[str, float]:
        """Columns with the claimed points."""
        return self.entry.get("most") or self.entry.get("columns", {})

    @property
    def test(self) -> str:
        """The kind of its test."""
        return next(kind for kind in TESTS if kind in self.entry)

    @property
    def is_tested(self) -> bool:
        """Whether it is decided by runs."""
        return self.test in BY_RUNS

    @property
    def rule(self) -> str:
        """The rule for its verdict, in words."""
        match self.test:
            case "order":
                of = f"the order of {self.entry['order']['item']}"
                rows = f"Spearman's correlation with {of}, over {FEWEST_ROWS} rows or more,"
                orders = (
                    "over all orders that no decided paired test of two rows contradicts (95 % for all pairs together)"
                )
                holds = f"it holds if {rows} is above {SIGNIFICANT_ORDER:g} {orders}"
                return f"{holds}, and fails if it is below {SIGNIFICANT_ORDER:g} over all of them"
            case "reversed":
                two = f"two rows of {self.entry['reversed']['item']}, of {FEWEST_ROWS} or more,"
                return f"plain and balanced accuracy order {two} differently; all intervals cover together with 95 %"
            case "steady":
                most = f"{100 * self.entry['steady']['most']:g} %"
                moved = "the mean total variation between the predicted classes of epochs 1, 5, 10 and so on"
                return f"it fails if {moved} is above {most} in a row; the limit was set when the runs were there"
            case "fails":
                below = f"of clean balanced accuracy is below {self.entry['fails']['chances']:g} / (number of classes)"
                one = "with every row and seed; the claim fails if one is above; the limit was set before the runs"
                return f"the 95 % interval {below} {one}"
            case "separable":
                what = "linear separability of features (docs/evaluation.md), clean and attacked"
                return f"the intervals of both differences are above 0: {what}"
            case "open":
                return "not written as a comparison of runs yet"
            case "theorem":
                return "a proof, and every committed card"
            case "settled":
                return "decided without a comparison of runs"
        of = f" of {self.entry['group']} classes" if "group" in self.entry else ""
        less = f", minus the difference under {self.entry['less']}" if "less" in self.entry else ""
        named = [(f"{column}{of}{less}", size) for column, size in self.sizes.items()]
        sizes = ", ".join(f"{what} {size:g}" if size else what for what, size in named)
        if "most" in self.entry:
            within = "it holds if the interval of every difference lies within these points"
            return f"{within}, and fails if one lies outside: {sizes}"
        if any(self.sizes.values()):
            holds = "it holds if the interval of every difference is above 0 and reaches half of the claimed points"
            return f"{holds}, and fails if one is below that half: {sizes}"
        return f"it holds if the interval of every difference is above 0, and fails if one is below 0: {sizes}"

    @property
    def item(self) -> Item:
        """The runs that its test needs with their columns, as an item; of a test by runs."""
        entry, named = self.entry, (self.name, self.entry["says"])
        if self.test in ("order", "reversed"):
            table = items()[entry["order"]["item"] if "order" in entry else entry["reversed"]["item"]]
            wanted = [entry["order"]["column"]] if "order" in entry else entry["reversed"]["columns"]
            columns = tuple(column for column in table.columns if column.metric in wanted)
            return dataclasses.replace(table, name=named[0], title=named[1], columns=columns, notes=())
        shows, measured = ITEMS.get(self.test, ("values", ()))
        rows = [row for pair in self.pairs for row in reversed(pair)] + self.rows + self.beside
        shown = tuple(dataclasses.replace(row, shown_as=row_words(row)) for row in dict.fromkeys(rows))
        metrics = [*self.sizes, *entry.get("attacks", []), *filter(None, [entry.get("less")]), *measured]
        columns = tuple(PaperColumn(metric) for metric in dict.fromkeys(metrics))
        return Item(*named, shows, shown, columns)

    def attacks(self, scale: Scale, first: PaperRow, second: PaperRow, column: str) -> tuple[str | None, str | None]:
        """The attacks on both sides of a pair."""
        left, right = self.entry.get("attacks", [column, column])
        return scale.attack(first, left), scale.attack(second, right)

    def less(self, scale: Scale, row: PaperRow) -> str | None:
        """The attack under which the difference is subtracted, if any."""
        return scale.attack(row, self.entry["less"]) if "less" in self.entry else None

    def cells(self, store: Store, scale: Scale) -> list[StoredCell]:
        """The runs that decide it."""
        if not self.is_tested:
            return []
        rows = tuple(row for row in self.item.rows if row not in self.beside)
        return store.every_cell(scale, [dataclasses.replace(self.item, rows=rows)])


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

    The name of a claim means the runs that its test needs, if any.

    Raises:
        UserError: an unknown item, with the nearest match, or a method that none of the items has.
    """
    every = items()
    for name in names:
        if name not in every and name not in PAPERS.values() and name not in claims():
            near = nearest(name, [*every, *PAPERS.values(), *claims()])
            allowed = "taet, reat, an item that `taet reproduce` lists, or a claim, as C1 or R5"
            hint = "" if near is None else f"; did you mean '{near}'?"
            raise UserError(f"unknown item '{cut(name)}'; allowed: {allowed}{hint}")
    wanted = [item for item in every.values() if not names or {item.name, item.name.partition("/")[0]} & {*names}]
    wanted += [claims()[name].item for name in dict.fromkeys(names) if name in claims() and claims()[name].is_tested]
    known = {row.method for item in wanted for row in item.rows}
    if methods and not known:
        raise UserError(f"methods: got {listed(methods)}; allowed: none, as {listed(names)} takes no runs")
    for method in methods:
        if method not in known:
            raise unknown("method of these items", method, known)
    if not methods:
        return wanted
    cut_to = [(item, tuple(row for row in item.rows if row.method in methods)) for item in wanted]
    return [dataclasses.replace(item, rows=rows) for item, rows in cut_to if rows]
