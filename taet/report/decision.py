"""Sentences of the page about decisions of `taet.decide`, which cover only some of the images."""

from __future__ import annotations

import numpy as np

from taet.evaluation.decision_card import COVERS, DecisionCard
from taet.formatting import count, listed, points, size

MANY = 20
"""Largest number of classes whose images are listed."""


def notes(one: DecisionCard) -> list[str]:
    """Return the sentences about a decision."""
    pairs = len(one.first["models"])
    of_pairs = [f"The mean over {pairs} pairs of models."] if pairs > 1 else []
    ended = f"{one.sentence[0].upper()}{one.sentence[1:]}."
    return [ended, _images(one), _rule(one), COVERS, _weights(one), *of_pairs]


def _images(one: DecisionCard) -> str:
    """Say how many images of each class were attacked."""
    met = len(one.rows) * np.bincount(one.classes, minlength=len(one.data["class_names"]))
    least, most = met[met > 0].min(), met.max()
    if least == most:
        return f"{count(most)} images of each class."
    if len(met) > MANY:
        return f"{count(least)} to {count(most)} images of each class, in proportion to the test set."
    named = zip(one.data["class_names"], met, one.data["test_class_counts"], strict=True)
    return f"Images by class: {', '.join(f'{name}: {n} of {total}' for name, n, total in named if total)}."


def _rule(one: DecisionCard) -> str:
    """Say which accuracy decides, and with which error probability."""
    shared = f", shared by {one.comparisons} comparisons" if one.comparisons > 1 else ""
    within = "" if one.rule.within is None else f"; it also stops within {points(one.rule.within)[1:]} points"
    return (
        f"{one.threat['norm']} ball of {size(one.threat['eps'])}; error probability "
        f"{one.rule.alpha * one.comparisons:.3g}{shared}: {one.roles}{within}; order of the images "
        f"{one.rule.order_seed}."
    )


def _weights(one: DecisionCard) -> str:
    """Say which weights were compared."""
    sides = [
        (side["label"], [model["weights_sha256"][:12] for model in side["models"]]) for side in (one.first, one.second)
    ]
    return f"SHA-256 of the weights: {'; '.join(f'{label} {listed(models)}' for label, models in sides)}."
