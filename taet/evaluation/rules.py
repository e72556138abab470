"""The rules: when the numbers of a card, or the outputs of a model, cannot be trusted, why, and what to do.

Each entry of `RULES` has the name of its flag, a remedy, and a function: the condition, and the text where it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from taet import statistics
from taet.attacks.pgd import ProjectedAscent
from taet.evaluation import contrasts
from taet.evaluation.bundles import WHOLE, curves
from taet.evaluation.card import Card, Flag
from taet.evaluation.column import Column
from taet.evaluation.contrasts import Contrast, Z, accuracy, asked, beaten, crosses, differing, own, strongest
from taet.evaluation.facts import DeepFacts, ModelFacts
from taet.formatting import listed, percent, percent_interval

REPEAT_DIFFERENCE = 1e-4  # threshold of the warning of the official AutoAttack about randomised models
# Assumed share of images on which two methods disagree; it determines the precision of their paired comparison. With
# this share, about 1000 images reach a precision of 3 points.
DISAGREEMENT, COARSE_COMPARISON = 0.25, 0.03
FEW_PROBED = 100  # of so many images at least 6 broken by the stronger attack alone exceed chance

NOT_FIXED = ("randomised", "changes-between-calls")
BPDA = "attack with a differentiable replacement (BPDA)"
STOPPED = "operations in the model stop or distort its gradient, so gradient-based attacks overestimate robustness"
Sentence = object
"""What was found and what it means; anything false where nothing is wrong."""


@dataclass(frozen=True)
class Diagnostic:
    """A rule for one possible problem; its flag is the name that cards store.

    `of` says what it looks at: attacks, test, probe and bound at a `Card`, model at `ModelFacts`, deep at `DeepFacts`.
    """

    flag: str
    of: str
    says: Callable[[Any], Sentence]
    remedy: str = ""
    unless: tuple[str, ...] = ()
    """Flags that already explain this one, which is then not raised."""
    misleads: bool = True
    """Of attacks and model: whether attacks that use only gradients may then be far from the true accuracy."""


RULES: list[Diagnostic] = []
"""All rules, in the order in which their flags are stored."""


def rule(flag: str, of: str, remedy: str = "", **more: Any) -> Callable[[Callable[[Any], Sentence]], None]:
    """Make a function the condition and the text of an entry of `RULES`."""
    return lambda says: RULES.append(Diagnostic(flag, of, says, remedy, **more))


def said(of: str, facts: object) -> dict[str, str]:
    """Return the texts of the rules that apply, by flag; each is one sentence."""
    found = {rule: text for rule in RULES if rule.of == of and (text := rule.says(facts))}
    flags = {rule.flag for rule in found}
    kept = {rule: text for rule, text in found.items() if flags.isdisjoint(rule.unless)}
    return {rule.flag: f"{text}; {rule.remedy}." if rule.remedy else f"{text}." for rule, text in kept.items()}


def flags(card: Card) -> tuple[Flag, ...]:
    """Return the warnings about a card."""
    found = said("attacks", card) | (said("model", card.facts) if card.facts else {}) | said("test", card)
    found |= said("bound", (card, [flag for flag in found if flag in MASKING])) | said("probe", card)
    return tuple(Flag(flag=flag, text=text) for flag, text in found.items())


def flagged(card: Card) -> Card:
    """Return a card with its flags."""
    return card.changed(flags=flags(card))


def raised(card: Card) -> list[str]:
    """Return the names of a card's flags and of those that its numbers raise: the flags of a changed card are fewer."""
    return list(dict.fromkeys(flag["flag"] for flag in (*card.flags, *flags(card))))


def _share(column: Column) -> str:
    return f"{percent(accuracy(column))} %"


def _on_pair(pairs: Iterable[Contrast], text: str, usual: float = 0.0) -> Sentence:
    """Return the text, filled with the strongest of these pairs, if that differs by more than is usual and chance."""
    if (pair := strongest(pairs, usual)) is None:
        return None
    low, high = map(_share, pair)
    return text.format(one=pair[0], other=pair[1], low=low, high=high, gap=f"{low} against {high}")


@rule("pgd-too-short", "attacks", "use more steps or longer ones", misleads=False)
def _(card: Card) -> Sentence:
    # The curve over the steps begins with PGD runs that are short on purpose.
    pgds = (one for one in own(card) if isinstance(one.attack, ProjectedAscent) and one.curve != "steps")
    short = listed(one.name for one in pgds if not crosses(one))
    return short and f"{short} cannot cross the ball: the steps add up to less than its width"


