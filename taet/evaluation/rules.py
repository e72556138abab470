"""The rules: when the numbers of a card, or the outputs of a model, cannot be trusted, why, and what to do.

Each `of_...` returns flags, with a sentence where something is wrong: what was found, what it means; and a remedy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, permutations

import numpy as np

from taet import statistics
from taet.attacks.autoattack import AutoAttack
from taet.attacks.pgd import ProjectedAscent
from taet.evaluation.bundles import WHOLE, curves
from taet.evaluation.card import Card, Flag
from taet.evaluation.column import Column
from taet.evaluation.facts import DeepFacts, ModelFacts
from taet.formatting import listed, percent, percent_interval

# Usual gaps between attacks: the largest that a method without masked gradients shows in the two papers' tables.
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}  # PGD-20 to PGD-100: TAET, table 1; REAT, table 12
AUTOATTACK_GAP = 0.045  # PGD-20 to AutoAttack: 4.4 points (REAT, table 2); RoBal, which masks gradients: 6.7 to 7.4
MARGIN_GAP = 0.025  # PGD to CW-100: 2.5 points (REAT, table 2), RoBal 4.5 to 5.5; scaled logits cost it 4.7 to 5.7
SAMPLE_GAP = 0.04  # of the probe's few images: between the usual `MARGIN_GAP` and RoBal's
REMAINDER = 0.01  # of an attack that must break every image (arXiv:1802.00420, section 3.1) in finitely many steps
THOROUGH_STEPS = 20  # steps of the shorter PGD in the papers
SQUARE_GAP, REPEAT_DIFFERENCE = 0.002, 1e-4  # thresholds of the official AutoAttack: Square, and randomised models
Z = 1.96  # two-sided 95 %
# Assumed share of images on which two methods disagree: about 1000 images then resolve 3 points in a paired comparison.
DISAGREEMENT, COARSE_COMPARISON = 0.25, 0.03
FEW_PROBED = 100  # of so many images at least 6 broken by the stronger attack alone exceed chance

NOT_PGD, EOT = "report AutoAttack, not PGD", "attack the mean of many draws (EOT)"
DEEP = ("dummy-classes", "eot-beats-one-draw")  # of `taet check --deep` only
FLAGS = (
    *("pgd-too-short", "one-step-beats-many-step", "pgd-not-converged", "autoattack-far-below-pgd"),
    *("margin-beats-cross-entropy", "adaptive-beats-plain", "transfer-beats-white-box", "black-box-beats-gradients"),
    *("does-not-reach-zero", "accuracy-rises-with-eps", "unbounded-attack-not-converged", "autoattack-variant"),
    *("randomised", "changes-between-calls", "batch-dependent", "nonfinite-gradients", "softmax-outputs"),
    *("zero-gradients", "logit-scale", "gradient-path-differs", "straight-through-beats-gradients", "soft-beats-hard"),
    *("at-chance", "class-without-test-images", "few-images-per-class", "small-test-set", "selected-on-test-set"),
    *("extra-not-compared", "quick-misled", "quick-is-a-bound", "not-probed", "probe-small"),
    *DEEP,
)
"""The names that cards store, in their order: of attacks, of the model, of the test images, of the evaluation."""
HARMLESS = {"pgd-too-short", "unbounded-attack-not-converged", "autoattack-variant", "gradient-path-differs"}
MASKING = {*FLAGS[: FLAGS.index("at-chance")]} - HARMLESS
"""Flags which say that attacks that use only gradients may be far from the true accuracy."""

Contrast = tuple[Column, Column]
"""(lower, upper): an attack that breaks more images than it should, and the attack that it is compared with."""
Found = dict[str, object]  # sentences by flag; anything false where nothing is wrong


def told(found: Found) -> dict[str, str]:
    """Return the sentences of the rules that apply, by flag."""
    return {flag: f"{text}." for flag, text in found.items() if text}


def flagged(card: Card) -> Card:
    """Return a card with its flags, the warnings about it."""
    texts = told(of_pairs(card)) | told(of_attacks(card)) | told(of_test_set(card))
    texts |= told(of_model(card.facts)) if card.facts else {}
    texts |= told(of_use(card, [flag for flag in FLAGS if flag in MASKING & texts.keys()]))
    return card.changed(flags=tuple(Flag(flag=flag, text=texts[flag]) for flag in FLAGS if flag in texts))


def raised(card: Card) -> list[str]:
    """Return the names of a card's flags and of those that its numbers raise: the flags of a changed card are fewer."""
    return list(dict.fromkeys(flag["flag"] for flag in (*card.flags, *flagged(card).flags)))


