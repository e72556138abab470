"""Warnings that an evaluation gives about itself, computed from its columns and its probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from taet import metrics
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.evaluation.contrasts import (
    Pair,
    Z,
    accuracy,
    asked,
    chains,
    crosses,
    differing,
    exceeds,
    is_chain,
    one_steps,
    own,
    same_ball,
    strongest,
)
from taet.evaluation.curves import WHOLE, curves

# Most that PGD-100 is below PGD-20 in the two papers' tables: 1.5 points in the L-infinity ball (TAET, table 1), 2.1 in
# the L2 ball (REAT, table 12).
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}
# Most that AutoAttack is below PGD-20 in REAT's tables is 4.4 points (table 2), but for RoBal, whose logits are scaled
# and mask its gradients: 6.7 to 7.4 (tables 3 and 5, CIFAR-10-LT). L2 is held to the same, for want of other numbers.
AUTOATTACK_GAP = 0.045
# Most that CW-100, which ascends the margin, is below PGD there is 2.5 points (table 2), but for RoBal: 4.5 to 5.5. As
# its logits grow, cross-entropy approaches the margin: scaling them may cost as much. It costs RoBal 4.7 to 5.7.
MARGIN_GAP = 0.025
# Between these 2.5 and 4.7 points: what scaled logits must cost on the few images of the probe.
LOGIT_SCALE_GAP = 0.04
# The thresholds at which the official AutoAttack warns of Square, of a model that draws numbers, and of zero gradients.
SQUARE_GAP = 0.002
REPEAT_DIFFERENCE = 1e-4
ZERO_GRADIENTS = 0
NONFINITE_GRADIENTS = 0  # no sound model has one
# Without a bound an attack must break every image, and a larger ball cannot be safer (Athalye, Carlini, Wagner, ICML
# 2018, arXiv:1802.00420, section 3.1). One image in a hundred is left to steps that are not infinitely many.
REMAINDER = 0.01
# Share of the images on which two methods are taken to disagree, on which their paired comparison depends.
DISAGREEMENT = 0.25
# At that share, reached with about 1000 images.
COARSE_COMPARISON = 0.03

# What may be wrong with a model that no run of ours trained.
ASK_ELSEWHERE = "are weights, normalisation and the order of the classes right? taet check tries them"


def flags(card: ResultCard) -> tuple[dict[str, str], ...]:
    """Return what a reader must know before believing the card, each as {"flag": short name, "text": one sentence}."""
    return tuple({"flag": name, "text": text} for name, check in CHECKS.items() for text in check(card))


# --- attacks against each other --------------------------------------------------------------------------------------


def _too_short(card: ResultCard) -> Iterator[str]:
    # The curve over the steps begins with chains that are meant to be short.
    short = [one.name for one in own(card) if is_chain(one) and one.curve != "steps" and not crosses(one)]
    if short:
        yield (
            f"{_listed(short)} cannot cross the ball: the steps add up to less than its width; "
            "use more steps or longer ones."
        )


def _one_step(card: ResultCard) -> Iterator[str]:
    if pair := strongest((one, many) for one in one_steps(card) for many in chains(card) if same_ball(one, many)):
        yield (
            f"{pair[0].name} breaks more images than {pair[1].name} ({_gap(pair)}), which sound gradients do not "
            "allow: the model masks them (Athalye et al. 2018); trust AutoAttack, not PGD."
        )


def _convergence(card: ResultCard) -> Iterator[str]:
    for norm, usual in CONVERGENCE_GAP.items():
        columns = [column for column in chains(card) if column.norm == norm]
        pairs = differing(columns, "steps")
        if pair := strongest((pair for pair in pairs if _steps(pair[0]) > _steps(pair[1])), usual):
            yield (
                f"{pair[0].name} is far below {pair[1].name} ({_gap(pair)}): PGD has not converged, "
                "so robustness is lower than it says; use more steps and AutoAttack."
            )


def _autoattack(card: ResultCard) -> Iterator[str]:
    suites = [column for column in asked(card) if "version" in column.parameters]
    balls = ((suite, [chain for chain in chains(card) if same_ball(suite, chain)]) for suite in suites)
    if pair := strongest(((suite, min(found, key=accuracy)) for suite, found in balls if found), AUTOATTACK_GAP):
        yield (
            f"{pair[0].name} is far below {pair[1].name} ({_gap(pair)}): the model resists PGD better than other "
            "attacks, a sign of gradient masking; report AutoAttack, not PGD."
        )


def _margin(card: ResultCard) -> Iterator[str]:
    pairs = differing(asked(card), "objective")
    if pair := strongest((pair for pair in pairs if pair[0].parameters.get("objective") == "cw"), MARGIN_GAP):
        yield (
            f"{pair[0].name} is far below {pair[1].name} ({_gap(pair)}): cross-entropy misleads PGD on this model more "
            "than is usual, a sign of gradient masking; report AutoAttack, not PGD."
        )


def _adaptive(card: ResultCard) -> Iterator[str]:
    pairs = differing(own(card), "factor")
    if pair := strongest((pair for pair in pairs if "factor" not in pair[1].parameters), MARGIN_GAP):
        yield (
            f"With logits times {pair[0].parameters['factor']:g} in its objective {pair[1].name} breaks many more "
            f"images ({_gap(pair)}): the scale of the logits hides them from it, so its numbers are too high; "
            "report the adaptive attack and AutoAttack."
        )


def _transfer(card: ResultCard) -> Iterator[str]:
    borrowed = [column for column in card.columns if "source" in column.parameters]
    named = ((one, f"@{one.parameters['source']['name']}") for one in borrowed)
    same = ((one, other) for one, ending in named for other in own(card) if one.name == other.name + ending)
    if pair := strongest(pair for pair in same if same_ball(*pair)):
        yield (
            f"{pair[0].name}, whose examples were made on another model, breaks more images than {pair[1].name} on "
            f"this one ({_gap(pair)}): its gradients mislead, since an attack that sees the model must be the "
            "stronger; trust AutoAttack, not gradients alone."
        )


def _black_box(card: ResultCard) -> Iterator[str]:
    for column in card.columns:
        names = list(column.parts)
        if "square" not in names[1:]:
            continue
        before, after = (column.parts[names[names.index("square") - offset]].sum() for offset in (1, 0))
        count = len(card.labels)
        if exceeds(int(before - after), 0, SQUARE_GAP * count):
            yield (
                f"Square, which sees no gradient, broke another {100 * (before - after) / count:.1f} points after the "
                f"gradient parts of {column.name}: gradients mislead here; attack with more queries and an adaptive "
                "attack."
            )
            return


def _variant(card: ResultCard) -> Iterator[str]:
    if varied := [column for column in asked(card) if column.parameters.get("note")]:
        yield (
            f"{_listed([column.name for column in varied])} cannot be the standard suite with {card.num_classes} "
            f"classes; {varied[0].parameters['note']}."
        )


# --- attacks that must break everything ------------------------------------------------------------------------------


def _unbounded(card: ResultCard) -> Iterator[str]:
    unbounded = [column for column in own(card) if column.norm is not None and not column.bounded]
    if short := [column for column in unbounded if accuracy(column) > REMAINDER]:
        yield (
            f"{_listed([f'{column.name} leaves {_percent(column)}' for column in short])} of the images correct, "
            "though nothing bounds it and a sound attack would reach 0: the number says how far the optimiser got and "
            "is no robustness; give it more or longer steps (cw-l2:steps=1000 or lr=0.1), or use attacks in a ball."
        )


def _not_zero(card: ResultCard) -> Iterator[str]:
    for eps, column in _curve(card, "eps"):
        if eps >= WHOLE and crosses(column) and accuracy(column) > REMAINDER:
            yield (
                f"{column.name} leaves {_percent(column)} of the images correct though it may replace them "
                "altogether: the model masks its gradients, or gives one answer to everything; trust Square and "
                "attacks that need no gradient."
            )


def _rises(card: ResultCard) -> Iterator[str]:
    points = _curve(card, "eps")
    balls = ((small, large) for eps, small in points for radius, large in points if 0 < eps < radius)
    if pair := strongest(balls, REMAINDER):
        yield (
            f"{pair[1].name} leaves {_percent(pair[1])} of the images correct, {pair[0].name} in a smaller ball only "
            f"{_percent(pair[0])}: a larger ball cannot be safer, so PGD fails in it (masked gradients, or too few "
            "steps); use more steps and AutoAttack."
        )


# --- the model, tried on a sample of the images ----------------------------------------------------------------------


def _differs(card: ResultCard, fact: str) -> bool:
    """Are the answers to one image farther apart than rounding? Cards of older versions lack some of these facts."""
    return bool(card.probe.get(fact, 0.0) > REPEAT_DIFFERENCE)


def _randomised(card: ResultCard) -> Iterator[str]:
    if _differs(card, "repeat_difference"):
        yield (
            "The model answers the same images differently when it is asked again: every number here is one draw, and "
            "attacks that take the gradient of one draw are too weak; attack the mean of many (EOT)."
        )


def _changing(card: ResultCard) -> Iterator[str]:
    if _differs(card, "later_difference") and not _differs(card, "repeat_difference"):
        yield (
            "The model answers the same images differently after it has answered others: it keeps something that "
            "changes from call to call, so no two attacks met the same model and no number here is about one; let "
            "nothing change in eval mode and evaluate anew."
        )


def _batch_dependent(card: ResultCard) -> Iterator[str]:
    # A model that draws numbers, or changes, answers otherwise in any case.
    steady = not (_differs(card, "repeat_difference") or _differs(card, "later_difference"))
    if steady and _differs(card, "batch_difference"):
        yield (
            "The answer to an image depends on the others in its batch, as with batch statistics in eval mode: every "
            f"number here is one for batches of {card.batch_size} in this order, and attacks on one image act on the "
            "others; make the answers independent (running statistics) and evaluate anew."
        )


def _nonfinite(card: ResultCard) -> Iterator[str]:
    wrong = card.probe.get("nonfinite_gradients", 0)
    if wrong > NONFINITE_GRADIENTS:
        yield (
            f"On {wrong} of {card.probe['images']} images probed, or on PGD's way from them, a logit or the gradient "
            "is not finite, so no attack can follow it there; look for a root, norm or logarithm at 0, and believe no "
            "attack that uses gradients before that is mended."
        )


def _softmax(card: ResultCard) -> Iterator[str]:
    if card.probe and card.probe["distributions"] == card.probe["images"]:
        yield (
            "The model returns probabilities, not logits: cross-entropy takes a second softmax of them, so its "
            "gradients are nearly flat and gradient attacks look weak; return the logits."
        )


def _zero_gradients(card: ResultCard) -> Iterator[str]:
    if card.probe and card.probe["zero_gradients"] > ZERO_GRADIENTS:
        yield (
            f"{card.probe['zero_gradients']} of {card.probe['clean_correct']} correctly classified images have a "
            "gradient of exactly zero (a saturated cross-entropy, or a step that is not differentiable), so PGD cannot "
            "move them; trust Square, and attack a smaller scale of the logits or a differentiable stand-in (BPDA)."
        )


def _logit_scale(card: ResultCard) -> Iterator[str]:
    if not card.probe:
        return
    images, plain, magnified = (card.probe[name] for name in ("images", "only_pgd_correct", "only_scaled_pgd_correct"))
    if (plain - magnified) / images > LOGIT_SCALE_GAP and exceeds(plain, magnified):
        yield (
            f"With logits times 10 in its objective PGD-20 leaves {100 * card.probe['scaled_pgd_correct'] / images:.1f}"
            f" % of {images} images correct, else {100 * card.probe['pgd_correct'] / images:.1f} %: where "
            "logits are this small (scaled down, or hardly trained) cross-entropy pushes to all other classes at once "
            "instead of the nearest, so PGD's numbers are too high; report AutoAttack."
        )


# --- the test set, and what was chosen on it -------------------------------------------------------------------------


def _few_images(card: ResultCard) -> Iterator[str]:
    _, total = metrics.class_counts(np.ones(len(card.labels), dtype=bool), card.labels, card.num_classes)
    if few := [card.class_names[label] for label in metrics.few_images(total)]:
        yield (
            f"{len(few)} of {card.num_classes} classes have fewer than {metrics.FEW_PER_CLASS} test images "
            f"({', '.join(few[:3])}{' ...' if len(few) > 3 else ''}): their numbers, and the balanced ones, are "
            "coarse; read the intervals."
        )


def _no_images(card: ResultCard) -> Iterator[str]:
    present = set(card.labels.tolist())
    if absent := [name for label, name in enumerate(card.class_names) if label not in present]:
        named = absent if len(absent) <= 3 else [*absent[:3], f"{len(absent) - 3} more"]
        yield (
            f"{_listed(named)} {'have' if len(absent) > 1 else 'has'} no test image: balanced numbers are over the "
            f"other {len(present)} of {card.num_classes} classes."
        )


def _small_test_set(card: ResultCard) -> Iterator[str]:
    # The difference of two shares on the same images has a standard error of sqrt(d / n) (McNemar, Psychometrika 1947).
    resolution = Z * float(np.sqrt(DISAGREEMENT / len(card.labels)))
    if resolution > COARSE_COMPARISON:
        yield (
            f"Two methods compared image by image on these {len(card.labels)} test images differ by more than chance "
            f"(95 %) only above about {100 * resolution:.0f} points, if they disagree on {100 * DISAGREEMENT:.0f} % of "
            "the images; use a larger test set, and more seeds."
        )


def _chance(card: ResultCard) -> Iterator[str]:
    for column in card.columns:
        if column.name == "clean":
            summary = card.summary("clean")
            present = int((summary.total > 0).sum())
            low, high = summary.balanced_interval
            if present > 1 and low <= 1 / present:
                asks = "" if card.run else f"; {ASK_ELSEWHERE}"
                yield (
                    f"Without an attack balanced accuracy is {100 * summary.balanced:.1f} %, no better than guessing, "
                    f"{100 / present:.1f} %, within its interval ({100 * low:.0f} to {100 * high:.0f} %): these images "
                    f"show no robustness{asks}."
                )


def _selection(card: ResultCard) -> Iterator[str]:
    if card.model.get("leak"):
        yield (
            "The epoch was chosen by looking at the test set, so these numbers are too high; choose it on a validation "
            "split, or take the last epoch."
        )


CHECKS: Mapping[str, Callable[[ResultCard], Iterator[str]]] = {
    "pgd-too-short": _too_short,
    "one-step-beats-many-step": _one_step,
    "pgd-not-converged": _convergence,
    "autoattack-far-below-pgd": _autoattack,
    "margin-beats-cross-entropy": _margin,
    "adaptive-beats-plain": _adaptive,
    "transfer-beats-white-box": _transfer,
    "black-box-beats-gradients": _black_box,
    "does-not-reach-zero": _not_zero,
    "accuracy-rises-with-eps": _rises,
    "unbounded-attack-not-converged": _unbounded,
    "autoattack-variant": _variant,
    "randomised": _randomised,
    "changes-between-calls": _changing,
    "batch-dependent": _batch_dependent,
    "nonfinite-gradients": _nonfinite,
    "softmax-outputs": _softmax,
    "zero-gradients": _zero_gradients,
    "logit-scale": _logit_scale,
    "at-chance": _chance,
    "class-without-test-images": _no_images,
    "few-images-per-class": _few_images,
    "small-test-set": _small_test_set,
    "selected-on-test-set": _selection,
}
"""Every flag, and the function that raises it and says why."""


# --- in words --------------------------------------------------------------------------------------------------------


def _curve(card: ResultCard, name: str) -> Sequence[tuple[float, Column]]:
    return next((curve.points for curve in curves(card) if curve.name == name), ())


def _steps(column: Column) -> int:
    return int(column.parameters["steps"])


def _percent(column: Column) -> str:
    return f"{100 * accuracy(column):.1f} %"


def _gap(pair: Pair) -> str:
    return f"{_percent(pair[0])} against {_percent(pair[1])}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