@rule("one-step-beats-many-step", "attacks", "report AutoAttack, not PGD")
def _(card: Card) -> Sentence:
    text = "{one.name} breaks more images than {other.name} ({gap}), which cannot happen with sound gradients: the"
    return _on_pair(contrasts.one_steps(card), f"{text} model masks them (Athalye et al. 2018)")


@rule("pgd-not-converged", "attacks", "use more steps and AutoAttack")
def _(card: Card) -> Sentence:
    text = "{one.name} is far below {other.name} ({gap}): PGD has not converged, so the true robustness is lower"
    found = (_on_pair(contrasts.longer(card, norm), text, usual) for norm, usual in contrasts.CONVERGENCE_GAP.items())
    return next(filter(None, found), None)


@rule("autoattack-far-below-pgd", "attacks", "report AutoAttack, not PGD")
def _(card: Card) -> Sentence:
    text = "{one.name} is far below {other.name} ({gap}): the model resists PGD better than other attacks, a sign of"
    return _on_pair(contrasts.suites(card), f"{text} gradient masking", contrasts.AUTOATTACK_GAP)


@rule("margin-beats-cross-entropy", "attacks", "report AutoAttack, not PGD")
def _(card: Card) -> Sentence:
    pairs = (pair for pair in differing(asked(card), "objective") if pair[0].attack.on_margin)
    text = "{one.name} is far below {other.name} ({gap}): PGD on the cross-entropy is weaker on this model than usual,"
    return _on_pair(pairs, f"{text} a sign of gradient masking", contrasts.MARGIN_GAP)


@rule("adaptive-beats-plain", "attacks", "report the adaptive attack and AutoAttack")
def _(card: Card) -> Sentence:
    pairs = (pair for pair in differing(own(card), "factor") if "factor" not in pair[1].parameters)
    text = (
        "With logits times {one.parameters[factor]:g} in its objective, {other.name} breaks many more images ({gap}): "
        "the scale of the logits weakens the plain attack, which overestimates robustness"
    )
    return _on_pair(pairs, text, contrasts.MARGIN_GAP)


@rule("transfer-beats-white-box", "attacks", "report AutoAttack, not PGD")
def _(card: Card) -> Sentence:
    text = (
        "{one.name}, whose examples were made on another model, breaks more images than the white-box attack "
        "{other.name} ({gap}): with sound gradients the white-box attack is stronger"
    )
    return _on_pair(contrasts.transfers(card), text)


@rule("black-box-beats-gradients", "attacks", "use more queries and an adaptive attack")
def _(card: Card) -> Sentence:
    if (found := contrasts.unguided(card)) is None:
        return None
    does = f"breaks images that no gradient-based attack breaks ({found.share:.1f} % of all)"
    if found.suite:
        does = f"broke another {found.share:.1f} points after the gradient-based parts of {found.suite}"
    return f"{found.name}, which uses no gradient, {does}: the model's gradients mislead attacks"


@rule("does-not-reach-zero", "attacks", "use Square and other attacks without gradients")
def _(card: Card) -> Sentence:
    points = curves(card)["eps"].items()
    left = [one for eps, one in points if eps >= WHOLE and crosses(one) and accuracy(one) > contrasts.REMAINDER]
    return left and (
        f"{left[0].name} leaves {_share(left[0])} of the images correct although its ball contains every image: the "
        "model masks its gradients, or always predicts the same class"
    )


@rule("accuracy-rises-with-eps", "attacks", "use more steps and AutoAttack")
def _(card: Card) -> Sentence:
    text = (
        "{other.name} leaves {high} of the images correct, {one.name} in a smaller ball only {low}: accuracy cannot "
        "rise with eps, so PGD fails (masked gradients, or too few steps)"
    )
    return _on_pair(contrasts.larger_balls(card), text, contrasts.REMAINDER)


@rule(
    "unbounded-attack-not-converged",
    "attacks",
    "use more or longer steps (cw-l2:steps=1000 or lr=0.1), or attacks in a ball",
    misleads=False,
)
def _(card: Card) -> Sentence:
    unbounded = [one for one in own(card) if one.norm is not None and not one.bounded]
    left = listed(f"{one.name} leaves {_share(one)}" for one in unbounded if accuracy(one) > contrasts.REMAINDER)
    return left and (
        f"{left} of the images correct, but a converged unbounded attack leaves none: the number does not measure "
        "robustness"
    )


@rule("autoattack-variant", "attacks", misleads=False)
def _(card: Card) -> Sentence:
    varied = [column for column in asked(card) if column.parameters.get("note")]
    return varied and (
        f"With {card.num_classes} classes, {listed(column.name for column in varied)} cannot run as the standard "
        f"suite; {varied[0].parameters['note']}"
    )


