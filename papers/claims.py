"""The claims of both papers: one function each, its docstring the claim with its place in the paper, and the reason of
a verdict that no comparison of runs gives.

Rules and sizes were written before the runs, but for what docs/reproduce.md names.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from items import items
from paired import attacks_on
from rules import (
    Study,
    Verdict,
    Word,
    balanced,
    bound_gaps,
    differ,
    fails,
    more_separable,
    orders_reversed,
    published_order,
    row,
    settled,
    steady,
    within,
)

from taet.evaluation import ResultCard
from taet.formatting import percent, percent_interval

C, R = functools.partial(row, "taet"), functools.partial(row, "reat")
"""Runs of TAET's and of REAT's paper."""
AA = "autoattack"
OTHERS = ("at-bsl", "robal", "at", "adt", "reat", "las-at", "he", "gairat")
"""The methods of TAET's table 1 but TAET, MART and TRADES."""


def _value(card: ResultCard, attack: str) -> str:
    """Return balanced accuracy with its interval."""
    found = card.summary(attack)
    return f"{percent(found.balanced)} % ({percent_interval(*found.balanced_interval)})"


def C1(at: Study) -> Verdict:
    """TAET beats AT-BSL by 5.31 points of balanced accuracy under AutoAttack (6.2 and table 1)"""
    outside = [
        "cifar10-lt-methods: taet - at-bsl",
        "cifar10-lt-ir10: taet - at-bsl",
        "digits-lt-methods: taet - at-bsl",
    ]
    return differ(at, [(C("taet"), C("at-bsl"))], {AA: 5.31}, outside=outside)


def C2(at: Study) -> Verdict:
    """TAET is 1.93 points of clean balanced accuracy above AT-BSL (table 1)"""
    outside = [
        "cifar10-lt-precision: taet-bf16 - at-bsl-bf16",
        "cifar10-lt-ir10: taet - at-bsl",
        "ham10000: taet - at-bsl",
    ]
    return differ(at, [(C("taet"), C("at-bsl"))], {"clean": 1.93}, outside=outside)


def C3(at: Study) -> Verdict:
    """Under AutoAttack the eleven methods have the order of table 1 (table 1)"""
    return published_order(at, items()["taet/table1"], AA)


def C4(at: Study) -> Verdict:
    """MART is the second best under AutoAttack, and TRADES the worst (table 1)"""
    second = [(C("taet"), C("mart")), *((C("mart"), C(other)) for other in OTHERS)]
    worst = [(C(other), C("trades")) for other in (*OTHERS[:3], "mart", *OTHERS[3:], "taet")]
    outside = ["cifar10-lt-methods: mart - at-bsl", "cifar10-lt-methods: at - trades"]
    return differ(at, second + worst, {AA: 0}, outside=outside)


def C5(at: Study) -> Verdict:
    """REAT is below AT and AT-BSL under AutoAttack (table 1, against REAT's own paper)"""
    outside = ["cifar10-lt-methods: at-bsl - reat", "digits-lt-methods: at-bsl - reat"]
    return differ(at, [(C("at"), C("reat")), (C("at-bsl"), C("reat"))], {AA: 0}, outside=outside)


def C6(at: Study) -> Verdict:
    """TAET is better than AT-BSL on tail classes under PGD-20 (table 2)"""
    outside = ["cifar10-lt-methods: taet - at-bsl"]
    return differ(at, [(C("taet"), C("at-bsl"))], {"pgd-20": 0}, ranks=(7, 10), outside=outside)


def C7(at: Study) -> Verdict:
    """The clean stage adds 7.19 points of clean accuracy and 1.04 under AutoAttack (6.3)"""
    return differ(at, [(C("taet"), C("harl"))], {"clean": 7.19, AA: 1.04}, outside=["cifar10-lt-methods: taet - harl"])


def C8(at: Study) -> Verdict:
    """40 of 100 clean epochs are the best split (figure 7)"""
    others = [C("harl"), *(C("taet", clean_share=share) for share in (0.2, 0.6, 0.8))]
    return differ(at, [(C("taet"), other) for other in others], {AA: 0})


def C9(at: Study) -> Verdict:
    """HEL is better than balanced softmax on tail classes under attack (3.2)"""
    outside = ["cifar10-lt-methods: harl - at-bsl"]
    return differ(at, [(C("harl"), C("at-bsl"))], {AA: 0}, ranks=(7, 10), outside=outside)


