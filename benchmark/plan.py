"""What the benchmark runs, in its order: every run as an option list of `taet train`.

The protocol is data (protocol.toml). A run is one row on one set in one replicate; tuning runs have
one of the row's four settings, all others the one that tuning chose.
"""

import functools
import itertools
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taet.errors import unknown

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "benchmark"
Settings = Mapping[str, Any]
ADDED_ROWS = "TAET_BENCHMARK_ROWS"
"""The environment variable that names a file of further rows, in the form of protocol.toml."""
COLUMNS = ("clean", "pgd-20", "quick")
AUTOATTACK = (*COLUMNS, "autoattack")
FIRST_ROWS = (
    *("at-bsl", "at", "clean-stage-bcl", "taet-published-weights", "taet-tuned", "reat"),
    *("at-class-balanced", "trades"),
)
"""The rows of step 3: what decides most questions is there first."""
ATTACKED_ROWS = FIRST_ROWS[:6]
"""The rows that AutoAttack attacks first, with the three best others."""
ATTACKED_SETS = ("cifar10-lt-ir10", "cifar10-lt-ir50", "gtsrb")
BEST_OTHERS = 3
PLANNED_AUTOATTACK = len(ATTACKED_SETS) * (len(ATTACKED_ROWS) + BEST_OTHERS) + 2
"""Evaluations by AutoAttack that the protocol calls a must."""
DECIDING_ROWS = (
    *("at", "at-bsl", "at-class-balanced", "taet-published-weights", "taet-tuned"),
    *("clean-stage-bcl", "harl", "harl-bcl", "reat"),
)
"""The rows that get replicates 4 to 10 on both CIFAR-10-LT sets."""
ANCHORED_ROWS = ("at", "at-bsl", "clean-stage-bcl", "reat")
"""The rows that are also trained with the passes and attack steps of the protocol `taet`."""
CUTS_OF_CIFAR10 = ("cifar10-lt-ir10", "cifar10-lt-ir50")
ANCHOR_PASSES = 1100
VARIANCE = {"data.seed": "subset", "data.class_order": "class-order", "seed": "initialisation"}
"""What the variance components redraw, each alone, and its name in folders."""


@dataclass(frozen=True)
class Row:
    """A row of the benchmark: a method with the settings that make it, and its four settings."""

    name: str
    method: str
    published: Settings
    other: Settings
    epochs: Mapping[str, list[int]]
    """By budget: the epochs of the published and of the other value of the knob."""
    own: Settings = field(default_factory=dict)
    title: str = ""
    passes: tuple[float, ...] = ()
    """Counted passes of an image in a training of 90, with the published and the other value."""

    @property
    def shown(self) -> str:
        """The row's name in tables."""
        return self.title or self.name


@dataclass(frozen=True)
class DataSet:
    """One of the five sets."""

    name: str
    title: str
    made: bool
    """Whether it is cut to a long tail, so that a replicate redraws which classes are rare."""
    passes: int
    """Budget: passes of the network per training image."""
    training_images: int
    """Of one replicate; only the expected time depends on it."""
    settings: Settings
    eps: int = 8
    """Radius of the ball in units of 1/255."""
    weights_may_be_shared: bool = True

    @property
    def published(self) -> bool:
        """Whether it is a published set, and not a file of one's own."""
        return ":" not in self.settings["data.name"]


@dataclass(frozen=True)
class Protocol:
    """protocol.toml."""

    network: Mapping[str, str]
    tuning: Settings
    learning_rates: tuple[float, ...]
    shared: Settings
    sets: Mapping[str, DataSet]
    rows: Mapping[str, Row]

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        if name not in self.rows:
            raise unknown("row", name, self.rows)
        return self.rows[name]

    def data_set(self, name: str) -> DataSet:
        """Return a set by its name."""
        if name not in self.sets:
            raise unknown("set", name, self.sets)
        return self.sets[name]

    def choices(self, row: Row) -> list[Settings]:
        """Return the four settings of a row: each learning rate with each value of its knob."""
        knobs = (row.published, row.other)
        return [
            {"training.lr": rate, **knob}
            for rate, knob in itertools.product(self.learning_rates, knobs)
        ]


