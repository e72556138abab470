"""Possible problems of a model or its evaluation: one table of rules over typed facts.

A rule is one entry: the name of its flag, the text for facts that meet its condition, and the remedy. `flags` applies
the rules to a result card, `problems` to the outputs of a model that `taet check` tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from taet import statistics
from taet.attacks.suite import Suite
from taet.evaluation.card import Flag, ResultCard
from taet.evaluation.column import Column
from taet.evaluation.contrasts import (
    Contrast,
    Z,
    accuracy,
    asked,
    chains,
    crosses,
    differing,
    exceeds,
    is_chain,
    is_thorough,
    one_steps,
    own,
    same_ball,
    strongest,
)
from taet.evaluation.curves import WHOLE, curves
from taet.evaluation.facts import AuditFacts, ModelFacts
from taet.formatting import listed, percent, percent_interval

# Largest decrease from PGD-20 to PGD-100 in the two papers' tables: 1.5 points in the L-infinity ball (TAET, table 1),
# 2.1 in the L2 ball (REAT, table 12).
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}
# Largest decrease from PGD-20 to AutoAttack in REAT's tables: 4.4 points (table 2), except for RoBal, whose scaled
# logits mask its gradients: 6.7 to 7.4 (tables 3 and 5, CIFAR-10-LT). Also used for L2, for lack of other numbers.
AUTOATTACK_GAP = 0.045
# Largest decrease from PGD to CW-100, which ascends the margin, there: 2.5 points (table 2), except RoBal: 4.5 to 5.5.
# Cross-entropy approaches the margin as logits grow: scaling them may cost as much. It costs RoBal 4.7 to 5.7.
MARGIN_GAP = 0.025
# Between these 2.5 and 4.7 points: least decrease by scaled logits on the few images of the probe that raises a flag.
# The same for operations that are replaced by differentiable ones, merged logits and the mean of many draws.
SAMPLE_GAP = 0.04
# Thresholds of the warnings of the official AutoAttack about Square and about randomised models.
SQUARE_GAP = 0.002
REPEAT_DIFFERENCE = 1e-4
# Without a bound an attack must break every image, and a larger ball cannot be safer (Athalye, Carlini, Wagner, ICML
# 2018, arXiv:1802.00420, section 3.1). One image in a hundred is tolerated because the number of steps is finite.
REMAINDER = 0.01
# Assumed share of images on which two methods disagree; it determines the precision of their paired comparison.
DISAGREEMENT = 0.25
# With this share, about 1000 images reach this precision.
COARSE_COMPARISON = 0.03
FEW_PROBED = 100  # of so many images at least 6 broken by the stronger attack alone exceed chance
# Flags of an attack that only bounds the accuracy: the bound is usable, or it must not be used.
BOUND, MISLED = "quick-is-a-bound", "quick-misled"

Facts = TypeVar("Facts", contravariant=True)


@dataclass(frozen=True)
class Diagnostic(Generic[Facts]):
    """A rule for one possible problem."""

    flag: str
    """Name of the flag, as result cards store it."""
    says: Callable[[Facts], str | None]
    """The text, what was found and what it means, if the condition of the rule holds; else None."""
    remedy: str = ""
    """Advice on what to do."""
    subject: str = ""
    """The subject under which `taet check` reports it; empty if it does not."""
    unless: tuple[str, ...] = ()
    """Flags that already explain this one, which is then not raised."""
    misleads: bool = True
    """For `ATTACKS` and `MODEL`: whether attacks that use only gradients may then be far from the true accuracy."""

    def text(self, facts: Facts) -> str | None:
        """Return the text with the remedy, or None if the rule does not apply."""
        said = self.says(facts)
        return f"{said}; {self.remedy}" if said and self.remedy else said


def flags(card: ResultCard) -> tuple[Flag, ...]:
    """Return the warnings about a card; each text is one sentence."""
    model = card.facts
    said = {**_said(ATTACKS, card), **(_said(MODEL, model) if model else {}), **_said(TEST_SET, card)}
    said |= _bound(card, [flag for flag in said if flag in MASKING])
    return _as_flags(said)


def flagged(card: ResultCard) -> ResultCard:
    """Return a card with its flags, including those about its probe."""
    return card.changed(flags=(*flags(card), *_as_flags(_said(PROBE, card))))


def _as_flags(said: Mapping[str, str]) -> tuple[Flag, ...]:
    return tuple(Flag(flag=flag, text=f"{text}.") for flag, text in said.items())


def raised(card: ResultCard) -> list[str]:
    """Return the names of a card's flags and of those that its numbers raise: the flags of a changed card are fewer."""
    return list(dict.fromkeys(flag["flag"] for flag in (*card.flags, *flagged(card).flags)))