def C10(at: Study) -> Verdict:
    """The three terms of HEL together are better than each alone (6.4 and figure 6)"""
    alone = [C("taet", beta=0, gamma=0), C("taet", alpha=0, gamma=0), C("taet", alpha=0, beta=0)]
    return differ(at, [(C("taet"), one) for one in alone], {"pgd-20": 0})


def C11(at: Study) -> Verdict:
    """The weights of HEL hardly matter: within 4 points under PGD-20 (table 4)"""
    weights = [(a, b, c) for b in (0.1, 0.05) for a, c in ((0.1, 0.1), (0.1, 0.05), (0.05, 0.1), (0.05, 0.05))]
    others = [C("taet", alpha=a, beta=b, gamma=c) for a, b, c in weights if (a, b, c) != (0.1, 0.1, 0.1)]
    return differ(at, [(C("taet"), other) for other in others], {"pgd-20": 4}, within)


def C12(at: Study) -> Verdict:
    """Ten training steps are 11.4 points better under AutoAttack than five (table 9)"""
    return differ(at, [(C("taet"), C("taet", steps=5))], {AA: 11.4})


def C13(at: Study) -> Verdict:
    """Clean accuracy stays within 6 points from 5 to 40 training steps (B.4 and table 9)"""
    five, *more = (C("taet", steps=steps) for steps in (5, 20, 30, 40))
    pairs = [(C("taet"), five), *((C("taet"), one) for one in more), *((five, one) for one in more)]
    return differ(at, pairs, {"clean": 6}, within)


def C14(at: Study) -> Verdict:
    """Training steps of 3/255 are 6.57 points better under AutoAttack than steps of 1/255 (table 10)"""
    return differ(at, [(C("taet", step_size="3/255"), C("taet", step_size="1/255"))], {AA: 6.57})


def C15(_: Study) -> Verdict:
    """AT-BSL overfits: its robustness peaks at epoch 25 and declines (3.2 and figure 2)

    Missing: curves at scale full, as overfitting depends on the size of the network; ResNet-8 (scale cpu) is most
    robust at its last epoch.
    """
    return settled("not tested")


def C16(_: Study) -> Verdict:
    """TAET removes robust overfitting (figure 8)

    Missing: curves at scale full.
    """
    return settled("not tested")


def C17(at: Study) -> Verdict:
    """TAET is more robust at every imbalance ratio (table 5)"""
    pairs = [(C("taet", ratio=ratio), C("at-bsl", ratio=ratio)) for ratio in (10, 20, 50, 100)]
    return differ(at, pairs, {AA: 0})


def C18(at: Study) -> Verdict:
    """TAET has the better clean accuracy on CIFAR-100-LT, imbalance ratio 10 (table 8)"""
    return differ(at, [(C("taet", "cifar100-lt"), C("at-bsl", "cifar100-lt"))], {"clean": 0})


def C19(_: Study) -> Verdict:
    """AT-BSL fails completely on ViT-B/16, and TAET does not (table 11)

    With the published SGD AT-BSL does not train a small ViT here either (digits), and with AdamW it does, so the
    optimiser is the cause. TAET begins with clean epochs, which SGD trains; it was not run on a ViT.
    """
    return settled("undecided", "digits-lt-vit: at-bsl-adamw - at-bsl-sgd")


def C20(at: Study) -> Verdict:
    """TAET is the most robust method on DermaMNIST (table 3)"""
    mine, *others = (C(m, "dermamnist", model="vit-b16") for m in ("taet", "at-bsl", "trades", "mart", "adt"))
    return differ(at, [(mine, other) for other in others], {AA: 0})


def C21(at: Study) -> Verdict:
    """A larger gamma would help the rarest classes (6.2)"""
    usual, larger = C("taet", "dermamnist", model="vit-b16"), C("taet", "dermamnist", model="vit-b16", gamma=0.2)
    return differ(at, [(larger, usual)], {"pgd-20": 0}, ranks=(5, 7))


def C22(_: Study) -> Verdict:
    """Two stages save 39.2 % of the time, nearly halving it (B.1 and appendix C)

    The number comes from equation 13, which has an error. Equation 12 with the paper's own constants gives eta =
    0.656, that is 34.4 %; results/cost-model.json and results/cost.json measure 0.64 and 0.68, that is 36 and 32 %:
    a third, not nearly half.
    """
    return settled("does not hold")