@rule("randomised", "model", "attack the mean of many draws (EOT)")
def _(facts: ModelFacts) -> Sentence:
    return facts.repeat_difference > REPEAT_DIFFERENCE and (
        f"Two forward passes of the same images give different logits (by {facts.repeat_difference:.2g} at unit "
        "length): every number is one random draw, and attacks on the gradient of a single draw are too weak"
    )


@rule("changes-between-calls", "model", "do not update state in eval mode and evaluate again", unless=("randomised",))
def _(facts: ModelFacts) -> Sentence:
    return facts.later_difference > REPEAT_DIFFERENCE and (
        "The logits of the same images change after forward passes of other images: the model keeps state, so no two "
        "attacks ran on the same model"
    )


@rule("batch-dependent", "model", "use running statistics and evaluate again", unless=NOT_FIXED)
def _(facts: ModelFacts) -> Sentence:
    return facts.batch_difference > REPEAT_DIFFERENCE and (
        f"The logits of an image depend on the other images in its batch (by {facts.batch_difference:.2g} at unit "
        f"length), as with batch statistics in eval mode: every number holds only for batches of {facts.batch_size} in "
        "this order, and an attack on one image changes the predictions for others"
    )


@rule("nonfinite-gradients", "model", "look for a square root, norm or logarithm of 0")
def _(facts: ModelFacts) -> Sentence:
    return facts.nonfinite_gradients > 0 and (
        f"On {facts.nonfinite_gradients} of {facts.images} tested images, or during PGD from them, a logit or the "
        "gradient is not finite, so no gradient-based attack can be trusted"
    )


@rule("softmax-outputs", "model", "return the logits, the input of the softmax")
def _(facts: ModelFacts) -> Sentence:
    return facts.distributions == facts.images and (
        "The model returns probabilities, not logits: the cross-entropy applies a second softmax, so its gradients "
        "nearly vanish and gradient-based attacks are too weak"
    )


@rule("zero-gradients", "model", "use Square, and attack with smaller logits or a differentiable replacement (BPDA)")
def _(facts: ModelFacts) -> Sentence:
    return facts.zero_gradients > 0 and (
        f"The gradient is exactly zero on {facts.zero_gradients} of {facts.clean_correct} correctly classified images "
        "(a saturated cross-entropy, or an operation without a gradient), so PGD cannot change them"
    )


@rule("logit-scale", "model", "report AutoAttack")
def _(facts: ModelFacts) -> Sentence:
    why = (
        "with logits this small (scaled down, or hardly trained) the cross-entropy pushes towards all other classes at "
        "once instead of the nearest"
        if facts.logit_factor > 1
        else "with logits this large the cross-entropy and its gradients are rounded to zero"
    )
    shares = beaten(facts, "scaled_pgd")
    return shares and (
        f"With logits times {facts.logit_factor:.3g} in its objective, PGD-20 leaves {shares}: {why}, so PGD "
        "overestimates robustness"
    )


@rule(
    "gradient-path-differs",
    "model",
    "make forward independent of whether gradients are recorded",
    unless=NOT_FIXED,
    misleads=False,
)
def _(facts: ModelFacts) -> Sentence:
    return facts.gradient_difference > REPEAT_DIFFERENCE and (
        f"The logits of the same images differ with and without gradients (by {facts.gradient_difference:.2g} at unit "
        "length), so attacks follow the gradient of a different function than the one that is evaluated"
    )


@rule("straight-through-beats-gradients", "model", BPDA)
def _(facts: ModelFacts) -> Sentence:
    shares = facts.replaced and beaten(facts, "straight_pgd")
    how = "With the identity as the derivative of operations that stop the gradient"
    return shares and f"{how}, PGD-20 leaves {shares}: {STOPPED}"


@rule("soft-beats-hard", "model", BPDA, unless=("straight-through-beats-gradients",))
def _(facts: ModelFacts) -> Sentence:
    shares = facts.replaced and beaten(facts, "smooth_pgd")
    how = "On the margin of the model with smooth operations instead of rounding and thresholds"
    return shares and f"{how}, PGD-20 leaves {shares}: {STOPPED}"


@rule("at-chance", "test")
def _(card: Card) -> Sentence:
    summary = None if card.clean is None else card.summary_of(card.clean)
    present = 0 if summary is None else int((summary.total > 0).sum())
    if summary is None or present < 2 or summary.balanced_interval[0] > 1 / present:
        return None
    # A run of this package stores its weights, normalisation and classes.
    ask = "" if card.run else "; check weights, normalisation and the order of the classes with taet check"
    interval = percent_interval(*summary.balanced_interval, 0)
    return (
        f"Clean balanced accuracy is {percent(summary.balanced)} % (95 % interval {interval} %), no better than "
        f"chance, {percent(1 / present)} %: robustness cannot be measured on these images{ask}"
    )


