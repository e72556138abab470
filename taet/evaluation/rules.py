"""The rules: when the numbers of a card, or the outputs of a model, cannot be trusted, why, and what to do.

A rule is a sentence in `SENTENCES` (the finding, its meaning and a remedy) and a condition in one of `of_...`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, permutations

import numpy as np

from taet import statistics
from taet.attacks.autoattack import AutoAttack
from taet.attacks.pgd import ProjectedAscent
from taet.evaluation.bundles import WHOLE, curves
from taet.evaluation.card import Card, Flag
from taet.evaluation.column import Column
from taet.evaluation.facts import ModelFacts
from taet.formatting import listed, percent, percent_interval

# Usual gaps between attacks: the largest that a method without masked gradients shows in the two papers' tables.
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}  # PGD-20 to PGD-100: TAET, table 1; REAT, table 12
AUTOATTACK_GAP = 0.045  # PGD-20 to AutoAttack: 4.4 points (REAT, table 2); RoBal, which masks gradients: 6.7 to 7.4
MARGIN_GAP = 0.025  # PGD to CW-100: 2.5 points (REAT, table 2), RoBal 4.5 to 5.5; scaled logits cost it 4.7 to 5.7
SAMPLE_GAP = 0.04  # of the probe's few images: between the usual `MARGIN_GAP` and RoBal's
REMAINDER = 0.01  # share that finitely many steps leave of images that all must break (arXiv:1802.00420, section 3.1)
THOROUGH_STEPS = 20  # steps of the shorter PGD in the papers
SQUARE_GAP, REPEAT_DIFFERENCE = 0.002, 1e-4  # thresholds of the official AutoAttack: Square, and randomised models
Z = 1.96  # two-sided 95 %
# Assumed share of images on which two methods disagree: about 1000 images then resolve 3 points in a paired comparison.
DISAGREEMENT, COARSE_COMPARISON = 0.25, 0.03
REPEATED = re.compile(r"\d+ of \d+ test images are also in train\b")  # of the notes on a data set
FEW_PROBED = 100  # fewer images may hide a gap: only 6 or more that the stronger attack alone breaks exceed chance

_FAR, _BEATEN = "{one.name} is far below {other.name} ({gap}): ", "PGD-20 leaves {shares}: "
_STOPPED = (
    "operations in the model stop or distort its gradient, so gradient-based attacks overestimate robustness; attack "
    "with a differentiable replacement (BPDA)"
)
_MISLED = "the model's gradients mislead attacks; use more queries and an adaptive attack"
SENTENCES = {
    # Of attacks
    "pgd-too-short": "{names} cannot cross the ball: the steps add up to less than its width; use more steps or longer "
    "ones",
    "one-step-beats-many-step": "{one.name} breaks more images than {other.name} ({gap}), which cannot happen with "
    "sound gradients: the model masks them (Athalye et al. 2018); report AutoAttack, not PGD",
    "pgd-not-converged": f"{_FAR}PGD has not converged, so the true robustness is lower; use more steps and AutoAttack",
    "autoattack-far-below-pgd": f"{_FAR}the model resists PGD better than other attacks, a sign of gradient masking; "
    "report AutoAttack, not PGD",
    "margin-beats-cross-entropy": f"{_FAR}PGD on the cross-entropy is weaker on this model than usual, a sign of "
    "gradient masking; report AutoAttack, not PGD",
    "adaptive-beats-plain": "With logits times {one.parameters[factor]:g} in its objective, {other.name} breaks many "
    "more images ({gap}): the scale of the logits weakens the plain attack, which overestimates robustness; report the "
    "adaptive attack and AutoAttack",
    "transfer-beats-white-box": "{one.name}, whose examples were made on another model, breaks more images than the "
    "white-box attack {other.name} ({gap}): with sound gradients the white-box attack is stronger; report AutoAttack, "
    "not PGD",
    "black-box-beats-gradients": f"{{attack}}, which uses no gradient, {{broke}}: {_MISLED}",
    "does-not-reach-zero": "{name} leaves {share} of the images correct although its ball contains every image: the "
    "model masks its gradients, or always predicts the same class; use Square and other attacks without gradients",
    "accuracy-rises-with-eps": "{other.name} leaves {high} of the images correct, {one.name} in a smaller ball only "
    "{low}: accuracy cannot rise with eps, so PGD fails (masked gradients, or too few steps); use more steps and "
    "AutoAttack",
    "unbounded-attack-not-converged": "{rest} of the images correct, but an unbounded attack can break all: the number "
    "does not measure robustness; use cw-l2:c=search, longer attacks (cw-l2:steps=1000), or attacks in a ball",
    "autoattack-variant": "With {card.num_classes} classes, {names} cannot run as the standard suite; {note}",
    # Of the model
    "randomised": "Two forward passes of the same images give different logits (by {facts.repeat_difference:.2g} at "
    "unit length): every number is one random draw, and attacks on the gradient of a single draw are too weak; attack "
    "the mean of many draws (EOT)",
    "changes-between-calls": "The logits of the same images change after forward passes of other images: the model "
    "keeps state, so no two attacks ran on the same model; do not update state in eval mode and evaluate again",
    "batch-dependent": "The logits of an image depend on the other images in its batch (by "
    "{facts.batch_difference:.2g} at unit length), as with batch statistics in eval mode: every number holds only for "
    "batches of {facts.batch_size} in this order, and an attack on one image changes the predictions for others; use "
    "running statistics and evaluate again",
    "nonfinite-gradients": "On {facts.nonfinite_gradients} of {facts.images} tested images, or during PGD from them, a "
    "logit or the gradient is not finite, so no gradient-based attack can be trusted; look for a square root, norm or "
    "logarithm of 0",
    "softmax-outputs": "The model's outputs are all between 0 and 1, as after a softmax or sigmoid, not logits: its "
    "gradients nearly vanish, so gradient-based attacks, AutoAttack too, are too weak; return the input of that layer",
    "zero-gradients": "The gradient is exactly zero on {facts.zero_gradients} of {facts.clean_correct} correctly "
    "classified images (a saturated cross-entropy, or an operation without a gradient), so PGD cannot change them; use "
    "Square, and attack with smaller logits or a differentiable replacement (BPDA)",
    "logit-scale": f"With logits times {{facts.logit_factor:.3g}} in its objective, {_BEATEN}with logits this {{why}}, "
    "so PGD overestimates robustness; report AutoAttack",
    "gradient-path-differs": "The logits of the same images differ with and without gradients (by "
    "{facts.gradient_difference:.2g} at unit length), so attacks follow the gradient of a different function than the "
    "one that is evaluated; make forward independent of whether gradients are recorded",
    "straight-through-beats-gradients": f"With the identity as the derivative of operations that stop the gradient, "
    f"{_BEATEN}{_STOPPED}",
    "soft-beats-hard": f"On the margin of the model with smooth operations instead of rounding and thresholds, "
    f"{_BEATEN}{_STOPPED}",
    # Of the test images
    "at-chance": "Clean balanced accuracy is {value} % (95 % interval {interval} %), not shown to be above "
    "chance, {chance} %: robustness cannot be measured on these images; {ask}",
    "class-without-test-images": "{absent} no test images: balanced numbers cover the other {tested} of "
    "{card.num_classes} classes",
    "few-images-per-class": f"{{few}} of {{card.num_classes}} classes have fewer than {statistics.FEW_PER_CLASS} test "
    "images ({names}): their numbers, and the balanced ones, are imprecise; read the intervals",
    "small-test-set": f"With {{images}} test images, {{told_apart}}, if they disagree on {100 * DISAGREEMENT:.0f} % of "
    "the images; use a larger test set, and more seeds",
    "selected-on-test-set": "The epoch was chosen by its accuracy on the test set, or the method learned from it, so "
    "these numbers are too high; use a validation split of training images, or the last epoch",
    "test-images-in-training": "{repeated}, so these numbers are not those of unseen images for a model trained "
    "on them; remove them from train or test",
    "extra-not-compared": "The extra training images may contain some of these test images: they were compared only "
    "with those of the run's own data set; evaluate on the run's own test images",
    # Of the evaluation
    "quick-misled": "{names} may be too high on this model, which raises {masks}; use AutoAttack",
    "quick-is-a-bound": "{names}: {bound}; report AutoAttack",
    "not-probed": "The probe was turned off, so the model was not tested for problems that mislead attacks, such as "
    "masked gradients; evaluate again without --no-probe",
    "probe-small": "The probe used only {probed} of {images} images, so it may miss masked gradients; add a longer "
    "attack, such as quick",
    # Of `taet check --deep` only
    "dummy-classes": "The model returns {facts[logits]} logits for {facts[classes]} classes, {why}: PGD-20 on all "
    "logits leaves {raw} % of {facts[images]} images correct, on the margin of the largest logit of each class "
    "{merged} %; attack the largest logit of each class",
    "eot-beats-one-draw": "PGD-20 with the mean gradient of {facts[draws]} draws leaves {shares}; attack the mean of "
    "many draws (EOT)",
}
"""The sentence of each flag, in the order in which cards store them."""
FLAGS = tuple(SENTENCES)
HARMLESS = {"pgd-too-short", "unbounded-attack-not-converged", "autoattack-variant", "gradient-path-differs"}
MASKING = {*FLAGS[: FLAGS.index("at-chance")]} - HARMLESS
"""Flags which say that attacks that use only gradients may be far from the true accuracy."""

Contrast = tuple[Column, Column]  # an attack that breaks more images than it should, and one that breaks fewer
Evidence = Mapping[str, object]  # values that the sentence of a flag names
Found = dict[str, bool | Evidence]  # by flag; false or empty if the flag is not raised


def sentences(found: Found, **values: object) -> dict[str, str]:
    """Return the sentences of the raised flags, by flag; `values` are those that several sentences name."""
    own = {flag: evidence if isinstance(evidence, Mapping) else {} for flag, evidence in found.items() if evidence}
    return {flag: f"{SENTENCES[flag].format(**values, **evidence)}." for flag, evidence in own.items()}


def raised(card: Card) -> dict[str, str]:
    """Return the warnings of the present rules about a card, by flag, in the order in which cards store them."""
    texts = of_pairs(card) | of_attacks(card) | of_test_set(card) | (of_model(card.facts) if card.facts else {})
    texts |= of_use(card, [flag for flag in FLAGS if flag in MASKING & texts.keys()])
    return {flag: texts[flag] for flag in FLAGS if flag in texts}


def flagged(card: Card) -> Card:
    """Return a card with the warnings about it as its flags."""
    return card.changed(flags=tuple(Flag(flag=flag, text=text) for flag, text in raised(card).items()))


def ordinary(card: Card) -> list[Column]:
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


def _share(column: Column) -> str:
    return f"{percent(float(column.correct.mean()))} %"


def exceeds(only_upper: int, only_lower: int, usual: float = 0.0) -> bool:
    """Return whether b - c > u + 1 + 1.96 sqrt(b + c), for b and c images that only one of two attacks leaves correct.

    u is the `usual` difference; the rest is McNemar's test with correction (Psychometrika 12, 1947; 13, 1948).
    """
    return only_upper - only_lower > usual + 1 + Z * float(np.sqrt(only_upper + only_lower))


def differing(columns: Sequence[Column], setting: str) -> Iterator[Contrast]:
    """Yield all pairs of attacks in one ball that differ only in this setting."""
    for one, other in permutations(columns, 2):
        same_seed = one.parameters.get("seed") == other.parameters.get("seed")
        if same_seed and [*one.identity.differences(other.identity)] == [setting]:
            yield one, other


def worst(pairs: Iterable[Contrast], usual: float = 0.0) -> Evidence:
    """Return the pair with the largest difference beyond `usual` and chance, for its sentence; empty without one."""

    def is_beyond(pair: Contrast) -> bool:
        lower, upper = pair[0].correct, pair[1].correct
        return exceeds(int((upper & ~lower).sum()), int((lower & ~upper).sum()), usual * len(lower))

    found = filter(is_beyond, pairs)
    one, other = max(found, key=lambda pair: pair[1].correct.mean() - pair[0].correct.mean(), default=(None, None))
    if one is None or other is None:
        return {}
    low, high = _share(one), _share(other)
    return {"one": one, "other": other, "low": low, "high": high, "gap": f"{low} against {high}"}


def of_pairs(card: Card) -> dict[str, str]:
    """Return the warnings about attacks that break more images than one that should be at least as strong."""
    columns = [column for column in card.columns if not column.is_transfer]
    own, by_eps = ordinary(card), curves(card)["eps"]
    pgds = [column for column in own if is_plain(column) and crosses(column)]
    one_step = [column for column in own if column.attack.one_step and is_plain(column)]
    suites = [one for one in own if isinstance(one.attack, AutoAttack)] or [one for one in own if one.attack.bound]
    in_ball = ((suite, [pgd for pgd in pgds if suite.ball == pgd.ball]) for suite in suites)
    strongest = ((suite, min(inside, key=lambda pgd: pgd.correct.mean())) for suite, inside in in_ball if inside)
    margins = (
        (one, other)
        for one, other in differing(own, "objective")
        if getattr(one.attack, "objective", "") == "cw" and "objective" not in other.parameters
    )
    rescaled = (pair for pair in differing(columns, "factor") if "factor" not in pair[1].parameters)
    made = ((one, other) for one in card.columns if one.is_transfer for other in columns)
    transfers = ((one, other) for one, other in made if one.attack.typed == other.name and one.ball == other.ball)
    larger = ((small, large) for eps, small in by_eps.items() for radius, large in by_eps.items() if 0 < eps < radius)
    effort = ((pair, name) for name in ("steps", "restarts") for pair in differing(pgds, name))
    longer = [pair for pair, name in effort if pair[0].parameters.get(name, 1) > pair[1].parameters.get(name, 1)]
    slow = (worst((pair for pair in longer if pair[0].norm == norm), gap) for norm, gap in CONVERGENCE_GAP.items())
    found: Found = {
        "one-step-beats-many-step": worst((one, pgd) for one in one_step for pgd in pgds if one.ball == pgd.ball),
        "pgd-not-converged": next(filter(None, slow), {}),
        "autoattack-far-below-pgd": worst(strongest, AUTOATTACK_GAP),
        "margin-beats-cross-entropy": worst(margins, MARGIN_GAP),
        "adaptive-beats-plain": worst(rescaled, MARGIN_GAP),
        "transfer-beats-white-box": worst(transfers),
        "accuracy-rises-with-eps": worst(larger, REMAINDER),
    }
    return sentences(found)


def of_attacks(card: Card) -> dict[str, str]:
    """Return the warnings that single attacks raise."""
    columns = [column for column in card.columns if not column.is_transfer]
    # The curve over the steps begins with PGD runs that are short on purpose.
    pgds = (one for one in columns if isinstance(one.attack, ProjectedAscent) and one.curve != "steps")
    short = listed(one.name for one in pgds if not crosses(one))
    points = curves(card)["eps"].items()
    left = [one for eps, one in points if eps >= WHOLE and crosses(one) and one.correct.mean() > REMAINDER]
    unbounded = [one for one in columns if one.norm is not None and not one.bounded and one.correct.mean() > REMAINDER]
    rest = listed(f"{one.name} leaves {_share(one)}" for one in unbounded)
    varied = [column for column in ordinary(card) if column.parameters.get("note")]
    names = listed(column.name for column in varied)
    found: Found = {
        "pgd-too-short": {"names": short} if short else {},
        "black-box-beats-gradients": _without_gradients(card),
        "does-not-reach-zero": {"name": left[0].name, "share": _share(left[0])} if left else {},
        "unbounded-attack-not-converged": {"rest": rest} if rest else {},
        "autoattack-variant": {"names": names, "note": varied[0].parameters["note"]} if varied else {},
    }
    return sentences(found, card=card)


def _without_gradients(card: Card) -> Evidence:
    """Return what breaks more images without gradients than chance allows: a part of a suite, else an attack."""
    images = len(card.labels)
    for column in card.columns:
        for (_, before), (part, after) in pairwise(column.parts.items()):
            broken, gradient_free = int(before.sum() - after.sum()), getattr(column.attack, "gradient_free_parts", ())
            if part in gradient_free and exceeds(broken, 0, SQUARE_GAP * images):
                added = f"broke another {100 * broken / images:.1f} points after the gradient-based parts of"
                return {"attack": part.capitalize(), "broke": f"{added} {column.name}"}
    white_box = [column for column in ordinary(card) if column.norm is not None and not column.attack.gradient_free]
    missed: dict[str, int] = {}
    for column in (one for one in ordinary(card) if one.attack.gradient_free):
        inside = [one for one in white_box if one.ball == column.ball]
        if any(map(is_thorough, inside)):
            left = np.logical_and.reduce([one.correct for one in inside])
            missed[column.name] = int((left & ~column.correct).sum())
    name = max(missed, key=lambda one: missed[one], default="")
    if not name or not exceeds(missed[name], 0, SQUARE_GAP * images):
        return {}
    alone = f"no gradient-based attack breaks ({100 * missed[name] / images:.1f} % of all)"
    return {"attack": name, "broke": f"breaks images that {alone}"}


def beaten(facts: Mapping[str, int], strong: str, weak: str = "pgd") -> Evidence:
    """Return the shares of the images that two attacks leave correct, if `strong` wins by over 4 points and chance."""
    left, kept, only = (facts[f"{name}_correct"] for name in (strong, weak, f"only_{strong}"))
    if (kept - left) / facts["images"] <= SAMPLE_GAP or not exceeds(kept - left + only, only):
        return {}
    shares = percent(left / facts["images"]), percent(kept / facts["images"])
    return {"shares": f"{shares[0]} % of {facts['images']} images correct, otherwise {shares[1]} %"}


def of_model(facts: ModelFacts) -> dict[str, str]:
    """Return the warnings about outputs and gradients of a model; of the first three, at most one is raised."""
    calls = ("repeat", "later", "batch", "gradient")
    differs = {name: getattr(facts, f"{name}_difference") > REPEAT_DIFFERENCE for name in calls}
    fixed = not differs["repeat"] and not differs["later"]
    counts, scaled = vars(facts), "scaled_pgd"  # the reference of replacements
    straight, smooth = (beaten(counts, f"{s}_pgd", scaled) if facts.replaced else {} for s in ("straight", "smooth"))
    found: Found = {
        "randomised": differs["repeat"],
        "changes-between-calls": differs["later"] and not differs["repeat"],
        "batch-dependent": fixed and differs["batch"],
        "nonfinite-gradients": facts.nonfinite_gradients > 0,
        "softmax-outputs": facts.distributions == facts.images,
        "zero-gradients": facts.zero_gradients > 0,
        "logit-scale": beaten(counts, scaled),
        "gradient-path-differs": fixed and differs["gradient"],
        "straight-through-beats-gradients": straight,
        "soft-beats-hard": {} if straight else smooth,
    }
    small = "small (scaled down, or hardly trained) the cross-entropy pushes towards all other classes at once instead "
    large = "large the cross-entropy and its gradients are rounded to zero"
    return sentences(found, facts=facts, why=f"{small}of the nearest" if facts.logit_factor > 1 else large)


def of_deep(facts: Mapping[str, int]) -> dict[str, str]:
    """Return the warnings of attacks that are made for a kind of model."""
    found: Found = {}
    if "classes" in facts:
        raw, merged = (percent(facts[name] / facts["images"]) for name in ("raw_correct", "merged_correct"))
        fooled = beaten(facts, "merged", "raw")
        why = "so attacks on all logits only raise another logit of the true class" if fooled else "which are merged"
        found["dummy-classes"] = {"raw": raw, "merged": merged, "why": why}
    if "draws" in facts:
        found["eot-beats-one-draw"] = beaten(facts, "mean", "one")
    return sentences(found, facts=facts)


def repeated(notes: Iterable[str]) -> str:
    """Return what the notes on a data set say of test images that are also in train, "" if nothing."""
    return next((found[0] for note in notes if (found := REPEATED.search(note))), "")


def of_test_set(card: Card) -> dict[str, str]:
    """Return the warnings about the test images."""
    found: Found = {}
    total, images = card.test_class_counts, len(card.labels)
    tested = int((total > 0).sum())
    if card.clean is not None and tested > 1:
        summary = card.summary_of(card.clean)
        ask = "check weights, normalisation and the order of the classes with taet check"
        if card.run:  # which stores its weights, normalisation and classes
            ask = "train longer, or test more images"
        shares = {"value": percent(summary.balanced), "interval": percent_interval(*summary.balanced_interval, 0)}
        if summary.balanced_interval[0] <= 1 / tested:
            found["at-chance"] = {**shares, "chance": percent(1 / tested), "ask": ask}
    if absent := [name for name, count in zip(card.class_names, total, strict=True) if not count]:
        has = "have" if len(absent) > 1 else "has"
        found["class-without-test-images"] = {"absent": f"{listed(absent, most=3)} {has}", "tested": tested}
    if few := [card.class_names[label] for label in statistics.few_images(total) if total[label]]:
        found["few-images-per-class"] = {"few": len(few), "names": listed(few, most=3)}
    # On the same n images of a class the difference of two shares has the variance d / n (McNemar, Psychometrika 1947).
    resolution = Z * math.sqrt(DISAGREEMENT * (1 / total[total > 0]).sum()) / tested
    apart = f"a difference between two methods is significant (95 %) only above about {100 * resolution:.0f} points"
    if resolution >= DISAGREEMENT:
        apart = "no difference between two methods is significant (95 %)"
    found["small-test-set"] = {"told_apart": apart} if resolution > COARSE_COMPARISON else False
    found["selected-on-test-set"] = bool(card.model.get("leak"))
    in_training = repeated(card.data.get("notes", ()))
    found["test-images-in-training"] = {"repeated": in_training} if in_training else False
    # Cards of older versions do not store whether extra images were compared.
    found["extra-not-compared"] = not card.data.get("extra", {}).get("compared", True)
    return sentences(found, card=card, images=images)


def of_use(card: Card, masks: Sequence[str]) -> dict[str, str]:
    """Return the warnings about the probe and attacks that are only bounds, given the raised flags of `MASKING`."""
    bounds = [column for column in ordinary(card) if column.attack.bound]
    bound = {"names": listed(one.name for one in bounds), "bound": bounds[0].attack.bound} if bounds else {}
    alone = not any(isinstance(column.attack, AutoAttack) for column in ordinary(card))
    masks = [flag for flag in masks if not (alone and flag == "autoattack-far-below-pgd")]  # a bound raised it
    attacked = any(column.norm is not None and not column.is_transfer for column in card.columns)
    probed, images = int(card.probe.get("images", FEW_PROBED)), len(card.labels)
    found: Found = {
        "quick-misled" if masks else "quick-is-a-bound": bound,
        "not-probed": attacked and not card.probe,
        "probe-small": probed < min(FEW_PROBED, images),
    }
    return sentences(found, masks=listed(masks), probed=probed, images=images)
