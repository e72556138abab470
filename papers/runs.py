"""The runs that are there: run folders of this machine and committed cards, found by the settings
that decide them."""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from items import FOLDER, Row
from taet import methods, protocols
from taet.data import long_tail_counts
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.files import digest
from taet.report.row_settings import rules_of
from taet.run.identity import role_of, training_settings
from taet.settings import Run, override
from taet.settings.roles import Role

RESULTS = FOLDER.parent / "results"
CARD, EPOCHS = "evaluation.json", "metrics.jsonl"


class Size(NamedTuple):
    """The size of a data set."""

    classes: int
    largest: int
    """Training images of the largest class."""
    tested: int
    """Test images of each class."""


SIZES = {
    "cifar10": Size(10, 5000, 1000),
    "cifar100": Size(100, 500, 100),
    "tiny-imagenet": Size(200, 500, 50),
    "digits": Size(10, 100, 36),
}
"""By the first part of a data set's name."""
Key = frozenset[tuple[str, Any]]
"""The settings that decide a run and are not the defaults of its method, without the seed."""


@functools.cache
def load(path: Path) -> ResultCard:
    """Return the card in a file, which is read once."""
    return ResultCard.load(path)


@dataclass(frozen=True, eq=False)
class Measured:
    """A run with its result card."""

    path: Path
    """The card: evaluation.json in a run folder, or committed under another name."""
    attacks: frozenset[str]
    weights: str

    @property
    def where(self) -> str:
        """run of this machine, or the committed card."""
        return (
            "run"
            if self.path.name == CARD
            else f"committed {self.path.relative_to(RESULTS.parent)}"
        )

    @property
    def card(self) -> ResultCard:
        return load(self.path)

    def beside(self, file: str) -> Path:
        """Return the path of another file of the run."""
        return (
            self.path.with_name(file)
            if self.path.name == CARD
            else self.path.with_suffix(f".{file}")
        )

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """Its rows of metrics.jsonl; committed ones are thinned, and their first line ties them to
        the weights."""
        path = self.beside(EPOCHS)
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        head, rows = (lines[0], lines[1:]) if lines else ({}, [])
        if head.get("weights_sha256", self.weights) != self.weights:
            raise UserError(
                f"{path}: the epochs are those of other weights than the card's; remove it"
            )
        if "rows_sha256" in head and head["rows_sha256"] != digest(rows):
            raise UserError(
                f"{path}: was changed or damaged: its SHA-256 differs from the one in its first "
                "line"
            )
        return [line for line in lines if "epoch" in line]

    def features(self, of: str) -> dict[str, Any]:
        """Return what is kept of the features or logits of its test images; nothing if there is no
        such file."""
        path = self.beside(f"embedding-{of}.json")
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    @property
    def seconds(self) -> float | None:
        """Seconds of an epoch of training, without its curve; None without epochs."""
        spent = last = 0.0
        for row in self.epochs:
            rate = row.get("images_per_second") if row.get("train") else None
            seconds = sum(row["train"]["total"]) / rate if rate else row["seconds"]
            # a committed epoch stands for all since the one before
            spent += (row["epoch"] - last) * seconds
            last = row["epoch"]
        return spent / last if last else None