def asked(card: Card) -> list[Column]:
    """Return the attacks on the model itself that are not only points of a curve."""
    return [column for column in card.columns if column.ordinary]


def is_plain(column: Column) -> bool:
    """Return whether an attack ascends the unscaled cross-entropy."""
    return not column.parameters.keys() & {"objective", "factor", "target"}


def crosses(column: Column) -> bool:
    """Return whether the steps of a PGD can cross the part of the ball that lies in the image range."""
    attack = column.attack
    width = min(2 * attack.radius, WHOLE) if attack.norm == "linf" else 2 * attack.radius
    return isinstance(attack, ProjectedAscent) and attack.steps * attack.step_size >= width - 1e-9


def is_thorough(column: Column) -> bool:
    """Return whether an attack follows the gradients far enough to judge how useful they are."""
    attack = column.attack
    long = isinstance(attack, ProjectedAscent) and attack.steps >= THOROUGH_STEPS
    return isinstance(attack, AutoAttack) or bool(attack.bound) or (long and crosses(column))


def _accuracy(column: Column) -> float:
    return float(column.correct.mean())


def _share(column: Column) -> str:
    return f"{percent(_accuracy(column))} %"


def exceeds(only_upper: int, only_lower: int, usual: float = 0.0) -> bool:
    """Return whether b - c > u + 1 + 1.96 sqrt(b + c), for b and c images that only one of two attacks leaves correct.

    u is the `usual` difference; the rest is McNemar's test with correction (Psychometrika 12, 1947; 13, 1948).
    """
    return only_upper - only_lower > usual + 1 + Z * float(np.sqrt(only_upper + only_lower))


def differing(columns: Sequence[Column], setting: str) -> Iterator[Contrast]:
    """Yield all pairs of attacks in one ball that differ only in this setting."""
    for one, other in permutations(columns, 2):
        if [*one.identity.differences(other.identity, seeds=True)] == [setting]:
            yield one, other


def longer(columns: Sequence[Column]) -> list[Contrast]:
    """Return the pairs of PGD that differ only in the number of steps or starts, the one with more first."""
    pairs = [(pair, setting) for setting in ("steps", "restarts") for pair in differing(columns, setting)]
    return [pair for pair, name in pairs if pair[0].parameters.get(name, 1) > pair[1].parameters.get(name, 1)]


def worst(pairs: Iterable[Contrast], text: str, usual: float = 0.0) -> str:
    """Return the text about the pair with the largest difference beyond `usual` and chance; empty without one."""

    def is_beyond(pair: Contrast) -> bool:
        lower, upper = pair[0].correct, pair[1].correct
        return exceeds(int((upper & ~lower).sum()), int((lower & ~upper).sum()), usual * len(lower))

    found = filter(is_beyond, pairs)
    one, other = max(found, key=lambda pair: _accuracy(pair[1]) - _accuracy(pair[0]), default=(None, None))
    if one is None or other is None:
        return ""
    low, high = _share(one), _share(other)
    return text.format(one=one, other=other, low=low, high=high, gap=f"{low} against {high}")