def C23(_: Study) -> Verdict:
    """The clean stage saves 1629 MB (appendix D)

    Clean and adversarial steps differ by 0.4 MB on a CPU with ResNet-8 at batch size 32 (results/cost.json); no GPU
    was measured.
    """
    return settled("undecided")


def C24(_: Study) -> Verdict:
    """The column CW shows robustness (table 1)

    It is an L2 attack without a bound, stopped after 100 steps: with a search for its constant it leaves 2.6 to 5.2 %
    where it left 12 to 15 % (results/cifar10-lt-attacks).
    """
    attacks = ("cw-l2", "cw-l2:c=search,steps=30")
    return settled("does not hold", "cifar10-lt-attacks: at-bsl", attacks=attacks)


def C25(at: Study) -> Verdict:
    """AutoAttack with 10 iterations, as in the public code, is within 0.5 points of the official one (public code)"""
    outside = ["cifar10-lt-attacks: taet", "digits-lt-attacks: taet"]
    attacks = ("autoattack-10", AA)
    return differ(at, [(C("taet"), C("taet"))], {AA: 0.5}, within, attacks=attacks, outside=outside)


def C26(at: Study) -> Verdict:
    """Plain accuracy orders the methods in another way than balanced accuracy (5 and table 6)"""
    return orders_reversed(at, items()["taet/table1"], ("clean", AA))


# The claims of REAT.


def R1(_: Study) -> Verdict:
    """RBL makes five times as many adversarial examples predicted as tail classes (4.1)

    Under sign steps in eval mode a weight on the loss of an image moves no example (tests/methods/test_findings.py);
    what the paper saw can only come from balanced softmax.
    """
    return settled("does not hold")


def R2(_: Study) -> Verdict:
    """RBL balances the predicted classes of the examples (figure 5)

    As R1: RBL changes no example.
    """
    return settled("does not hold")


def R3(_: Study) -> Verdict:
    """RBL increases the distance between the examples of consecutive epochs for tail classes (figure 3)

    As R1: RBL changes no example, and so no distance between examples.
    """
    return settled("does not hold")


def R4(at: Study) -> Verdict:
    """Predictions of adversarial examples are stable between epochs (4.1)"""
    return steady(at, [R("at-bsl"), R("reat")], most=0.05)


def R5(at: Study) -> Verdict:
    """REAT beats AT-BSL by 0.93 points under AutoAttack (tables 1 to 3 and 8)"""
    outside = ["cifar10-lt-methods: reat - at-bsl", "digits-lt-methods: reat - at-bsl"]
    found = differ(at, [(R("reat"), R("at-bsl"))], {AA: 0.93}, outside=outside)
    paper = [card for card in at.cards(R("reat", form="paper")).values() if AA in attacks_on(card)]
    said = (f"reat (form paper) clean {_value(card, 'clean')}, autoattack {_value(card, AA)}" for card in paper)
    return replace(found, outside=(*said, *found.outside))


def R6(_: Study) -> Verdict:
    """TAIL enlarges the feature space of tail classes (4.2)

    The public code's term is 1/D of equation 3 and has the opposite sign: it pulls tail features towards other
    classes (docs/methods/reat.md). Equation 3 pushes them away, but has no lower bound: training with it diverges
    (R5).
    """
    return settled("does not hold")


def R7(_: Study) -> Verdict:
    """Class weights in the attack (RW, RWS, ENR, RBL) change robustness (table 2)

    Under sign steps in eval mode none of the four moves an example; in float64 the examples are equal bit by bit.
    BRW alone has an effect. A run in bf16 with one of the four differs from the run without it (RW in table 2) as
    far as rounding in its attack moves examples.
    """
    return settled("does not hold")


def R8(at: Study) -> Verdict:
    """Balanced softmax is 3 points (AutoAttack) and 12 (clean) above focal, class-balanced, LDAM losses (table 1)"""
    others = [R("at", outer=loss) for loss in ("focal", "class-balanced", "ldam")]
    return differ(at, [(R("at-bsl"), other) for other in others], {AA: 3, "clean": 12})