def _bound(card: ResultCard, raised: Collection[str]) -> dict[str, str]:
    """Return what is known about attacks that only bound the accuracy, or a warning not to use them on this model."""
    bounds = [column for column in asked(card) if column.attack.bound]
    names = listed(column.name for column in bounds)
    if bounds and raised:
        return {MISLED: f"{names} must not be used on this model, which raises {listed(raised)}; use AutoAttack"}
    return {BOUND: f"{names}: {bounds[0].attack.bound}; report AutoAttack"} if bounds else {}


def audit_flags(card: ResultCard, facts: AuditFacts) -> dict[str, str]:
    """Return the text of every flag that the card and the facts of an audit raise, by name."""
    return {flag["flag"]: flag["text"] for flag in (*card.flags, *_as_flags(_said(AUDIT, facts)))}


def problems(facts: ModelFacts) -> dict[str, str]:
    """Return the first problem of each subject of `taet check` that the outputs of a model show."""
    said = _said(MODEL, facts)
    found = {rule.subject: said[rule.flag] for rule in reversed(MODEL) if rule.subject and rule.flag in said}
    return {subject: text[0].lower() + text[1:] for subject, text in found.items()}


def _said(rules: Iterable[Diagnostic[Facts]], facts: Facts) -> dict[str, str]:
    """Return the texts of the rules that apply, by flag."""
    said = {rule: text for rule in rules if (text := rule.text(facts)) is not None}
    raised = {rule.flag for rule in said}
    return {rule.flag: text for rule, text in said.items() if raised.isdisjoint(rule.unless)}


def _too_short(card: ResultCard) -> str | None:
    # The curve over the steps begins with PGD runs that are short on purpose.
    short = [one.name for one in own(card) if is_chain(one) and one.curve != "steps" and not crosses(one)]
    return f"{listed(short)} cannot cross the ball: the steps add up to less than its width" if short else None


def _one_step(card: ResultCard) -> str | None:
    pair = strongest((one, many) for one in one_steps(card) for many in chains(card) if same_ball(one, many))
    return pair and (
        f"{pair[0].name} breaks more images than {pair[1].name} ({_gap(pair)}), which cannot happen with sound "
        "gradients: the model masks them (Athalye et al. 2018)"
    )


def _convergence(card: ResultCard) -> str | None:
    def work(column: Column) -> tuple[int, int]:
        return column.attack.ascent_steps, column.parameters.get("restarts", 1)

    for norm, usual in CONVERGENCE_GAP.items():
        columns = [column for column in chains(card) if column.norm == norm]
        pairs = [pair for setting in ("steps", "restarts") for pair in differing(columns, setting)]
        longer = ((one, other) for one, other in pairs if work(one) > work(other))
        if pair := strongest(longer, usual):
            return f"{_far_below(pair)}: PGD has not converged, so the true robustness is lower"
    return None


def _autoattack(card: ResultCard) -> str | None:
    suites = [column for column in asked(card) if isinstance(column.attack, Suite)]
    balls = ((suite, [chain for chain in chains(card) if same_ball(suite, chain)]) for suite in suites)
    pair = strongest(((suite, min(found, key=accuracy)) for suite, found in balls if found), AUTOATTACK_GAP)
    return pair and (f"{_far_below(pair)}: the model resists PGD better than other attacks, a sign of gradient masking")


def _margin(card: ResultCard) -> str | None:
    pairs = differing(asked(card), "objective")
    pair = strongest((pair for pair in pairs if pair[0].attack.on_margin), MARGIN_GAP)
    return pair and (
        f"{_far_below(pair)}: PGD on the cross-entropy is weaker on this model than usual, a sign of gradient masking"
    )


