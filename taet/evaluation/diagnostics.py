"""Warnings that an evaluation gives about itself, computed from its columns and its probe."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np

from taet import metrics
from taet.evaluation.result import Column, ResultCard

Z = 1.96  # two-sided 95 %

# In the REAT paper's tables most methods fall by up to 4.3 points from PGD-100 to AutoAttack, RoBal, whose logits are
# scaled and mask its gradients, by 6.7 to 7.4.
AUTOATTACK_GAP = 0.05
# In all tables of the TAET and REAT papers PGD-100 is at most 1.5 points below PGD-20.
CONVERGENCE_GAP = 0.02
# The threshold at which the official AutoAttack warns.
SQUARE_GAP = 0.002
# At 50 images the 95 % interval of a class is up to 26 points wide.
FEW_PER_CLASS = 50
# Share of the images on which two methods are taken to disagree, on which their paired comparison depends.
DISAGREEMENT = 0.25
# At that share, reached with about 1000 images.
COARSE_COMPARISON = 0.03
# The thresholds at which the official AutoAttack warns of a model that draws numbers, and of one zero gradient.
REPEAT_DIFFERENCE = 1e-4
ZERO_GRADIENTS = 0
# In the REAT paper's CIFAR-10-LT tables logits x10 cost RoBal, which masks its gradients, 4.7 to 5.5 points of PGD-20.
# Other methods lose at most 2.5 to CW-100, the margin loss that cross-entropy approaches as its logits grow.
LOGIT_SCALE_GAP = 0.04


def flags(card: ResultCard) -> tuple[dict[str, str], ...]:
    """Return what a reader must know before believing the card, each as {"flag": short name, "text": one sentence}."""
    checks = (_reach, _one_step, _convergence, _autoattack, _black_box, _variant, _probe, _test_set, _selection)
    return tuple({"flag": name, "text": text} for check in checks for name, text in check(card))


def _reach(card: ResultCard) -> Iterator[tuple[str, str]]:
    for column in _find(card, r"pgd-\d+"):
        if not _crosses(column):
            yield (
                "pgd-too-short",
                f"{column.name} cannot cross the ball: its steps add up to less than its width; "
                "use more steps or longer ones.",
            )


def _one_step(card: ResultCard) -> Iterator[tuple[str, str]]:
    one_step = _find(card, r"fgsm")
    for many_step in _find(card, r"pgd-\d+"):
        for column in one_step:
            if _crosses(many_step) and _below(column, many_step):
                yield (
                    "one-step-beats-many-step",
                    f"{column.name} breaks more images than {many_step.name} ({_gap(column, many_step)}), which sound "
                    "gradients do not allow: the model masks them (Athalye et al. 2018); trust AutoAttack only.",
                )


def _convergence(card: ResultCard) -> Iterator[tuple[str, str]]:
    chains = sorted(_find(card, r"pgd-\d+"), key=lambda column: int(column.name[4:]))
    for fewer, more in itertools.pairwise(chains):
        if _below(more, fewer) and _accuracy(fewer) - _accuracy(more) > CONVERGENCE_GAP:
            yield (
                "pgd-not-converged",
                f"{more.name} is far below {fewer.name} ({_gap(more, fewer)}): PGD has not converged, "
                "so robustness is lower than it says; use more steps and AutoAttack.",
            )


def _autoattack(card: ResultCard) -> Iterator[tuple[str, str]]:
    suites, chains = _find(card, r"autoattack(-fast|-10)?"), _find(card, r"pgd-\d+")
    if not (suites and chains):
        return
    suite, chain = min(suites, key=_accuracy), min(chains, key=_accuracy)
    if _below(suite, chain) and _accuracy(chain) - _accuracy(suite) > AUTOATTACK_GAP:
        yield (
            "autoattack-far-below-pgd",
            f"{suite.name} is far below {chain.name} ({_gap(suite, chain)}): the model resists PGD better than other "
            "attacks, a sign of gradient masking; report AutoAttack, not PGD.",
        )


def _black_box(card: ResultCard) -> Iterator[tuple[str, str]]:
    for column in card.columns:
        names = list(column.parts)
        if "square" not in names[1:]:
            continue
        before, after = (column.parts[names[names.index("square") - offset]].mean() for offset in (1, 0))
        if before - after > SQUARE_GAP:
            yield (
                "black-box-beats-gradients",
                f"Square, which sees no gradient, broke another {100 * (before - after):.1f} points after the gradient "
                f"parts of {column.name}: gradients mislead here; attack with more queries and an adaptive attack.",
            )


def _variant(card: ResultCard) -> Iterator[tuple[str, str]]:
    for column in card.columns:
        if column.parameters.get("note"):
            yield "autoattack-variant", f"{column.name} differs from the standard suite; {column.parameters['note']}."


def _probe(card: ResultCard) -> Iterator[tuple[str, str]]:
    facts = card.probe
    if not facts:
        return
    images = facts["images"]
    if facts["repeat_difference"] > REPEAT_DIFFERENCE:
        yield (
            "randomised",
            "The model answers the same images differently when it is asked again: every number here is one draw, and "
            "attacks that take the gradient of one draw are too weak; attack the mean of many (EOT).",
        )
    if facts["distributions"] == images:
        yield (
            "softmax-outputs",
            "The model returns probabilities, not logits: cross-entropy takes a second softmax of them, so its "
            "gradients are nearly flat and gradient attacks look weak; return the logits.",
        )
    if facts["zero_gradients"] > ZERO_GRADIENTS:
        yield (
            "zero-gradients",
            f"{facts['zero_gradients']} of {facts['clean_correct']} correctly classified images have a gradient of "
            "exactly zero (a saturated cross-entropy, or a step that is not differentiable), so PGD cannot move them; "
            "trust Square, and attack a smaller scale of the logits or a differentiable stand-in (BPDA).",
        )
    only_plain, only_scaled = facts["only_pgd_correct"], facts["only_scaled_pgd_correct"]
    if (only_plain - only_scaled) / images > LOGIT_SCALE_GAP and _exceeds_chance(only_plain, only_scaled):
        yield (
            "logit-scale",
            f"With logits times 10 in its objective PGD-20 leaves {100 * facts['scaled_pgd_correct'] / images:.1f} % "
            f"of the first {images} images correct, else {100 * facts['pgd_correct'] / images:.1f} %: PGD on logits "
            "of this scale misses what a stronger attack finds: its numbers are too high; report AutoAttack.",
        )


def _test_set(card: ResultCard) -> Iterator[tuple[str, str]]:
    _, total = metrics.class_counts(np.ones(len(card.labels), dtype=bool), card.labels, card.num_classes)
    few = [name for name, count in zip(card.class_names, total, strict=True) if count < FEW_PER_CLASS]
    if few:
        names = ", ".join(few[:3]) + (" ..." if len(few) > 3 else "")
        yield (
            "few-images-per-class",
            f"{len(few)} of {card.num_classes} classes have fewer than {FEW_PER_CLASS} test images ({names}): their "
            "numbers, and the balanced ones, are coarse; read the intervals.",
        )
    # The difference of two shares on the same images has a standard error of sqrt(d / n) (McNemar, Psychometrika 1947).
    resolution = Z * float(np.sqrt(DISAGREEMENT / len(card.labels)))
    if resolution > COARSE_COMPARISON:
        yield (
            "small-test-set",
            f"Two methods compared image by image on these {len(card.labels)} test images differ by more than chance "
            f"(95 %) only above about {100 * resolution:.0f} points, if they disagree on {100 * DISAGREEMENT:.0f} % of "
            "the images; use a larger test set, and more seeds.",
        )


def _selection(card: ResultCard) -> Iterator[tuple[str, str]]:
    if card.model.get("leak"):
        yield (
            "selected-on-test-set",
            "The epoch was chosen by looking at the test set, so these numbers are too high; choose it on a validation "
            "split, or take the last epoch.",
        )


def _find(card: ResultCard, pattern: str) -> list[Column]:
    return [column for column in card.columns if re.fullmatch(pattern, column.name)]


def _accuracy(column: Column) -> float:
    return float(column.correct.mean())


def _crosses(chain: Column) -> bool:
    """Can the steps of a PGD lead from one side of the ball to the other?"""
    settings = chain.parameters
    return bool(settings["steps"] * settings["step_size"] >= 2 * (chain.eps or 0) - 1e-9)


def _gap(lower: Column, upper: Column) -> str:
    return f"{100 * _accuracy(lower):.1f} % against {100 * _accuracy(upper):.1f} %"


def _below(lower: Column, upper: Column) -> bool:
    """Is `lower` less accurate by more than chance on the same images?"""
    return _exceeds_chance(int((upper.correct & ~lower.correct).sum()), int((lower.correct & ~upper.correct).sum()))


def _exceeds_chance(only_upper: int, only_lower: int) -> bool:
    """With b and c the images that only one of the two gets right: b - c > 1.96 sqrt(b + c) (McNemar 1947)."""
    return only_upper - only_lower > Z * float(np.sqrt(only_upper + only_lower))
