"""The flags: when the numbers of a card, or the outputs of a model, cannot be trusted, and why.

Each function below is the condition of one flag. It returns None if the flag is not raised, else
the values that the flag's sentence and remedy name. `FLAGS` holds the flags in the order of the
file, in which cards store them; nothing else depends on the order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import numpy as np

from taet.attacks.autoattack import MAX_TARGETS, AutoAttack
from taet.attacks.pgd import WHOLE_RANGE, ProjectedAscent
from taet.card.card import Card, CardFlag
from taet.card.column import Column
from taet.card.facts import ModelFacts
from taet.data.notes import repeated_in_training
from taet.evaluation.attack_sets import curves
from taet.evaluation.contrasts import (
    PROBED_MISS,
    BrokenCounts,
    Contrast,
    Z,
    correct_share,
    crosses,
    differing,
    exceeds,
    is_plain,
    is_thorough,
    misses_too_many,
    on_the_model,
    ordinary,
    plain_pgds,
    worst_beyond,
    worst_miss,
)
from taet.flags import FlagList, SentenceValues
from taet.formatting import join_words, percent, percent_interval
from taet.metrics import accuracies

# PGD-20 to PGD-100: the largest gap that a method without masked gradients shows in the papers
# (TAET, table 1; REAT, table 12)
CONVERGENCE_GAP = {"linf": 0.015, "l2": 0.022}
SAMPLE_GAP = 0.04  # of the probe's few images, between two attacks that differ in one operation
# share that finitely many steps leave of images that all must break (arXiv:1802.00420, section 3.1)
REMAINDER = 0.01
# thresholds of the official AutoAttack: Square, and randomised models
SQUARE_GAP, REPEAT_DIFFERENCE = 0.002, 1e-4
# Assumed share of images on which two methods disagree: about 1000 images then resolve 3 points in
# a paired comparison.
DISAGREEMENT, COARSE_COMPARISON = 0.25, 0.03
# fewer images may hide a gap: only 6 or more that the stronger attack alone breaks exceed chance
FEW_PROBED = 100

About = Literal["attacks", "model", "test images", "evaluation", "kind of model"]
"""What a flag is about, which decides what its condition is given: `attacks` and `test images` a
card, `evaluation` a `Use`, `model` a `ModelFacts`, `kind of model` the counts of
`taet.evaluation.probe.deep_facts`."""

OF_FEW_CLASSES = {
    2: "lacks APGD-T, which needs four classes",
    3: "has APGD-DLR in place of APGD-T, which needs four classes",
}
"""How AutoAttack differs from the standard suite."""
FLAGS = FlagList()
flag = FLAGS.flag


def raised_about(about: About, subject: object) -> dict[str, str]:
    """Return the texts of the flags about one subject that their conditions raise, by name."""
    return FLAGS.raised(about, subject)


def raised(card: Card) -> dict[str, str]:
    """Return the texts of the flags that a card raises today, by name, in the order of `FLAGS`."""
    texts = raised_about("attacks", card) | raised_about("test images", card)
    if card.facts:
        texts |= raised_about("model", card.facts)
    masking = [each.name for each in FLAGS if each.name in texts and each.name in MASKING]
    texts |= raised_about("evaluation", Use(card, masking))
    return {each.name: texts[each.name] for each in FLAGS if each.name in texts}


def flagged(card: Card) -> Card:
    """Return a card with the flags that it raises today."""
    flags = [CardFlag(flag=name, text=text) for name, text in raised(card).items()]
    return card.changed(flags=tuple(flags))


# Of attacks


@flag(
    "pgd-too-short",
    "attacks",
    "{names} cannot cross the ball: the steps add up to less than its width",
    "use more steps or longer ones",
)
def _pgd_too_short(card: Card) -> SentenceValues | None:
    short = []
    for column in on_the_model(card):
        # The curve over the steps begins with PGD runs that are short on purpose.
        is_pgd = isinstance(column.attack, ProjectedAscent) and column.curve != "steps"
        if is_pgd and not crosses(column):
            short.append(column.name)
    return {"names": join_words(short)} if short else None


@flag(
    "one-step-beats-many-step",
    "attacks",
    "{stronger.name} breaks more images than {weaker.name} ({gap}), which cannot happen with sound "
    "gradients: the model masks them (Athalye et al. 2018)",
    "report AutoAttack, not PGD",
    masks_gradients=True,
)
def _one_step_beats_many_step(card: Card) -> SentenceValues | None:
    single = [one for one in ordinary(card) if one.attack.one_step and is_plain(one)]
    pairs = [Contrast(one, pgd) for one in single for pgd in plain_pgds(card)]
    return worst_beyond(pair for pair in pairs if pair.stronger.ball == pair.weaker.ball)


@flag(
    "pgd-not-converged",
    "attacks",
    "{stronger.name} is far below {weaker.name} ({gap}): PGD has not converged, so the true "
    "robustness is lower",
    "use more steps and AutoAttack",
    masks_gradients=True,
)
def _pgd_not_converged(card: Card) -> SentenceValues | None:
    longer = []
    for effort in ("steps", "restarts"):
        for pair in differing(plain_pgds(card), effort):
            more, fewer = (column.parameters.get(effort, 1) for column in pair)
            if more > fewer:
                longer.append(pair)
    for norm, gap in CONVERGENCE_GAP.items():
        values = worst_beyond((pair for pair in longer if pair.stronger.norm == norm), gap)
        if values is not None:
            return values
    return None


@flag(
    "autoattack-far-below-pgd",
    "attacks",
    "{stronger.name} is far below {weaker.name} ({gap}): the model resists PGD better than other "
    "attacks, a sign of gradient masking",
    "report AutoAttack, not PGD",
    masks_gradients=True,
)
def _autoattack_far_below_pgd(card: Card) -> SentenceValues | None:
    return worst_miss(suite_contrasts(card), card)


def suite_contrasts(card: Card) -> list[Contrast]:
    """Return each AutoAttack, else each bound like quick, with the strongest PGD in its ball."""
    suites = [column for column in ordinary(card) if isinstance(column.attack, AutoAttack)]
    if not suites:
        suites = [column for column in ordinary(card) if column.attack.bound]
    pairs = []
    for suite in suites:
        inside = [pgd for pgd in plain_pgds(card) if pgd.ball == suite.ball]
        if inside:
            strongest = min(inside, key=lambda pgd: pgd.correct.mean())
            pairs.append(Contrast(suite, strongest))
    return pairs


@flag(
    "margin-beats-cross-entropy",
    "attacks",
    "{stronger.name} is far below {weaker.name} ({gap}): PGD on the cross-entropy is weaker on "
    "this model than usual, a sign of gradient masking",
    "report AutoAttack, not PGD",
    masks_gradients=True,
)
def _margin_beats_cross_entropy(card: Card) -> SentenceValues | None:
    pairs = []
    for pair in differing(ordinary(card), "objective"):
        is_margin = getattr(pair.stronger.attack, "objective", "") == "cw"
        if is_margin and "objective" not in pair.weaker.parameters:
            pairs.append(pair)
    return worst_miss(pairs, card)


@flag(
    "adaptive-beats-plain",
    "attacks",
    "With logits times {stronger.parameters[factor]:g} in its objective, {weaker.name} breaks many "
    "more images ({gap}): the scale of the logits weakens the plain attack, which overestimates "
    "robustness",
    "report the adaptive attack and AutoAttack",
    masks_gradients=True,
)
def _adaptive_beats_plain(card: Card) -> SentenceValues | None:
    pairs = differing(on_the_model(card), "factor")
    return worst_miss((pair for pair in pairs if "factor" not in pair.weaker.parameters), card)


@flag(
    "transfer-beats-white-box",
    "attacks",
    "{stronger.name}, whose examples were made on another model, breaks more images than the "
    "white-box attack {weaker.name} ({gap}): with sound gradients the white-box attack is stronger",
    "report AutoAttack, not PGD",
    masks_gradients=True,
)
def _transfer_beats_white_box(card: Card) -> SentenceValues | None:
    def pairs() -> Iterator[Contrast]:
        for transfer in card.columns:
            if not transfer.is_transfer:
                continue
            for own in on_the_model(card):
                if transfer.attack.typed == own.name and transfer.ball == own.ball:
                    yield Contrast(transfer, own)

    return worst_beyond(pairs())


@flag(
    "black-box-beats-gradients",
    "attacks",
    "{attack}, which uses no gradient, {broke}: the model's gradients mislead attacks",
    "use more queries and an adaptive attack",
    masks_gradients=True,
)
def _black_box_beats_gradients(card: Card) -> SentenceValues | None:
    return _black_box_part(card) or _black_box_attack(card)


def _black_box_part(card: Card) -> SentenceValues | None:
    """Return the gradient-free part of a suite that breaks what its other parts did not."""
    usual = SQUARE_GAP * len(card.labels)
    for column in card.columns:
        gradient_free = getattr(column.attack, "gradient_free_parts", ())
        for (_, before), (part, after) in pairwise(column.parts.items()):
            broken = int(before.sum() - after.sum())
            if part in gradient_free and exceeds(broken, 0, usual):
                points = f"{100 * broken / len(card.labels):.1f}"
                broke = f"broke another {points} points after the gradient-based parts of"
                return {"attack": part.capitalize(), "broke": f"{broke} {column.name}"}
    return None


def _black_box_attack(card: Card) -> SentenceValues | None:
    """Return the gradient-free attack that breaks most images that no gradient-based one does."""
    white_box, black_box = list[Column](), list[Column]()
    for column in ordinary(card):
        if column.attack.gradient_free:
            black_box.append(column)
        elif column.norm is not None:
            white_box.append(column)
    missed: dict[str, int] = {}
    for column in black_box:
        inside = [white for white in white_box if white.ball == column.ball]
        if any(is_thorough(white) for white in inside):
            left = np.logical_and.reduce([white.correct for white in inside])
            missed[column.name] = int((left & ~column.correct).sum())
    if not missed:
        return None
    name = max(missed, key=lambda attack: missed[attack])
    if not exceeds(missed[name], 0, SQUARE_GAP * len(card.labels)):
        return None
    share = f"{100 * missed[name] / len(card.labels):.1f}"
    broke = f"breaks images that no gradient-based attack breaks ({share} % of all)"
    return {"attack": name, "broke": broke}


@flag(
    "does-not-reach-zero",
    "attacks",
    "{name} leaves {share} of the images correct although its ball contains every image: the model "
    "masks its gradients, or always predicts the same class",
    "use Square and other attacks without gradients",
    masks_gradients=True,
)
def _does_not_reach_zero(card: Card) -> SentenceValues | None:
    for eps, column in curves(card)["eps"].items():
        if eps >= WHOLE_RANGE and crosses(column) and column.correct.mean() > REMAINDER:
            return {"name": column.name, "share": correct_share(column)}
    return None


@flag(
    "accuracy-rises-with-eps",
    "attacks",
    "{weaker.name} leaves {high} of the images correct, {stronger.name} in a smaller ball only "
    "{low}: accuracy cannot rise with eps, so PGD fails (masked gradients, or too few steps)",
    "use more steps and AutoAttack",
    masks_gradients=True,
)
def _accuracy_rises_with_eps(card: Card) -> SentenceValues | None:
    attacked = [column for eps, column in curves(card)["eps"].items() if eps > 0]
    pairs = [Contrast(small, large) for small, large in combinations(attacked, 2)]
    return worst_beyond(pairs, REMAINDER)


@flag(
    "unbounded-attack-not-converged",
    "attacks",
    "{rest} of the images correct, but an unbounded attack can break all: the number does not "
    "measure robustness",
    "use cw-l2:c=search, longer attacks (cw-l2:steps=1000), or attacks in a ball",
)
def _unbounded_attack_not_converged(card: Card) -> SentenceValues | None:
    rest = []
    for column in on_the_model(card):
        is_unbounded = column.norm is not None and not column.bounded
        if is_unbounded and column.correct.mean() > REMAINDER:
            rest.append(f"{column.name} leaves {correct_share(column)}")
    return {"rest": join_words(rest)} if rest else None


@flag(
    "autoattack-variant",
    "attacks",
    "With {classes} classes, AutoAttack is not the standard suite: it {difference}",
)
def _autoattack_variant(card: Card) -> SentenceValues | None:
    classes = card.num_classes
    if not any(column.parameters.get("note") for column in ordinary(card)):
        return None
    difference = OF_FEW_CLASSES.get(
        classes,
        f"attacks all {classes - 1} other classes, and the standard suite attacks {MAX_TARGETS}",
    )
    return {"classes": classes, "difference": difference}


# Of the model


@flag(
    "randomised",
    "model",
    "Two forward passes of the same images give different logits (by {facts.repeat_difference:.2g} "
    "at unit length): every number is one random draw, and attacks on the gradient of a single "
    "draw are too weak",
    "attack the mean of many draws (EOT)",
    masks_gradients=True,
)
def _randomised(facts: ModelFacts) -> SentenceValues | None:
    return {"facts": facts} if facts.repeat_difference > REPEAT_DIFFERENCE else None


@flag(
    "changes-between-calls",
    "model",
    "The logits of the same images change after forward passes of other images: the model keeps "
    "state, so no two attacks ran on the same model",
    "do not update state in eval mode and evaluate again",
    masks_gradients=True,
)
def _changes_between_calls(facts: ModelFacts) -> SentenceValues | None:
    if _randomised(facts) is not None:
        return None
    return {} if facts.later_difference > REPEAT_DIFFERENCE else None


def _is_fixed(facts: ModelFacts) -> bool:
    """Return whether equal calls of the model give equal logits."""
    return _randomised(facts) is None and _changes_between_calls(facts) is None


@flag(
    "batch-dependent",
    "model",
    "The logits of an image depend on the other images in its batch (by "
    "{facts.batch_difference:.2g} at unit length), as with batch statistics in eval mode: every "
    "number holds only for batches of {facts.batch_size} in this order, and an attack on one image "
    "changes the predictions for others",
    "use running statistics and evaluate again",
    masks_gradients=True,
)
def _batch_dependent(facts: ModelFacts) -> SentenceValues | None:
    depends = facts.batch_difference > REPEAT_DIFFERENCE
    return {"facts": facts} if depends and _is_fixed(facts) else None


@flag(
    "nonfinite-gradients",
    "model",
    "On {facts.nonfinite_gradients} of {facts.images} tested images, or during PGD from them, a "
    "logit or the gradient is not finite, so no gradient-based attack can be trusted",
    "look for a square root, norm or logarithm of 0",
    masks_gradients=True,
)
def _nonfinite_gradients(facts: ModelFacts) -> SentenceValues | None:
    return {"facts": facts} if facts.nonfinite_gradients > 0 else None


@flag(
    "softmax-outputs",
    "model",
    "The model's outputs are all between 0 and 1, as after a softmax or sigmoid, not logits: its "
    "gradients nearly vanish, so gradient-based attacks, AutoAttack too, are too weak",
    "return the input of that layer",
    masks_gradients=True,
)
def _softmax_outputs(facts: ModelFacts) -> SentenceValues | None:
    return {} if facts.distributions == facts.images else None


@flag(
    "zero-gradients",
    "model",
    "The gradient is exactly zero on {facts.zero_gradients} of {facts.clean_correct} correctly "
    "classified images (a saturated cross-entropy, or an operation without a gradient), so PGD "
    "cannot change them",
    "use Square, and attack with smaller logits or a differentiable replacement (BPDA)",
    masks_gradients=True,
)
def _zero_gradients(facts: ModelFacts) -> SentenceValues | None:
    return {"facts": facts} if facts.zero_gradients > 0 else None


@flag(
    "logit-scale",
    "model",
    "With logits times {facts.logit_factor:.3g} in its objective, PGD-20 leaves {shares}: with "
    "logits this {why}, so PGD overestimates robustness",
    "report AutoAttack",
    masks_gradients=True,
)
def _logit_scale(facts: ModelFacts) -> SentenceValues | None:
    counts = BrokenCounts(
        only_stronger=facts.only_pgd_correct,
        only_weaker=facts.only_scaled_pgd_correct,
        # PGD may correct an image that is misclassified without it.
        broken=max(facts.clean_correct - facts.scaled_pgd_correct, facts.only_pgd_correct),
    )
    if not misses_too_many(counts, PROBED_MISS):
        return None
    why = "large the cross-entropy and its gradients are rounded to zero"
    if facts.logit_factor > 1:
        why = (
            "small (scaled down, or hardly trained) the cross-entropy pushes towards all other "
            "classes at once instead of the nearest"
        )
    shares = _shares(facts.scaled_pgd_correct, facts.pgd_correct, facts.images)
    return {"facts": facts, "shares": shares, "why": why}


@flag(
    "gradient-path-differs",
    "model",
    "The logits of the same images differ with and without gradients (by "
    "{facts.gradient_difference:.2g} at unit length), so attacks follow the gradient of a "
    "different function than the one that is evaluated",
    "make forward independent of whether gradients are recorded",
)
def _gradient_path_differs(facts: ModelFacts) -> SentenceValues | None:
    differs = facts.gradient_difference > REPEAT_DIFFERENCE
    return {"facts": facts} if differs and _is_fixed(facts) else None


@flag(
    "straight-through-beats-gradients",
    "model",
    "With the identity as the derivative of operations that stop the gradient, PGD-20 leaves "
    "{shares}: operations in the model stop or distort its gradient, so gradient-based attacks "
    "overestimate robustness",
    "attack with a differentiable replacement (BPDA)",
    masks_gradients=True,
)
def _straight_through_beats_gradients(facts: ModelFacts) -> SentenceValues | None:
    return beaten(vars(facts), "straight_pgd", "scaled_pgd") if facts.replaced else None


@flag(
    "soft-beats-hard",
    "model",
    "On the margin of the model with smooth operations instead of rounding and thresholds, PGD-20 "
    "leaves {shares}: operations in the model stop or distort its gradient, so gradient-based "
    "attacks overestimate robustness",
    "attack with a differentiable replacement (BPDA)",
    masks_gradients=True,
)
def _soft_beats_hard(facts: ModelFacts) -> SentenceValues | None:
    if not facts.replaced or _straight_through_beats_gradients(facts) is not None:
        return None
    return beaten(vars(facts), "smooth_pgd", "scaled_pgd")


def beaten(facts: Mapping[str, int], stronger: str, weaker: str) -> SentenceValues | None:
    """Return the shares that two attacks leave correct, if they differ by over 4 points and chance.

    `facts` counts `x_correct`, and `only_x_correct` for the stronger attack (`ModelFacts`).
    """
    left, kept = facts[f"{stronger}_correct"], facts[f"{weaker}_correct"]
    only_weaker = facts[f"only_{stronger}_correct"]
    is_large = (kept - left) / facts["images"] > SAMPLE_GAP
    if not is_large or not exceeds(kept - left + only_weaker, only_weaker):
        return None
    return {"shares": _shares(left, kept, facts["images"])}


def _shares(left: int, kept: int, images: int) -> str:
    left_share, kept_share = percent(left / images), percent(kept / images)
    return f"{left_share} % of {images} images correct, otherwise {kept_share} %"


# Of the test images


@flag(
    "at-chance",
    "test images",
    "Clean balanced accuracy is {value} % (95 % interval {interval} %), not shown to be above "
    "chance, {chance} %: robustness cannot be measured on these images",
    "{ask}",
)
def _at_chance(card: Card) -> SentenceValues | None:
    tested = _tested_classes(card)
    if card.clean is None or tested < 2:
        return None
    summary = card.summary_of(card.clean)
    if summary.balanced_interval[0] > 1 / tested:
        return None
    ask = "check weights, normalisation and the order of the classes with taet check"
    if card.run:  # which stores its weights, normalisation and classes
        ask = "train longer, or test more images"
    return {
        "value": percent(summary.balanced),
        "interval": percent_interval(*summary.balanced_interval, 0),
        "chance": percent(1 / tested),
        "ask": ask,
    }


def _tested_classes(card: Card) -> int:
    return int((card.test_class_counts > 0).sum())


@flag(
    "class-without-test-images",
    "test images",
    "{absent} no test images: balanced numbers cover the other {tested} of {classes} classes",
)
def _class_without_test_images(card: Card) -> SentenceValues | None:
    counts = zip(card.class_names, card.test_class_counts, strict=True)
    absent = [name for name, count in counts if not count]
    if not absent:
        return None
    have = "have" if len(absent) > 1 else "has"
    return {
        "absent": f"{join_words(absent, most=3)} {have}",
        "tested": _tested_classes(card),
        "classes": card.num_classes,
    }


@flag(
    "few-images-per-class",
    "test images",
    f"{{few}} of {{classes}} classes have fewer than {accuracies.FEW_PER_CLASS} test images "
    "({names}): their numbers, and the balanced ones, are imprecise",
    "read the intervals",
)
def _few_images_per_class(card: Card) -> SentenceValues | None:
    counts = card.test_class_counts
    names = card.class_names  # once: a card makes them of its description
    few = [names[label] for label in accuracies.few_images(counts) if counts[label]]
    if not few:
        return None
    return {"few": len(few), "classes": card.num_classes, "names": join_words(few, most=3)}


@flag(
    "small-test-set",
    "test images",
    f"With {{images}} test images, {{told_apart}}, if they disagree on {100 * DISAGREEMENT:.0f} % "
    "of the images",
    "use a larger test set, and more seeds",
)
def _small_test_set(card: Card) -> SentenceValues | None:
    counts = card.test_class_counts
    # On the same n images of a class the difference of two shares has the variance d / n (McNemar,
    # Psychometrika 1947).
    variances = DISAGREEMENT / counts[counts > 0]
    resolution = Z * math.sqrt(variances.sum()) / _tested_classes(card)
    if resolution <= COARSE_COMPARISON:
        return None
    told_apart = (
        "a difference between two methods is significant (95 %) only above about "
        f"{100 * resolution:.0f} points"
    )
    if resolution >= DISAGREEMENT:
        told_apart = "no difference between two methods is significant (95 %)"
    return {"images": len(card.labels), "told_apart": told_apart}


@flag(
    "selected-on-test-set",
    "test images",
    "The epoch was chosen by its accuracy on the test set, or the method learned from it, so these "
    "numbers are too high",
    "use a validation split of training images, or the last epoch",
)
def _selected_on_test_set(card: Card) -> SentenceValues | None:
    return {} if card.model.get("leak") else None


@flag(
    "test-images-in-training",
    "test images",
    "{repeated}, so these numbers are not those of unseen images for a model trained on them",
    "remove them from train or test",
)
def _test_images_in_training(card: Card) -> SentenceValues | None:
    repeated = repeated_in_training(card.data.get("notes", ()))
    return {"repeated": repeated} if repeated else None


@flag(
    "extra-not-compared",
    "test images",
    "The extra training images may contain some of these test images: they were compared only with "
    "those of the run's own data set",
    "evaluate on the run's own test images",
)
def _extra_not_compared(card: Card) -> SentenceValues | None:
    # Cards of older versions do not store whether extra images were compared.
    return None if card.data.get("extra", {}).get("compared", True) else {}


# Of the evaluation


class Use(NamedTuple):
    """A card, with the names of its flags of masked gradients."""

    card: Card
    masking: Sequence[str]

    @property
    def bounds(self) -> list[Column]:
        """The columns of attacks that only bound the accuracy."""
        return [column for column in ordinary(self.card) if column.attack.bound]

    @property
    def misleading(self) -> list[str]:
        """The flags which say that a bound may be too high, but for the one that a bound raised."""
        if any(isinstance(column.attack, AutoAttack) for column in ordinary(self.card)):
            return [*self.masking]
        return [name for name in self.masking if name != "autoattack-far-below-pgd"]


@flag(
    "quick-misled",
    "evaluation",
    "{names} may be too high on this model, which raises {masks}",
    "use AutoAttack",
)
def _quick_misled(use: Use) -> SentenceValues | None:
    if not use.bounds or not use.misleading:
        return None
    names = join_words(column.name for column in use.bounds)
    return {"names": names, "masks": join_words(use.misleading)}


@flag("quick-is-a-bound", "evaluation", "{names}: {bound}", "report AutoAttack")
def _quick_is_a_bound(use: Use) -> SentenceValues | None:
    if not use.bounds or use.misleading:
        return None
    names = join_words(column.name for column in use.bounds)
    return {"names": names, "bound": use.bounds[0].attack.bound}


@flag(
    "not-probed",
    "evaluation",
    "The probe was turned off, so the model was not tested for problems that mislead attacks, such "
    "as masked gradients",
    "evaluate again without --no-probe",
)
def _not_probed(use: Use) -> SentenceValues | None:
    attacked = any(column.norm is not None for column in on_the_model(use.card))
    return {} if attacked and not use.card.probe else None


@flag(
    "probe-small",
    "evaluation",
    "The probe used only {probed} of {images} images, so it may miss masked gradients",
    "add a longer attack, such as quick",
)
def _probe_small(use: Use) -> SentenceValues | None:
    probed, images = int(use.card.probe.get("images", FEW_PROBED)), len(use.card.labels)
    return {"probed": probed, "images": images} if probed < min(FEW_PROBED, images) else None


# Of `taet check --deep` only


@flag(
    "dummy-classes",
    "kind of model",
    "The model returns {facts[logits]} logits for {facts[classes]} classes, {why}: PGD-20 on all "
    "logits leaves {raw} % of {facts[images]} images correct, on the margin of the largest logit "
    "of each class {merged} %",
    "attack the largest logit of each class",
)
def _dummy_classes(facts: Mapping[str, int]) -> SentenceValues | None:
    if "classes" not in facts:
        return None
    why = "which are merged"
    if beaten(facts, "merged", "raw") is not None:
        why = "so attacks on all logits only raise another logit of the true class"
    raw = percent(facts["raw_correct"] / facts["images"])
    merged = percent(facts["merged_correct"] / facts["images"])
    return {"facts": facts, "why": why, "raw": raw, "merged": merged}


@flag(
    "eot-beats-one-draw",
    "kind of model",
    "PGD-20 with the mean gradient of {facts[draws]} draws leaves {shares}",
    "attack the mean of many draws (EOT)",
)
def _eot_beats_one_draw(facts: Mapping[str, int]) -> SentenceValues | None:
    if "draws" not in facts:
        return None
    values = beaten(facts, "mean", "one")
    return None if values is None else {"facts": facts, **values}


MASKING = frozenset(each.name for each in FLAGS if each.masks_gradients)
"""Names of the flags of masked gradients."""