def _adaptive(card: ResultCard) -> str | None:
    pairs = differing(own(card), "factor")
    pair = strongest((pair for pair in pairs if "factor" not in pair[1].parameters), MARGIN_GAP)
    return pair and (
        f"With logits times {pair[0].parameters['factor']:g} in its objective, {pair[1].name} breaks many more images "
        f"({_gap(pair)}): the scale of the logits weakens the plain attack, which overestimates robustness"
    )


def _transfer(card: ResultCard) -> str | None:
    made = (column for column in card.columns if column.is_transfer)
    pairs = ((one, other) for one in made for other in own(card) if one.attack.typed == other.name)
    pair = strongest(pair for pair in pairs if same_ball(*pair))
    return pair and (
        f"{pair[0].name}, whose examples were made on another model, breaks more images than the white-box attack "
        f"{pair[1].name} ({_gap(pair)}): with sound gradients the white-box attack is stronger"
    )


def _black_box(card: ResultCard) -> str | None:
    for column in card.columns:
        if not isinstance(column.attack, Suite):  # other attacks may use no gradients
            continue
        for (_, before), (part, after) in pairwise(column.parts.items()):
            broken = int(before.sum() - after.sum())
            if part in column.attack.gradient_free_parts and exceeds(broken, 0, SQUARE_GAP * len(card.labels)):
                return (
                    f"{part.capitalize()}, which uses no gradient, broke another {100 * broken / len(card.labels):.1f} "
                    f"points after the gradient-based parts of {column.name}: the model's gradients mislead attacks"
                )
    guided = [column for column in asked(card) if column.norm is not None and not column.attack.gradient_free]
    missed = {
        column.name: int((np.logical_and.reduce([one.correct for one in balls]) & ~column.correct).sum())
        for column in asked(card)
        if column.attack.gradient_free
        and any(map(is_thorough, balls := [one for one in guided if same_ball(one, column)]))
    }
    name = max(missed, key=lambda one: missed[one], default="")
    if not name or not exceeds(missed[name], 0, SQUARE_GAP * len(card.labels)):
        return None
    return (
        f"{name}, which uses no gradient, breaks images that no gradient-based attack breaks "
        f"({100 * missed[name] / len(card.labels):.1f} % of all): the model's gradients mislead attacks"
    )


def _not_zero(card: ResultCard) -> str | None:
    for eps, column in _eps_curve(card):
        if eps >= WHOLE and crosses(column) and accuracy(column) > REMAINDER:
            return (
                f"{column.name} leaves {_share(column)} of the images correct although its ball contains every image: "
                "the model masks its gradients, or always predicts the same class"
            )
    return None


def _rises(card: ResultCard) -> str | None:
    points = _eps_curve(card)
    balls = ((small, large) for eps, small in points for radius, large in points if 0 < eps < radius)
    pair = strongest(balls, REMAINDER)
    return pair and (
        f"{pair[1].name} leaves {_share(pair[1])} of the images correct, {pair[0].name} in a smaller ball only "
        f"{_share(pair[0])}: accuracy cannot rise with eps, so PGD fails (masked gradients, or too few steps)"
    )


def _unbounded(card: ResultCard) -> str | None:
    unbounded = [column for column in own(card) if column.norm is not None and not column.bounded]
    short = [f"{column.name} leaves {_share(column)}" for column in unbounded if accuracy(column) > REMAINDER]
    return (
        f"{listed(short)} of the images correct, but a converged unbounded attack leaves none: the number does not "
        "measure robustness"
        if short
        else None
    )


def _variant(card: ResultCard) -> str | None:
    varied = [column for column in asked(card) if column.parameters.get("note")]
    names = listed(column.name for column in varied)
    return (
        f"With {card.num_classes} classes, {names} cannot run as the standard suite; {varied[0].parameters['note']}"
        if varied
        else None
    )


def _share(column: Column) -> str:
    return f"{percent(accuracy(column))} %"


def _gap(pair: Contrast) -> str:
    return f"{_share(pair[0])} against {_share(pair[1])}"


def _far_below(pair: Contrast) -> str:
    return f"{pair[0].name} is far below {pair[1].name} ({_gap(pair)})"


def _eps_curve(card: ResultCard) -> tuple[tuple[float, Column], ...]:
    return next((curve.points for curve in curves(card) if curve.name == "eps"), ())