def R9(at: Study) -> Verdict:
    """REAT improves on AT with every loss (table 1)"""
    pairs = [(R("reat", outer=loss), R("at", outer=loss)) for loss in ("focal", "class-balanced", "ldam")]
    return differ(at, [*pairs, (R("reat"), R("at-bsl"))], {AA: 0})


def R10(at: Study) -> Verdict:
    """PGD-AT is better than TRADES and MART (table 7)"""
    folders, others = ("cifar10-lt-methods", "digits-lt-methods"), ("trades", "mart")
    outside = [f"{folder}: at - {other}" for folder in folders for other in others]
    return differ(at, [(R("at"), R(other)) for other in others], {AA: 0}, outside=outside)


def R11(at: Study) -> Verdict:
    """TRADES, MART and AWP do not converge with balanced softmax (5 and appendix D)"""
    rows = [R("trades", outer="balanced-softmax"), R("mart", outer="balanced-softmax"), R("at-bsl", awp=0.01)]
    folder = "digits-lt-methods/ra+bsl"
    return fails(at, rows, 2, f"{folder}: trades - at", f"{folder}: mart - at")


def R12(at: Study) -> Verdict:
    """RoBal's robustness is masked: an attack on scaled logits takes 4.9 points (table 3)"""
    attacks = ("adaptive-pgd-20:factor=0.1", "pgd-20")  # the paper's PGD-20 at scale 1, and its adaptive one at 10
    return differ(at, [(R("robal"), R("robal"))], {"pgd-20": 4.92}, attacks=attacks)


def R13(at: Study) -> Verdict:
    """RoBal neglects the body classes (5.2 and figure 5)"""
    outside = ["cifar10-lt-methods: reat - robal", "digits-lt-methods: reat - robal"]
    return differ(at, [(R("reat"), R("robal"))], {AA: 0}, ranks=(4, 6), outside=outside)


def R14(at: Study) -> Verdict:
    """Imbalance costs more than lack of data: as many balanced images give 6.6 points under AutoAttack (table 8)"""
    return differ(at, [(R("at", "cifar10-balanced-small"), R("at-bsl"))], {AA: 6.6})


def R15(_: Study) -> Verdict:
    """The gap between balanced and long-tailed training images is smaller on CIFAR-100 than on CIFAR-10 (table 9)

    Missing: the gaps of tables 8 and 9 at one scale.
    """
    return settled("not tested")


def R16(_: Study) -> Verdict:
    """REAT takes 5 to 8 seconds more than the 42 to 46 of an epoch of AT (table 14)

    An epoch of REAT takes 0.95 to 1.02 of one of AT here (results/cost-model.json, results/cost.json); the loop
    over images of the public TAIL is the cause.
    """
    return settled("does not hold")


def R17(at: Study) -> Verdict:
    """It is easier to lift clean accuracy than robustness (5.2)"""
    outside = ["cifar10-lt-ir10: at-bsl - at", "cifar10-lt-methods: at-bsl - at"]
    return differ(at, [(R("at-bsl"), R("at"))], {"clean": 0}, less=AA, outside=outside)


def R18(at: Study) -> Verdict:
    """The robust risk is at least the mean over classes of natural error and disagreement (theorem 1)"""
    gaps = [(card, found) for one in at.runs.every if (found := bound_gaps(card := one.card))]
    most = [max(found.values()) for _, found in gaps]
    strongest = [found[min(found, key=functools.partial(balanced, card))] for card, found in gaps]
    broken, decided = (sum(gap > 1e-9 for gap in of) for of in (most, strongest))
    said = f"{broken} of {len(gaps)} committed cards exceed the bound under one of their attacks ({decided} under the "
    why = "an image that is misclassified and changes its class under attack is counted twice"
    word: Word = "does not hold" if broken else "undecided"
    return Verdict(word, (f"{said}strongest), by up to {100 * max(most):.1f} points: {why}",))


def R19(at: Study) -> Verdict:
    """Features are more separable with REAT (smoothed in the paper, not smoothed here) (figure 10)"""
    return more_separable(at, R("reat"), R("at-bsl"))


def R20(at: Study) -> Verdict:
    """REAT beats AT-BSL under L2 attacks, too, at imbalance ratio 50 (table 12)"""
    return differ(at, [(R("reat"), R("at-bsl"))], {"pgd-l2-20": 0})