def thinned(epochs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the epochs that are committed: those with a point of the curve, the first, the last
    and every fifth."""
    ends = (1, epochs[-1]["epoch"]) if epochs else ()
    return [
        row for row in epochs if row.get("monitor") or row["epoch"] in ends or not row["epoch"] % 5
    ]


def settings_of(row: Row) -> dict[str, Any]:
    """Return every setting that decides the training of a row at its scale, but for the seed."""
    place = {"data.name": row.data} | (
        {} if row.imbalance is None else {"data.imbalance_ratio": row.imbalance}
    )
    start = protocols.start(row.protocol, row.method)
    basis = start.replace(settings=start.settings or methods.find(row.method).Config())
    return training_settings(override(basis, place | dict(row.settings)))


def key(settings: Mapping[str, Any]) -> Key:
    """Return the key of a run from its settings; settings that later versions add do not change
    it."""
    usual = _defaults(settings["method"])
    own = {
        name: value for name, value in settings.items() if name not in usual or usual[name] != value
    }
    # An item of a paper is one subset of the images and one class order: only the seed is repeated.
    decide = {name for name in own if role_of(name) is not Role.RECORD} - {"seed"}
    return frozenset(
        (name, tuple(own[name]) if isinstance(own[name], list) else own[name]) for name in decide
    )


def name_of(row: Row) -> str:
    """Return the name of a row's run among those of all items: its method and a digest of its
    key."""
    found = sorted(
        (name, float(v) if isinstance(v, int) else v) for name, v in key(settings_of(row))
    )
    return f"{row.method}-{hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]}"


@functools.cache
def _defaults(method: str) -> dict[str, Any]:
    run = Run(method=method, settings=methods.find(method).Config())
    return {
        name: value
        for name, value in training_settings(run).items()
        if name not in ("seed", "method")
    }


class Runs:
    """The runs below `out` and the committed cards below `results`; a card's masks are read when
    they are needed."""

    def __init__(self, out: Path | None = None, results: Path = RESULTS) -> None:
        self.out = out
        self._found: dict[Key, dict[int, list[Measured]]] = {}
        self.every: list[Measured] = []
        """All committed cards that stand for a run of this package."""
        for path in [
            *sorted(results.glob("**/*.json")),
            *sorted(out.glob(f"*/runs/*/{CARD}") if out else ()),
        ]:
            values = json.loads(path.read_bytes())
            if (
                isinstance(values, dict)
                and "columns" in values
                and (values.get("run") or {}).get("config")
            ):
                self._add(path, values)

    def _add(self, path: Path, values: Mapping[str, Any]) -> None:
        model, config = values["model"], training_settings(values["run"]["config"])
        attacks = frozenset(column["name"] for column in values["columns"])
        found = Measured(path, attacks, model["weights_sha256"])
        rules = rules_of(model, values["run"]["config"]["training"])
        self.every += [found] if rules and path.name != CARD else []
        try:
            settings = _defaults(config["method"]) | config
        except UserError:  # a method that has left the package
            return
        for rule in rules:
            by_seed = self._found.setdefault(key({**settings, "training.selection": rule}), {})
            by_seed.setdefault(config["seed"], []).append(found)

    def of(self, row: Row) -> dict[int, Measured]:
        """Return what is there of a row at its scale, by seed: of several cards the one with most
        of its attacks.

        A finished run of this machine comes before a committed card. Two committed cards of one run
        with other weights are a `UserError`.
        """
        by_seed = self._found.get(key(settings_of(row)), {})
        return {seed: _best(by_seed[seed], row.attacks) for seed in sorted(by_seed)}

    def is_started(self, name: str, seed: int) -> bool:
        """Whether a folder of this machine holds the run, with its card or without."""
        return self.out is not None and any(self.out.glob(f"*/runs/{name}_*seed{seed}/run.json"))


def _best(found: Sequence[Measured], attacks: Iterable[str]) -> Measured:
    own = [one for one in found if one.path.name == CARD]
    committed = [one for one in found if one not in own]
    for one in committed:
        if one.weights != committed[0].weights:
            raise UserError(
                f"{committed[0].path} and {one.path} are one run with other weights; remove one of "
                "them"
            )
    return max(
        own or committed, key=lambda one: (len(one.attacks.intersection(attacks)), len(one.attacks))
    )


class Costs(NamedTuple):
    """Measured seconds of one core."""

    per_image: dict[str, float]
    """Of AT for an image and epoch, by network."""
    ratios: dict[str, float]
    """Of methods, relative to AT."""


@functools.cache
def _costs() -> Costs:
    """Return what the committed measurements of cost say."""
    ratios: dict[str, float] = {}
    per_image = {}
    for name in ("cost.json", "cost-model.json"):
        measured = json.loads((RESULTS / name).read_bytes())
        if name == "cost.json":
            for cost in measured["costs"]:
                ratios.setdefault(
                    cost["name"], cost["seconds_ratio"]
                )  # the first: its default form
        point = next(of for of in measured["curve"] if of["steps"] == measured["steps"])
        seconds = point["epoch_seconds"]["median"] / point["ratio"]["median"]
        per_image[measured["network"]] = seconds / measured["images"] * measured["threads"]
    return Costs(per_image, ratios)


def price(row: Row, trained: bool, lacks: Iterable[str]) -> float:
    """Return about how many seconds of one core a run takes; nan for a network or data that were
    never measured.

    epochs x images x (seconds of AT per image) x (method over AT) x (steps + 1)/11 + test images x
    (attacks left)
    """
    costs, settings = _costs(), settings_of(row)
    size = SIZES.get(row.data.removesuffix("-lt").removesuffix("-balanced-small"))
    if size is None or row.model not in costs.per_image:
        return math.nan
    per_image = costs.per_image[row.model]
    tested = min(settings["data.test_max_count"] or size.tested, size.tested)
    relative_to_resnet8 = per_image / costs.per_image["resnet8"]
    seconds = tested * size.classes * relative_to_resnet8 * sum(map(_attack, lacks))
    if not trained:
        largest = min(settings["data.max_count"] or size.largest, size.largest)
        counts = long_tail_counts(size.classes, largest, row.imbalance or 1)
        images = sum(counts) * (1 - settings["data.validation"])
        passes = (settings["threat.steps"] + 1) / 11
        each = per_image * costs.ratios.get(row.method, 1.0) * passes
        seconds += settings["training.epochs"] * images * each
    return seconds


def _attack(name: str) -> float:
    """Return about how many seconds of one core an attack takes on an image with ResNet-8."""
    last = name.partition(":")[0].rpartition("-")[2]
    return (
        2.7
        if name == "autoattack"
        else 0.0018 * (float(last) if last.isdigit() else 100 if "cw" in name else 1)
    )