ATTACKS: tuple[Diagnostic[ResultCard], ...] = (
    Diagnostic("pgd-too-short", _too_short, "use more steps or longer ones", misleads=False),
    Diagnostic("one-step-beats-many-step", _one_step, "report AutoAttack, not PGD"),
    Diagnostic("pgd-not-converged", _convergence, "use more steps and AutoAttack"),
    Diagnostic("autoattack-far-below-pgd", _autoattack, "report AutoAttack, not PGD"),
    Diagnostic("margin-beats-cross-entropy", _margin, "report AutoAttack, not PGD"),
    Diagnostic("adaptive-beats-plain", _adaptive, "report the adaptive attack and AutoAttack"),
    Diagnostic("transfer-beats-white-box", _transfer, "report AutoAttack, not PGD"),
    Diagnostic("black-box-beats-gradients", _black_box, "use more queries and an adaptive attack"),
    Diagnostic("does-not-reach-zero", _not_zero, "use Square and other attacks without gradients"),
    Diagnostic("accuracy-rises-with-eps", _rises, "use more steps and AutoAttack"),
    Diagnostic(
        "unbounded-attack-not-converged",
        _unbounded,
        "use more or longer steps (cw-l2:steps=1000 or lr=0.1), or attacks in a ball",
        misleads=False,
    ),
    Diagnostic("autoattack-variant", _variant, misleads=False),
)


def _when(condition: Callable[[Facts], bool], text: str) -> Callable[[Facts], str | None]:
    """Return a function that fills the text with the facts if the condition holds, else returns None."""
    return lambda facts: text.format(**vars(facts)) if condition(facts) else None


def _logit_scale(facts: ModelFacts) -> str | None:
    plain, magnified, images = facts.pgd_correct, facts.scaled_pgd_correct, facts.images
    if not _beaten(plain, magnified, facts.only_scaled_pgd_correct, images):
        return None
    why = (
        "with logits this small (scaled down, or hardly trained) the cross-entropy pushes towards all other classes at "
        "once instead of the nearest"
        if facts.logit_factor > 1
        else "with logits this large the cross-entropy and its gradients are rounded to zero"
    )
    return (
        f"With logits times {facts.logit_factor:.3g} in its objective, PGD-20 leaves "
        f"{percent(magnified / images)} % of {images} images correct, otherwise {percent(plain / images)} %: {why}, "
        "so PGD overestimates robustness"
    )


def _replaced(attack: str, how: str) -> Callable[[ModelFacts], str | None]:
    """Return a text for PGD on replaced gradients, `attack` as in the fields of the facts, if it beats PGD-20."""

    def says(facts: ModelFacts) -> str | None:
        left, only = (getattr(facts, f"{prefix}{attack}_pgd_correct") for prefix in ("", "only_"))
        if not facts.replaced or not _beaten(facts.pgd_correct, left, only, facts.images):
            return None
        return (
            f"{how}, PGD-20 leaves {percent(left / facts.images)} % of {facts.images} images correct, otherwise "
            f"{percent(facts.pgd_correct / facts.images)} %: operations in the model stop or distort its gradient, so "
            "gradient-based attacks overestimate robustness"
        )

    return says