@rule("class-without-test-images", "test")
def _(card: Card) -> Sentence:
    total = card.test_class_counts
    absent = [name for name, count in zip(card.class_names, total, strict=True) if not count]
    return absent and (
        f"{listed(absent, most=3)} {'have' if len(absent) > 1 else 'has'} no test images: balanced numbers cover the "
        f"other {(total > 0).sum()} of {card.num_classes} classes"
    )


@rule("few-images-per-class", "test", "read the intervals")
def _(card: Card) -> Sentence:
    few = [card.class_names[label] for label in statistics.few_images(card.test_class_counts)]
    return few and (
        f"{len(few)} of {card.num_classes} classes have fewer than {statistics.FEW_PER_CLASS} test images "
        f"({listed(few, most=3)}): their numbers, and the balanced ones, are imprecise"
    )


@rule("small-test-set", "test", "use a larger test set, and more seeds")
def _(card: Card) -> Sentence:
    # The difference of two shares on the same images has a standard error of sqrt(d / n) (McNemar, Psychometrika 1947).
    resolution = Z * math.sqrt(DISAGREEMENT / len(card.labels))
    return resolution > COARSE_COMPARISON and (
        f"With {len(card.labels)} test images, a difference between two methods is significant (95 %) only above about "
        f"{100 * resolution:.0f} points, if they disagree on {100 * DISAGREEMENT:.0f} % of the images"
    )


@rule("selected-on-test-set", "test", "choose it on a validation split, or take the last epoch")
def _(card: Card) -> Sentence:
    return card.model.get("leak") and (
        "The epoch was chosen by its accuracy on the test set, so these numbers are too high"
    )


@rule("extra-not-compared", "test", "evaluate on the run's own test images")
def _(card: Card) -> Sentence:
    extra = card.data.get("extra")  # cards of older versions do not say whether they were compared
    apart = "they were compared only with those of the run's own data set"
    unknown = extra is not None and not extra.get("compared", True)
    return unknown and f"The extra training images may contain some of these test images: {apart}"


@rule("quick-misled", "bound", "use AutoAttack")
def _(found: tuple[Card, list[str]]) -> Sentence:
    names = listed(column.name for column in asked(found[0]) if column.attack.bound)
    return bool(names and found[1]) and f"{names} must not be used on this model, which raises {listed(found[1])}"


@rule("quick-is-a-bound", "bound", "report AutoAttack")
def _(found: tuple[Card, list[str]]) -> Sentence:
    bounds = [column for column in asked(found[0]) if column.attack.bound]
    return bool(bounds and not found[1]) and f"{listed(one.name for one in bounds)}: {bounds[0].attack.bound}"


@rule("not-probed", "probe", "evaluate again without --no-probe")
def _(card: Card) -> Sentence:
    attacked = any(column.norm is not None and not column.is_transfer for column in card.columns)
    what = "so the model was not tested for problems that mislead attacks, such as masked gradients"
    return attacked and not card.probe and f"The probe was turned off, {what}"


@rule("probe-small", "probe", f"run longer attacks, such as autoattack, in batches of {FEW_PROBED} or more")
def _(card: Card) -> Sentence:
    images, total = int(card.probe.get("images", FEW_PROBED)), len(card.labels)
    why = "because the attacks are short or the batches small, so it may miss masked gradients"
    return images < min(FEW_PROBED, total) and f"The probe used only {images} of {total} images, {why}"


@rule("dummy-classes", "deep", "attack the largest logit of each class")
def _(facts: DeepFacts) -> Sentence:
    raw, merged = (percent(count / facts.images) for count in (facts.raw_correct, facts.merged_correct))
    fooled = beaten(facts, "merged", "raw")
    why = "so attacks on all logits only raise another logit of the true class" if fooled else "which are merged"
    return facts.logits > facts.classes and (
        f"The model returns {facts.logits} logits for {facts.classes} classes, {why}: PGD-20 on all logits leaves "
        f"{raw} % of {facts.images} images correct, on the margin of the largest logit of each class {merged} %"
    )


@rule("eot-beats-one-draw", "deep", "attack the mean of many draws (EOT)")
def _(facts: DeepFacts) -> Sentence:
    shares = beaten(facts, "mean", "one")
    return shares and f"PGD-20 with the mean gradient of {facts.draws} draws leaves {shares}"


MASKING = {rule.flag for rule in RULES if rule.of in ("attacks", "model") and rule.misleads}
"""Flags which say that gradients may mislead attacks."""
