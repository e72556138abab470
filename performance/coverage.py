"""How often the interval of balanced accuracy covers the truth, and how wide it is, beside the one
before (MOVER).

Correct images are drawn as k_c ~ Bin(n_c, p_c) for class sizes from 1 to 1,000, C from 2 to 100 and
p from 0.02 to 0.98, equal and different between classes. Every setting is drawn --draws times; then
the settings that covered least are drawn again, --again times with other random numbers, since the
least of many estimates is below its true value.

    python performance/coverage.py           prints and writes results/coverage.json; two minutes of
    one core python performance/coverage.py --paired  the interval of a paired difference beside a
    bootstrap, drawn with the
                                            shares of images that only the first and only the second
                                            model gets right; results/coverage-paired.json
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taet.metrics import accuracies, intervals
from taet.metrics.intervals import mean_recall_limits
from taet.metrics.mean_limits import mean_value_limits

CLASSES = (2, 3, 10, 100)
LEAST = 15  # settings that are drawn again
BOOTSTRAPPED = 40  # draws of a setting for which the bootstrap is made as well, of RESAMPLES
RESAMPLES = 200
DISAGREE = (
    (0.01, 0.01),
    (0.05, 0.05),
    (0.15, 0.15),
    (0.4, 0.4),
    (0.05, 0.01),
    (0.2, 0.05),
    (0.5, 0.05),
    (0.02, 0.0),
)
"""Shares of images that only the first, and only the second model gets right, the same in every
class."""


def sizes(classes: int) -> dict[str, accuracies.Ints]:
    """Numbers of test images per class."""
    half = classes - classes // 2
    found = {f"{n} each": np.full(classes, n) for n in (1, 2, 3, 5, 10, 30, 100, 1000)}
    for largest in (100, 1000):
        found[f"{largest} to 1"] = np.round(
            largest ** (1 - np.arange(classes) / (classes - 1))
        ).astype(int)
    found["1000, one of 1"] = np.r_[np.full(classes - 1, 1000), 1]
    found["100, one of 2"] = np.r_[np.full(classes - 1, 100), 2]
    found["half 1000, half 1"] = np.r_[np.full(half, 1000), np.full(classes - half, 1)]
    return found


def recalls(classes: int) -> dict[str, accuracies.Floats]:
    """True recalls, of the classes in the order of `sizes`, largest first."""
    half = classes - classes // 2
    found = {
        f"{p} each": np.full(classes, p)
        for p in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
    }
    found["0.98 to 0.02"] = np.linspace(0.98, 0.02, classes)
    found["0.02 to 0.98"] = np.linspace(0.02, 0.98, classes)
    for large, small in ((0.98, 0.5), (0.5, 0.98), (0.02, 0.9), (0.98, 0.9), (0.98, 0.02)):
        found[f"half {large}, half {small}"] = np.r_[
            np.full(half, large), np.full(classes - half, small)
        ]
    return found


def combined_wilson(
    correct: accuracies.Ints, total: accuracies.Ints
) -> tuple[accuracies.Floats, accuracies.Floats]:
    """The interval before: Wilson's by class, combined by the method of variance estimates recovery
    (MOVER)."""
    low, high = intervals.wilson_interval(correct, total)
    share = correct / total
    mean, classes = share.mean(-1), len(total)
    below, above = (np.sqrt((part**2).sum(-1)) / classes for part in (share - low, high - share))
    return np.maximum(mean - below, 0), np.minimum(mean + above, 1)


def measure(
    total: accuracies.Ints, truth: accuracies.Floats, draws: int, generator: np.random.Generator
) -> dict[str, float]:
    """Share of draws whose interval covers the true mean recall, and the mean width, for both
    intervals."""
    drawn = generator.binomial(total, truth, size=(draws, len(total)))
    different, index = np.unique(drawn, axis=0, return_inverse=True)
    both = (interval(different, total) for interval in (mean_recall_limits, combined_wilson))
    return covered(truth.mean(), *(np.stack(ends)[:, index.ravel()] for ends in both))


def covered(truth: float, now: accuracies.Floats, before: accuracies.Floats) -> dict[str, float]:
    """Share of intervals (2, draws) that cover the truth, and their mean width, of both kinds."""
    found = {}
    for name, (low, high) in (("", now), ("_before", before)):
        inside = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
        found |= {
            f"covers{name}": round(float(inside.mean()), 4),
            f"width{name}": round(float((high - low).mean()), 5),
        }
    return found


def disagreements(classes: int) -> dict[str, accuracies.Floats]:
    """True shares of the differences -1, 0 and 1 of two models, (C, 3), of the classes in the order
    of `sizes`."""
    half = classes - classes // 2
    found = {f"{a}, {b} each": np.tile([b, 1 - a - b, a], (classes, 1)) for a, b in DISAGREE}
    sides = np.repeat([[0.0, 0.7, 0.3], [0.3, 0.7, 0.0]], [half, classes - half], axis=0)
    tails = np.repeat([[0.02, 0.98, 0.0], [0.1, 0.5, 0.4]], [half, classes - half], axis=0)
    return {
        **found,
        "0.3 on opposite sides": sides,
        ("0, 0.02 of the larger, 0.4, 0.1 of the smaller"): tails,
    }


def bootstrapped(counts: accuracies.Ints, generator: np.random.Generator) -> accuracies.Floats:
    """The interval before: percentiles of a stratified bootstrap, of differences (C, 3)."""
    total = counts.sum(1)
    drawn = generator.multinomial(total, counts / total[:, None], size=(RESAMPLES, len(total)))
    found: accuracies.Floats = np.quantile((drawn @ [-1, 0, 1] / total).mean(1), [0.025, 0.975])
    return found


def measure_paired(
    total: accuracies.Ints, truth: accuracies.Floats, draws: int, generator: np.random.Generator
) -> dict[str, float]:
    """As `measure`, for differences with the shares `truth` (C, 3)."""
    drawn = generator.multinomial(total, truth, size=(draws, len(total)))
    now = np.stack(mean_value_limits(drawn, [-1, 0, 1]))
    before = np.stack([bootstrapped(one, generator) for one in drawn[:BOOTSTRAPPED]], 1)
    return covered((truth @ [-1, 0, 1]).mean(), now, before)


def settings(
    paired: bool, numbers: Sequence[int] = CLASSES
) -> Iterator[tuple[dict[str, Any], accuracies.Ints, accuracies.Floats]]:
    """Every combination of number of classes, sizes and recalls, or shares of images on which two
    models differ."""
    for classes in numbers:
        for size, total in sizes(classes).items():
            for name, truth in (disagreements if paired else recalls)(classes).items():
                yield (
                    {"classes": classes, "images": size, "differ" if paired else "recall": name},
                    total,
                    truth,
                )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--again", type=int, default=2000)
    parser.add_argument(
        "--paired", action="store_true", help="differences of two models on the same images"
    )
    parser.add_argument(
        "--classes", type=int, nargs="*", default=CLASSES, help="numbers of classes"
    )
    parser.add_argument("--out", type=Path, help="file of the result (in results/)")
    given = parser.parse_args(arguments)
    simulate = measure_paired if given.paired else measure
    name = "coverage-paired.json" if given.paired else "coverage.json"
    out = given.out or Path(__file__).parent / "results" / name
    first, second = np.random.default_rng(0).spawn(2)
    every = [
        (one, total, truth, simulate(total, truth, given.draws, first))
        for one, total, truth in settings(given.paired, given.classes)
    ]
    least = sorted(every, key=lambda row: row[3]["covers"])[:LEAST]
    again = [
        {**one, **simulate(total, truth, given.again, second)} for one, total, truth, _ in least
    ]
    rows = [{**one, **found} for one, _, _, found in every]
    result = {"draws": given.draws, "again": given.again, "least": again, **summary(rows)}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report(result)
    return result


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and least coverage over all settings, and by the sizes of the classes with the
    ratio of widths."""
    found: dict[str, Any] = {"settings": len(rows), "sizes": {}}
    for name in ("now", "before"):
        covers = np.array([row["covers" if name == "now" else "covers_before"] for row in rows])
        numbers = {
            "mean": float(covers.mean()),
            "least": float(covers.min()),
            "below_0.94": int((covers < 0.94).sum()),
        }
        found[name] = {key: round(value, 4) for key, value in numbers.items()}
    for size in dict.fromkeys(row["images"] for row in rows):
        of = [row for row in rows if row["images"] == size]
        width = float(np.median([row["width"] / (row["width_before"] or np.inf) for row in of]))
        least = {
            "least": min(row["covers"] for row in of),
            "least_before": min(row["covers_before"] for row in of),
        }
        found["sizes"][size] = {**least, "width_ratio": round(width, 2)}
    return found


def report(result: dict[str, Any]) -> None:
    """Print what docs/evaluation.md says."""
    for name in ("now", "before"):
        print(f"{name:8}", ", ".join(f"{key} {value}" for key, value in result[name].items()))
    print(
        f"of the {LEAST} least, drawn again: {min(row['covers'] for row in result['least']):.4f} "
        "and more"
    )
    for size, row in result["sizes"].items():
        print(f"{size:18}", ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