MODEL: tuple[Diagnostic[ModelFacts], ...] = (
    Diagnostic(
        "randomised",
        _when(
            lambda facts: facts.repeat_difference > REPEAT_DIFFERENCE,
            "Two forward passes of the same images give different logits (by {repeat_difference:.2g} at unit length): "
            "every number is one random draw, and attacks on the gradient of a single draw are too weak",
        ),
        "attack the mean of many draws (EOT)",
        subject="determinism",
    ),
    Diagnostic(
        "changes-between-calls",
        _when(
            lambda facts: facts.later_difference > REPEAT_DIFFERENCE,
            "The logits of the same images change after forward passes of other images: the model keeps state, so no "
            "two attacks ran on the same model",
        ),
        "do not update state in eval mode and evaluate again",
        unless=("randomised",),
    ),
    Diagnostic(
        "batch-dependent",
        _when(
            lambda facts: facts.batch_difference > REPEAT_DIFFERENCE,
            "The logits of an image depend on the other images in its batch (by {batch_difference:.2g} at unit "
            "length), as with batch statistics in eval mode: every number holds only for batches of {batch_size} in "
            "this order, and an attack on one image changes the predictions for others",
        ),
        "use running statistics and evaluate again",
        subject="batch",
        unless=("randomised", "changes-between-calls"),
    ),
    Diagnostic(
        "nonfinite-gradients",
        _when(
            lambda facts: facts.nonfinite_gradients > 0,
            "On {nonfinite_gradients} of {images} tested images, or during PGD from them, a logit or the gradient is "
            "not finite, so no gradient-based attack can be trusted",
        ),
        "look for a square root, norm or logarithm of 0",
        subject="gradients",
    ),
    Diagnostic(
        "softmax-outputs",
        _when(
            lambda facts: facts.distributions == facts.images,
            "The model returns probabilities, not logits: the cross-entropy applies a second softmax, so its gradients "
            "nearly vanish and gradient-based attacks are too weak",
        ),
        "return the logits, the input of the softmax",
        subject="logits",
    ),
    Diagnostic(
        "zero-gradients",
        _when(
            lambda facts: facts.zero_gradients > 0,
            "The gradient is exactly zero on {zero_gradients} of {clean_correct} correctly classified images (a "
            "saturated cross-entropy, or an operation without a gradient), so PGD cannot change them",
        ),
        "use Square, and attack with smaller logits or a differentiable replacement (BPDA)",
        subject="gradients",
    ),
    Diagnostic("logit-scale", _logit_scale, "report AutoAttack"),
    Diagnostic(
        "gradient-path-differs",
        _when(
            lambda facts: facts.gradient_difference > REPEAT_DIFFERENCE,
            "The logits of the same images differ with and without gradients (by {gradient_difference:.2g} at unit "
            "length), so attacks follow the gradient of a different function than the one that is evaluated",
        ),
        "make forward independent of whether gradients are recorded",
        unless=("randomised", "changes-between-calls"),
        misleads=False,
    ),
    Diagnostic(
        "straight-through-beats-gradients",
        _replaced("straight", "With the identity as the derivative of operations that stop the gradient"),
        "attack with a differentiable replacement (BPDA)",
    ),
    Diagnostic(
        "soft-beats-hard",
        _replaced("smooth", "On the margin of the model with smooth operations instead of rounding and thresholds"),
        "attack with a differentiable replacement (BPDA)",
        unless=("straight-through-beats-gradients",),
    ),
)
MASKING = {rule.flag for rule in ATTACKS if rule.misleads} | {rule.flag for rule in MODEL if rule.misleads}
"""Flags which say that gradients may mislead attacks."""


def _chance(card: ResultCard) -> str | None:
    if card.clean is None:
        return None
    summary = card.summary_of(card.clean)
    present, (low, high) = int((summary.total > 0).sum()), summary.balanced_interval
    if present < 2 or low > 1 / present:
        return None
    # A run of this package stores its weights, normalisation and classes.
    ask = "" if card.run else "; check weights, normalisation and the order of the classes with taet check"
    return (
        f"Clean balanced accuracy is {percent(summary.balanced)} % (95 % interval {percent_interval(low, high, 0)} %), "
        f"no better than chance, {percent(1 / present)} %: robustness cannot be measured on these images{ask}"
    )


def _no_images(card: ResultCard) -> str | None:
    total = card.test_class_counts
    absent = [name for name, count in zip(card.class_names, total, strict=True) if not count]
    return (
        f"{listed(absent, most=3)} {'have' if len(absent) > 1 else 'has'} no test images: balanced numbers cover the "
        f"other {(total > 0).sum()} of {card.num_classes} classes"
        if absent
        else None
    )


def _few_images(card: ResultCard) -> str | None:
    few = [card.class_names[label] for label in statistics.few_images(card.test_class_counts)]
    some = f"{', '.join(few[:3])}{' ...' if len(few) > 3 else ''}"
    return (
        f"{len(few)} of {card.num_classes} classes have fewer than {statistics.FEW_PER_CLASS} test images ({some}): "
        "their numbers, and the balanced ones, are imprecise"
        if few
        else None
    )