def of_pairs(card: Card) -> Found:
    """Return which attacks break more images than one that should be at least as strong."""
    columns = [column for column in card.columns if not column.is_transfer]
    every, balls = asked(card), curves(card)["eps"]
    chains = [column for column in every if is_plain(column) and crosses(column)]
    singles = [one for one in every if one.attack.one_step and is_plain(one)]
    one_steps = ((one, many) for one in singles for many in chains if one.ball == many.ball)
    suites = [one for one in every if isinstance(one.attack, AutoAttack)]
    met = ((one, [many for many in chains if one.ball == many.ball]) for one in suites)
    strongest = ((one, min(inside, key=_accuracy)) for one, inside in met if inside)
    margins = (pair for pair in differing(every, "objective") if getattr(pair[0].attack, "objective", "") == "cw")
    rescaled = (pair for pair in differing(columns, "factor") if "factor" not in pair[1].parameters)
    made = ((one, other) for one in card.columns if one.is_transfer for other in columns)
    transfers = ((one, other) for one, other in made if one.attack.typed == other.name and one.ball == other.ball)
    larger = ((small, large) for eps, small in balls.items() for radius, large in balls.items() if 0 < eps < radius)
    text = "{one.name} is far below {other.name} ({gap}): "
    short = f"{text}PGD has not converged, so the true robustness is lower; use more steps and AutoAttack"
    of_norm = {norm: [one for one in chains if one.norm == norm] for norm in CONVERGENCE_GAP}
    slow = (worst(longer(of_norm[norm]), short, usual) for norm, usual in CONVERGENCE_GAP.items())
    return {
        "one-step-beats-many-step": worst(
            one_steps,
            "{one.name} breaks more images than {other.name} ({gap}), which cannot happen with sound gradients: the "
            "model masks them (Athalye et al. 2018); report AutoAttack, not PGD",
        ),
        "pgd-not-converged": next(filter(None, slow), ""),
        "autoattack-far-below-pgd": worst(
            strongest,
            f"{text}the model resists PGD better than other attacks, a sign of gradient masking; {NOT_PGD}",
            AUTOATTACK_GAP,
        ),
        "margin-beats-cross-entropy": worst(
            margins,
            f"{text}PGD on the cross-entropy is weaker on this model than usual, a sign of gradient masking; {NOT_PGD}",
            MARGIN_GAP,
        ),
        "adaptive-beats-plain": worst(
            rescaled,
            "With logits times {one.parameters[factor]:g} in its objective, {other.name} breaks many more images "
            "({gap}): the scale of the logits weakens the plain attack, which overestimates robustness; report the "
            "adaptive attack and AutoAttack",
            MARGIN_GAP,
        ),
        "transfer-beats-white-box": worst(
            transfers,
            "{one.name}, whose examples were made on another model, breaks more images than the white-box attack "
            "{other.name} ({gap}): with sound gradients the white-box attack is stronger; report AutoAttack, not PGD",
        ),
        "accuracy-rises-with-eps": worst(
            larger,
            "{other.name} leaves {high} of the images correct, {one.name} in a smaller ball only {low}: accuracy "
            "cannot rise with eps, so PGD fails (masked gradients, or too few steps); use more steps and AutoAttack",
            REMAINDER,
        ),
    }


def of_attacks(card: Card) -> Found:
    """Return what single attacks show."""
    columns = [column for column in card.columns if not column.is_transfer]
    # The curve over the steps begins with PGD runs that are short on purpose.
    pgds = (one for one in columns if isinstance(one.attack, ProjectedAscent) and one.curve != "steps")
    short = listed(one.name for one in pgds if not crosses(one))
    why = "cannot cross the ball: the steps add up to less than its width; use more steps or longer ones"
    found: Found = {"pgd-too-short": short and f"{short} {why}", "black-box-beats-gradients": _without_gradients(card)}
    points = curves(card)["eps"].items()
    left = [one for eps, one in points if eps >= WHOLE and crosses(one) and _accuracy(one) > REMAINDER]
    found["does-not-reach-zero"] = left and (
        f"{left[0].name} leaves {_share(left[0])} of the images correct although its ball contains every image: the "
        "model masks its gradients, or always predicts the same class; use Square and other attacks without gradients"
    )
    unbounded = [one for one in columns if one.norm is not None and not one.bounded and _accuracy(one) > REMAINDER]
    rest = listed(f"{one.name} leaves {_share(one)}" for one in unbounded)
    found["unbounded-attack-not-converged"] = rest and (
        f"{rest} of the images correct, but a converged unbounded attack leaves none: the number does not measure "
        "robustness; use more or longer steps (cw-l2:steps=1000 or lr=0.1), or attacks in a ball"
    )
    varied = [column for column in asked(card) if column.parameters.get("note")]
    names = f"With {card.num_classes} classes, {listed(column.name for column in varied)}"
    found["autoattack-variant"] = varied and f"{names} cannot run as the standard suite; {varied[0].parameters['note']}"
    return found


def _without_gradients(card: Card) -> str:
    """Return what breaks more images without gradients than chance allows; first of the parts of suites."""
    every, why = len(card.labels), "the model's gradients mislead attacks; use more queries and an adaptive attack"
    for column in card.columns:
        for (_, before), (part, after) in pairwise(column.parts.items()):
            broken, free = int(before.sum() - after.sum()), getattr(column.attack, "gradient_free_parts", ())
            if part in free and exceeds(broken, 0, SQUARE_GAP * every):
                added = f"broke another {100 * broken / every:.1f} points after the gradient-based parts of"
                return f"{part.capitalize()}, which uses no gradient, {added} {column.name}: {why}"
    guided = [column for column in asked(card) if column.norm is not None and not column.attack.gradient_free]
    missed: dict[str, int] = {}
    for column in (one for one in asked(card) if one.attack.gradient_free):
        inside = [one for one in guided if one.ball == column.ball]
        if any(map(is_thorough, inside)):
            left = np.logical_and.reduce([one.correct for one in inside])
            missed[column.name] = int((left & ~column.correct).sum())
    name = max(missed, key=lambda one: missed[one], default="")
    if not name or not exceeds(missed[name], 0, SQUARE_GAP * every):
        return ""
    alone = f"no gradient-based attack breaks ({100 * missed[name] / every:.1f} % of all)"
    return f"{name}, which uses no gradient, breaks images that {alone}: {why}"