@functools.cache
def protocol() -> Protocol:
    """Return the benchmark's protocol."""
    values = tomllib.loads((FOLDER / "protocol.toml").read_text(encoding="utf-8"))
    sets = {name: DataSet(name=name, **given) for name, given in values.pop("sets").items()}
    given_rows = values.pop("rows")
    if (added := os.environ.get(ADDED_ROWS)) is not None:
        own = tomllib.loads(Path(added).read_text(encoding="utf-8"))
        given_rows += own["rows"]
    rows = {given["name"]: Row(**given) for given in given_rows}
    rates = tuple(values.pop("learning_rates"))
    return Protocol(**values, sets=sets, rows=rows, learning_rates=rates)


@dataclass(frozen=True)
class BenchmarkRun:
    """One training of the benchmark with its evaluation."""

    stage: str
    """tuning, main, variance or anchor; also the folder of its card."""
    tier: str
    data_set: DataSet
    row: Row
    replicate: int
    choice: int
    """Which of the row's four settings, from 0."""
    attacks: tuple[str, ...] = COLUMNS
    redrawn: tuple[str, int] | None = None
    """Of the variance components: the one seed that is changed, and its value."""

    @property
    def name(self) -> str:
        """The name of its run folder and card."""
        if self.stage == "tuning":
            return f"{self.row.name}-setting{self.choice + 1}"
        if self.redrawn is not None:
            what, value = self.redrawn
            return f"{self.row.name}-{VARIANCE[what]}-{value}"
        return f"{self.row.name}-replicate{self.replicate}"

    @property
    def place(self) -> Path:
        """The folder of its card below results/benchmark, which is also that of its run."""
        if self.stage == "main":
            return Path(self.tier, self.data_set.name)
        if self.stage == "anchor":
            return Path(self.tier, self.stage, self.data_set.name)
        return Path(self.tier, self.stage)

    @property
    def passes(self) -> int:
        """The budget: passes of the network per training image."""
        return ANCHOR_PASSES if self.stage == "anchor" else self.data_set.passes

    @property
    def image_passes(self) -> int:
        """Passes of all training images, to which the time of a training is proportional."""
        return self.passes * self.data_set.training_images

    @property
    def seeds(self) -> dict[str, int]:
        """The settings that redraw a run."""
        found = {"seed": self.replicate, "data.seed": self.replicate}
        if self.data_set.made:
            found["data.class_order"] = self.replicate
        if self.redrawn is not None:
            what, value = self.redrawn
            found[what] = value
        return found

    def settings(self) -> dict[str, Any]:
        """Return every setting that differs from the protocol `taet`, by dotted name."""
        rules, eps = protocol(), self.data_set.eps
        found = {
            **rules.shared,
            **self.data_set.settings,
            "model.name": rules.network[self.tier],
            "threat.eps": eps / 255,
            "threat.step_size": 0.75 * eps / 255,
            "training.epochs": self.row.epochs[str(self.passes)][self.choice % 2],
            "evaluation.attacks": COLUMNS,
            **self.row.own,
            **rules.choices(self.row)[self.choice],
            **self.seeds,
        }
        if self.stage == "tuning":
            found |= {
                "data.validation_per_class": rules.tuning["validation_per_class"],
                "data.test": "validation",
            }
            del found["data.test_max_count"]
        if self.stage == "anchor":
            found |= {"threat.steps": 10, "threat.step_size": 0.25 * eps / 255}
        return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def tuning_runs(tier: str) -> Iterator[BenchmarkRun]:
    """Yield the four settings of every row on the validation images."""
    rules = protocol()
    data_set = rules.sets[rules.tuning["set"]]
    for row in rules.rows.values():
        for choice in range(len(rules.choices(row))):
            yield BenchmarkRun("tuning", tier, data_set, row, rules.tuning["replicate"], choice)