def _small_test_set(card: ResultCard) -> str | None:
    # The difference of two shares on the same images has a standard error of sqrt(d / n) (McNemar, Psychometrika 1947).
    resolution = Z * math.sqrt(DISAGREEMENT / len(card.labels))
    return (
        f"With {len(card.labels)} test images, a difference between two methods is significant (95 %) only above "
        f"about {100 * resolution:.0f} points, if they disagree on {100 * DISAGREEMENT:.0f} % of the images"
        if resolution > COARSE_COMPARISON
        else None
    )


def _selection(card: ResultCard) -> str | None:
    leak = "The epoch was chosen by its accuracy on the test set, so these numbers are too high"
    return leak if card.model.get("leak") else None


def _extra(card: ResultCard) -> str | None:
    apart = "they were compared only with those of the run's own data set"
    compared = card.data.get("extra", {}).get("compared", True)  # cards of older versions do not say
    return None if compared else f"The extra training images may contain some of these test images: {apart}"


TEST_SET: tuple[Diagnostic[ResultCard], ...] = (
    Diagnostic("at-chance", _chance),
    Diagnostic("class-without-test-images", _no_images),
    Diagnostic("few-images-per-class", _few_images, "read the intervals"),
    Diagnostic("small-test-set", _small_test_set, "use a larger test set, and more seeds"),
    Diagnostic("selected-on-test-set", _selection, "choose it on a validation split, or take the last epoch"),
    Diagnostic("extra-not-compared", _extra, "evaluate on the run's own test images"),
)


def _not_probed(card: ResultCard) -> str | None:
    attacked = any(column.norm is not None and not column.is_transfer for column in card.columns)
    return (
        "The probe was turned off, so the model was not tested for problems that mislead attacks, such as masked "
        "gradients"
        if attacked and not card.probe
        else None
    )


def _small_probe(card: ResultCard) -> str | None:
    images, total = int(card.probe.get("images", FEW_PROBED)), len(card.labels)
    return (
        f"The probe used only {images} of {total} images, because the attacks are short or the batches small, so it "
        "may miss masked gradients"
        if images < min(FEW_PROBED, total)
        else None
    )


PROBE: tuple[Diagnostic[ResultCard], ...] = (
    Diagnostic("not-probed", _not_probed, "evaluate again without --no-probe"),
    Diagnostic(
        "probe-small", _small_probe, f"run longer attacks, such as autoattack, in batches of {FEW_PROBED} or more"
    ),
)


def _beaten(weak: int, strong: int, only_strong: int, images: int) -> bool:
    """Return whether the attack that leaves `strong` images correct beats the other by over 4 points and chance."""
    return (weak - strong) / images > SAMPLE_GAP and exceeds(weak - strong + only_strong, only_strong)


def _dummies(facts: AuditFacts) -> str | None:
    if facts.logits <= facts.classes:
        return None
    raw, merged = (percent(count / facts.images) for count in (facts.raw_correct, facts.merged_correct))
    fooled = _beaten(facts.raw_correct, facts.merged_correct, facts.only_merged_correct, facts.images)
    why = "so attacks on all logits only raise another logit of the true class" if fooled else "which are merged"
    return (
        f"The model returns {facts.logits} logits for {facts.classes} classes, {why}: PGD-20 on all logits leaves "
        f"{raw} % of {facts.images} images correct, on the margin of the largest logit of each class {merged} %"
    )


def _one_draw(facts: AuditFacts) -> str | None:
    if not facts.draws or not _beaten(facts.one_correct, facts.mean_correct, facts.only_mean_correct, facts.images):
        return None
    one, mean = (percent(count / facts.images) for count in (facts.one_correct, facts.mean_correct))
    return (
        f"PGD-20 with the mean gradient of {facts.draws} draws leaves {mean} % of {facts.images} images correct, with "
        f"one draw per step {one} %"
    )


AUDIT: tuple[Diagnostic[AuditFacts], ...] = (
    Diagnostic(
        "no-gradient",
        lambda facts: (
            None
            if facts.reaches
            else "No gradient reaches the image; all attacks of this audit use the identity as the derivative of the "
            "operations that stop it"
        ),
        "report the attack with differentiable replacements (BPDA)",
    ),
    Diagnostic("dummy-classes", _dummies, "attack the largest logit of each class"),
    Diagnostic("eot-beats-one-draw", _one_draw, "attack the mean of many draws (EOT)"),
)
