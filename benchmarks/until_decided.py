"""Error rates and sample sizes of the test behind `--until decided`, by simulation; no model is run.

python benchmarks/until_decided.py            2,000 simulated evaluations a row; about three minutes on one core
python benchmarks/until_decided.py --runs 200
python benchmarks/until_decided.py --cards    the committed result cards, replayed in 100 random orders of their images

Each simulated evaluation looks after every round, as `taet.evaluation.sequential.stop` does without `within`, and stops
at the first decision. A row counts decisions for either side, the images at the stop, and how often the interval left
the true difference at any look. For comparison: McNemar's exact test at 5 %, looked at after every 100 images.
"""

from __future__ import annotations

import itertools
import platform
import shlex
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import RESULTS
from numpy.typing import NDArray
from scipy import special

from taet.data.long_tail import long_tail_counts
from taet.evaluation import ResultCard, sequential
from taet.evaluation.sequential import StopRule
from taet.files import write_json

CHUNK = 100
"""Evaluations that are simulated at once, for the memory."""
TEN, HUNDRED = [1000] * 10, [100] * 100
LONG = long_tail_counts(10, 1000, 50.0)


@dataclass(frozen=True)
class Case:
    """A population: test images of each class, the difference of each class, and the share of images that differ."""

    name: str
    counts: list[int]
    means: list[float]
    differing: float

    @property
    def classes(self) -> NDArray[np.int64]:
        """The class of each image of a round."""
        return np.repeat(np.arange(len(self.counts)), [n // min(self.counts) for n in self.counts])

    def draw(self, runs: int, generator: np.random.Generator) -> NDArray[np.int8]:
        """Differences of all images, (runs, T, M): 1 with probability (s + D_c)/2 and -1 with (s - D_c)/2."""
        means = np.asarray(self.means)[self.classes]
        uniform = generator.random((runs, min(self.counts), len(means)), dtype=np.float32)
        up = ((self.differing + means) / 2).astype(np.float32)
        return (uniform < up).astype(np.int8) - ((uniform >= up) & (uniform < np.float32(self.differing)))


def equal(points: float, counts: list[int], differing: float, name: str = "") -> Case:
    """Return a population in which every class has the same difference."""
    words = f"{len(counts)} classes of {counts[0]:,}" if counts[0] == counts[-1] else "long-tailed test set, ratio 50"
    return Case(name or words, counts, [points / 100] * len(counts), differing)


NULLS = [
    equal(0, TEN, 0.25),
    equal(0, TEN, 0.10),
    Case("ten classes, five 20 points above and five below", TEN, [0.2, -0.2] * 5, 0.25),
    Case("ten classes, one 18 points above and nine 2 below", TEN, [0.18] + [-0.02] * 9, 0.25),
    equal(0, HUNDRED, 0.25),
    equal(0, LONG, 0.25),
    Case("long-tailed test set, 20 points above and below", LONG, [0.2, -0.2] * 5, 0.25),
]
DIFFERENCES = [
    *(equal(points, TEN, 0.25) for points in (2, 3, 4, 6, 8, 12)),
    *(equal(points, TEN, 0.08) for points in (2, 4, 6)),
    *(equal(points, HUNDRED, 0.25) for points in (4, 8)),
    *(equal(points, LONG, 0.25) for points in (8, 12)),
]


def simulate(case: Case, runs: int, seed: int) -> dict[str, Any]:
    """Return what came of so many evaluations."""
    generator, weight = np.random.default_rng([seed, *map(ord, case.name), round(1000 * case.differing)]), None
    needed, truth = StopRule().needed, round(float(np.mean(case.means)), 12)
    sides, images, missed, fixed = [], [], 0, 0
    for begin in range(0, runs, CHUNK):
        gains = case.draw(min(CHUNK, runs - begin), generator)
        weight = sequential.weights(case.classes)
        first, second = sequential.evidence(gains, weight)
        reached = np.maximum(first, second) >= needed
        at = np.where(reached.any(1), reached.argmax(1), gains.shape[1] - 1)
        better = np.where(np.take_along_axis(first, at[:, None], 1)[:, 0] >= needed, 1, -1)
        sides += (better * reached.any(1)).tolist()
        images += ((at + 1) * gains.shape[2]).tolist()
        above, below = (first, second) if truth == 0 else sequential.evidence(gains, weight, truth)
        missed += int((np.maximum(above, below) >= needed).any(1).sum())
        fixed += int(mcnemar(gains).sum()) if len(set(case.counts)) == 1 else 0
    right = sum(side > 0 for side in sides)
    wrong = sum(side < 0 for side in sides)
    lower, median, upper = np.quantile(images, [0.25, 0.5, 0.75], method="inverted_cdf").astype(int).tolist()
    return {
        "name": case.name,
        "images": min(case.counts) * len(case.classes),
        "points": round(100 * truth, 6) + 0.0,
        "differing": case.differing,
        "runs": runs,
        "for_first": right,
        "for_second": wrong,
        "median_images": median,
        "quartiles": [lower, upper],
        "interval_missed": missed,
        "mcnemar_every_100": fixed if len(set(case.counts)) == 1 else None,
    }


def mcnemar(gains: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return for each evaluation whether McNemar's exact p is ever below 5 % after a multiple of 100 images."""
    flat = gains.reshape(len(gains), -1)
    better, worse = ((flat == side).cumsum(1, dtype=np.int64)[:, 99::100] for side in (1, -1))
    p = 2 * special.bdtr(np.minimum(better, worse), better + worse, 0.5)
    return np.asarray((p < 0.05).any(1))


CARDS = {
    "cifar10-lt-ir10": "autoattack",
    "cifar10-lt-attacks": "autoattack",
    "digits-lt-demo": "autoattack",
    "ham10000": "autoattack-fast",
}
"""Folders of results/ with one card per model on the same images, and the attack that decides."""
ORDERS = 100


def replay(folder: str, attack: str) -> list[dict[str, Any]]:
    """Return how every two models of a folder would have been decided, in many orders of their images."""
    cards = [ResultCard.load(path) for path in sorted((RESULTS.parents[1] / "results" / folder).glob("*.json"))]
    found = []
    for one, other in itertools.combinations(cards, 2):
        gains = one.column(attack).correct.astype(int) - other.column(attack).correct
        sides, images = [], []
        for seed in range(ORDERS):
            order = sequential.rounds(one.labels, seed)
            weight = sequential.weights(one.labels[order[0]])
            after, why = sequential.stop(gains[order], weight, len(order), StopRule()) or (len(order), "")
            side = sequential.estimate(gains[order[:after]], weight)
            sides.append(int(np.sign(side)) if why == "decided" else 0)
            images.append(after * order.shape[1])
        whole = one.compare(other, attack)
        lower, median, upper = np.quantile(images, [0.25, 0.5, 0.75], method="inverted_cdf").astype(int).tolist()
        found.append(
            {
                "folder": folder,
                "attack": attack,
                "first": one.title,
                "second": other.title,
                "images": len(one.labels),
                "points": round(100 * whole.value, 6) + 0.0,
                "decided_on_all": whole.decided,
                "orders": ORDERS,
                "for_first": sum(side > 0 for side in sides),
                "for_second": sum(side < 0 for side in sides),
                "median_images": median,
                "quartiles": [lower, upper],
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Simulate every population, or replay every card, and write the result."""
    parser = ArgumentParser()
    parser.add_argument("--cards", action="store_true")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = shlex.join(["python", *sys.argv])
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    rows: dict[str, list[dict[str, Any]]] = {}
    if options.cards:
        rows["pairs"] = [row for folder, attack in CARDS.items() for row in replay(folder, attack)]
        write_json(RESULTS / "until-decided-cards.json", {"command": command, "versions": versions, **rows})
        return
    for kind, cases in (("nulls", NULLS), ("differences", DIFFERENCES)):
        rows[kind] = []
        for case in cases:
            rows[kind].append(simulate(case, options.runs, options.seed))
            print(rows[kind][-1], flush=True)
    write_json(RESULTS / "until-decided.json", {"command": command, "versions": versions, **rows})


if __name__ == "__main__":
    main()
