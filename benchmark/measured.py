"""What the cards of the benchmark say about one set: numbers by row and replicate, differences to
AT-BSL, and ranks."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import rankdata

from intervals import COLLAPSED_POINTS, Comparison, Noise, compare, image_variance, residual_noise
from plan import AUTOATTACK, CUTS_OF_CIFAR10, FOLDER, BenchmarkRun, DataSet, main_runs, protocol
from run import card_of, card_path, divergence_path, is_over, missing_attacks
from taet.errors import UserError

LESIONS = FOLDER / "ham10000-lesions.json"
"""The lesion of each test image of HAM10000, as a number: images of one lesion are not
independent."""
BASE = "at-bsl"
"""The row that all others are compared with."""
FLOOR = "standard"
"""The row without adversarial training, which belongs to no comparison."""
PLANNED_COMPARISONS = 17
"""Of a set: every row but `standard` against at-bsl. It does not shrink with what is missing."""


def done(runs: Iterable[BenchmarkRun]) -> list[BenchmarkRun]:
    """Return the runs whose cards are there."""
    return [run for run in runs if not missing_attacks(run)]


def diverged(runs: Iterable[BenchmarkRun]) -> list[BenchmarkRun]:
    """Return the runs that have no card because they diverged."""
    return [run for run in runs if divergence_path(run).exists()]


@dataclass
class Measured:
    """What is measured on one set: numbers by row and replicate, and correct images."""

    data_set: DataSet
    attack: str = "quick"
    """The attack whose numbers are compared."""
    scores: dict[tuple[str, str], dict[str, dict[int, float]]] = field(default_factory=dict)
    """By (attack, group): the accuracy of each row in each replicate."""
    correct: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """By row and replicate: whether each test image is classified correctly under `attack`."""
    labels: np.ndarray | None = None
    test_images: str = ""
    """SHA-256 of the test images, which all cards of a set share."""
    diverged: dict[str, list[int]] = field(default_factory=dict)
    """By row: the replicates without numbers, because the run diverged."""

    def add(self, run: BenchmarkRun) -> None:
        """Read the card of a run."""
        card = card_of(run)
        if self.test_images not in ("", card.data["test_sha256"]):
            raise UserError(f"{card_path(run)}: other test images than in the set's other cards")
        self.test_images = card.data["test_sha256"]
        for column in card.columns:
            summary = card.summary_of(column)
            values = {
                "balanced": summary.balanced,
                "tail": summary.groups.get("tail"),
                "head": summary.groups.get("head"),
                "worst": summary.worst_class[1],
            }
            for group, value in values.items():
                if value is not None:
                    of_rows = self.scores.setdefault((column.name, group), {})
                    of_rows.setdefault(run.row.name, {})[run.replicate] = float(value)
        correct = np.asarray(card.column(self.attack).correct)
        self.correct.setdefault(run.row.name, {})[run.replicate] = correct
        self.labels = np.asarray(card.labels)

    def common_replicates(self) -> set[int]:
        """Return the replicates that all rows have, but for rows that diverged in one."""
        rows = [own.keys() for row, own in self.correct.items() if row not in self.diverged]
        return set.intersection(*map(set, rows)) if rows else set()

    def mean(self, row: str, attack: str, group: str) -> float | None:
        """Return the mean over the replicates that all rows have, so that no row has the luck of
        another replicate; None without any."""
        found = self.scores.get((attack, group), {}).get(row, {})
        common = self.common_replicates()
        values = [value for replicate, value in found.items() if replicate in common]
        return sum(values) / len(values) if values else None

    def score(self, row: str) -> float | None:
        """Return the mean balanced accuracy under the attack whose numbers are compared."""
        return self.mean(row, self.attack, "balanced")

    def first_replicate(self, row: str, attack: str) -> float | None:
        """Return the balanced accuracy of replicate 1 under an attack; None where it is missing."""
        return self.scores.get((attack, "balanced"), {}).get(row, {}).get(1)

    def collapsed(self, row: str) -> bool:
        """Whether a row diverged, or is at chance on clean images, in a replicate."""
        if row in self.diverged:
            return True
        assert self.labels is not None
        chance = 1 / len(np.unique(self.labels))
        clean = self.scores.get(("clean", "balanced"), {}).get(row, {})
        return any(value < chance + COLLAPSED_POINTS for value in clean.values())

    def compared_rows(self) -> list[str]:
        """Return the rows that the statistics are about, in the order of the protocol."""
        return [
            row
            for row in protocol().rows
            if row != FLOOR and row in self.correct and not self.collapsed(row)
        ]


def compared_attack(planned: Sequence[BenchmarkRun]) -> str:
    """Return `autoattack` where every row has it in every replicate, and `quick` elsewhere."""
    attacked = [replace(run, attacks=AUTOATTACK) for run in planned]
    rows = {run.row.name for run in planned}
    everything = rows == set(protocol().rows) and all(is_over(run) for run in attacked)
    return "autoattack" if everything else "quick"


def measured(
    data_set: DataSet,
    chosen: Mapping[str, int],
    tier: str,
    replicates: range,
    rows: Collection[str] | None = None,
) -> Measured:
    """Return what is there of a set, of all rows or of some."""
    wanted = protocol().rows if rows is None else rows
    planned = [*main_runs(tier, chosen, wanted, [data_set.name], replicates)]
    found = Measured(data_set, compared_attack(planned))
    for run in done(planned):
        found.add(run)
    for run in diverged(planned):
        found.diverged.setdefault(run.row.name, []).append(run.replicate)
    return found


# ---- statistics


def noise_of(found: Measured) -> tuple[Noise, dict[str, np.ndarray]]:
    """Return the pooled noise of a single run on a set, and the scores of each row, (R,)."""
    rows = found.compared_rows()
    replicates = sorted({replicate for row in rows for replicate in found.correct[row]})
    scores = found.scores.get((found.attack, "balanced"), {})
    table = np.full((len(rows), len(replicates)), np.nan)
    for number, row in enumerate(rows):
        for place, replicate in enumerate(replicates):
            table[number, place] = scores.get(row, {}).get(replicate, np.nan)
    return residual_noise(table), dict(zip(rows, table, strict=True))


def comparisons(found: Measured) -> dict[str, Comparison]:
    """Return every row of a set against at-bsl, with intervals that hold together."""
    if BASE not in found.compared_rows():
        return {}
    noise, scores = noise_of(found)
    return {
        row: compare(own, scores[BASE], noise, images_part(found, row), PLANNED_COMPARISONS)
        for row, own in scores.items()
        if row != BASE
    }


def images_part(found: Measured, row: str) -> float:
    """Return the part of the variance of a difference that comes from the choice of test images; 0
    on GTSRB, whose frames of one track are not known to be of one track."""
    if found.data_set.name == "gtsrb":
        return 0.0
    assert found.labels is not None
    own, base = found.correct[row], found.correct[BASE]
    both = sorted(own.keys() & base.keys())
    if not both:
        return 0.0
    gains = np.mean([own[r].astype(float) - base[r] for r in both], axis=0)
    clusters = None
    if found.data_set.name == "ham10000":
        clusters = np.asarray(json.loads(LESIONS.read_bytes()))
    return image_variance(gains, found.labels, clusters)


@dataclass(frozen=True)
class Rank:
    """The place of a row among all rows: 1 is the highest balanced accuracy."""

    mean: float
    highest: float
    lowest: float


def ranks(sets: Sequence[Measured]) -> dict[str, Rank]:
    """Return the rank of each row over all sets; nothing while a set lacks a row that another has.

    Rows with equal numbers share the mean of their places. The two cuts of CIFAR-10 count half
    each in the mean.
    """
    rows = sorted({row for found in sets for row in (*found.correct, *found.diverged)} - {FLOOR})
    scores = [[score_or_last(found, row) for row in rows] for found in sets]
    if not rows or any(score is None for of_set in scores for score in of_set):
        return {}
    places = rankdata(-np.array(scores, dtype=float), axis=1)
    weights = [0.5 if found.data_set.name in CUTS_OF_CIFAR10 else 1.0 for found in sets]
    means = np.average(places, axis=0, weights=weights)
    return {
        row: Rank(float(mean), float(own.min()), float(own.max()))
        for row, mean, own in zip(rows, means, places.T, strict=True)
    }


def score_or_last(found: Measured, row: str) -> float | None:
    """Return the mean balanced accuracy of a row; 0 of one that diverged, so that it is last; None
    where it is missing."""
    return 0.0 if row in found.diverged else found.score(row)
