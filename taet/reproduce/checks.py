"""Checks of the manifest: a mistyped name or number is one line, not a run or a verdict that is silently missing."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from taet import protocols, registry
from taet.errors import UserError, located, unknown
from taet.evaluation.bundles import parse_attack
from taet.experiments.cells import Planner
from taet.experiments.specification import Entry
from taet.formatting import listed
from taet.reproduce.claims import Claim, claims
from taet.reproduce.costs import costs
from taet.reproduce.manifest import (
    PAPERS,
    SECONDS,
    Item,
    PaperRow,
    Scale,
    items,
    items_file,
    published,
    row_of,
    scales,
    setting_pairs,
)

HEADS = (
    *("paper", "table", "dataset", "imbalance_ratio", "model", "method", "shown_as", "setting"),
    *("average", "selection", "metric", "class", "value"),
)
AVERAGES = ("balanced", "balanced-test-set", "sample", "per-class", "cost")
SELECTIONS = ("", "best", "last")
ALL = "all"
OF_CLAIMS = ("says", "where", "worth")
OF_RUNS = ("columns", "attacks", "group")
OF_TESTS: Mapping[str, tuple[str, ...]] = {"pairs": (*OF_RUNS, "most", "less"), "settled": ("because",)}
"""Keys of an entry of claims.toml besides its test: of all, of differences between runs, and of tests of one kind."""


@functools.cache
def check_manifest() -> None:
    """Raise a `UserError` of one line for the first mistake in published.tsv, items, scales or claims."""
    for name, entry in items_file()["rows"].items():  # first, as the lines of published.tsv are read with them
        with located(f"items.toml: rows: {name}"):
            setting_pairs(entry.get("settings", {}))
    if published() and not {*HEADS} <= {*published()[0]}:
        raise UserError(f"published.tsv: got the columns {listed(map(str, published()[0]))}; allowed: {listed(HEADS)}")
    for number, line in enumerate(published(), 2):
        with located(f"published.tsv: line {number}"):
            _check_line(line)
    planner, every_item = Planner(Path(), "taet reproduce"), items()
    with located("items.toml"):
        _check_items()
        for item in every_item.values():
            with located(item.name):
                _check_rows(planner, item.rows)
                _metrics(column.metric for column in item.columns)
                _known("item in costs_of", filter(None, [item.costs_of]), every_item)
                for epoch in item.epochs:
                    _number("epochs", str(epoch), least=1.0, most=_least_epochs(item))
    for scale in scales().values():
        with located(f"scales.toml: {scale.name}"):
            _check_scale(planner, scale)
    with located("costs.toml"):
        _check_costs()
    for claim in claims().values():
        with located(f"claims.toml: {claim.name}"):
            _check_claim(planner, claim)


def _check_costs() -> None:
    """Check the names and numbers of costs.toml."""
    read = costs()
    _known("network", read["networks"], _names("models"))
    _known("key of methods", (name.partition(" ")[0] for name in read["methods"]), _names("methods"))
    _known("method in without_steps", read["without_steps"], read["methods"])
    _metrics(read["attacks"])
    for needed, found in (("resnet8", read["networks"]), ("standard", read["methods"]), ("at", read["methods"])):
        if needed not in found:
            raise UserError(f"got no entry for {needed}")
    for name, network in read["networks"].items():
        for key, value in network.items():
            _positive(f"{key} of {name}", value)
    for name, value in {**read["methods"], **read["attacks"]}.items():
        _positive(name, value)


def _check_line(line: Mapping[str, str]) -> None:
    """Check a row of published.tsv."""
    if None in line or None in line.values():
        raise UserError(f"got {'more' if None in line else 'fewer'} fields than the first line has")
    _known("paper", [line["paper"]], PAPERS)
    _known("data set", [line["dataset"]], _names("data"))
    _known("network", [line["model"]], _names("models"))
    _known("method", [line["method"]], _names("methods"))
    _known("average", [line["average"]], AVERAGES)
    _known("selection", [line["selection"]], SELECTIONS)
    _known("class", filter(None, [line["class"]]), items_file()["classes"])
    if bool(line["class"]) != (line["average"] == "per-class"):
        raise UserError(
            f"class: got '{line['class']}' with the average {line['average']}; allowed: with per-class only"
        )
    _metrics([line["metric"]])
    _number("value", line["value"], most=math.inf if line["metric"] == SECONDS else 100.0)
    if line["dataset"] not in items_file()["natural"]:
        _number("imbalance_ratio", line["imbalance_ratio"], least=1.0)
    row_of(line)


def _check_items() -> None:
    """Check the tables of items.toml that give words a meaning."""
    read = items_file()
    _known("data set in natural", read["natural"], _names("data"))
    if not all(read["natural"].values()):
        raise UserError("natural: got false; allowed: true, or no entry")
    labels = [*read["classes"].values()]
    if len({*labels}) < len(labels) or min(labels) < 0:
        raise UserError(f"classes: got the labels {listed(map(str, labels))}; allowed: 0 and above, each once")
    for name, figure in read["figures"].items():
        if not re.fullmatch(r"(taet|reat)/figure\d+", name) or not figure["rows"] or not figure["columns"]:
            raise UserError(f"figures: {name}: allowed: taet or reat/figure and a number, with rows and columns")
        if any(row in figure["rows"][:place] for place, row in enumerate(figure["rows"])):
            raise UserError(f"figures: {name}: got a row twice")
    _known("paper in papers", read["papers"], PAPERS)
    if missing := [paper for paper in PAPERS if paper not in read["papers"]]:
        raise UserError(f"papers: no entry for {listed(missing)}")
    fields = ("paper", "method", "dataset", "metric")
    own = {" ".join(line[name] for name in fields) for line in published()}
    for words, attack in read["columns"].items():
        with located(f"columns: {words}"):
            paper, method, data, metric = words.split() if words.count(" ") == 3 else ("", "", "", "")
            _known("paper", [paper], PAPERS)
            _known("method", [method], _names("methods"))
            _known("data set", [data], _names("data"))
            _metrics([metric])
            parse_attack(attack)
            if words not in own:
                raise UserError("no number of published.tsv has this paper, method, data set and metric")


def _check_rows(planner: Planner, rows: Iterable[PaperRow]) -> None:
    """Check the runs behind rows: method with its settings, data set, network and imbalance ratio."""
    for row in rows:
        _known("data set", [row.data], _names("data"))
        _known("network", [row.model], _names("models"))
        if row.imbalance is not None and not row.imbalance >= 1:
            raise UserError(f"imbalance: got {row.imbalance:g}; allowed: 1 or more")
        planner.start(PAPERS[row.paper], Entry(row.method, row.method, dict(row.settings)))


def _least_epochs(item: Item) -> int:
    """Return the epochs of the shortest training of an item at full scale."""
    return min(protocols.start(PAPERS[row.paper], row.method).training.epochs for row in item.rows)


def _check_scale(planner: Planner, scale: Scale) -> None:
    """Check what a scale puts in the place of published networks, data, attacks and seeds."""
    papers, networks, data = [*PAPERS, ALL], [*_names("models"), ALL], [*_names("data"), ALL]
    _known("paper in seeds", scale.seeds, papers)
    _known("paper in notes", scale.notes, PAPERS)
    if ALL not in scale.seeds and not {*PAPERS} <= scale.seeds.keys():
        raise UserError(f"seeds: got those of {listed(scale.seeds) or 'no paper'}; allowed: all, or every paper")
    if any(not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds) for seeds in scale.seeds.values()):
        raise UserError("seeds: got none, a negative one or one twice; allowed: one or more of 0 and above")
    _known("network in models", scale.models, networks)
    _known("network in models", scale.models.values(), _names("models"))
    _known("data set in data", scale.data, data)
    for entry in scale.data.values():
        _known("key of data", entry, ("name", "imbalance"))
        _known("data set in data", [str(entry["name"])] if "name" in entry else [], _names("data"))
        _number("imbalance of data", repr(entry.get("imbalance", 1)), least=1.0)
    published_metrics = {line["metric"] for line in published()}
    for column, attack in scale.attacks.items():
        paper, _, metric = column.rpartition(" ")
        _known("paper in attacks", filter(None, [paper]), PAPERS)
        _known("column in attacks", [metric], published_metrics)
        if attack:
            parse_attack(attack)
    _known("key of settings", scale.settings, {*papers, *networks, *data})
    for settings in scale.settings.values():
        planner.start(PAPERS["TAET"], Entry("at", "at", dict(settings)))


def _check_claim(planner: Planner, claim: Claim) -> None:
    """Check the rows and columns of a claim."""
    entry = claim.entry
    if claim.name[:1] not in ("C", "R") or not claim.name[1:].isdigit():
        raise UserError("unknown name; allowed: C (TAET) or R (REAT) and a number")
    beside = ("elsewhere", *(OF_RUNS if "elsewhere" in entry else ()), *(("beside",) if claim.is_tested else ()))
    _known(f"key of a claim with {claim.test}", entry, (*OF_CLAIMS, claim.test, *OF_TESTS.get(claim.test, ()), *beside))
    if not entry.get("worth", 1.0) > 0:
        raise UserError(f"worth: got {entry['worth']:g}; allowed: more than 0")
    deciding = [*claim.rows, *(row for pair in claim.pairs for row in pair)]
    _check_rows(planner, [*deciding, *claim.beside])
    if claim.beside and (not deciding or {*claim.beside} & {*deciding}):
        raise UserError("beside: allowed: other rows than those of the test, with pairs, steady, fails or separable")
    if any(first == second and "attacks" not in entry for first, second in claim.pairs):
        raise UserError("pairs: got a run and itself; allowed: two runs, or two attacks on one")
    if any(len(entry[kind]) != 2 for kind in ("attacks", "separable") if kind in entry):
        raise UserError("attacks or separable: got another number; allowed: two, first and second")
    for scale in scales().values() if "attacks" in entry else ():
        for first, second in (pair for pair in claim.pairs if pair[0] == pair[1]):
            one, other = claim.attacks(scale, first, second, next(iter(claim.sizes), ""))
            if one is not None and one == other:
                both = listed(entry["attacks"])
                raise UserError(f"attacks: got {both}; columns of items.toml make both {one} at scale {scale.name}")
    if len({*claim.pairs}) < len(claim.pairs):
        raise UserError("pairs: got a pair twice")
    if claim.test in ("pairs", "steady", "fails", "separable") and not deciding:
        raise UserError(f"{claim.test}: got no rows; allowed: one or more")
    if claim.test == "pairs" and not claim.sizes:
        raise UserError("columns or most: got none; allowed: one or more")
    if entry.get("less") in claim.sizes:
        raise UserError(f"less: got {entry['less']}, which is also a column; allowed: another attack")
    if any(len(sides) != 2 for sides in entry.get("elsewhere", [])):
        raise UserError("elsewhere: got another number of files; allowed: two, first and second")
    if not entry.get("theorem", True):
        raise UserError("theorem: got false; allowed: true, or another test")
    _metrics([*claim.sizes, *entry.get("attacks", []), *filter(None, [entry.get("less")])])
    for column, size in claim.sizes.items():
        _number(f"points under {column}", str(size), most=100.0)
    if "fails" in entry:
        _number("chances", str(entry["fails"]["chances"]), least=1.0)
    if "steady" in entry:
        _number("most of steady", str(entry["steady"]["most"]), most=1.0)
    if "order" in entry:
        _known("column of order", [entry["order"]["column"]], _columns_of(entry["order"]["item"]))
    if "reversed" in entry:
        if not entry["reversed"]["columns"]:
            raise UserError("reversed: got no columns; allowed: one or more")
        _known("column of reversed", entry["reversed"]["columns"], _columns_of(entry["reversed"]["item"]))


def _columns_of(item: str) -> list[str]:
    return [column.metric for column in items()[item].columns]


@functools.cache
def _names(kind: registry.Kind) -> Mapping[str, object]:
    return registry.entries(kind)


def _known(what: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    known = {*allowed}
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


def _metrics(names: Iterable[str]) -> None:
    """Check that columns are attacks, clean images or seconds."""
    for name in names:
        _metric(name)


@functools.cache
def _metric(name: str) -> None:
    if name != SECONDS:
        parse_attack(name)


def _positive(what: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UserError(f"{what}: got {value}; allowed: a number above 0")


def _number(what: str, text: str, least: float = 0.0, most: float = math.inf) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or math.isinf(value):
        allowed = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
        raise UserError(f"{what}: got '{text}'; allowed: a number, {allowed}")
