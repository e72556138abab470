"""The gain by more images versus another method: learning curves per class from nested parts of the training set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from taet import statistics
from taet.errors import UserError
from taet.evaluation import ResultCard, card_store
from taet.experiments.cells import Cell
from taet.experiments.comparison import Comparison
from taet.experiments.specification import Specification, Variant
from taet.formatting import aligned, count, percent, points
from taet.statistics import Floats
from taet.training.folder import RunFolder

SHARES = (0.25, 0.5, 1.0)
"""Shares of the training images of each class; a smaller one is part of a larger one."""
SETTING = "data.train_share"
EVERY = "all classes"
FEWEST_SEEDS = 2
EXPLANATION = """Recall under the worst of the attacks, with all images. Gains are in percentage points, with 95 %
intervals over seeds and test images. Last doubling: measured, from half of the images of every class to
all. Next doubling: a straight line in log(images) through a quarter, a half and all; one that flattens
gains less. Beyond twice the images nothing is said. Cut: measured differences to +-100, the next
doubling to what the recall can lose and gain, 0 to 100. -: nothing varies, or seeds or images are few."""
"""Printed below the table."""


class Estimate(NamedTuple):
    """A difference of recalls with its 95 % interval; nan if unknown."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{points(self.value)} [{points(self.low)}, {points(self.high)}]"

    def within(self, low: float, high: float) -> Estimate:
        """Return the value and the interval, clipped to [low, high]."""
        return Estimate(*(min(max(one, low), high) for one in self)) if not math.isnan(self.value) else self


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Worth:
    """One class in one row of the comparison: its recall under attack, and possible changes of it."""

    row: str
    data: str
    imbalance: float | None
    label: str
    images: int
    """All training images of the class."""
    recall: float
    """Mean over seeds, with all images."""
    last_doubling: Estimate
    """Measured: recall with all images minus recall with half of them."""
    next_doubling: Estimate
    """Change by twice the images of every class, extrapolated linearly in the log of the number of images; clipped so
    that the recall is in 0 to 1."""
    against_first: Estimate
    """This row minus the first method's, with all images; unknown in that row, and if they share too few seeds."""

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON; None for unknown ones."""
        return {
            name: [None if math.isnan(one) else one for one in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def with_shares(specification: Specification) -> Specification:
    """Return the specification with its grid repeated on a quarter and on half of the training images of each class."""
    if len(specification.seeds) < FEWEST_SEEDS:
        raise UserError(f"what-if: got {len(specification.seeds)} seed; allowed: {FEWEST_SEEDS} or more in seeds")
    settings = [specification.settings, *(one.settings for one in specification.variants)]
    settings += [one.settings for one in specification.methods]
    if any(SETTING in one for one in settings):
        raise UserError(f"what-if: got {SETTING} in the specification; allowed: without it, since this varies it")
    parts = [
        Variant("+".join(filter(None, (variant.name, f"x{share:g}"))), {**variant.settings, SETTING: share})
        for share in SHARES[:-1]
        for variant in specification.variants
    ]
    return replace(specification, variants=(*specification.variants, *parts))


def estimate(*classes: Floats) -> Estimate:
    """Return the mean over classes of values (S, N_c) of S seeds and N_c test images, with its 95 % interval.

    Seeds and images are crossed, so that the variance is at most v_s/S + v_i/N, with the variances of the means over
    images and over seeds; classes have the same seeds and different images. The interval reaches
    sqrt(t_s^2 v_s/S + t_i^2 v_i/N), each part with Student's quantile for its own degrees of freedom (Howe, JASA 69,
    1974), which matters with two or three seeds.
    Unknown if nothing varies, because the interval would have length 0.
    """
    if min(size for values in classes for size in values.shape) < FEWEST_SEEDS:
        return UNKNOWN
    by_seed = np.mean([values.mean(1) for values in classes], 0)
    of_images = [values.mean(0).var(ddof=1) / values.shape[1] / len(classes) ** 2 for values in classes]
    parts = (by_seed.var(ddof=1) / len(by_seed), sum(of_images))
    if not sum(parts) > 0:
        return UNKNOWN
    degrees = (len(by_seed) - 1, sum(values.shape[1] - 1 for values in classes))
    quantiles = [statistics.student_quantile(0.95, one) for one in degrees]
    value = float(by_seed.mean())
    reach = math.sqrt(sum(t**2 * part for t, part in zip(quantiles, parts, strict=True)))
    return Estimate(value, value - reach, value + reach)


def slope_weights(images: Sequence[int]) -> Floats:
    """Return weights (F,) whose product with the recalls at `images` is the least-squares gain per doubling."""
    places = np.log2(np.asarray(images, np.float64))
    centred = places - places.mean()
    spread = float(centred @ centred)
    return centred / spread if spread else np.full(len(places), np.nan)


def worth(comparison: Comparison) -> list[Worth]:
    """Return the gain of every class of every row by more images, and by the method of the row.

    Recall is measured under the worst case of the card's attacks, image by image. Only seeds that are done at every
    share count.

    Raises:
        UserError: fewer than two such seeds in every row.
    """
    found: list[Worth] = []
    first: dict[tuple[str, float | None], str] = {}
    for outcome in comparison.outcomes:  # including those that are not done
        first.setdefault((outcome.cell.data, outcome.cell.imbalance), _base(outcome.cell))
    rows = _rows(comparison)
    for (data, imbalance, row), runs in rows.items():
        base = rows.get((data, imbalance, first[data, imbalance]), {})
        classes = next(iter(runs.values()))[-1].num_classes
        found += [Worth(row, data, imbalance, *gain_of(runs, base, label)) for label in [None, *range(classes)]]
    if not found:
        raise UserError(f"what-if: no row has {FEWEST_SEEDS} seeds done at every share; continue the comparison first")
    return found


def _rows(comparison: Comparison) -> dict[tuple[str, float | None, str], dict[int, list[ResultCard]]]:
    """Return cards by row and seed, in the order of `SHARES`."""
    held: dict[tuple[str, float | None, str], dict[int, dict[float, ResultCard]]] = {}
    for outcome in comparison.outcomes:
        cell = outcome.cell
        card = card_store.of_folder(RunFolder(cell.folder)) if outcome.state == "done" else None
        if card is not None:
            share = float(cell.variant.settings.get(SETTING, 1.0))
            held.setdefault((cell.data, cell.imbalance, _base(cell)), {}).setdefault(cell.seed, {})[share] = card
    whole = {
        row: {seed: [one[share] for share in SHARES] for seed, one in seeds.items() if len(one) == len(SHARES)}
        for row, seeds in held.items()
    }
    return {row: seeds for row, seeds in whole.items() if len(seeds) >= FEWEST_SEEDS}


def _base(cell: Cell) -> str:
    """Return the row of a cell, without its share of the images."""
    name = cell.variant.name
    if SETTING in cell.variant.settings:
        name = name.rpartition("x")[0].rstrip("+")
    return f"{cell.entry.name} + {name}" if name else cell.entry.name


def gain_of(
    runs: dict[int, list[ResultCard]], base: dict[int, list[ResultCard]], label: int | None
) -> tuple[str, int, float, Estimate, Estimate, Estimate]:
    """Return name, images, recall and gains of a class, or of the mean over classes."""
    cards, shared = next(iter(runs.values())), [seed for seed in runs if seed in base]
    card, images = cards[-1], np.array([one.data.get("train_class_counts") for one in cards])
    labels = [*range(card.num_classes)] if label is None else [label]
    masks = np.stack([[one.column("worst-case").correct for one in own] for own in runs.values()], 1).astype(float)
    apart = np.array(
        [runs[s][-1].column("worst-case").correct * 1.0 - base[s][-1].column("worst-case").correct for s in shared]
    )
    members = [card.labels == one for one in labels]
    last = estimate(*(masks[-1][:, own] - masks[-2][:, own] for own in members))
    slopes = [slope_weights(images[:, one].tolist()) for one in labels]
    following = estimate(*(np.tensordot(slope, masks[..., own], 1) for slope, own in zip(slopes, members, strict=True)))
    alone = runs is base or len(shared) < FEWEST_SEEDS
    against = UNKNOWN if alone else estimate(*(apart[:, own] for own in members))
    recall = float(np.mean([masks[-1][:, own].mean() for own in members]))
    name = EVERY if label is None else card.class_names[label]
    gains = last.within(-1, 1), following.within(-recall, 1 - recall), against.within(-1, 1)
    return name, int(images[-1, labels].sum()), recall, *gains


def table(found: Sequence[Worth]) -> str:
    """Return the table with its explanation."""
    head = ("row, class", "images", "recall %", "last doubling", "next doubling", "against first row")
    gains = [(one.last_doubling, one.next_doubling, one.against_first) for one in found]
    rows = [
        (f"{one.row}, {one.label}", count(one.images), percent(one.recall), *map(str, own))
        for one, own in zip(found, gains, strict=True)
    ]
    return "\n".join([*aligned([head, *rows]), EXPLANATION])