def beaten(facts: ModelFacts | DeepFacts, strong: str, weak: str = "pgd") -> str:
    """Return the shares of the images that two attacks leave correct, if `strong` wins by over 4 points and chance."""
    left, kept, only = (getattr(facts, f"{name}_correct") for name in (strong, weak, f"only_{strong}"))
    if (kept - left) / facts.images <= SAMPLE_GAP or not exceeds(kept - left + only, only):
        return ""
    shares = percent(left / facts.images), percent(kept / facts.images)
    return f"{shares[0]} % of {facts.images} images correct, otherwise {shares[1]} %"


def of_model(facts: ModelFacts) -> Found:
    """Return what the outputs and gradients of a model show; of the first four the first explains the others."""
    found: Found = {}
    if facts.repeat_difference > REPEAT_DIFFERENCE:
        found["randomised"] = (
            f"Two forward passes of the same images give different logits (by {facts.repeat_difference:.2g} at unit "
            "length): every number is one random draw, and attacks on the gradient of a single draw are too weak; "
            f"{EOT}"
        )
    elif facts.later_difference > REPEAT_DIFFERENCE:
        found["changes-between-calls"] = (
            "The logits of the same images change after forward passes of other images: the model keeps state, so no "
            "two attacks ran on the same model; do not update state in eval mode and evaluate again"
        )
    fixed = max(facts.repeat_difference, facts.later_difference) <= REPEAT_DIFFERENCE
    depends = fixed and facts.batch_difference > REPEAT_DIFFERENCE
    found["batch-dependent"] = depends and (
        f"The logits of an image depend on the other images in its batch (by {facts.batch_difference:.2g} at unit "
        f"length), as with batch statistics in eval mode: every number holds only for batches of {facts.batch_size} in "
        "this order, and an attack on one image changes the predictions for others; use running statistics and "
        "evaluate again"
    )
    found["nonfinite-gradients"] = facts.nonfinite_gradients > 0 and (
        f"On {facts.nonfinite_gradients} of {facts.images} tested images, or during PGD from them, a logit or the "
        "gradient is not finite, so no gradient-based attack can be trusted; look for a square root, norm or "
        "logarithm of 0"
    )
    found["softmax-outputs"] = facts.distributions == facts.images and (
        "The model returns probabilities, not logits: the cross-entropy applies a second softmax, so its gradients "
        "nearly vanish and gradient-based attacks are too weak; return the logits, the input of the softmax"
    )
    found["zero-gradients"] = facts.zero_gradients > 0 and (
        f"The gradient is exactly zero on {facts.zero_gradients} of {facts.clean_correct} correctly classified images "
        "(a saturated cross-entropy, or an operation without a gradient), so PGD cannot change them; use Square, and "
        "attack with smaller logits or a differentiable replacement (BPDA)"
    )
    small = (
        "with logits this small (scaled down, or hardly trained) the cross-entropy pushes towards all other classes at"
    )
    large = "with logits this large the cross-entropy and its gradients are rounded to zero"
    why = f"{small} once instead of the nearest" if facts.logit_factor > 1 else large
    found["logit-scale"] = (shares := beaten(facts, "scaled_pgd")) and (
        f"With logits times {facts.logit_factor:.3g} in its objective, PGD-20 leaves {shares}: {why}, so PGD "
        "overestimates robustness; report AutoAttack"
    )
    differs = fixed and facts.gradient_difference > REPEAT_DIFFERENCE
    found["gradient-path-differs"] = differs and (
        f"The logits of the same images differ with and without gradients (by {facts.gradient_difference:.2g} at unit "
        "length), so attacks follow the gradient of a different function than the one that is evaluated; make "
        "forward independent of whether gradients are recorded"
    )
    why = "operations in the model stop or distort its gradient, so gradient-based attacks overestimate robustness"
    why += "; attack with a differentiable replacement (BPDA)"
    if facts.replaced and (shares := beaten(facts, "straight_pgd")):
        how = "With the identity as the derivative of operations that stop the gradient"
        found["straight-through-beats-gradients"] = f"{how}, PGD-20 leaves {shares}: {why}"
    elif facts.replaced and (shares := beaten(facts, "smooth_pgd")):
        how = "On the margin of the model with smooth operations instead of rounding and thresholds"
        found["soft-beats-hard"] = f"{how}, PGD-20 leaves {shares}: {why}"
    return found