def main_runs(
    tier: str,
    chosen: Mapping[str, int],
    rows: Iterable[str],
    sets: Iterable[str],
    replicates: Iterable[int],
    attacks: tuple[str, ...] = COLUMNS,
) -> Iterator[BenchmarkRun]:
    """Yield the runs of rows on sets, replicate by replicate; rows that are not tuned are left
    out."""
    rules = protocol()
    for replicate, name, row in itertools.product(replicates, sets, rows):
        if row in chosen:
            yield BenchmarkRun(
                "main", tier, rules.sets[name], rules.rows[row], replicate, chosen[row], attacks
            )


def variance_runs(tier: str, chosen: Mapping[str, int]) -> Iterator[BenchmarkRun]:
    """Yield the variance components: subset, class order and initialisation of two rows, each
    redrawn alone five times."""
    rules = protocol()
    data_set = rules.sets[rules.tuning["set"]]
    for row, what, value in itertools.product(("at-bsl", "at"), VARIANCE, range(21, 26)):
        if row in chosen:
            yield BenchmarkRun(
                "variance", tier, data_set, rules.rows[row], 1, chosen[row], COLUMNS, (what, value)
            )


def anchor_runs(tier: str, chosen: Mapping[str, int]) -> Iterator[BenchmarkRun]:
    """Yield replicate 1 of four rows with 1,100 passes and ten attack steps: does the order of the
    small budget hold?"""
    rules = protocol()
    for name, row in itertools.product(CUTS_OF_CIFAR10, ANCHORED_ROWS):
        if row in chosen:
            yield BenchmarkRun("anchor", tier, rules.sets[name], rules.rows[row], 1, chosen[row])


def runs_of(rows: Iterable[str], tier: str, chosen: Mapping[str, int]) -> Iterator[BenchmarkRun]:
    """Yield tuning and replicates 1 to 3 of some rows: what puts a method on the page."""
    wanted = {*rows}
    for run in tuning_runs(tier):
        if run.row.name in wanted:
            yield run
    yield from main_runs(tier, chosen, sorted(wanted), protocol().sets, [1, 2, 3])


def autoattack_runs(
    tier: str, chosen: Mapping[str, int], best: Mapping[str, Sequence[str]]
) -> Iterator[BenchmarkRun]:
    """Yield replicate 1 of the rows that AutoAttack attacks first.

    On three sets these are the rows that decide and the three best others by `quick`, `best` by
    set. On the two other sets AutoAttack only checks `quick`, on AT-BSL; CIFAR-100 comes first.
    """
    yield from main_runs(tier, chosen, ["at-bsl"], ["cifar100-lt-ir10"], [1], AUTOATTACK)
    for name in ATTACKED_SETS:
        rows = [*ATTACKED_ROWS, *best.get(name, ())]
        yield from main_runs(tier, chosen, rows, [name], [1], AUTOATTACK)
    yield from main_runs(tier, chosen, ["at-bsl"], ["ham10000"], [1], AUTOATTACK)


def all_runs(
    tier: str, chosen: Mapping[str, int], best: Mapping[str, Sequence[str]] | None = None
) -> Iterator[BenchmarkRun]:
    """Yield every run in the order of the protocol, so that every stop leaves something true.

    `best` are the three best rows by set of those that AutoAttack does not attack anyway, once
    they are known.
    """
    rules = protocol()
    others = [name for name in rules.rows if name not in FIRST_ROWS]
    yield from tuning_runs(tier)
    yield from main_runs(tier, chosen, FIRST_ROWS, rules.sets, [1])
    yield from main_runs(tier, chosen, others, rules.sets, [1])
    yield from main_runs(tier, chosen, rules.rows, rules.sets, [2, 3])
    yield from autoattack_runs(tier, chosen, best or {})
    yield from variance_runs(tier, chosen)
    yield from main_runs(tier, chosen, DECIDING_ROWS, CUTS_OF_CIFAR10, range(4, 11))
    yield from anchor_runs(tier, chosen)
    yield from main_runs(tier, chosen, rules.rows, ATTACKED_SETS, [1, 2, 3], AUTOATTACK)
