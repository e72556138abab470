"""What would more images be worth, class by class, and what another method?

    python examples/learning_curve.py at at-bsl --data ./lesions --seeds 3 --out runs/curve

trains each method on a quarter, on half and on all of the training images of every class (nested
parts, the same test images), attacks the runs, and prints for each class the recall under PGD-20,
what the last doubling of all images brought, and what another doubling would bring if recall were a
straight line in log(images). A curve that flattens gains less, and beyond twice the images nothing
is said.

The intervals cover seeds and test images, which are crossed: with v_s the variance over S seeds of
the mean over images and v_i that over N images of the mean over seeds, an interval reaches
sqrt(t_s^2 v_s/S + t_i^2 v_i/N), each part with Student's quantile for its own degrees of freedom
(Howe, JASA 69, 1974).
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

import taet
from taet import protocols
from taet.data import is_own
from taet.settings import override

Floats = NDArray[np.float64]
SHARES = (0.25, 0.5, 1.0)
ATTACK = "pgd-20"
SETTINGS: dict[str, Any] = {
    "data.imbalance_ratio": 10.0,
    "data.test": "balanced",
    "model.name": "resnet8",
    "threat.eps": 0.1,
    "threat.step_size": 0.025,
    "training.epochs": 20,
    "training.batch_size": 32,
}


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:+6.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def estimate(values: Floats) -> Estimate:
    """Return the mean of values (S, N) of S seeds and N test images; nan if nothing varies."""
    parts = [values.mean(axis).var(ddof=1) / values.shape[1 - axis] for axis in (0, 1)]
    quantiles = [student.ppf(0.975, values.shape[1 - axis] - 1) for axis in (0, 1)]
    reach = math.sqrt(
        sum((quantile**2) * part for quantile, part in zip(quantiles, parts, strict=True))
    )
    mean = float(values.mean())
    return (
        Estimate(mean, mean - reach, mean + reach) if reach else Estimate(mean, math.nan, math.nan)
    )


def slope_weights(images: Sequence[int]) -> Floats:
    """Return weights (F,): their product with the recalls at `images` is the gain per doubling.

    The gain is the slope of a least-squares line over the logarithm of the images.
    """
    places = np.log2(np.asarray(images, np.float64))
    centred = places - places.mean()
    spread = float(centred @ centred)
    return centred / spread if spread else np.full(len(places), np.nan)


def gains(right: Sequence[Floats], images: Sequence[int]) -> tuple[float, Estimate, Estimate]:
    """Return a class's recall with all images, and the gains of the last and the next doubling.

    Args:
        right: for each share, whether the test images of the class are still correct, (S, N) of S
            seeds.
        images: training images of the class at each share.
    """
    slope = np.einsum("f,fsn->sn", slope_weights(images), np.stack([*right]))
    return float(right[-1].mean()), estimate(right[-1] - right[-2]), estimate(slope)


def main(
    arguments: Sequence[str] | None = None, changes: Mapping[str, Any] | None = None
) -> dict[str, list[Any]]:
    """Train, attack and print; return the gains of every class by method.

    `changes` are further settings of the runs.
    """
    parser = argparse.ArgumentParser(
        description="Learning curves of classes from nested parts of the training set."
    )
    parser.add_argument("methods", nargs="+", help="e.g. at at-bsl")
    parser.add_argument(
        "--data", default="digits-lt", help="a folder of class folders; digits without it"
    )
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--out", type=Path, default=Path("runs/curve"))
    given = parser.parse_args(arguments)
    found: dict[str, list[Any]] = {}
    for method in given.methods:
        if is_own(given.data):  # settings as `taet train` chooses them for all images
            whole, _ = taet.plan(method, given.data, **(changes or {}))
        else:
            whole = override(
                protocols.taet(method), {**SETTINGS, **(changes or {}), "data.name": given.data}
            )
        right, counts = [], []
        for share in SHARES:
            masks = []
            for seed in range(given.seeds):
                run = override(whole, {"data.train_share": share, "seed": seed})
                folder = given.out / f"{method}-{share:g}-{seed}"
                result = taet.resume(folder) if folder.exists() else taet.train(run, out=folder)
                if result.run.data != run.data:
                    raise SystemExit(f"{folder} holds a run on other data; choose another --out")
                card = taet.evaluate(result.folder, attacks=["clean", ATTACK])
                masks.append(card.column(ATTACK).correct.astype(float))
            right.append(np.stack(masks))
            counts.append(card.data["train_class_counts"])
        found[method] = []
        print(
            f"{method}: recall under {ATTACK}; gain of the last doubling of the images; of the "
            "next one"
        )
        for label, name in enumerate(card.class_names):
            of = card.labels == label
            if not of.any() or counts[-1][label] == counts[-2][label]:
                print(f"{name:>12} {counts[-1][label]:>6} images: too few here")
                continue
            row = gains([masks[:, of] for masks in right], [count[label] for count in counts])
            found[method].append(row)
            print(f"{name:>12} {counts[-1][label]:>6} images {100 * row[0]:5.1f} {row[1]} {row[2]}")
    return found


if __name__ == "__main__":
    main()