def of_deep(facts: DeepFacts) -> Found:
    """Return what attacks made for a kind of model show."""
    found: Found = {}
    raw, merged = (percent(count / facts.images) for count in (facts.raw_correct, facts.merged_correct))
    fooled = beaten(facts, "merged", "raw")
    why = "so attacks on all logits only raise another logit of the true class" if fooled else "which are merged"
    found["dummy-classes"] = facts.logits > facts.classes and (
        f"The model returns {facts.logits} logits for {facts.classes} classes, {why}: PGD-20 on all logits leaves "
        f"{raw} % of {facts.images} images correct, on the margin of the largest logit of each class {merged} %; "
        "attack the largest logit of each class"
    )
    shares = beaten(facts, "mean", "one")
    found["eot-beats-one-draw"] = (
        shares and f"PGD-20 with the mean gradient of {facts.draws} draws leaves {shares}; {EOT}"
    )
    return found


def of_test_set(card: Card) -> Found:
    """Return what the test images cannot show."""
    found: Found = {}
    total = card.test_class_counts
    if card.clean is not None:
        summary = card.summary_of(card.clean)
        chance = 1 / max(int((total > 0).sum()), 1)
        # A run of this package stores its weights, normalisation and classes.
        ask = "" if card.run else "; check weights, normalisation and the order of the classes with taet check"
        guesses = chance < 1 and summary.balanced_interval[0] <= chance
        found["at-chance"] = guesses and (
            f"Clean balanced accuracy is {percent(summary.balanced)} % (95 % interval "
            f"{percent_interval(*summary.balanced_interval, 0)} %), no better than chance, {percent(chance)} %: "
            f"robustness cannot be measured on these images{ask}"
        )
    absent = [name for name, count in zip(card.class_names, total, strict=True) if not count]
    found["class-without-test-images"] = absent and (
        f"{listed(absent, most=3)} {'have' if len(absent) > 1 else 'has'} no test images: balanced numbers cover the "
        f"other {(total > 0).sum()} of {card.num_classes} classes"
    )
    few = [card.class_names[label] for label in statistics.few_images(total)]
    found["few-images-per-class"] = few and (
        f"{len(few)} of {card.num_classes} classes have fewer than {statistics.FEW_PER_CLASS} test images "
        f"({listed(few, most=3)}): their numbers, and the balanced ones, are imprecise; read the intervals"
    )
    # The difference of two shares on the same images has a standard error of sqrt(d / n) (McNemar, Psychometrika 1947).
    resolution = Z * math.sqrt(DISAGREEMENT / len(card.labels))
    found["small-test-set"] = resolution > COARSE_COMPARISON and (
        f"With {len(card.labels)} test images, a difference between two methods is significant (95 %) only above about "
        f"{100 * resolution:.0f} points, if they disagree on {100 * DISAGREEMENT:.0f} % of the images; use a "
        "larger test set, and more seeds"
    )
    leak = "The epoch was chosen by its accuracy on the test set, so these numbers are too high; choose it on a"
    found["selected-on-test-set"] = card.model.get("leak") and f"{leak} validation split, or take the last epoch"
    extra = card.data.get("extra")  # cards of older versions do not say whether they were compared
    apart = "they were compared only with those of the run's own data set; evaluate on the run's own test images"
    unknown = extra is not None and not extra.get("compared", True)
    found["extra-not-compared"] = (
        unknown and f"The extra training images may contain some of these test images: {apart}"
    )
    return found


def of_use(card: Card, masks: Sequence[str]) -> Found:
    """Return what is known about attacks that are only bounds, given the raised flags of `MASKING`, and the probe."""
    found: Found = {}
    if bounds := [column for column in asked(card) if column.attack.bound]:
        names, known = listed(one.name for one in bounds), bounds[0].attack.bound
        what = f"{names} must not be used on this model, which raises {listed(masks)}; use AutoAttack"
        found |= {"quick-misled": what} if masks else {"quick-is-a-bound": f"{names}: {known}; report AutoAttack"}
    attacked = any(column.norm is not None and not column.is_transfer for column in card.columns)
    found["not-probed"] = (attacked and not card.probe) and (
        "The probe was turned off, so the model was not tested for problems that mislead attacks, such as masked "
        "gradients; evaluate again without --no-probe"
    )
    images, total = int(card.probe.get("images", FEW_PROBED)), len(card.labels)
    found["probe-small"] = images < min(FEW_PROBED, total) and (
        f"The probe used only {images} of {total} images, because the attacks are short or the batches small, so it "
        f"may miss masked gradients; run longer attacks, such as autoattack, in batches of {FEW_PROBED} or more"
    )
    return found
